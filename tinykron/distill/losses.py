"""What a student is trained on: the weight of each term, how weights move over a run, and which form a term has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from tinykron.errors import TinykronError

FORMS = {  # where papers differ
    "attention_form": ("probabilities", "scores"),
    "hidden_form": ("mse", "cosine"),
    "logits_form": ("kl", "mse"),
}
OF_THE_TEXT = ("cross_entropy", "next_sentence")  # the terms that need no teacher
RELATIONS = {  # which two of a layer's vectors each relation is of
    "query_relation": ("queries", "queries"),
    "key_relation": ("keys", "keys"),
    "value_relation": ("values", "values"),
    "query_key_relation": ("queries", "keys"),
}


@dataclass(frozen=True)
class Schedule:
    """A weight that moves in a line from `start` to `end` between two shares of the run, and stays there.

    Schedule(0.0, 1.0, until=0.1) is a warm-up; Schedule(1.0, 0.0) falls over the whole run; a number stays.
    """

    start: float
    end: float
    begin: float = 0.0  # share of the run at which it leaves `start`
    until: float = 1.0  # share at which it has reached `end`

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            _check_number(f"schedule {name}", getattr(self, name))
        if not all(map(_is_number, (self.begin, self.until))) or not 0.0 <= self.begin < self.until <= 1.0:
            raise TinykronError(
                f"schedule: found begin {self.begin!r} and until {self.until!r}, expected 0 <= begin < until <= 1"
            )

    def at(self, progress: float) -> float:
        """Return the weight at a share of the run: 0 at its first step, 1 at its last."""
        done = min(1.0, max(0.0, (progress - self.begin) / (self.until - self.begin)))
        return self.start * (1.0 - done) + self.end * done  # exactly start, exactly end

    def __str__(self) -> str:
        where = "" if (self.begin, self.until) == (0.0, 1.0) else f" over {self.begin:g}..{self.until:g} of the run"
        return f"{self.start:g} -> {self.end:g}{where}"


Weight = float | Schedule


@dataclass(frozen=True)
class Losses:
    """A weighted sum of terms; one whose weight is 0 is not computed. A sum over layers follows the layer map.

    Losses() is KnGPT2's, L = a1 L_emb + a2 L_att + a3 L_hid + a4 CE, whose weights the paper leaves open.
    Losses(attention_form="scores", logits=1.0) is KroneckerBERT's, eq. 14: L_Emb + L_Att + L_FFN + L_Logit + L_Student;
    it never defines L_Logit. In pre-training L_Student is the cross-entropy of hidden tokens, and `next_sentence`.
    Losses(0, 0, 0, 0, query_relation=1, key_relation=1, value_relation=1) is MiniLMv2's. DistilBERT's has `logits`,
    `cross_entropy` and `hidden` with hidden_form="cosine".
    """

    embedding: Weight = 1.0  # states that enter the first block: mean squared error over positions and width
    attention: Weight = 1.0  # of each layer: mean over batch, heads and queries (and, of scores, keys); summed
    hidden: Weight = 1.0  # states that leave each block: mean over positions (and, with "mse", width); summed
    cross_entropy: Weight = 1.0  # with the text or the labels, mean over targets that count, in nats
    logits: Weight = 0.0  # KL(teacher || student) times temperature^2 in nats, or squared error: mean over positions
    query_relation: Weight = 0.0  # of the last layer: KL in nats, mean over batch, relation heads and queries
    key_relation: Weight = 0.0
    value_relation: Weight = 0.0
    query_key_relation: Weight = 0.0
    next_sentence: Weight = 0.0  # whether the second text follows the first: mean over the batch, in nats
    attention_form: str = "probabilities"  # KL of what a query attends to; or "scores": MSE before mask and softmax
    hidden_form: str = "mse"  # or "cosine": 1 - cos of the two states
    logits_form: str = "kl"  # or "mse"
    temperature: float = 1.0  # of the logits' KL
    relation_heads: int = 0  # into how many the heads' joint width is cut anew; 0: as the models have them

    def __post_init__(self) -> None:
        for name, choices in FORMS.items():
            if getattr(self, name) not in choices:
                expected = " or ".join(f'"{choice}"' for choice in choices)
                raise TinykronError(f"losses: {name}: found {getattr(self, name)!r}, expected {expected}")
        weights = self._weights()
        for name, weight in weights.items():
            if not isinstance(weight, Schedule):
                _check_number(f"losses: {name}", weight)
        if not _is_number(self.temperature) or self.temperature == 0.0:
            raise TinykronError(f"losses: temperature: found {self.temperature!r}, expected a number above 0")
        heads = self.relation_heads
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 0:
            raise TinykronError(f"losses: relation_heads: found {heads!r}, expected a whole number from 0 on")
        moving = [weight for weight in weights.values() if isinstance(weight, Schedule)]
        for progress in (0.0, *(weight.begin for weight in moving), *(weight.until for weight in moving), 1.0):
            if not self.at(progress):  # weights move in lines: between these places they cannot vanish
                raise TinykronError(f"losses: all weights are 0 at {progress:g} of the run; one has to be above")

    def _weights(self) -> dict[str, Weight]:
        options = (*FORMS, "temperature", "relation_heads")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in options}

    @property
    def terms(self) -> frozenset[str]:
        """The terms that count at some time of the run."""
        return frozenset(
            name
            for name, weight in self._weights().items()
            if (weight.start or weight.end if isinstance(weight, Schedule) else weight)
        )

    @property
    def needs_teacher(self) -> bool:
        return bool(self.terms.difference(OF_THE_TEXT))

    def at(self, progress: float) -> dict[str, float]:
        """Return the weights above 0 at a share of the run, by term."""
        now = {
            name: weight.at(progress) if isinstance(weight, Schedule) else weight
            for name, weight in self._weights().items()
        }
        return {name: weight for name, weight in now.items() if weight}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Losses:
        """Return losses from a table as TOML or JSON has it; what is left out is as in Losses().

        A schedule is a table: hidden = {start = 1.0, end = 0.0}. Raises TinykronError naming a key that is unknown.
        """
        given = {
            name: _known(f"losses: {name}", Schedule, value) if isinstance(value, Mapping) else value
            for name, value in content.items()
        }
        return _known("losses", cls, given)

    def __str__(self) -> str:
        """All that counts, in one line."""
        said = {
            "attention": [self.attention_form] if self.attention_form != "probabilities" else [],
            "hidden": [self.hidden_form] if self.hidden_form != "mse" else [],
            "logits": [f"temperature {self.temperature:g}"] if self.logits_form == "kl" else [self.logits_form],
        }
        parts = []
        for name, weight in self._weights().items():
            if name in self.terms:
                more = said.get(name, [])
                more = [*more, *([f"{self.relation_heads} heads"] if name in RELATIONS and self.relation_heads else [])]
                value = str(weight) if isinstance(weight, Schedule) else f"{weight:g}"
                parts.append(f"{name} {value}" + (f" ({', '.join(more)})" if more else ""))
        return ", ".join(parts)


def _known(what: str, kind: type, content: Mapping[str, Any]) -> Any:
    names = [field.name for field in fields(kind)]
    unknown = [name for name in content if name not in names]
    if unknown:
        raise TinykronError(f"{what}: unknown {', '.join(map(str, unknown))}; expected some of {', '.join(names)}")
    if kind is Schedule and not {"start", "end"} <= set(content):
        raise TinykronError(f"{what}: found {dict(content)}, expected at least start and end")
    return kind(**content)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value < inf


def _check_number(what: str, value: Any) -> None:
    if not _is_number(value):
        raise TinykronError(f"{what}: found {value!r}, expected a number of at least 0")

"""Distillation: teacher and student run side by side on one batch, and are compared outside and inside.

What counts is said in losses.py, what each term computes in distances.py. The student's layer l follows the teacher's
layer layers[l]; where the two are of different width, a learned matrix stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinykron import fused
from tinykron.backend import Array
from tinykron.data.batch import Batch, inputs
from tinykron.distill.distances import (
    attention_kl,
    attention_mse,
    cosine_distance,
    logit_kl,
    mean_squared_error,
    relation_kl,
)
from tinykron.distill.losses import OF_THE_TEXT, RELATIONS, Losses
from tinykron.distill.losses import Schedule as Schedule
from tinykron.errors import ShapeError, TinykronError
from tinykron.models.checks import check_mask
from tinykron.models.transformer import Output
from tinykron.nn import Linear, Module, evaluating, seed_dropout
from tinykron.tensor import Tensor, no_grad

Known = Mapping[str, Array]  # what a teacher said of a batch, by name: "logits", "hidden 3", ...


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy with the targets, the mean over those that count, in nats."""
    return fused.cross_entropy(logits, batch.targets)


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher's layer for each of the student's: evenly spread, the last for the last.

    Every k-th layer where one depth is a multiple of the other; each its own where they are equal. The uniform map of
    TinyBERT (Jiao et al. 2020). Raises ShapeError for a student deeper than its teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ShapeError(f"layer map: {student_layers} student layers for {teacher_layers} teacher layers")
    return [-(-(layer + 1) * teacher_layers // student_layers) - 1 for layer in range(student_layers)]


class Adapters(Module):
    """What a distillation learns beside the student, and leaves behind at its end."""

    def __init__(self) -> None:
        self.embedding: Linear | None = None  # TinyBERT's W_e: (D of the student) -> (D of the teacher)
        self.hidden: Linear | None = None  # its W_h, one for all layers
        self.next_sentence: Linear | None = None  # what the pooler says -> follows, is another: Devlin et al. 2019


@dataclass
class Distillation:
    """A student and what it learns from: `distillation(batch)` is its loss, and the value of each term.

    layers     the teacher's layer for each of the student's; by default `layer_map`
    label_loss (logits, batch) -> scalar: the term "cross_entropy". A task brings its own
    seed       of the adapters' first values
    dropout    False: the student runs without, in training as well. A teacher's states are exact, and a start that was
               fitted to them is pushed off by the noise
    Raises TinykronError for losses that need a teacher where none is given, for a teacher of another vocabulary, and
    for a layer map that does not fit.
    """

    student: Any
    teacher: Any = None
    losses: Losses = field(default_factory=Losses)
    layers: Sequence[int] = ()
    label_loss: Callable[[Tensor, Any], Tensor] = label_loss
    seed: int = 0
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.losses.needs_teacher and self.teacher is None:
            raise TinykronError("distillation: the losses compare with a teacher, and none is given")
        self.causal = self.student.blocks[0].attention.causal
        self.adapters = Adapters()
        generator = np.random.default_rng(self.seed)
        width = len(self.student.norm.weight)
        if self.losses.needs_teacher:
            ours, theirs = (model.config.vocab_size for model in (self.student, self.teacher))
            if ours != theirs:
                raise TinykronError(
                    f"distillation: the student has {ours} tokens and its teacher {theirs}; they read the same ids"
                )
            depth, deepest = len(self.student.blocks), len(self.teacher.blocks)
            self.layers = list(self.layers) or layer_map(depth, deepest)
            if len(self.layers) != depth or not all(0 <= layer < deepest for layer in self.layers):
                found = f"found {self.layers}, expected {depth} teacher layers in 0..{deepest - 1}"
                raise ShapeError(f"layer map: {found}")
            if width != (target := len(self.teacher.norm.weight)):
                for name in sorted(self.losses.terms & {"embedding", "hidden"}):
                    setattr(self.adapters, name, Linear(width, target, bias=False, generator=generator))
        if "next_sentence" in self.losses.terms:
            if self.student.pooler is None:
                raise TinykronError("next_sentence: the student has no pooler to read the first position with")
            self.adapters.next_sentence = Linear(width, 2, generator=generator)
        self.adapters.to(self.device)

    def __call__(
        self, batch: Any, progress: float = 0.0, known: Known | None = None, only: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted loss, and each term's own value before weighting (nats, or squared units).

        progress  share of the run that is over: where schedules are
        known     what the teacher says of this batch, from `ask`; by default it is asked
        only      of the terms that count now, compute these alone
        """
        weights = self.losses.at(progress)
        weights = {name: weight for name, weight in weights.items() if not only or name in only}
        if known is None:
            known = self.ask(batch, weights)
        with nullcontext() if self.dropout else evaluating(self.student):
            out = _run(self.student, batch, weights)
        terms = self._terms(out, known, batch, weights)
        return total([weights[name] * term for name, term in terms.items()]), {n: t.item() for n, t in terms.items()}

    @property
    def identity(self) -> str:
        """What differs wherever training would go another way, beyond models and text."""
        return repr((self.losses, list(self.layers), self.dropout))

    @property
    def device(self) -> str:
        return self.student.norm.weight.device

    def start(self, *seed: int) -> None:
        """Forget all gradients, and begin the student's dropout anew."""
        self.student.zero_grad()
        self.adapters.zero_grad()
        seed_dropout(self.student, *seed)

    def ask(self, batch: Any, terms: Collection[str]) -> dict[str, Array]:
        """Return what the terms compare with, from one pass of the teacher without dropout and without a tape."""
        wanted = set(terms).difference(OF_THE_TEXT)
        if not wanted:
            return {}
        with no_grad(), evaluating(self.teacher):
            out = _run(self.teacher, batch, wanted)
        known: dict[str, Array] = {}
        if "logits" in wanted:
            known["logits"] = _logits(out).data
        if "embedding" in wanted:
            known["embedding"] = out.hidden[0].data
        for number, layer in enumerate(self.layers):
            if "hidden" in wanted:
                known[f"hidden {number}"] = out.hidden[layer + 1].data
            if "attention" in wanted:
                known[f"scores {number}"] = out.attention_scores[layer].data  # type: ignore[index]
        if out.attention_heads:
            heads = out.attention_heads[self.layers[-1]]
            known |= {name: getattr(heads, name).data for name in ("queries", "keys", "values")}
        return known

    def _terms(self, out: Output, known: Known, batch: Any, wanted: Collection[str]) -> dict[str, Tensor]:
        mask_BT = check_mask(batch.mask_BT, batch.ids_BT.shape, self.device)
        losses, layers = self.losses, range(len(self.layers))
        terms: dict[str, Tensor] = {}
        if "cross_entropy" in wanted:
            terms["cross_entropy"] = self.label_loss(_logits(out), batch)
        if "embedding" in wanted:
            ours = _adapted(self.adapters.embedding, out.hidden[0])
            terms["embedding"] = mean_squared_error(ours, known["embedding"], mask_BT)
        if "hidden" in wanted:
            distance = cosine_distance if losses.hidden_form == "cosine" else mean_squared_error
            states = [_adapted(self.adapters.hidden, out.hidden[n + 1]) for n in layers]
            terms["hidden"] = total([distance(states[n], known[f"hidden {n}"], mask_BT) for n in layers])
        if "attention" in wanted:
            compared = attention_mse if losses.attention_form == "scores" else attention_kl
            scores = list(reversed(out.attention_scores or ()))
            out.attention_scores = None  # each layer's scores are freed when they have been compared
            parts = [compared(scores.pop(), known[f"scores {n}"], mask_BT, causal=self.causal) for n in layers]
            terms["attention"] = total(parts)
        if "logits" in wanted and losses.logits_form == "mse":
            of_positions = mask_BT if _logits(out).ndim == 3 else None
            terms["logits"] = mean_squared_error(_logits(out), known["logits"], of_positions)
        elif "logits" in wanted:
            spans = self.student.config.head == "span"
            terms["logits"] = logit_kl(_logits(out), known["logits"], mask_BT, losses.temperature, spans)
        for name, pair in RELATIONS.items():
            if name in wanted:
                heads = out.attention_heads[-1]  # type: ignore[index]
                of_both = [getattr(heads, one) for one in pair], [known[one] for one in pair]
                terms[name] = relation_kl(*of_both, mask_BT, causal=self.causal, heads=losses.relation_heads)
        if "next_sentence" in wanted:
            other_B = getattr(batch, "other_B", None)
            if other_B is None:
                raise TinykronError("next_sentence: the batch does not say which texts follow each other")
            terms["next_sentence"] = fused.cross_entropy(_adapted(self.adapters.next_sentence, out.pooled), other_B)
        return terms


def _run(model: Any, batch: Any, terms: Collection[str]) -> Output:
    """Run a model with what the terms look at inside."""
    relations = bool(RELATIONS.keys() & set(terms))
    return model(*inputs(model, batch), attention_scores="attention" in terms, attention_heads=relations)


def _logits(out: Output) -> Tensor:
    if out.logits is None:
        raise TinykronError("distillation: the losses compare logits, and a model without a head has none")
    return out.logits


def _adapted(adapter: Linear | None, state: Any) -> Tensor:
    return state if adapter is None else adapter(state)


def total(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of one or more scalars."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result

"""The batches of a run, each drawn from (seed, step) alone, and what the teacher says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykron import data
from tinykron.backend import to_host
from tinykron.data.batch import Batch
from tinykron.data.instructions import Examples
from tinykron.data.masking import Masking
from tinykron.distill.objective import Distillation
from tinykron.distill.teacher_cache import TeacherCache
from tinykron.errors import TinykronError
from tinykron.nn import Module
from tinykron.train.settings import Settings


@dataclass(frozen=True)
class Feed:
    """The batches of a run, and what the teacher says of them. They depend on (seed, place in the epoch) alone."""

    distillation: Distillation
    tokens: np.ndarray | Examples
    settings: Settings
    masking: Masking | None = None
    cache: TeacherCache | None = None

    def __post_init__(self) -> None:
        if self.pairs and self.masking is None:
            raise TinykronError("next_sentence: expected a masked language model, found no masking")
        if self.masking and isinstance(self.tokens, Examples):
            raise TinykronError("examples: are for causal models, found a masked language model")
        if self.cache and self.distillation.losses.needs_teacher:
            self.cache.open(self._origin(), self.epoch * self.settings.accumulate)

    @property
    def epoch(self) -> int:
        """Steps after which the same batches come again."""
        return self.settings.epoch or self.settings.steps

    @property
    def pairs(self) -> bool:
        return "next_sentence" in self.distillation.losses.terms

    def weights(self, step: int) -> dict[str, float]:
        """Return the weight of each term that counts in a step."""
        return self.distillation.losses.at(self.progress(step))

    def progress(self, step: int) -> float:
        """Return the share of the run that is over before a step: 0 for the first, 1 for the last."""
        return step / max(1, self.settings.steps - 1)

    def batches(self, step: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Yield each batch of a step, with what the teacher says of it."""
        generator = np.random.default_rng((self.settings.seed, step % self.epoch))
        for number in range(self.settings.accumulate):
            batch = self._drawn(generator)
            yield batch, self._known(batch, step, step % self.epoch * self.settings.accumulate + number)

    def _drawn(self, generator: np.random.Generator) -> Batch:
        if isinstance(self.tokens, Examples):
            return Batch(*self.tokens.sample_batch(self.settings.batch, generator))
        drawn = self.tokens, self.settings.batch, self.settings.context, generator
        if self.masking is None:
            return Batch(*data.sample_batch(*drawn))
        if self.pairs:
            ids_BT, targets_BT, types_BT, other_B = self.masking.sample_pairs(*drawn)
            return Batch(ids_BT, targets_BT, None, types_BT, other_B)
        return Batch(*self.masking.sample_batch(*drawn))

    def _known(self, batch: Batch, step: int, number: int) -> dict[str, Any]:
        ask, losses = self.distillation.ask, self.distillation.losses
        if self.cache is None or not losses.needs_teacher:
            return ask(batch, self.weights(step))
        return self.cache.get(number, lambda: ask(batch, losses.terms), self.distillation.device)

    def _origin(self) -> dict[str, str]:
        """Return what the teacher's outputs depend on, by name."""
        settings, distillation = self.settings, self.distillation
        drawn = {name: getattr(settings, name) for name in ("batch", "context", "accumulate", "seed")}
        return {
            "teacher": digest_model(distillation.teacher),
            "text": _digest_text(self.tokens, self.masking),
            "batches": ", ".join(f"{name} {value}" for name, value in (drawn | {"epoch": self.epoch}).items()),
            "losses": ", ".join(sorted(distillation.losses.terms)),
            "layer map": str(list(distillation.layers)),
        }

    def digest(self) -> str:
        """Return what differs wherever a run would go another way, beyond its settings and its student."""
        distillation = self.distillation
        given = distillation.identity, self.cache and self.cache.dtype
        text, teacher = _digest_text(self.tokens, self.masking), digest_model(distillation.teacher)
        return hashlib.blake2b(repr((given, text, teacher)).encode(), digest_size=16).hexdigest()


def digest_model(model: Module | None) -> str:
    """Return a fingerprint of all parameters, by name and value."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in model.state_dict().items() if model else ():
        digest.update(name.encode())
        digest.update(to_host(array).tobytes())
    return digest.hexdigest()


def _digest_text(tokens: np.ndarray | Examples, masking: Masking | None) -> str:
    digest = hashlib.blake2b(repr(masking).encode(), digest_size=16)
    tokens = tokens.stream if isinstance(tokens, Examples) else tokens
    digest.update(np.asarray(tokens, dtype=np.int64).tobytes())
    return digest.hexdigest()

"""The batches of a run: each is drawn from (seed, step) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tinykron import data
from tinykron.backend import to_host
from tinykron.data.batch import Batch
from tinykron.data.instructions import Examples
from tinykron.data.masking import Masking
from tinykron.data.tokens import IGNORED
from tinykron.distill.objective import Distillation
from tinykron.errors import TinykronError
from tinykron.nn import Module
from tinykron.train.settings import Settings


class Batches(Protocol):
    """What a run reads: each step's batches, each with its share of the step's loss."""

    @property
    def unit(self) -> str:
        """What progress counts, such as "tokens"."""

    @property
    def per_step(self) -> int:
        """How many of them a step reads."""

    def __call__(self, step: int) -> Iterator[tuple[Batch, float]]: ...

    def digest(self) -> str:
        """Return what differs wherever a run would go another way, beyond its settings and the model."""


@dataclass(frozen=True)
class Feed:
    """Batches drawn from a stream of tokens, or from examples. They depend on (seed, step) alone."""

    distillation: Distillation
    tokens: np.ndarray | Examples
    settings: Settings
    masking: Masking | None = None

    def __post_init__(self) -> None:
        if self.pairs and self.masking is None:
            raise TinykronError("next_sentence: expected a masked language model, found no masking")
        if self.masking and isinstance(self.tokens, Examples):
            raise TinykronError("examples: are for causal models, found a masked language model")

    @property
    def pairs(self) -> bool:
        return "next_sentence" in self.distillation.losses.terms

    @property
    def unit(self) -> str:
        return "examples" if isinstance(self.tokens, Examples) else "tokens"  # examples are of unequal length

    @property
    def per_step(self) -> int:
        settings = self.settings
        return settings.batch * settings.accumulate if self.unit == "examples" else settings.tokens_per_step

    def __call__(self, step: int) -> Iterator[tuple[Batch, float]]:
        """Yield each batch of a step, cut into parts where the settings ask for it."""
        settings, generator = self.settings, np.random.default_rng((self.settings.seed, step))
        for _ in range(settings.accumulate):
            for part, share in parts(self._drawn(generator), settings.split_batch):
                yield part, share / settings.accumulate

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

    def digest(self) -> str:
        given = self.distillation.identity, None
        text, teacher = _digest_text(self.tokens, self.masking), digest_model(self.distillation.teacher)
        return hashlib.blake2b(repr((given, text, teacher)).encode(), digest_size=16).hexdigest()


def parts(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """Yield a batch in at most `count` parts of whole rows, each with its share of what a mean over the batch counts.

    A target of -100 counts nothing: a part's share is that of its targets that count, and a part without any is left
    out. Where no target of the batch counts, as beside a teacher alone, all rows count alike.
    """
    if count == 1:
        yield batch, 1.0
        return
    counting_B = (batch.targets != IGNORED).reshape(len(batch.targets), -1).sum(axis=1)
    counting_B = counting_B if counting_B.any() else np.ones_like(counting_B)
    for rows in np.array_split(np.arange(len(batch.ids_BT)), min(count, len(batch.ids_BT))):
        if counting_B[rows].any():
            cut = [None if array is None else array[rows] for array in vars(batch).values()]
            yield Batch(*cut), float(counting_B[rows].sum() / counting_B.sum())  # type: ignore[arg-type]


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

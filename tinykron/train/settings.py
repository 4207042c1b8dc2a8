"""How to train, and what a training went through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan, nan

from tinykron.errors import TinykronError
from tinykron.optim import schedule
from tinykron.support.numbers import COUNTED, LARGEST, real, whole

LEAST = {  # of each setting that is a whole number
    "steps": 1, "batch": 1, "context": 1, "accumulate": 1, "split_batch": 1,
    "checkpoint_every": 1, "warmup": 0, "seed": 0, "evaluate_every": 0, "measure_every": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How to train. Tokens per step: batch * context * accumulate."""

    steps: int
    batch: int = 16
    context: int = 256
    accumulate: int = 1  # batches whose gradients are averaged before a step
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    floor: float = 0.1  # where the schedule ends, as a share of lr
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 100
    evaluate_every: int = 0  # 0: only at the end
    measure_every: int = 50  # steps: each term's share of the gradient, where there are several; 0: never
    split_batch: int = 1  # parts into which each batch is cut, one after the other in memory

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            whole(f"training setting {name}", getattr(self, name), least, LARGEST if name == "seed" else COUNTED)
        for name in ("lr", "floor", "weight_decay"):
            real(f"training setting {name}", getattr(self, name), 0.0)
        real("training setting clip", self.clip, above=0.0)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise TinykronError(f"training setting betas: found {self.betas!r}, expected two numbers")
        for beta in self.betas:
            real("training setting betas", beta, 0.0, below=1.0)
        schedule(self.schedule, self.steps, self.warmup, self.floor)  # refuses what it does not know

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context * self.accumulate


Score = dict[str, dict[str, float]]  # metrics of each dev set, by name


def mean_score(sets: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean of all metrics; a correlation that is not defined makes it NaN."""
    values = [value for found in sets.values() for value in found.values()]
    return sum(values) / len(values) if values else nan


@dataclass
class History:
    """What a training went through."""

    settings: Settings
    steps: int = 0  # done
    terms: list[dict[str, float]] = field(default_factory=list)  # of each step, before weighting
    gradient_norms: list[float] = field(default_factory=list)  # of each step, before clipping
    perplexities: list[tuple[int, float]] = field(default_factory=list)  # (steps done, held-out perplexity)
    term_norms: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (steps done, by term)
    inputs: str = ""  # fingerprint of the text, the teacher and the losses: a run continues on the same alone
    scores: list[tuple[int, Score]] = field(default_factory=list)  # (steps done, metrics of each dev set)

    def best(self) -> int:
        """Return which of the scores has the highest mean, the first of equals; -1 without one."""
        values = [-inf if isnan(mean_score(score)) else mean_score(score) for _, score in self.scores]
        return values.index(max(values)) if values else -1

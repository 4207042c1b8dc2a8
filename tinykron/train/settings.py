"""How to train, and what a training went through."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from tinykron.errors import TinykronError
from tinykron.optim import schedule

LEAST = {  # of each setting that is a whole number
    "steps": 1, "batch": 1, "context": 1, "accumulate": 1, "checkpoint_every": 1,
    "warmup": 0, "seed": 0, "evaluate_every": 0, "measure_every": 0, "epoch": 0,
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
    epoch: int = 0  # steps after which the same batches come again; 0: never

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TinykronError(
                    f"training setting {name}: found {value!r}, expected a whole number from {least} on"
                )
        for name in ("lr", "floor", "weight_decay", "clip"):
            value = getattr(self, name)
            if not _number(value) or value < 0.0 or (name == "clip" and not value):
                limit = "above 0" if name == "clip" else "from 0 on"
                raise TinykronError(f"training setting {name}: found {value!r}, expected a number {limit}")
        pair = self.betas if isinstance(self.betas, tuple) else ()
        if len(pair) != 2 or not all(_number(beta) and 0.0 <= beta < 1.0 for beta in pair):
            raise TinykronError(f"training setting betas: found {self.betas!r}, expected two numbers in [0, 1)")
        schedule(self.schedule, self.steps, self.warmup, self.floor)  # refuses what it does not know

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context * self.accumulate


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


@dataclass
class History:
    """What a training went through."""

    settings: Any  # Settings; of a labelled task, FineTuning
    steps: int = 0  # done
    terms: list[dict[str, float]] = field(default_factory=list)  # of each step, before weighting
    gradient_norms: list[float] = field(default_factory=list)  # of each step, before clipping
    perplexities: list[tuple[int, float]] = field(default_factory=list)  # (steps done, held-out perplexity)
    term_norms: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (steps done, by term)
    inputs: str = ""  # fingerprint of the text, the teacher and the losses: a run continues on the same alone
    interrupted: bool = False  # stopped by Ctrl-C; the checkpoint holds the last whole step

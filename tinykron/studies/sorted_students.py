"""The models that the relations of Sorted LLaMA compare: one start, one text, as many tokens, and another objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint, data, kron
from tinykron.exits import analysis
from tinykron.exits.losses import SortedLoss, equal_weights
from tinykron.train.loop import fit
from tinykron.train.settings import Settings


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    model: str = "gpt2-tiny"
    exits: tuple[int, ...] = (2, 4, 6, 8)
    steps: int = 300  # of one fine-tuning; the same number of tokens for all
    batch: int = 4
    context: int = 128
    lr: float = 5e-4
    held_out: int = 8192  # tokens that losses are measured on
    prompts: int = 40
    new_tokens: int = 32
    delta: float = 0.1  # of B6: share of prompts whose text may change
    seeds: int = 3


QUICK = Scale(steps=60, held_out=4096, prompts=32, new_tokens=16)


class Study:
    """The models that relations share: each is fine-tuned when it is first asked for, and kept in a folder."""

    def __init__(self, scale: Scale, folder: str | Path) -> None:
        self.scale, self.folder = scale, Path(folder) / "models"
        self.source = data.weights_folder(scale.model)
        self.start = checkpoint.load(self.source).eval()
        training, held_out = self.documents = data.split(data.documents())
        self.tokens = data.encode(self.start.tokenizer, training)
        self.held_out = data.encode(self.start.tokenizer, held_out)
        self.blocks, self.inner = len(self.start.blocks), [n for n in scale.exits if n < len(self.start.blocks)]

    def settings(self, seed: int, times: float = 1.0) -> Settings:
        scale = self.scale
        steps = round(scale.steps * times)
        return Settings(
            steps, scale.batch, scale.context, lr=scale.lr, warmup=steps // 20, weight_decay=0.0, seed=seed,
            checkpoint_every=10**6,
        )  # fmt: skip

    def trained(
        self, name: str, seed: int, loss: Callable[[Any], SortedLoss] | None = None, blocks: int = 0, times: float = 1.0
    ) -> Any:
        """Return a model fine-tuned from the start, of the first `blocks` blocks if not of all."""
        path = self.folder / f"{name}-seed{seed}"
        if path.exists():
            return checkpoint.load(path).eval()
        model = kron.cut(self.start, blocks or None)
        fit(
            model, self.tokens, self.settings(seed, times), distillation=loss(model) if loss else None,
            folder=self.folder / f"{name}-seed{seed}-training", title=f"{name}, seed {seed}",
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(model, path, dtype="float32")
        return checkpoint.load(path).eval()

    def sft(self, seed: int) -> Any:
        """Plain fine-tuning: the last exit alone."""
        return self.trained("sft", seed)

    def soft(self, seed: int, times: float = 1.0) -> Any:
        """All exits in every step, equal weights: Sorted LLaMA, eq. 1."""
        name = "soft" if times == 1.0 else f"soft-{times:g}"
        return self.trained(name, seed, lambda model: SortedLoss(model, self.weights(model)), times=times)

    def weights(self, model: Any) -> dict[int, float]:
        return equal_weights([exit for exit in self.scale.exits if exit <= len(model.blocks)])

    def losses(self, model: Any, exits: Sequence[int] | None = None) -> dict[int, float]:
        """Return the held-out loss of exits, in nats a token."""
        wanted = [exit for exit in exits or self.scale.exits if exit <= len(model.blocks)]
        return analysis.losses(model, self.held_out[: self.scale.held_out], self.scale.context, wanted)

    def prompts(self, seed: int, count: int = 0, length: int = 12) -> list[list[int]]:
        """Return beginnings drawn from the held-out text."""
        generator = np.random.default_rng((seed, 11))
        starts = generator.integers(0, len(self.held_out) - length, count or self.scale.prompts)
        return [self.held_out[start : start + length].tolist() for start in starts]


def named(prefix: str, found: dict[int, float]) -> dict[str, float]:
    """Return values by "prefix exit"."""
    return {f"{prefix} {exit}": value for exit, value in found.items()}

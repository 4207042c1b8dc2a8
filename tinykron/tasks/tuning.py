"""Fine-tuning on a labelled task: its settings, its epochs over all examples, and the score that keeps the best one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinykron.data.batch import Batch
from tinykron.distill.objective import Distillation
from tinykron.errors import TinykronError
from tinykron.nn import Module
from tinykron.support.numbers import COUNTED, real, whole
from tinykron.tasks.features import Features, collate
from tinykron.tasks.registry import LEAST_CONTEXT
from tinykron.tensor import Tensor
from tinykron.train.loop import run
from tinykron.train.settings import History, Score, Settings

Loss = Callable[[Module, Batch], tuple[Tensor, dict[str, float]]]  # the mean over a batch, and its terms


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune. By default as Devlin et al. 2019, appendix A.3."""

    epochs: int = 3
    batch: int = 32
    context: int = 128  # most tokens of an example
    split_batch: int = 1  # parts into which a batch is cut, to take less memory
    accumulate: int = 1  # batches whose gradients are averaged before a step
    lr: float = 5e-5
    warmup: float = 0.1  # share of the steps; then down in a line to 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    patience: int = 0  # epochs without a better score after which it stops; 0: never
    class_weights: bool = False  # let all classes together count alike
    seed: int = 0
    checkpoint_every: int = 100  # steps
    measure_every: int = 50  # steps: each term's share of the gradient, where there are several; 0: never

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            whole(f"fine-tuning setting {name}", getattr(self, name), 1, COUNTED)
        whole("fine-tuning setting patience", self.patience)
        whole("fine-tuning setting context", self.context, LEAST_CONTEXT)
        real("fine-tuning setting warmup", self.warmup, 0.0, 1.0)
        self.training(1)  # refuses what no training takes

    def steps_per_epoch(self, examples: int) -> int:
        return -(-examples // (self.batch * self.accumulate))

    def training(self, examples: int) -> Settings:
        """Return the settings of the training loop for so many examples: a warm-up, then down in a line to 0."""
        an_epoch = self.steps_per_epoch(examples)
        steps = self.epochs * an_epoch
        return Settings(
            steps, self.batch, self.context, self.accumulate, self.lr, "linear",
            warmup=round(self.warmup * steps), floor=0.0, weight_decay=self.weight_decay, betas=self.betas,
            clip=self.clip, seed=self.seed, checkpoint_every=self.checkpoint_every, evaluate_every=an_epoch,
            measure_every=self.measure_every, split_batch=self.split_batch,
        )  # fmt: skip


@dataclass(frozen=True)
class Epochs:
    """Batches of labelled examples: each epoch goes through all of them once, in an order of its own."""

    features: Sequence[Features]
    settings: FineTuning
    inputs: bytes = b""  # digest of what else the run depends on
    unit = "steps"
    per_step = 1

    def rows(self, step: int) -> np.ndarray:
        """Return which examples a step sees, (B,)."""
        size, examples = self.settings.batch * self.settings.accumulate, len(self.features)
        epoch, place = divmod(step, self.settings.steps_per_epoch(examples))
        order_N = np.random.default_rng((self.settings.seed, epoch)).permutation(examples)
        return order_N[place * size : (place + 1) * size]

    def __call__(self, step: int) -> Iterator[tuple[Batch, float]]:
        """Yield the step's examples in parts: batches, each cut again where the settings ask for it."""
        rows_B = self.rows(step)
        for start in range(0, len(rows_B), self.settings.batch):
            batch = rows_B[start : start + self.settings.batch]
            for part in np.array_split(batch, min(self.settings.split_batch, len(batch))):
                yield collate([self.features[row] for row in part]), len(part) / len(rows_B)

    def digest(self) -> str:
        digest = hashlib.blake2b(self.inputs, digest_size=16)
        for example in self.features:
            digest.update(repr((list(example.ids), list(example.types), example.target)).encode())
        return digest.hexdigest()


def fit(
    model: Module,
    features: Sequence[Features],
    settings: FineTuning,
    loss: Loss | Distillation,
    score: Callable[[Module], Score],
    *,
    inputs: bytes = b"",
    folder: str | Path | None = None,
    title: str = "fine-tuning",
) -> History:
    """Fine-tune `model` in place; it ends with the weights of the epoch that `score` liked best.

    loss    of a model and a batch: a scalar that is a mean over the batch's examples, and its terms as numbers; or a
            distillation of `model`, whose terms' shares of the gradient are measured now and then
    score   measures the model after each epoch: larger is better, by the mean of all metrics
    inputs  digest of what else the run depends on, such as the weights it starts from
    folder  where checkpoints go: a run found there, of the same settings on the same examples and inputs, is continued
    Raises what `train.loop.run` raises, and TinykronError without an example.
    """
    if not features:
        raise TinykronError(f"{title}: expected examples, found none")

    def evaluate(history: History) -> None:
        history.scores.append((history.steps, score(model)))

    objective = loss if isinstance(loss, Distillation) else lambda batch, progress: loss(model, batch)
    return run(
        model, Epochs(features, settings, inputs), objective, settings.training(len(features)), evaluate=evaluate,
        patience=settings.patience, keep_best=True, folder=folder, title=title,
    )  # fmt: skip

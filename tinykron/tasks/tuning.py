"""The training loop for labelled tasks: epochs, early stopping, progress, checkpoints.

A step's batch and dropout masks depend on (seed, step) alone, as in train.py, so a run that was killed continues to the
very same bits on a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan
from pathlib import Path

import numpy as np

from tinykron.backend import to_host
from tinykron.checkpoint import safetensors_file
from tinykron.data.batch import Batch
from tinykron.distill.objective import Distillation
from tinykron.errors import CheckpointError, TinykronError
from tinykron.nn import Module, seed_dropout
from tinykron.optim import AdamW, clip_gradients, decay_groups, schedule
from tinykron.support.progress import Progress
from tinykron.tasks.features import Features, collate
from tinykron.tasks.metrics import mean_score
from tinykron.tasks.registry import LEAST_CONTEXT
from tinykron.tensor import Tensor
from tinykron.threads import long_work
from tinykron.train.loop import interruptible, term_norms
from tinykron.train.resume import CHECKPOINT, resume_run, save_run
from tinykron.train.settings import History

BEST = "best.safetensors"
MEASURED = 50  # steps: each term's share of the gradient, where there are several
Score = dict[str, dict[str, float]]  # metrics of each dev set
Loss = Callable[[Module, Batch], tuple[Tensor, dict[str, float]]]  # the mean over a batch, and its terms
LEAST = {
    "epochs": 1,
    "batch": 1,
    "context": LEAST_CONTEXT,
    "accumulate": 1,
    "checkpoint_every": 1,
    "patience": 0,
    "seed": 0,
}


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune. By default as Devlin et al. 2019, appendix A.3."""

    epochs: int = 3
    batch: int = 32
    context: int = 128  # most tokens of an example
    accumulate: int = 1  # parts into which a batch is cut, to take less memory
    lr: float = 5e-5
    warmup: float = 0.1  # share of the steps; then down in a line to 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    patience: int = 0  # epochs without a better score after which it stops; 0: never
    class_weights: bool = False  # let all classes together count alike
    seed: int = 0
    checkpoint_every: int = 100  # steps

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TinykronError(
                    f"fine-tuning setting {name}: found {value!r}, expected a whole number from {least} on"
                )
        for name in ("lr", "warmup", "weight_decay", "clip"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < inf:
                raise TinykronError(f"fine-tuning setting {name}: found {value!r}, expected a number from 0 on")
        if self.warmup > 1.0:
            raise TinykronError(f"fine-tuning setting warmup: found {self.warmup}, expected a share of the steps")

    def steps_per_epoch(self, examples: int) -> int:
        return -(-examples // self.batch)


@dataclass
class TaskHistory(History):
    """What a fine-tuning went through; `perplexities` stay empty."""

    settings: FineTuning
    scores: list[tuple[int, Score]] = field(default_factory=list)  # (steps done, metrics), after each epoch

    def best(self) -> int:
        """Return which evaluation has the highest mean score, the first of equals; -1 without one."""
        values = [-inf if isnan(mean_score(score)) else mean_score(score) for _, score in self.scores]
        return values.index(max(values)) if values else -1


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
) -> TaskHistory:
    """Fine-tune `model` in place; it ends with the weights of the epoch that `score` liked best.

    loss    of a model and a batch: a scalar that is a mean over the batch's examples, and its terms as numbers; or a
            distillation of `model`, whose terms' shares of the gradient are measured now and then
    score   measures the model after each epoch: larger is better, by the mean of all metrics
    inputs  digest of what else the run depends on, such as the weights it starts from
    folder  where checkpoints go: a run found there, of the same settings on the same examples and inputs, is continued
    Ctrl-C finishes the step, writes a checkpoint and returns. Raises TinykronError if the loss becomes NaN or infinite.
    """
    if not features:
        raise TinykronError(f"{title}: expected examples, found none")
    optimiser = AdamW(decay_groups(model, settings.weight_decay), settings.lr, settings.betas)
    an_epoch = settings.steps_per_epoch(len(features))
    total = settings.epochs * an_epoch
    factor = schedule("linear", total, round(settings.warmup * total))
    history = TaskHistory(settings, inputs=_fingerprint(features, inputs))
    path = Path(folder) / CHECKPOINT if folder else None
    best: dict[str, np.ndarray] = {}
    if path and path.exists():
        saved = resume_run(path, model, optimiser, history)
        history.scores = [(steps, found) for steps, found in saved["scores"]]
        best = best_weights(path.parent) if history.scores else {}
    kept = history.steps
    distillation = loss if isinstance(loss, Distillation) and len(loss.losses.terms) > 1 else None
    model.train()
    with long_work(), interruptible() as stop, Progress(title, total, "steps", history.steps) as progress:
        while history.steps < total and not _exhausted(history, settings) and not stop.is_set():
            optimiser.lr = settings.lr * factor(history.steps)
            if distillation and (history.steps % MEASURED == 0 or history.steps == total - 1):
                rows_B = batch_rows(len(features), settings, history.steps)
                batch = collate([features[row] for row in rows_B])
                seed = settings.seed, history.steps
                history.term_norms.append((history.steps, term_norms(distillation, batch, seed)))
            terms = _gradients(model, features, settings, loss, history.steps)
            history.terms.append(terms)
            history.gradient_norms.append(clip_gradients(model.parameters(), settings.clip))
            if not all(map(isfinite, (*terms.values(), history.gradient_norms[-1]))):
                raise TinykronError(f"{title}: the loss became {terms} at step {history.steps}; try a lower --lr")
            optimiser.step()
            history.steps += 1
            if history.steps % an_epoch == 0:
                history.scores.append((history.steps, score(model)))
                if history.best() == len(history.scores) - 1:
                    best = {name: to_host(array).copy() for name, array in model.state_dict().items()}
                    _write_best(path, best)
            note = [f"{name} {value:.3f}" for name, value in terms.items()]
            note += [f"score {100 * mean_score(found):.2f}" for _, found in history.scores[-1:]]
            progress.advance(1, ", ".join(note))
            if path and (history.steps == total or history.steps % settings.checkpoint_every == 0):
                save_run(path, model, optimiser, history)
                kept = history.steps
        if path and history.steps > kept:
            save_run(path, model, optimiser, history)
        history.interrupted = stop.is_set() and history.steps < total and not _exhausted(history, settings)
    if best and not history.interrupted:
        model.load_state_dict(best)
    model.zero_grad()
    model.eval()
    return history


def _exhausted(history: TaskHistory, settings: FineTuning) -> bool:
    """Whether the last `patience` epochs have brought nothing better."""
    return bool(settings.patience) and len(history.scores) - 1 - history.best() >= settings.patience


def _gradients(
    model: Module, features: Sequence[Features], settings: FineTuning, loss: Loss | Distillation, step: int
) -> dict[str, float]:
    """Fill the gradients of one step; return the terms, averaged over its examples."""
    model.zero_grad()
    seed_dropout(model, settings.seed, step)
    rows_B = batch_rows(len(features), settings, step)
    sums: dict[str, float] = {}
    for part in np.array_split(rows_B, min(settings.accumulate, len(rows_B))):
        share = len(part) / len(rows_B)
        batch = collate([features[row] for row in part])
        value, terms = loss(batch) if isinstance(loss, Distillation) else loss(model, batch)
        (value * share).backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + share * term
    return sums


def batch_rows(examples: int, settings: FineTuning, step: int) -> np.ndarray:
    """Return which examples a step sees, (B,): each epoch goes through all of them once, in an order of its own."""
    epoch, place = divmod(step, settings.steps_per_epoch(examples))
    order_N = np.random.default_rng((settings.seed, epoch)).permutation(examples)
    return order_N[place * settings.batch : (place + 1) * settings.batch]


def _fingerprint(features: Sequence[Features], inputs: bytes) -> str:
    digest = hashlib.blake2b(inputs, digest_size=16)
    for example in features:
        digest.update(repr((list(example.ids), list(example.types), example.target)).encode())
    return digest.hexdigest()


def _write_best(path: Path | None, arrays: dict[str, np.ndarray]) -> None:
    """Keep the weights of the best epoch beside the checkpoint; after a kill the same epoch writes them once more."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(path.with_name(BEST), arrays, {})
    except OSError as error:
        raise CheckpointError(f"{path.with_name(BEST)}: cannot be written: {error}") from error


def best_weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights of a run's best epoch, by name. Raises CheckpointError where they are not in its folder."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(folder / BEST)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / BEST}: expected the best epoch's weights: {error}") from error

"""From a checkpoint and a labelled task to a fine-tuned checkpoint with its card: `tinykron finetune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinykron import checkpoint, tasks
from tinykron.checkpoint.hub import resolve
from tinykron.data.batch import Batch
from tinykron.errors import TinykronError
from tinykron.jobs.making import making
from tinykron.nn import Module
from tinykron.tasks.features import logits_of, predict
from tinykron.tasks.registry import Task, TaskEvaluation
from tinykron.tasks.tuning import FineTuning, Loss, fit
from tinykron.tensor import Tensor
from tinykron.train.resume import best_weights
from tinykron.train.settings import Score, mean_score


@dataclass(frozen=True)
class Preset:
    """What a paper sets, and the learning rates it tries; `tasks` says what differs for one task."""

    lrs: tuple[float, ...]
    settings: FineTuning
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


SQUAD: dict[str, Any] = {"lrs": (1e-4,), "epochs": 14, "batch": 64}  # KroneckerBERT, section 3.7
KRONECKERBERT = {"glue/cola": {"epochs": 30}, "squad/1.1": SQUAD, "squad/2.0": SQUAD}
PRESETS = {
    "tiny": Preset((1e-3,), FineTuning(epochs=5, batch=16)),  # for models as small as the shipped ones
    "bert": Preset((5e-5, 3e-5, 2e-5), FineTuning(epochs=4)),  # Devlin et al. 2019, appendix A.3
    # KroneckerBERT, section 3.7 and appendix A.1: what is searched; the best epoch of 15, of CoLA's 30, of SQuAD's 14
    "kroneckerbert": Preset((5e-5, 1e-4, 5e-4), FineTuning(epochs=15), KRONECKERBERT),
    # KroneckerBERT, table 8: what that search chose
    "kroneckerbert8": Preset(
        (1e-4,),
        FineTuning(epochs=15),
        KRONECKERBERT | {"glue/cola": {"lrs": (5e-5,), "epochs": 30}, "glue/rte": {"lrs": (1e-5,)}},
    ),
    "kroneckerbert21": Preset(
        (5e-4,),
        FineTuning(epochs=15),
        KRONECKERBERT | {"glue/qqp": {"lrs": (1e-4,)}, "glue/rte": {"lrs": (5e-5,)}},
    ),
}


def preset(name: str, task: Task) -> tuple[tuple[float, ...], FineTuning]:
    """Return the learning rates to try and the settings. Raises TinykronError, listing the presets there are."""
    if name not in PRESETS:
        raise TinykronError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    own = dict(PRESETS[name].tasks.get(task.name, {}))
    lrs = own.pop("lrs", PRESETS[name].lrs)
    return lrs, replace(PRESETS[name].settings, context=task.context, **own)


@dataclass(frozen=True)
class Run:
    """One learning rate with one seed."""

    lr: float
    seed: int
    epochs: int  # that it went through
    best_epoch: int
    score: float  # the mean of the metrics after that epoch
    sets: Score


@dataclass(frozen=True)
class FineTuned:
    """What was tried, and what was kept."""

    runs: list[Run]
    chosen: Run  # the best seed of the learning rate that is best on average
    saved: TaskEvaluation  # of the weights as they were saved


def task_loss(task: Task, weights_C: np.ndarray | None = None) -> Loss:
    """Return the loss of a task on its labels alone."""

    def loss(model: Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        value = task.loss(logits_of(model, batch), batch, weights_C)
        return value, {"loss": value.item()}

    return loss


class Labelled(NamedTuple):
    """A task's examples to train on, and the score of a model on its dev sets."""

    examples: Sequence[Any]
    features: Sequence[Any]  # of the examples
    score: Callable[[Module], Score]


def labelled(task: Task, source: Any, tokenizer: Any, context: int) -> Labelled:
    """Read a task's files, and cut them to `context` tokens."""
    examples = task.read(source, "train").examples
    dev = {name: task.read(source, name).examples for name in task.dev}
    read = {name: task.features(tokenizer, found, context) for name, found in dev.items()}

    def score(model: Module) -> Score:
        logits = {name: predict(model, read[name]) for name in dev}
        return {name: task.measure(found, read[name], logits[name]) for name, found in dev.items()}  # type: ignore

    return Labelled(examples, task.features(tokenizer, examples, context), score)


def finetune(
    model: str | Path,
    task: Task,
    out: str | Path,
    folder: str | Path | None = None,
    settings: FineTuning | None = None,
    lrs: Sequence[float] = (),
    seeds: int = 1,
) -> FineTuned:
    """Fine-tune a checkpoint on a task, and save the best as a new one with a card.

    model   folder, cache path or cached hub id; a head that has the task's classes is kept, any other is drawn anew
    folder  of the task's files; None for a stand-in
    lrs     learning rates to try, in place of the settings' own
    seeds   how many to try with each, from the settings' seed on
    Of several learning rates the one with the best mean over its seeds is taken, and its best seed is saved. So the
    score on the dev set, which chose it, flatters it. Progress is kept in the folder `<out>.training`: after Ctrl-C,
    which raises Interrupted, or a kill, the same call continues there. Raises TinykronError if `out` exists.
    """
    out, settings = Path(out), settings or FineTuning()
    if seeds < 1:
        raise TinykronError(f"seeds: found {seeds}, expected at least 1")
    with making(out) as work:
        start = checkpoint.load(model)
        settings = replace(settings, context=min(settings.context, start.context))
        source = tasks.source_of(task, folder)
        examples, features, score = labelled(task, source, start.tokenizer, settings.context)
        loss = task_loss(task, task.class_weights(examples) if settings.class_weights else None)

        runs: list[Run] = []
        for lr in dict.fromkeys(lrs or (settings.lr,)):
            for seed in range(settings.seed, settings.seed + seeds):
                student = tasks.fitted(start, task, np.random.default_rng(seed))
                name = _name(lr, seed)
                history = fit(
                    student,
                    features,
                    replace(settings, lr=lr, seed=seed),
                    loss,
                    score,
                    inputs=checkpoint.digest(student).encode(),
                    folder=work.progress / name,
                    title=f"{task.name}, {name}",
                )
                best = history.best()
                sets = history.scores[best][1]
                runs.append(Run(lr, seed, len(history.scores), best + 1, mean_score(sets), sets))
        chosen = _chosen(runs)
        student = tasks.fitted(start, task, np.random.default_rng(chosen.seed))
        student.load_state_dict(best_weights(work.progress / _name(chosen.lr, chosen.seed)))
        kept = work.save(student, checkpoint.stored_dtype(resolve(model)))
        saved = tasks.evaluate(kept, task, folder, settings.context)
        found = FineTuned(runs, chosen, saved)
        work.write("README.md", _card(out.name, Path(model).name, len(examples), settings, found))
        return found


def _name(lr: float, seed: int) -> str:
    return f"lr-{lr:g}-seed-{seed}"


def _chosen(runs: Sequence[Run]) -> Run:
    """Return the best seed of the learning rate with the best mean score; what is not defined is worst."""
    values = {(run.lr, run.seed): -inf if isnan(run.score) else run.score for run in runs}
    means = {lr: float(np.mean([value for (of, _), value in values.items() if of == lr])) for lr, _ in values}
    best = max(means, key=lambda lr: means[lr])
    return max((run for run in runs if run.lr == best), key=lambda run: values[run.lr, run.seed])


def summary(runs: Sequence[Run]) -> list[str]:
    """Return a line for each learning rate: mean and standard deviation of the score over its seeds, in per cent."""
    lines = []
    for lr in dict.fromkeys(run.lr for run in runs):
        scores = [100.0 * run.score for run in runs if run.lr == lr]
        mean = sum(scores) / len(scores)
        spread = sqrt(sum((score - mean) ** 2 for score in scores) / max(1, len(scores) - 1))
        several = f" +- {spread:.2f} over {len(scores)} seeds" if len(scores) > 1 else ""
        lines.append(f"lr {lr:g}: {mean:.2f}{several}")
    return lines


def _card(name: str, model: str, examples: int, settings: FineTuning, found: FineTuned) -> str:
    """Return the model card of what was fine-tuned."""
    chosen, saved = found.chosen, found.saved
    elsewhere = ("lr", "seed", "checkpoint_every", "measure_every")  # said below, or of no interest
    said = {key: value for key, value in asdict(settings).items() if key not in elsewhere}
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{model}, fine-tuned by tinykron on {saved.task}: {examples:,} training examples, {saved.data}.",
            "",
            f"- settings: {', '.join(f'{key} {value}' for key, value in said.items())}",
            *(f"- {line}" for line in summary(found.runs)),
            f"- kept: lr {chosen.lr:g}, seed {chosen.seed}, epoch {chosen.best_epoch} of {chosen.epochs}",
            *(f"- {line}" for line in tasks.render(saved).splitlines()),
            "- the dev set chose the epoch, the seed and the learning rate, so its score flatters",
            "",
        ]
    )

"""Labelled tasks by name, models with the right head for them, and how well a model does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.backend import to_device
from tinykron.errors import TinykronError
from tinykron.models.bert import Bert, with_head
from tinykron.models.checks import named_classes
from tinykron.models.gpt2 import GPT2, with_classifier
from tinykron.tasks import glue, squad, standins
from tinykron.tasks.features import predict
from tinykron.tasks.glue import Glue, Source, Split
from tinykron.tasks.squad import Squad
from tinykron.train.settings import mean_score

Task = Glue | Squad
TASKS: dict[str, Task] = {**standins.TASKS, **glue.TASKS, **squad.TASKS}
LEAST_CONTEXT = 8  # tokens: what frames a pair takes three


@dataclass(frozen=True)
class TaskEvaluation:
    """How well a model does at a task."""

    task: str
    sets: dict[str, dict[str, float]]  # the official metrics of each dev set
    examples: dict[str, int]  # of each dev set
    details: dict[str, dict[str, float]]  # of each dev set, what else is worth knowing
    dropped: int  # lines that are no examples, of all sets
    context: int  # most tokens of an example
    data: str  # where it came from

    @property
    def score(self) -> float:
        """The mean of the metrics of all sets, as in GLUE's average."""
        return mean_score(self.sets)


def find(name: str, others: Sequence[str] = ()) -> Task:
    """Return a task by its name. Raises TinykronError, listing those there are; `others` are the caller's own."""
    if name not in TASKS:
        raise TinykronError(f"task: found {name!r}, expected one of {', '.join((*TASKS, *others))}")
    return TASKS[name]


def source_of(task: Task, folder: str | Path | None) -> Source:
    """Return where a task's files are: the folder; without one, the files of a stand-in, made now."""
    if folder is not None:
        if not Path(folder).exists():
            raise TinykronError(f"{folder}: found nothing, expected the files of {task.name}")
        return Path(folder)
    if task.name not in standins.TASKS:
        own = ", ".join(standins.TASKS)
        raise TinykronError(f"{task.name}: name the folder of its files with --data; only {own} need none")
    return standins.files(task.name)


# Heads ----------------------------------------------------------------------------------------------------------------


Classifier = Bert | GPT2


def _check(model: Any, task: Task) -> None:
    kinds = (Bert,) if task.head == "span" else (Bert, GPT2)
    if not isinstance(model, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TinykronError(f"{task.name}: expected a {expected}, found a {type(model).__name__}")
    if model.tokenizer is None:
        raise TinykronError(f"{task.name}: the model has no tokenizer to read texts with")


def check_context(model: Any, task: Task, context: int | None) -> int:
    """Return the most tokens of an example: those asked for, else the task's, or the model's where that is less."""
    context = min(task.context, model.context) if context is None else context
    if not LEAST_CONTEXT <= context <= model.context:
        raise TinykronError(f"context: found {context}, expected {LEAST_CONTEXT} to the model's {model.context}")
    return context


def _named(model: Classifier, task: Task) -> Classifier:
    """Write the names of a task's classes into a model's configuration."""
    if task.head == "span":
        return model
    names = task.classes or ("LABEL_0",)
    kind = "single_label_classification" if task.classes else "regression"
    model.config = model.config.changed(extra=model.config.extra | named_classes(names) | {"problem_type": kind})
    return model


def _order(model: Classifier, task: Task) -> list[int] | None:
    """Return which of the head's classes is each of the task's: by name, by number where names are LABEL_0, ...

    None where the head is no head for the task.
    """
    config = model.config
    if config.head != task.head:
        return None
    if task.head == "span":
        return [0, 1]  # where an answer starts, and where it ends
    if config.labels != task.labels:
        return None
    numbered = sorted(config.extra.get("id2label", {}).items(), key=lambda item: (len(item[0]), item[0]))
    names = [str(name).lower() for _, name in numbered]
    own = [name.lower() for name in task.classes]
    if sorted(names) == sorted(own):
        return [names.index(name) for name in own]
    unnamed = not names or names == [f"label_{number}" for number in range(len(names))]
    return list(range(task.labels)) if unnamed else None


def fitted(model: Any, task: Task, generator: np.random.Generator) -> Classifier:
    """Return a copy of a model with a head for a task: its own where that has the task's classes, else a new one."""
    _check(model, task)
    order = _order(model, task)
    if order is None:
        if isinstance(model, GPT2):
            return _named(with_classifier(model, task.labels, generator), task)
        return _named(with_head(model, task.head, task.labels, generator), task)
    return _named(_reordered(copy.deepcopy(model), order), task)


def _reordered(model: Classifier, order: Sequence[int]) -> Classifier:
    """Put the classes of a model's head in an order, in place."""
    if list(order) == sorted(order):
        return model
    linear: Any = model.get("score" if isinstance(model, GPT2) else "head.linear")
    order_C = to_device(np.array(order), linear.weight.device)
    linear.weight.data = linear.weight.data[:, order_C]
    if linear.bias is not None:
        linear.bias.data = linear.bias.data[order_C]
    return model


# Measuring ------------------------------------------------------------------------------------------------------------


def evaluate(
    model: Any, task: Task, folder: str | Path | None = None, context: int | None = None, batch: int = 32
) -> TaskEvaluation:
    """Return how well a fine-tuned model does at a task: the official metrics on its dev sets.

    folder   of the task's files; None for a stand-in, whose files are made now
    context  most tokens of an example; by default 128, of SQuAD 384, or the model's where that is less
    Raises TinykronError for a model whose head is none for this task, DataError for files that do not fit.
    """
    model, source = ready(model, task), source_of(task, folder)
    context = check_context(model, task, context)
    sets, details, counts, dropped = {}, {}, {}, 0
    for name, split, features, logits in _predictions(model, task, source, task.dev, context, batch):
        sets[name] = task.measure(split.examples, features, logits)
        details[name] = task.details(split.examples, features, logits)
        counts[name], dropped = len(split.examples), dropped + split.dropped
    where = str(folder) if folder else "made of the documentation that every Python carries"
    return TaskEvaluation(task.name, sets, counts, details, dropped, context, where)


def _predictions(
    model: Classifier, task: Task, source: Source, names: Iterable[str], context: int, batch: int
) -> Iterator[tuple[str, Split, Any, list[np.ndarray]]]:
    """Yield the sets by name, as they were read and as the model reads them, and its logits of each example."""
    for name in names:
        split = task.read(source, name)
        features = task.features(model.tokenizer, split.examples, context)
        yield name, split, features, predict(model, features, batch, f"{task.name}, {name}")


def ready(model: Any, task: Task) -> Classifier:
    """Return a model whose head gives the classes of a task in their order. Raises TinykronError if it has none."""
    _check(model, task)
    order = _order(model, task)
    if order is None:
        config = model.config
        found = f'a head "{config.head}"' if config.head else "no head"
        if config.head == "sequence":
            found += f" of {config.labels} classes: {', '.join(map(str, config.extra.get('id2label', {}).values()))}"
        raise TinykronError(
            f'{task.name}: the model has {found}; expected "{task.head}", {task.labels}: fine-tune it first'
        )
    return _reordered(copy.deepcopy(model), order) if order != sorted(order) else model


def answer_files(
    model: Any, task: Task, folder: str | Path, context: int | None = None, batch: int = 32
) -> dict[str, str]:
    """Return the predictions for a task's test sets in the files that its server takes: their text by name."""
    model, source = ready(model, task), source_of(task, folder)
    context = check_context(model, task, context)
    if not task.submissions:
        raise TinykronError(f"{task.name} has no test set")
    files: dict[str, str] = {}
    for name, split, features, logits in _predictions(model, task, source, task.submissions, context, batch):
        files |= task.answer_files(name, split.examples, features, logits)
    return files


def render(found: TaskEvaluation) -> str:
    """Return an evaluation as lines for a terminal."""
    lines = []
    for name, values in found.sets.items():
        said = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in values.items())
        lines.append(f"{found.task} {name}: {said} ({found.examples[name]:,} examples)")
        if found.details[name]:
            lines.append("  " + ", ".join(f"{key} {value:.2f}" for key, value in found.details[name].items()))
    left_out = f", {found.dropped} lines left out" if found.dropped else ""
    return "\n".join([*lines, f"mean {100 * found.score:.2f}; at most {found.context} tokens; {found.data}{left_out}"])

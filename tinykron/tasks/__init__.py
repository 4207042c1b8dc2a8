"""Labelled tasks: their files, features, losses and metrics."""

from tinykron.tasks.registry import (
    TASKS,
    Task,
    TaskEvaluation,
    answer_files,
    check_context,
    evaluate,
    find,
    fitted,
    ready,
    render,
    source_of,
)
from tinykron.train.settings import mean_score

__all__ = [
    "TASKS", "Task", "TaskEvaluation", "answer_files", "check_context", "evaluate", "find", "fitted", "mean_score",
    "ready", "render", "source_of",
]  # fmt: skip

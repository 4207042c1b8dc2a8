"""What the tests know of each lesson, one file each: wrong answers to refuse, widgets and their ends, pictures.

The right answers are not here: they are the solutions that the page itself offers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wrong:
    """A wrong answer, and what its check must say of it."""

    exercise: str  # the function's name
    answer: Callable[..., Any]
    word: str  # part of the message
    state: str = "no"  # or "todo", "error"


@dataclass(frozen=True)
class Answers:
    """What is known of one lesson."""

    wrong: Sequence[Wrong]  # at least four for each exercise
    widgets: Mapping[str, Sequence[Any]]  # every slider and choice by name: the values to try, both ends among them
    pictures: int  # that the solved lesson shows
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what else a widget's cell defines

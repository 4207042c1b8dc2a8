"""Checks of the numbers that a user can type: by type and range, in settings and on the command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from math import inf, isfinite
from typing import Any

from tinykron.errors import TinykronError

LARGEST = 2**63 - 1  # of any number: what fits into 64 bits
COUNTED = 10**9  # of what is counted, such as batches and steps: two of them multiplied still fit


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Return a whole number in [least, most]. Raises TinykronError, naming what was found and what was expected."""
    most = LARGEST if most is None else most
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = f"from {least} to {most}" if most < COUNTED else f"from {least} on"
        if most >= COUNTED and type(value) is int and value > most:
            limit = f"up to {most}"
        raise TinykronError(f"{name}: found {_shown(value)}, expected a whole number {limit}")
    return value


def real(
    name: str, value: Any, least: float = -inf, most: float = inf, above: float = -inf, below: float = inf
) -> float:
    """Return a finite number in [least, most], above and below two others. Raises TinykronError."""
    fits = not isinstance(value, bool) and isinstance(value, (int, float)) and -LARGEST <= value <= LARGEST
    if not fits or not (least <= value <= most and above < value < below):
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("from", least), ("above", above), ("up to", most), ("below", below))
            if isfinite(limit)
        ]
        expected = " and ".join(limits) + " on" * (limits == [f"from {least:g}"]) or "that is finite"
        raise TinykronError(f"{name}: found {_shown(value)}, expected a number {expected}")
    return value


def option(check: Callable[..., Any], **limits: Any) -> Callable[[str], Any]:
    """Return a `type=` for argparse: it reads an option's text as a number and checks it by `whole` or `real`."""

    def read(text: str) -> Any:
        try:
            value: Any = (int if check is whole else float)(text)
        except ValueError:  # no number, or one of more digits than Python reads
            value = text
        try:
            return check("", value, **limits)
        except TinykronError as error:
            raise ArgumentTypeError(str(error).removeprefix(": ")) from None

    return read


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return shown if len(shown) <= 40 else f"{shown[:37]}..."

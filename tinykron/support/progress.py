"""How far a long job is: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_SECONDS = 15.0  # between two plain lines


def say(line: str) -> None:
    """Tell what is being done, on standard error: standard output is for the result."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Progress of `total` units of work, written to standard error.

    with Progress("training", total=steps * tokens_a_step, unit="tokens") as progress:
        progress.advance(tokens, f"loss {loss:.3f}")
    """

    def __init__(self, title: str, total: int, unit: str = "steps", done: int = 0) -> None:
        self.title, self.total, self.unit, self.done, self.first = title, total, unit, done, done
        self.note = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self.start = self.last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = "{task.description}", "{task.fields[rate]}", "{task.fields[note]}"
            text = [TextColumn(column, markup=False) for column in columns]
            self._bar = Bar(text[0], BarColumn(), text[1], TimeRemainingColumn(), text[2], console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, rate="", note="")
        return self

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def advance(self, amount: int, note: str = "") -> None:
        """Report `amount` more units done, and what is worth saying about them."""
        self.done += amount
        self.note = note
        if self._bar:
            rate = f"{self.rate:,.0f} {self.unit}/s"
            self._bar.update(self._task, advance=amount, rate=rate, note=note)
        elif time.monotonic() - self.last >= PLAIN_SECONDS:
            self._print()

    def _print(self) -> None:
        self.last = time.monotonic()
        rate = self.rate
        line = (
            f"{self.title}: {self.done:,} of {self.total:,} {self.unit} ({100 * self.done / max(self.total, 1):.0f} %)"
        )
        if rate:
            line += f", {rate:,.0f} {self.unit}/s, {(self.total - self.done) / rate:.0f} s left"
        say(line + (f", {self.note}" if self.note else ""))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._print()

"""The life of an output folder: refused where it exists, made beside its place, renamed when all is in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinykron import checkpoint
from tinykron.errors import CheckpointError
from tinykron.support import files


@dataclass(frozen=True)
class Work:
    """A folder that is being made."""

    out: Path
    progress: Path  # what an interrupted run goes on with; removed when `out` is there
    result: Path  # becomes `out`

    def clear(self) -> Path:
        """Remove a result that a kill left behind; return its place."""
        shutil.rmtree(self.result, ignore_errors=True)
        return self.result

    def save(self, model: Any, dtype: str = "float32") -> Any:
        """Save a model as the result; return it as a user will load it, rounded to the file's dtype."""
        checkpoint.save(model, self.clear(), dtype=dtype)
        return checkpoint.load(self.result)

    def write(self, name: str, text: str) -> None:
        """Write a text file into the result."""
        files.write(self.result / name, text)


@contextmanager
def making(out: str | Path, ending: str = ".training") -> Iterator[Work]:
    """Yield the work on a new folder `out`, and give the result that name at the end.

    ending  of the name of the folder beside it that keeps the progress: after Ctrl-C, a kill or an error it stays, and
            the same call continues
    Raises CheckpointError, before any work, where `out` exists.
    """
    out = Path(out)
    refuse(out)
    progress = out.with_name(out.name + ending)
    work = Work(out, progress, progress / "result")
    yield work
    files.finish(work.result, out, progress)


def refuse(*places: str | Path | None) -> None:
    """Raise CheckpointError for a place that exists: no run writes into what is there."""
    for place in places:
        if place is not None and os.path.lexists(place):  # a link that leads nowhere is there, too
            raise CheckpointError(f"{place}: exists already; choose another folder, or remove it")

"""Files and folders that are whole or not there: made under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tinykron.errors import CheckpointError


def write(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8; one that is there stays until the new one is whole. Raises CheckpointError."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def finish(made: Path, out: Path, progress: Path) -> None:
    """Give a finished folder its name, and remove the one in which it was made. Raises CheckpointError."""
    try:
        os.replace(made, out)
        shutil.rmtree(progress, ignore_errors=True)  # what it was made for is there
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from error

"""Files and folders that are whole or not there: made under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tinykron.errors import CheckpointError, DataError, TinykronError


def read(path: Path, error: type[TinykronError] = DataError, encoding: str = "utf-8-sig") -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark. Raises `error` naming the file.

    Line ends stay as they are.
    """
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as fault:
        found = f"byte 0x{fault.object[fault.start]:02x} at offset {fault.start}"
        raise error(f"{path}: expected UTF-8 text, found {found}") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror}") from None


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

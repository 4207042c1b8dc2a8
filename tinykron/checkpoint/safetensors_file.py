"""The safetensors container: what a file holds, its values a block of rows at a time, and writing one.

The safetensors library writes, and checks what is read; its faults, and what it lets pass, become CheckpointErrors.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

from tinykron.errors import CheckpointError

FLOATS = {"F32": "<f4", "BF16": "<u2", "F16": "<f2", "F64": "<f8"}  # the dtypes that become parameters, as NumPy reads
BLOCK_BYTES = 2 << 20  # of a file, read at a time: what the cache holds until it is copied on
HEADER_LIMIT = 100_000_000  # bytes; the format's own
HEADER_FREE = 2 << 20  # bytes that a header may always have: some ten thousand tensors
HEADER_COST = 40  # bytes of memory that reading takes for each byte of a header that is nothing but entries
RANK_LIMIT = 64  # NumPy's own


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its first byte in the file

    def blocks(self) -> Iterator[tuple[slice | EllipsisType, np.ndarray]]:
        """Yield (rows, values in float32) from first to last row, about BLOCK_BYTES at a time; nothing if it is empty.

        `rows` is `...` for a tensor of no axes. Every block is an array of its own.
        Raises CheckpointError, also for a number in float64 that float32 has no room for.
        """
        if self.dtype not in FLOATS:
            raise CheckpointError(f"{self._what}: found dtype {self.dtype}, expected one of {', '.join(FLOATS)}")
        if 0 in self.shape:
            return  # the other sizes may be beyond all reason
        dtype, (height, *row) = np.dtype(FLOATS[self.dtype]), self.shape or (1,)
        step = max(1, BLOCK_BYTES // (dtype.itemsize * math.prod(row)))
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                for first in range(0, height, step):
                    values = np.empty((min(step, height - first), *row), dtype)
                    if file.readinto(values.data.cast("B")) < values.nbytes:
                        raise CheckpointError(f"{self._what}: the file was cut short after its header had been read")
                    floats = self._floats(values)
                    yield (slice(first, first + len(values)), floats) if self.shape else (..., floats.reshape(()))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None

    @property
    def _what(self) -> str:
        return f"{self.path}: {self.name}"

    def _floats(self, values: np.ndarray) -> np.ndarray:
        """Return in float32 what was read. Raises CheckpointError for a number that is too large."""
        if self.dtype == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN is invalid, and becomes a quiet one
            floats = values.astype(np.float32, copy=False)
        if self.dtype == "F64" and np.isinf(floats).sum() > np.isinf(values).sum():
            largest = np.abs(values[np.isfinite(values)]).max()
            raise CheckpointError(f"{self._what} reaches {largest:g}, more than float32 holds")
        return floats


def contents(path: Path) -> dict[str, Stored]:
    """Return what a safetensors file holds, by name. Raises CheckpointError if it is missing or malformed."""
    try:
        header, data = _header(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return {
        name: Stored(path, name, entry["dtype"], tuple(entry["shape"]), data + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write host arrays by name, and texts by name; the file is replaced when all is written.

    The library writes to a name that it draws, and renames. In a folder of ours, `<name>.tmp`, what a kill leaves of it
    is found by the next write, which starts that folder anew. Raises OSError, with the library's words, if that fails.
    """
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:  # the library takes an array's first address and its size on trust: it must lie in C order
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        save_file(contiguous, temporary / path.name, dict(metadata or {}))
        os.replace(temporary / path.name, path)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries of a sound file by name, and where their values begin. Raises OSError, CheckpointError."""
    unsound = f"{path}: no sound safetensors file"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > HEADER_LIMIT:
            raise CheckpointError(
                f"{unsound}: {size} bytes long, with a header of {length}; "
                f"expected at least 8 bytes and the whole header, which has at most {HEADER_LIMIT}"
            )
        if length > HEADER_FREE and HEADER_COST * length > size:  # else reading it would outgrow the file
            raise CheckpointError(
                f"{unsound}: a header of {length} bytes in a file of {size}; expected at most 1/{HEADER_COST} of it"
            )
        text = file.read(length)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{unsound}: its header begins with {text[:1]!r}, expected b'{{'")
    header = parse_json(text, f"{path}: header")
    _check_size(path, size, 8 + length, header)
    _check_with_library(path, unsound)
    header.pop("__metadata__", None)
    for name, entry in header.items():  # what the library takes, and the format does not have; the numbers are sound
        if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):
            raise CheckpointError(f"{unsound}: {name}: expected an object whose dtype is a text, found {entry}")
        if len(entry["shape"]) > RANK_LIMIT:
            raise CheckpointError(f"{path}: {name} has {len(entry['shape'])} axes, NumPy has at most {RANK_LIMIT}")
    return header, 8 + length


def _check_size(path: Path, size: int, data: int, header: Any) -> None:
    """Say in numbers how a file is too short or too long."""
    try:
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (AttributeError, LookupError, TypeError):
        return  # an entry that is none: the library finds the words for it
    if isinstance(end, int) and size != data + end:
        how = "cut short" if size < data + end else "too long"
        raise CheckpointError(f"{path} is {how}: found {size} bytes, expected {data + end} from its header")


def _check_with_library(path: Path, unsound: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{unsound}: {error}") from None


def json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises CheckpointError."""
    try:
        value = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def parse_json(text: bytes, what: str) -> Any:
    """Return the value of a JSON text. Raises CheckpointError, beginning with `what`, if malformed or a key repeats."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                raise ValueError(f"{json.dumps(name)} occurs twice")
            values[name] = value
        return values

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is no valid JSON: {error}") from None

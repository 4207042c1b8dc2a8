"""The safetensors container: what a file holds, its values a block of rows at a time, and writing one.

The safetensors library reads and writes; here its faults, and what it lets pass, become CheckpointErrors.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.errors import CheckpointError

FLOATS = ("F32", "BF16", "F16", "F64")  # the dtypes that become parameters
BLOCK_BYTES = 2 << 20  # of a file, read at a time: what the cache holds until it is copied on
HEADER_LIMIT = 100_000_000  # bytes; the format's own


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, values in float32) from first to last row, about BLOCK_BYTES at a time.

        The file is opened anew for each block: the pages of a mapped file count as the process's until it is closed.
        Raises CheckpointError.
        """
        import ml_dtypes  # noqa: F401  teaches NumPy, and so the library, what bfloat16 is

        if 0 in self.shape:
            return
        step = max(1, BLOCK_BYTES // (4 * prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            with _opened(self.path) as file:
                values = file.get_slice(self.name)[rows]
            yield rows, self._as_float32(values)

    def _as_float32(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN stays a NaN
            converted = values.astype(np.float32, copy=False)
        if self.dtype == "F64" and np.isinf(converted).sum() > np.isinf(values).sum():
            found = np.abs(values[np.isfinite(values)]).max()
            raise CheckpointError(f"{self.path}: {self.name} reaches {found:g}, more than float32 holds")
        return converted


def contents(path: Path) -> dict[str, Stored]:
    """Return what a safetensors file holds, by name. Raises CheckpointError if it is missing or malformed."""
    try:
        _check_header(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  the file is no dict
        return {name: Stored(path, name, part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


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


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no sound safetensors file: {error}") from None


def _check_header(path: Path) -> None:
    """Refuse repeated names, which the library accepts, and say in numbers how a file is too short or too long."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > HEADER_LIMIT:
            raise CheckpointError(
                f"{path}: no sound safetensors file: {size} bytes long, with a header of {length}; "
                f"expected at least 8 bytes and the whole header, which has at most {HEADER_LIMIT}"
            )
        text = file.read(length)
    if not text.startswith(b"{"):  # which the format asks for, and the library does not
        raise CheckpointError(f"{path}: no sound safetensors file: its header begins with {text[:1]!r}, expected b'{{'")
    header = parse_json(text, f"{path}: header")
    try:
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (AttributeError, LookupError, TypeError):
        return  # an entry that is none: the library finds the words for it
    if isinstance(end, int) and size != 8 + length + end:
        how = "cut short" if size < 8 + length + end else "too long"
        raise CheckpointError(f"{path} is {how}: found {size} bytes, expected {8 + length + end} from its header")


def parse_json(text: bytes, what: str) -> Any:
    """Return the value of a JSON text. Raises CheckpointError, beginning with `what`, if malformed or a key repeats."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f'"{next(name for name in names if names.count(name) > 1)}" occurs twice')
        return values

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is no valid JSON: {error}") from None

"""What a teacher says of each batch, kept on disk: a second epoch, or a second student, need not ask it again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinykron.backend import Array, to_device, to_host
from tinykron.checkpoint import safetensors_file
from tinykron.errors import CheckpointError, TinykronError

INDEX = "cache.json"
DTYPES = {"float32": np.float32, "float16": np.float16}


@dataclass
class TeacherCache:
    """A folder with one file for each batch, and an index that says what they were made from.

    dtype  "float32" gives back what was put in; "float16" takes half, and rounds to 11 bits: then a student equal to
           its teacher still has a small loss
    """

    folder: str | Path
    dtype: str = "float32"
    batches: int = field(default=0, init=False)  # that a run asks for
    said: bool = field(default=False, init=False)  # how large it becomes

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.dtype not in DTYPES:
            raise TinykronError(f"cache: found dtype {self.dtype!r}, expected {' or '.join(DTYPES)}")

    def open(self, origin: Mapping[str, str], batches: int) -> None:
        """Take the folder for a run.

        origin   what the outputs depend on, by name: digests of teacher and text, how batches are drawn, which outputs
        batches  how many different ones there are
        Raises CheckpointError, naming what differs, where the folder was made from something else.
        """
        self.batches, self.said, folder = batches, False, Path(self.folder)
        index, wanted = folder / INDEX, {**origin, "dtype": self.dtype}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not index.exists() and not any(folder.iterdir()):
                index.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
            found = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{index}: cannot be used as the index of a cache: {error}") from error
        found = found if isinstance(found, dict) else {}
        other = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if other:
            raise CheckpointError(f"{folder}: was made from other {', '.join(other)}; use another folder, or remove it")

    def get(self, number: int, ask: Callable[[], Mapping[str, Array]], device: str) -> dict[str, Array]:
        """Return the outputs for one batch, on `device`; a batch that is not there is asked for and written.

        Before anything is written it is said how many bytes all batches will take. Raises CheckpointError if the disk
        has less, or a file is damaged; TinykronError for a number that float16 has no room for.
        """
        path = Path(self.folder) / f"{number:06}.safetensors"
        if not path.exists():
            self._put(path, {name: to_host(array) for name, array in ask().items()})
        return {name: to_device(array, device) for name, array in _read(path).items()}

    def _put(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        with np.errstate(over="ignore"):
            stored = {name: array.astype(DTYPES[self.dtype]) for name, array in arrays.items()}
        for name, array in stored.items():
            if not np.isfinite(array).all() and np.isfinite(arrays[name]).all():
                largest = np.abs(arrays[name]).max()
                raise TinykronError(f"cache: {name} reaches {largest:g}, more than float16 holds; use float32")
        if not self.said:
            self._say(sum(array.nbytes for array in stored.values()))
        try:
            safetensors_file.write(path, stored)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error}") from error

    def _say(self, a_batch: int) -> None:
        """Say what the batches that are not there yet will take, and refuse what does not fit the disk."""
        folder = Path(self.folder)
        missing = self.batches - sum(1 for _ in folder.glob("*.safetensors"))
        needed, free = a_batch * missing, shutil.disk_usage(folder).free
        line = f"{folder}: {missing:,} batches of the teacher's outputs take {needed:,} bytes in {self.dtype}"
        if needed > free:
            raise CheckpointError(f"{line}; the disk has {free:,} free")
        print(f"{line}; {free:,} are free", file=sys.stderr, flush=True)
        self.said = True


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: array.astype(np.float32, copy=False) for name, array in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; remove it, and it is made anew") from error

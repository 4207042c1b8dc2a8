"""The container under fire: a spoiled file gives an error, or what a strict reader reads; never anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.container import DTYPES, RefusedError, mutate, packed, strict_read
from tinykron.errors import CheckpointError
from tinykron.safetensors_file import FLOATS, contents

ROOT = Path(__file__).parent.parent
Reader = Callable[[Path], dict[str, np.ndarray]]


def our_read(path: Path) -> dict[str, np.ndarray]:
    """Return every float tensor of a file, as loading a model reads it."""
    found = {}
    for name, stored in contents(path).items():
        if stored.dtype in FLOATS:
            if not stored.shape:
                found[name] = None  # no parameter has rank 0
                continue
            blocks = [values for _, values in stored.blocks()]
            found[name] = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    return found


def judge(read: Reader, content: bytes, path: Path) -> str:
    """Return "read" or "refused" after comparing a reader with the strict one on the same bytes."""
    path.write_bytes(content)
    try:
        found = read(path)
    except CheckpointError as error:
        assert str(path) in str(error), error
        found = None
    try:
        expected = strict_read(content)
    except RefusedError:
        assert found is None, f"accepted what the format does not allow: {content!r}"
        return "refused"
    assert found is not None, f"refused a sound file: {content!r}"
    assert found.keys() == expected.keys(), content
    for name, array in expected.items():
        if found[name] is not None:
            assert found[name].shape == array.shape and found[name].tobytes() == array.tobytes(), (name, content)
    return "read"


def fuzz(read: Reader, seeds: range, path: Path) -> dict[str, int]:
    verdicts = {"read": 0, "refused": 0}
    for seed in seeds:
        verdicts[judge(read, mutate(np.random.default_rng(seed)), path)] += 1
    return verdicts


def test_a_thousand_spoiled_files(tmp_path):
    verdicts = fuzz(our_read, range(1500), tmp_path / "file.safetensors")
    assert min(verdicts.values()) > 300, verdicts  # neither all sound nor all spoiled


@pytest.mark.slow
def test_a_hundred_thousand_spoiled_files(tmp_path):
    """In a process of its own: one that crashes, hangs or outgrows its memory ends it."""
    code = """
import resource, sys
from pathlib import Path
from tests.test_safetensors_file import fuzz, our_read
fuzz(our_read, range(100), Path(sys.argv[1]))
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
print(fuzz(our_read, range(100_000), Path(sys.argv[1])))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "file.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)


def trusts_the_last_name(path: Path) -> dict[str, np.ndarray]:
    """As Python's json does by default."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        return strict_read(packed(json.dumps(header).encode(), content[8 + length :]))
    except (RefusedError, ValueError, RecursionError, TypeError):
        raise CheckpointError(str(path)) from None


def ignores_holes_and_overlap(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header, found = json.loads(content[8 : 8 + length]), {}
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in DTYPES:
                begin, end = entry["data_offsets"]
                values = np.frombuffer(content[8 + length :][begin:end], DTYPES[entry["dtype"]])
                found[name] = values.reshape(entry["shape"]).astype(np.float32)
        return found
    except Exception:
        raise CheckpointError(str(path)) from None


def refuses_whatever_is_empty(path: Path) -> dict[str, np.ndarray]:
    try:
        found = strict_read(path.read_bytes())
    except RefusedError:
        raise CheckpointError(str(path)) from None
    if any(array.size == 0 for array in found.values()):
        raise CheckpointError(str(path))
    return found


@pytest.mark.parametrize("wrong", [trusts_the_last_name, ignores_holes_and_overlap, refuses_whatever_is_empty])
def test_a_wrong_reader_is_found_out(tmp_path, wrong):
    with pytest.raises(AssertionError):
        fuzz(wrong, range(1500), tmp_path / "file.safetensors")


HUGE = {
    "a header of exabytes": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "a header of 100 MB that is not there": (10**8).to_bytes(8, "little") + b"{}",
    "a tensor of exabytes": packed({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}, b""),
    "a shape that wraps to nothing": packed(
        {"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, b""
    ),
    "rows without width": packed({"a": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}, b""),
    "deep nesting": packed(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
}
READ = """
import sys
from pathlib import Path
from tests.test_safetensors_file import our_read
from tinykron.errors import CheckpointError
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
try:
    our_read(Path(sys.argv[1]))
except CheckpointError:
    pass
print((peak() - before) << 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", HUGE)
def test_no_memory_beyond_the_file_s_size(tmp_path, kind):
    path = tmp_path / "file.safetensors"
    path.write_bytes(HUGE[kind])
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    assert int(done.stdout) < path.stat().st_size + (48 << 20)  # the libraries that reading imports

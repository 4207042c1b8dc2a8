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
from tinykron.checkpoint.safetensors_file import FLOATS, contents
from tinykron.errors import CheckpointError

ROOT = Path(__file__).parents[2]
Reader = Callable[[Path], dict[str, np.ndarray]]


def our_read(path: Path) -> dict[str, np.ndarray]:
    """Return every float tensor of a file, as loading a model reads it."""
    found = {}
    for name, stored in contents(path).items():
        if stored.dtype in FLOATS:
            blocks = list(stored.blocks())
            found[name] = np.full(stored.shape if blocks else 0, np.nan, np.float32)
            for rows, values in blocks:
                found[name][rows] = values
    return found


def judge(read: Reader, content: bytes, path: Path) -> str:
    """Return "read" or "refused" after comparing a reader with the strict one on the same bytes."""
    path.write_bytes(content)
    try:
        found = read(path)
    except CheckpointError as error:
        assert str(path) in str(error) and str(error).encode(), error  # what is printed is text
        found = None
    try:
        expected = strict_read(content)
    except RefusedError:
        assert found is None, f"accepted what the format does not allow: {content!r}"
        return "refused"
    assert found is not None, f"refused a sound file: {content!r}"
    assert found.keys() == expected.keys(), content
    for name, array in expected.items():
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
from tests.checkpoint.test_safetensors_file import fuzz, our_read
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


# What the fuzz found, each in words --------------------------------------------------------------------------------


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        our_read(path)
    return str(caught.value)


PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("entry", [["F32", [2], [0, 8]], PAIR | {"dtype": {"F32": None}}])
def test_what_only_the_library_understands_is_refused(tmp_path, entry):
    message = refusal(tmp_path / "file.safetensors", packed({"a": entry}, bytes(8)))
    assert "a: expected an object whose dtype is a text, found" in message


def test_more_axes_than_numpy_has(tmp_path):
    entry = {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}
    assert "a has 65 axes, NumPy has at most 64" in refusal(
        tmp_path / "file.safetensors", packed({"a": entry}, bytes(4))
    )


def test_a_tensor_without_axes(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(packed({"a": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}}, b"\x80\xbf"))
    [(rows, values)] = contents(path)["a"].blocks()
    assert rows is ... and values.shape == () and values == -1.0


def test_a_double_beyond_float32(tmp_path):
    entry = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
    path = tmp_path / "file.safetensors"
    message = refusal(path, packed({"a": entry}, np.array([-1e300, np.inf]).tobytes()))
    assert "a reaches 1e+300, more than float32 holds" in message
    path.write_bytes(packed({"a": entry}, np.array([np.nan, -np.inf]).tobytes()))
    np.testing.assert_array_equal(our_read(path)["a"], np.array([np.nan, -np.inf], np.float32))


def test_half_a_character_in_a_message(tmp_path):
    one = json.dumps(PAIR).encode()
    message = refusal(tmp_path / "file.safetensors", packed(b'{"\\ud800": %s, "\\ud800": %s}' % (one, one), bytes(8)))
    assert r'"\ud800" occurs twice' in message and message.encode()


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(packed({"a": PAIR}, bytes(8)))
    stored = contents(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="a: the file was cut short after its header had been read"):
        list(stored.blocks())
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        list(stored.blocks())


def test_no_float_has_no_blocks(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(packed({"a": PAIR | {"dtype": "I32"}}, bytes(8)))
    with pytest.raises(CheckpointError, match="a: found dtype I32, expected one of F32, BF16, F16, F64"):
        list(contents(path)["a"].blocks())


@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_are_consecutive_rows(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("tinykron.checkpoint.safetensors_file.BLOCK_BYTES", 50)
    values = np.arange(33, dtype=np.float32).reshape(11, 3).astype(DTYPES[dtype])
    header = {"odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}  # all that follows is unaligned
    header["a"] = {"dtype": dtype, "shape": [11, 3], "data_offsets": [1, 1 + values.nbytes]}
    path = tmp_path / "file.safetensors"
    path.write_bytes(packed(header, b"x" + values.tobytes()))
    blocks = list(contents(path)["a"].blocks())
    assert len(blocks) > 1 and [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]
    np.testing.assert_array_equal(np.concatenate([part for _, part in blocks]), values.astype(np.float32))


# Memory --------------------------------------------------------------------------------------------------------------


HUGE = {
    "a header of exabytes": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "a header of 100 MB that is not there": (10**8).to_bytes(8, "little") + b"{}",
    "a tensor of exabytes": packed({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}, b""),
    "a shape that wraps to nothing": packed(
        {"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, b""
    ),
    "rows without width": packed({"a": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}, b""),
    "a header of entries and nothing else": packed(
        {f"{n:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}, b""
    ),
    "deep nesting": packed(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
}
READ = """
import sys
from pathlib import Path
from tests.checkpoint.test_safetensors_file import our_read
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


def test_a_long_header_needs_a_long_file(tmp_path):
    path = tmp_path / "file.safetensors"
    data = 100 << 20
    text = json.dumps({"a": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}).encode() + b" " * (2 << 20)
    with path.open("wb") as file:
        file.write(packed(text, b""))
        file.truncate(8 + len(text) + data)  # zeros, which take no room on the disk
    assert contents(path)["a"].shape == (data,)
    path.write_bytes(packed({"a" * (3 << 20): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, b""))
    with pytest.raises(CheckpointError, match=r"a header of \d+ bytes in a file of \d+; expected at most 1/40 of it"):
        contents(path)

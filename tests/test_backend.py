"""Which module owns an array, moving arrays, the default device, and row blocks on threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_device import FAKE, FakeArray
from tests.helpers import assert_close, host
from tests.strategies import arrays, shapes
from tinykron import backend
from tinykron import threads as threads_module
from tinykron.errors import DeviceError, TinykronError


def test_xp_of_finds_the_owner(device: str) -> None:
    array = backend.to_device(np.ones(3, np.float32))
    assert backend.backend_of(array).name == device
    assert backend.xp_of(array) is backend.get(device).xp
    assert isinstance(array, backend.get(device).array_type)


@pytest.mark.parametrize("value", [[1.0], 1.0, None, np.float32(1)], ids=str)
def test_what_is_no_array_is_named(value: object) -> None:
    with pytest.raises(DeviceError, match=type(value).__name__):
        backend.xp_of(value)


def test_a_subclass_of_ndarray_is_taken(tmp_path: object) -> None:
    mapped = np.memmap(f"{tmp_path}/array", np.float32, "w+", shape=(2,))
    assert backend.backend_of(mapped) is backend.CPU


@given(array=arrays(shapes(), dtype=np.float32))
def test_there_and_back(device: str, array: np.ndarray) -> None:
    there = backend.to_device(array, device)
    assert backend.to_device(there, device) is there
    back = backend.to_host(there)
    assert type(back) is np.ndarray
    assert_close(back, array, rtol=0, atol=0)


def test_from_one_device_to_another(device: str) -> None:
    array = backend.to_device(np.arange(3.0), "fake")
    moved = backend.to_device(array)
    assert backend.backend_of(moved).name == device
    assert_close(moved, np.arange(3.0))


def test_the_default_device_and_its_block() -> None:
    assert backend.current_device() == "cpu"
    with backend.device("fake") as inside:
        assert inside is FAKE
        assert backend.current_device() == "fake"
        with backend.device("cpu"):
            assert backend.current_device() == "cpu"
        assert isinstance(backend.to_device(np.ones(2)), FakeArray)
    assert backend.current_device() == "cpu"


def test_the_block_ends_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), backend.device("fake"):
        raise ZeroDivisionError
    assert backend.current_device() == "cpu"


def test_device_for_good_does_not_reach_other_threads_contexts() -> None:
    """A device set without `with` holds from there on, for the thread that set it."""
    seen = []

    def worker() -> None:
        backend.device("fake")
        seen.append(backend.current_device())

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert seen == ["fake"]
    assert backend.current_device() == "cpu"


def test_the_environment_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYKRON_DEVICE", "fake")
    assert backend.current_device() == "fake"
    assert isinstance(backend.to_device(np.ones(2)), FakeArray)
    with backend.device("cpu"):
        assert backend.current_device() == "cpu"
    monkeypatch.setenv("TINYKRON_DEVICE", "")
    assert backend.current_device() == "cpu"


def test_an_unknown_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (backend.get, backend.device, lambda name: backend.to_device(np.ones(2), name)):
        with pytest.raises(DeviceError, match='unknown device "tpu": expected "cpu" or "cuda"'):
            call("tpu")
    monkeypatch.setenv("TINYKRON_DEVICE", "tpu")
    with pytest.raises(TinykronError, match="tpu"):
        backend.to_device(np.ones(2))
    assert backend.get("cpu") is backend.CPU


WITHOUT_CUPY = """
import sys
sys.modules["cupy"] = None  # what an import finds where cupy is not installed
import tinykron
from tinykron.errors import DeviceError
try:
    tinykron.device("cuda")
except DeviceError as error:
    print(error)
"""


def test_without_cupy_the_error_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_CUPY], capture_output=True, text=True, check=True)
    assert 'device "cuda" needs cupy' in done.stdout
    assert 'pip install "tinykron[cuda12]"' in done.stdout


def test_scatter_add_accumulates_repeats(device: str) -> None:
    target = backend.to_device(np.zeros((3, 2), np.float32))
    index = backend.to_device(np.array([2, 0, 2]))
    backend.scatter_add(target, index, backend.to_device(np.array([[1, 2], [3, 4], [5, 6]], np.float32)))
    assert_close(target, np.array([[3, 4], [0, 0], [6, 8]], np.float32))


INDEFINITE, SINGULAR = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 4.0]])


@pytest.mark.parametrize(("name", "matrix"), [("cholesky", INDEFINITE), ("inv", SINGULAR), ("solve", SINGULAR)])
def test_linear_algebra_that_fails_says_so_when_asked(device: str, name: str, matrix: np.ndarray) -> None:
    array = backend.to_device(matrix)
    arguments = (array, array) if name == "solve" else (array,)
    with backend.linalg_errors(array), pytest.raises(np.linalg.LinAlgError):
        getattr(backend.xp_of(array).linalg, name)(*arguments)


def test_erf_keeps_the_dtype(device: str) -> None:
    for dtype in (np.float32, np.float64):
        found = host(backend.erf(backend.to_device(np.array([-np.inf, 0.0, 0.5, np.inf], dtype))))
        assert_close(found, np.array([-1.0, 0.0, 0.5204998778130465, 1.0], dtype))


# Row blocks -----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 40), block=st.integers(1, 12), width=st.integers(0, 3))
@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_by_rows_equals_one_call(threads: str, device: str, rows: int, block: int, width: int) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", threads)
        source = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
        x, out = backend.to_device(source), backend.to_device(np.full_like(source, -1.0))

        def double(x: backend.Array, out: backend.Array) -> None:
            out += x * 2.0 + 1.0  # a row met twice, or missed, would show

        threads_module.by_rows(double, x, out, block=block)
        assert_close(out, source * 2.0, rtol=0, atol=0)


def test_by_rows_chooses_blocks_that_cover_a_large_array() -> None:
    x = np.zeros((4099, 97), np.float32)
    lengths = []

    def add_one(block: np.ndarray) -> None:
        lengths.append(len(block))
        block += 1.0

    threads_module.by_rows(add_one, x)
    assert (x == 1.0).all()
    assert sum(lengths) == len(x)
    assert len(lengths) > 1
    assert max(lengths) * 97 <= threads_module.BLOCK_ELEMENTS


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows, block", [(1024, 341), (7, 3), (1000, 999), (5, 1)])
def test_by_rows_gives_all_threads_as_much(
    monkeypatch: pytest.MonkeyPatch, threads: int, rows: int, block: int
) -> None:
    """Not 341, 341, 341 and 1, of which one of two threads would do two thirds."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    lengths: list[int] = []
    threads_module.by_rows(lambda x: lengths.append(len(x)), np.zeros((rows, 2)), block=block)
    longest = max(lengths)
    assert sum(lengths) == rows
    assert longest <= block
    shares = -(-len(lengths) // threads)  # what the thread with the most blocks does, at most
    assert shares * longest <= -(-rows // threads) + shares


def test_by_rows_passes_an_error_on() -> None:
    def fail(block: np.ndarray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads_module.by_rows(fail, np.zeros((10, 2)), block=3)


@pytest.mark.parametrize("setting, expected", [("3", 3), ("1", 1)])
def test_thread_count_follows_the_variable_that_blas_reads(
    monkeypatch: pytest.MonkeyPatch, setting: str, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert threads_module.thread_count() == expected
    for senseless in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", senseless)
        assert threads_module.thread_count() >= 1


PAGE_FAULTS = """
import resource
import numpy as np
from tinykron.threads import recycled_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(16 << 20, np.float32)  # 64 MiB: at least 32 pages, of 2 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
with recycled_memory():
    faults()
    inside = faults()
print(before, inside, faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_recycled_memory_takes_pages_from_the_system_once() -> None:
    run = subprocess.run([sys.executable, "-c", PAGE_FAULTS], check=True, capture_output=True, text=True)
    before, inside, after = map(int, run.stdout.split())
    assert before > 300
    assert inside < before / 10
    assert after > 300


SCATTERED = """
from tinykron.threads import return_memory
import numpy as np

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 // 1024

pieces = [np.ones(100_000, np.uint8) for _ in range(2000)]  # 200 MB, too small for mappings of their own
last = np.ones(100_000, np.uint8)  # above them: the heap cannot shrink
full = resident()
del pieces
before = resident()
return_memory()
print(full, before, resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a function of glibc")
def test_what_is_free_between_what_is_not_goes_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", SCATTERED], check=True, capture_output=True, text=True)
    full, before, after = map(int, run.stdout.split())
    assert before > full - 20  # megabytes: freeing alone gave back nothing
    assert after < full - 150


IDLE = """
import threading, time
import numpy as np
from tinykron.threads import long_work

x = np.ones((512, 512), np.float32)

def idle():
    x @ x  # on all threads of BLAS
    before = time.process_time()
    time.sleep(0.15)
    return f"{time.process_time() - before:.3f}"

before = idle()
with long_work():
    x @ x  # starts the threads
    with long_work():
        inside = idle()
    still = idle()
print(before, inside, still, idle())

stop = threading.Event()
other = threading.Thread(target=stop.wait)
other.start()
with long_work():
    print(idle())
stop.set()
other.join()
"""


def seconds_awake(**settings: str) -> list[float]:
    """Return the processor's seconds in .15 of sleep after a product: before a block, in it twice, after it; and in a
    block while another thread runs."""
    environment = {name: value for name, value in os.environ.items() if name != threads_module.TIMEOUT} | settings
    run = subprocess.run([sys.executable, "-c", IDLE], check=True, capture_output=True, text=True, env=environment)
    return list(map(float, run.stdout.split()))


@pytest.mark.skipif(
    sys.platform != "linux" or threads_module.thread_count() < 2, reason="OpenBLAS's threads on Linux, two at least"
)
def test_idle_threads_of_blas_sleep_in_a_block_of_long_work() -> None:
    before, inside, still, after, beside = seconds_awake()
    if before < 0.05:
        pytest.skip("this BLAS does not keep its threads awake")
    assert max(inside, still) < before / 4
    asked = seconds_awake(
        **{threads_module.TIMEOUT: str(threads_module.AWAKE)}
    )  # what the environment says is not changed
    assert min(after, beside, *asked) > 4 * max(inside, still)


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "_of_glibc", lambda name: None)
    threads_module.return_memory()
    with threads_module.recycled_memory():
        assert np.ones(3).sum() == 3.0


# Products -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5, threads_module.FEW_ROWS, threads_module.FEW_ROWS + 1])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_the_same_however_the_matrix_is_stored(device, rows, turned):
    generator = np.random.default_rng(rows)
    x_ND, matrix_DF = generator.standard_normal((rows, 12)), generator.standard_normal((12, 30))
    stored = backend.to_device(np.ascontiguousarray(matrix_DF.T)).T if turned else backend.to_device(matrix_DF)
    found = threads_module.product(backend.to_device(x_ND), stored)
    assert_close(found, x_ND @ matrix_DF)
    assert host(found).flags.c_contiguous


@pytest.mark.parametrize("rows", [2, 4, 5, 7, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_a_few_rows_by_a_large_matrix_are_what_each_row_gives(device, rows, turned):
    generator = np.random.default_rng(rows)
    x_ND, matrix_DF = (
        generator.standard_normal(shape).astype(np.float32)
        for shape in ((rows, 48), (48, threads_module.LARGE // 48 * 2 + 5))
    )
    stored = backend.to_device(np.ascontiguousarray(matrix_DF.T)).T if turned else backend.to_device(matrix_DF)
    found = threads_module.product(backend.to_device(x_ND), stored)
    assert found.dtype == np.float32 and host(found).flags.c_contiguous
    assert_close(found, (x_ND.astype(np.float64) @ matrix_DF).astype(np.float32), rtol=0, atol=1e-4)

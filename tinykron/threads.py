"""How matrix products share the cores: blocks of rows in threads, BLAS's idle threads, memory that is used again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

from tinykron.backend import CPU, Array, backend_of

FEW_ROWS = 16  # that go as columns of a matrix stored the other way round
ROWS_APART = {False: 4, True: 7}  # that go one by one: of a matrix as it is, of one stored the other way round
LARGE = 1 << 19  # elements of a matrix that does not stay in a core's cache, and which BLAS shares among its threads


def product(x_ND: Array, matrix_DF: Array) -> Array:
    """Return x @ matrix. A few rows on a CPU, such as a check of drafts has, do not go as one product.

    OpenBLAS copies a matrix before it multiplies it by more than one row, and that takes longer than multiplying each
    row by itself: of two rows by (768, 3072), four times as long. A matrix that is stored the other way round, as an
    output head tied to the embedding is, is cut into blocks that meet all rows while they are near.
    """
    rows = len(x_ND)
    if not 1 < rows <= FEW_ROWS or backend_of(x_ND) is not CPU:
        return x_ND @ matrix_DF
    turned = matrix_DF.T.flags.c_contiguous
    if rows <= ROWS_APART[turned] and matrix_DF.size >= LARGE:
        columns = matrix_DF.shape[1]
        block = max(1, LARGE // len(matrix_DF)) if turned else columns
        out_NF = np.empty((rows, columns), np.result_type(x_ND, matrix_DF))
        for start in range(0, columns, block):
            part = slice(start, start + block)
            for x_D, out_F in zip(x_ND, out_NF, strict=True):
                np.matmul(x_D, matrix_DF[:, part], out=out_F[part])
        return out_NF
    return np.ascontiguousarray((matrix_DF.T @ x_ND.T).T) if turned else x_ND @ matrix_DF


POOL = "tinykron"  # the first part of our threads' names
BLOCK_ELEMENTS = 96 * 1024  # about what stays in a core's L2 cache while a block passes through several ufuncs


def thread_count() -> int:
    """Return how many threads element-wise work may use: OMP_NUM_THREADS, as BLAS reads it, else all cores."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdigit() and int(setting):
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux; others


@cache
def _pool() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix=POOL)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def by_rows(function: Callable[..., object], *arrays: Array, block: int | None = None, products: bool = False) -> None:
    """Call `function` on matching blocks of rows of `arrays`, which it writes in place.

    A block is small enough for the cache, and NumPy lets go of the interpreter lock, so that blocks run on all cores:
    a GELU done so takes half the time of one done ufunc by ufunc over the whole array. On a GPU, and for small arrays,
    it is one call. Every array has the same length, or is None and handed on. `block` is the number of rows, at most:
    every core gets as many blocks, of one length. `products` says that the function multiplies matrices: BLAS then
    keeps to one thread in each of ours.
    """
    first = arrays[0]
    rows = len(first)
    step = block or max(1, BLOCK_ELEMENTS * rows // max(first.size, 1))
    if rows <= step or backend_of(first) is not CPU:
        function(*arrays)
        return
    rounds = -(-rows // (thread_count() * step))  # blocks for each core
    step = -(-rows // (thread_count() * rounds))
    starts = iter(range(0, rows, step))  # shared by the threads: each `next` hands out one block
    with _blas().limit(limits=1) if products else nullcontext():
        helpers = [_pool().submit(_work, function, arrays, starts, step) for _ in range(thread_count() - 1)]
        _work(function, arrays, starts, step)
        for helper in helpers:
            helper.result()


def _work(function: Callable[..., object], arrays: Sequence[Array], starts: Iterator[int], step: int) -> None:
    for start in starts:
        function(*(None if array is None else array[start : start + step] for array in arrays))


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return [function(item) for item in items], on all cores; BLAS keeps to one thread in each.

    For many decompositions of small matrices, of which one alone does not fill two cores.
    """
    results: list[Any] = [None] * len(items)
    places = iter(range(len(items)))  # shared by the threads: each `next` hands out one item

    def work() -> None:
        for place in places:
            results[place] = function(items[place])

    with _blas().limit(limits=1):
        helpers = [_pool().submit(work) for _ in range(thread_count() - 1)]
        work()
        for helper in helpers:
            helper.result()
    return results


@contextmanager
def long_work() -> Iterator[None]:
    """Set up the process for long work, and take that back: `recycled_memory` and `resting_threads`.

    The command line runs in such a block, and so does training. Inference in a program of your own gains by it, too.
    """
    with recycled_memory(), resting_threads():
        yield


TIMEOUT, AWAKE, SHORT = "OPENBLAS_THREAD_TIMEOUT", 28, 20  # log2 of processor cycles: OpenBLAS's own choice; ours


_resting: ContextVar[bool] = ContextVar("resting", default=False)


@contextmanager
def resting_threads() -> Iterator[None]:
    """Let OpenBLAS's threads sleep .4 ms after a product, and leave the cores to the threads of `by_rows`.

    By itself it keeps them awake for a tenth of a second, in which both share the cores; what that costs is measured in
    README, Speed. OpenBLAS reads the setting where it starts its threads, so those that run are ended. Nothing is done
    where the environment sets OPENBLAS_THREAD_TIMEOUT, with another BLAS, and while other threads of Python run, which
    might be multiplying.
    """
    if _resting.get() or TIMEOUT in os.environ:
        yield
        return
    token = _resting.set(True)
    try:
        _restart_blas(SHORT)
        yield
    finally:
        _resting.reset(token)
        _restart_blas(AWAKE)
        os.environ.pop(TIMEOUT, None)


def _restart_blas(timeout: int) -> None:
    """Have each OpenBLAS that is loaded start its threads anew with a timeout."""
    import ctypes
    import threading

    from threadpoolctl import ThreadpoolController

    others = (thread for thread in threading.enumerate() if thread is not threading.current_thread())
    if not all(thread.name.startswith(POOL) for thread in others):
        return
    os.environ[TIMEOUT] = str(timeout)
    for found in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        blas = ctypes.CDLL(found.filepath)
        if found.threading_layer == "pthreads" and hasattr(blas, "openblas_read_env"):
            blas.openblas_read_env()
            blas.blas_thread_shutdown_()  # as it does itself before a fork; the next product starts them


TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the names that glibc's mallopt has for its settings


_recycling: ContextVar[bool] = ContextVar("recycling", default=False)


@contextmanager
def recycled_memory() -> Iterator[None]:
    """Keep what the arrays of a block free for its next arrays, rather than hand it back to the system each time.

    A training step of GPT-2 124M allocates and frees over a gigabyte; fetching the pages for it from the system each
    time takes a fifth of the step. A GPU has CuPy's memory pool for this. On a CPU it is a setting of glibc for the
    whole process; the end of the outermost block takes it back, and returns what is free. Other C libraries are left
    as they are.
    """
    set_option = _of_glibc("mallopt")
    if _recycling.get() or set_option is None:
        yield
        return
    set_option(MMAP_MAX, 0)  # no array in a mapping of its own, which would go when it is freed
    set_option(TRIM_THRESHOLD, -1)
    token = _recycling.set(True)
    try:
        yield
    finally:
        _recycling.reset(token)
        set_option(MMAP_MAX, 65536)
        set_option(MMAP_THRESHOLD, 32 << 20)  # where glibc's own adjustment ends
        set_option(TRIM_THRESHOLD, 64 << 20)
        return_memory()


def return_memory() -> None:
    """Hand what is free back to the system, for work that takes much memory in other pieces than the work before it."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of glibc; None where the C library is another."""
    import ctypes

    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None

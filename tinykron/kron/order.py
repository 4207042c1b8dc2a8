"""In which order to multiply by a sum of Kronecker products: A first, B first, or once through the dense matrix.

The order with the fewest multiplications is not always the fastest: thin products are bound by the numbers that they
read and write, small ones by the call, and copies into another order cost too. A `CostModel` says what each takes, in
five numbers; they are measured once per machine, in less than a second, and kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tinykron import backend, threads
from tinykron.errors import CheckpointError, TinykronError

Order = Literal["a_first", "b_first", "dense"]
Wanted = Literal["auto", "factors", "a_first", "b_first", "dense"]
Passes = Literal["forward", "training"]
Sizes = tuple[int, int, int]  # (R, M, N) or (R, P, Q)

FEW = 8  # up to so many columns, a small matrix is too thin for BLAS
SMALL = 1 << 19  # multiplications, up to which OpenBLAS multiplies a few thin columns as they are
RUN = 8  # numbers that could be copied while a run of Q numbers of a dense matrix finds its place
COPIED = 1 << 13  # numbers of a factor, up to which a copy takes no longer than a call
SWITCH = "TINYKRON_CALIBRATION"  # "off": nothing is measured, multiplications alone decide


def checked_order(wanted: str) -> str:
    """Return `wanted`. Raises TinykronError if there is no such order."""
    if wanted not in get_args(Wanted):
        raise TinykronError(f'order: found "{wanted}", expected one of {", ".join(get_args(Wanted))}')
    return wanted


def order_of(wanted: str, a: Any, b: Any, rows: int, passes: Passes, device: str) -> Order:
    """Return the order that a word stands for: "auto" the fastest, "factors" the fastest that never builds W."""
    if wanted in ("auto", "factors"):
        return choose(a.shape, b.shape, rows, passes, device, wanted == "auto")
    return wanted  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def choose(a: Sizes, b: Sizes, rows: int, passes: Passes = "forward", device: str = "cpu", dense: bool = True) -> Order:
    """Return the fastest order, by the cost model of this machine.

    a, b    shapes (R, M, N) and (R, P, Q)
    rows    vectors that are multiplied
    passes  "forward", or "training": with the backward pass, for the gradients of the vectors and of both factors
    dense   whether the dense matrix may be built
    """
    return cost_model(device).choose(a, b, rows, passes, dense)


def by_columns(terms: int, a: tuple[int, int], p: int, rows: int) -> bool:
    """Whether the layout ByColumns is the better one for A (M, N) and B (P, Q): few columns, or few rows of terms."""
    m, n = a
    if terms == 1:  # A is not copied in either layout
        return p <= FEW and not (rows <= 2 * FEW and rows * m * n <= SMALL)
    return few_rows(terms, a, p, rows) or (p <= FEW and not is_flat(terms, p) and terms * m * n > COPIED)


def few_rows(terms: int, a: tuple[int, int], p: int, rows: int) -> bool:
    """Whether adding up what each term gives takes less than putting the terms of A side by side, which copies A."""
    m, n = a
    return terms > 1 and rows * p < n and terms * m * n > COPIED


def swaps(terms: int, a: tuple[int, int], b: tuple[int, int], rows: int) -> bool:
    """Whether A first is best done as B first with A and B, and the axes of X and Y, swapped: Y^T = sum of B X^T A^T.

    For one row that costs nothing, and for few rows of terms it saves copying B.
    """
    return rows == 1 or few_rows(terms, b, a[0], rows)


def is_flat(terms: int, p: int) -> bool:
    """Whether Z of several terms has one column: adding the terms up is then a part of one product, as in low rank."""
    return p == 1 and terms > 1


def keeps(terms: int, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether Z, of R*N*P numbers a row, is kept for the backward pass: where it is no wider than X and Y together."""
    (m, n), (p, q) = a, b
    return terms * n * p <= n * q + m * p


# The cost model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostModel:
    """What multiplying takes, in seconds. By default nothing but multiplications counts, one second each."""

    call: float = 0.0  # one array operation, however small
    matrix: float = 0.0  # one more product in a stack of small ones
    multiply: float = 1.0  # a multiplication and addition in a product that is neither small nor thin
    touch: float = 0.0  # a number that a product reads or writes: what counts in a thin one
    move: float = 0.0  # a number that is copied into another order

    def choose(self, a: Sizes, b: Sizes, rows: int, passes: Passes = "forward", dense: bool = True) -> Order:
        """Return the order that costs least; of two that cost the same, the first of b_first, a_first, dense."""
        costs = self.costs(a, b, rows, passes)
        return min((order for order in costs if dense or order != "dense"), key=lambda order: costs[order])

    def costs(self, a: Sizes, b: Sizes, rows: int, passes: Passes = "forward") -> dict[Order, float]:
        """Return the seconds that each order takes; the steps are those of `product`."""
        (terms, m, n), (_, p, q) = a, b
        training = passes == "training"
        if swaps(terms, (m, n), (p, q), rows):
            a_first = self._factors(terms, (p, q), (m, n), rows, training)
        else:
            a_first = self._factors(terms, (n, m), (q, p), rows, training, transposed=True)
        return {
            "b_first": self._factors(terms, (m, n), (p, q), rows, training),
            "a_first": a_first,
            "dense": self._dense(terms, (m, n), (p, q), rows, training),
        }

    def product(self, rows: int, inner: int, columns: int, stack: int = 1) -> float:
        """Of a stack of matrix products (rows, inner) @ (inner, columns)."""
        touched = rows * inner + inner * columns + rows * columns
        return self.call + stack * (self.matrix + self.multiply * rows * inner * columns + self.touch * touched)

    def copy(self, numbers: int) -> float:
        """Of a copy into another order of axes."""
        return self.call + self.move * numbers

    def sums(self, count: int, numbers: int) -> float:
        """Of adding up `count` arrays of so many numbers."""
        return self.call + self.touch * count * numbers if count > 1 else 0.0

    def _factors(
        self, terms: int, a: tuple[int, int], b: tuple[int, int], rows: int, training: bool, transposed: bool = False
    ) -> float:
        """Of multiplying by B first; A first is the backward pass of multiplying by B^T first: factors `transposed`."""
        (m, n), (p, q) = a, b
        from_x, to_x = self.product(rows * n, q, terms * p), self.product(rows * n, terms * p, q)
        grad_b = self.product(terms * p, rows * n, q)  # like these two, in any layout
        prepare = 0.0
        if by_columns(terms, a, p, rows):
            move = self.copy(rows * m * p)
            to_y = self.product(p * rows, n, m, terms) + self.sums(terms, rows * m * p) + move
            from_y = self.product(p * rows, m, n, terms) + move
            grad_a = self.product(m, p * rows, n, terms)
        elif is_flat(terms, p):
            to_y, from_y = self.product(rows, n * terms, m), self.product(rows, m, n * terms)
            grad_a = self.product(m, rows, n * terms)
            prepare = self.copy(terms * m * n) if n > 1 else 0.0
        else:
            to_y, from_y = self.product(m, n * terms, p, rows), self.product(n * terms, m, p, rows)
            grad_a = self.product(m, p, n * terms, rows) + self.sums(rows, m * n * terms)
            prepare = self.copy(terms * m * n) if terms > 1 else 0.0
        if transposed and terms > 1:
            prepare += self.copy(terms * p * q)
        first, second = (from_y, to_x) if transposed else (from_x, to_y)
        if not training:
            return prepare + first + second
        again = 0.0 if keeps(terms, a, b) else first
        return 2 * prepare + again + from_x + from_y + to_x + to_y + grad_a + grad_b

    def _dense(self, terms: int, a: tuple[int, int], b: tuple[int, int], rows: int, training: bool) -> float:
        (m, n), (p, q) = a, b
        runs = self.move * RUN * m * n * p
        merge = self.product(n, terms, q, m * p) + self.copy(terms * (m * n + p * q)) + runs
        forward = merge + self.product(rows, n * q, m * p)
        if not training:
            return forward
        gradients = self.product(rows, m * p, n * q) + self.product(m * p, rows, n * q)  # of X, and of the matrix
        pulled_back = self.product(terms, p * q, m * n) + self.product(terms, m * n, p * q)
        return forward + merge + gradients + self.copy(m * n * p * q) + runs + pulled_back


@cache
def cost_model(device: str) -> CostModel:
    """Return the model of a device of this machine: from the cache, else measured now and put there.

    TINYKRON_CALIBRATION=off in the environment gives the default, that counts multiplications: the same everywhere.
    """
    if os.environ.get(SWITCH, "").lower() == "off":
        return CostModel()
    path, machine = cache_path(), describe(device)
    found = read(path, machine)
    if found is None:
        found = measure_machine(device)
        write(path, machine, found)
    return found


# Measuring ------------------------------------------------------------------------------------------------------------


def measure_machine(device: str = "cpu", seconds: float = 0.05) -> CostModel:
    """Measure the five numbers on a device of this machine, float32; each measurement takes about `seconds`."""
    found = backend.get(device)
    xp = found.xp

    def ones(*shape: int) -> Any:
        return xp.ones(shape, dtype=np.float32)

    def timed(work: Callable[..., Any], *arrays: Any) -> float:
        """Return the least time of one call: whatever disturbs a measurement makes it longer."""
        least, start = inf, time.perf_counter()
        found.to_host(work(*arrays).ravel()[:1])  # warms up; reading a number waits for a GPU
        while time.perf_counter() - start < seconds:
            before = time.perf_counter()
            found.to_host(work(*arrays).ravel()[:1])
            least = min(least, time.perf_counter() - before)
        return least

    def product(x: Any, y: Any) -> Any:
        return x @ y

    one = ones(1, 1)
    call = timed(product, one, one)
    square = timed(product, ones(384, 384), ones(384, 384))
    thin = timed(product, ones(384, 384), ones(384, 4))
    stack = timed(product, ones(4, 4), ones(512, 4, 4))
    moved = timed(lambda x: xp.ascontiguousarray(x.swapaxes(1, 2)), ones(64, 64, 64))

    multiply = max(square - call, 0.0) / 384**3
    touch = max(thin - call - multiply * 384 * 384 * 4, 0.0) / (384 * 384 + 2 * 384 * 4)
    multiply = max(square - call - touch * 3 * 384**2, square / 4) / 384**3
    matrix = max((stack - call) / 512 - multiply * 4**3 - touch * 3 * 4**2, 0.0)
    return CostModel(call, matrix, multiply, touch, max(moved - call, 0.0) / 64**3)


# The cache ------------------------------------------------------------------------------------------------------------


def cache_path() -> Path:
    """Return the file that keeps what was measured: $XDG_CACHE_HOME/tinykron, else ~/.cache/tinykron."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "tinykron" / "products.json"


def describe(device: str) -> str:
    """Return what the measured numbers depend on: processor, array library and its BLAS, threads, device."""
    blas: Any = np.show_config(mode="dicts")
    blas = blas.get("Build Dependencies", {}).get("blas", {})
    parts = [processor(), f"NumPy {np.__version__}", f"{blas.get('name')} {blas.get('version')}"]
    parts += [f"{threads.thread_count()} threads", device]
    if device == "cuda":
        xp = backend.get(device).xp
        parts += [f"CuPy {xp.__version__}", xp.cuda.runtime.getDeviceProperties(0)["name"].decode()]
    return ", ".join(parts)


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def read(path: Path, machine: str) -> CostModel | None:
    """Return what the cache says of a machine; None if it says nothing that could be true."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))[machine]
        values = [float(numbers[field.name]) for field in fields(CostModel)]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = CostModel(*values)
    return found if found.multiply > 0 and all(isfinite(value) and value >= 0 for value in values) else None


def write(path: Path, machine: str, model: CostModel) -> None:
    """Add a machine to the cache. One that cannot be written is left alone: measuring again does no harm."""
    from tinykron.support import files

    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    with suppress(OSError, CheckpointError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(known | {machine: asdict(model)}, indent=2))

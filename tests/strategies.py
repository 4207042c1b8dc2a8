"""Hypothesis strategies, named by the shapes they draw (the letters of the package: B batch, T time, D width, ...).

Values are multiples of 1/64 between -4 and 4: exact in float32, and small enough that nothing overflows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy

from tinykron.backend import Array, xp_of

Shape = tuple[int, ...]
GRID = 64


def shapes(min_dims: int = 0, max_dims: int = 4, min_side: int = 1, max_side: int = 4) -> SearchStrategy[Shape]:
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def zero_size_shapes(min_dims: int = 1, max_dims: int = 3) -> SearchStrategy[Shape]:
    """Shapes with at least one axis of length 0."""
    sides = st.lists(st.integers(0, 3), min_size=min_dims, max_size=max_dims)
    return st.builds(
        lambda sides, i: tuple(0 if j == i % len(sides) else s for j, s in enumerate(sides)), sides, st.integers(0, 3)
    )


def values(low: float = -4.0, high: float = 4.0, away_from_zero: float = 0.0) -> SearchStrategy[float]:
    """Multiples of 1/64 in [low, high], none closer to zero than `away_from_zero`."""
    grid = st.integers(int(low * GRID), int(high * GRID))
    return grid.filter(lambda i: abs(i) >= away_from_zero * GRID).map(lambda i: i / GRID)


@st.composite
def arrays(
    draw: Any, shape: Shape | SearchStrategy[Shape], dtype: Any = np.float64, unique: bool = False, **domain: float
) -> np.ndarray:
    """Arrays of modest values; `domain` is low, high, away_from_zero of `values`; unique=True repeats none."""
    shape = shape if isinstance(shape, tuple) else draw(shape)
    return draw(hnp.arrays(dtype, shape, elements=values(**domain), unique=unique))


POSITIVE = {"low": 0.25}
AWAY_FROM_ZERO = {"away_from_zero": 0.25}


arrays_D = partial(arrays, shapes(1, 1))
arrays_TD = partial(arrays, shapes(2, 2))
arrays_BTD = partial(arrays, shapes(3, 3))


@st.composite
def broadcastable_pairs(
    draw: Any, min_side: int = 1, first: Any = None, second: Any = None, dtype: Any = np.float64
) -> Any:
    """Two arrays that broadcast; `first` and `second` are their domains."""
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=min_side, max_side=3, max_dims=3))
    return tuple(
        draw(arrays(shape, dtype=dtype, **(domain or {})))
        for shape, domain in zip(drawn.input_shapes, (first, second), strict=True)
    )


@st.composite
def matmul_pairs(draw: Any, min_side: int = 1, dtype: Any = np.float64) -> Any:
    """Two arrays that `@` takes: vectors, matrices, stacks that broadcast."""
    signature = hnp.mutually_broadcastable_shapes(
        signature="(n?,k),(k,m?)->(n?,m?)", min_side=min_side, max_side=3, max_dims=2
    )
    return tuple(draw(arrays(shape, dtype=dtype)) for shape in draw(signature).input_shapes)


class KronPair(NamedTuple):
    """R Kronecker terms: W = sum of A ⊗ B, of shape (M*P, N*Q)."""

    a_RMN: np.ndarray
    b_RPQ: np.ndarray

    def dense(self) -> np.ndarray:
        return sum(np.kron(a_MN, b_PQ) for a_MN, b_PQ in zip(self.a_RMN, self.b_RPQ, strict=True))


@st.composite
def kron_pairs(draw: Any, max_terms: int = 3, dtype: Any = np.float64) -> KronPair:
    """Factors whose four sizes all differ, so that no swap of axes goes unseen; one of them may be 1."""
    terms = draw(st.integers(1, max_terms))
    m, n, p, q = draw(st.lists(st.integers(1, 6), min_size=4, max_size=4, unique=True))
    return KronPair(draw(arrays((terms, m, n), dtype=dtype)), draw(arrays((terms, p, q), dtype=dtype)))


class Fit(NamedTuple):
    """A generic matrix (M*P, N*Q), whose singular values all differ, and the shape (M, N)."""

    w: np.ndarray
    shape: tuple[int, int]

    @property
    def limit(self) -> int:
        return min(self.shape[0] * self.shape[1], self.w.size // (self.shape[0] * self.shape[1]))


@st.composite
def fits(draw: Any) -> Fit:
    m, n, p, q = draw(st.lists(st.integers(1, 6), min_size=4, max_size=4, unique=True))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Fit(generator.standard_normal((m * p, n * q)), (m, n))


def looped_rearrangement(w: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The definition: row m*N + n is block (m, n), row by row."""
    (m, n), (p, q) = shape, (w.shape[0] // shape[0], w.shape[1] // shape[1])
    return np.array([w[i * p : i * p + p, j * q : j * q + q].ravel() for i in range(m) for j in range(n)])


def non_contiguous(array: Array) -> list[Array]:
    """Return views that equal `array` but do not lie in C order: transposed, strided, reversed. Made on its device."""
    xp = xp_of(array)
    if array.ndim == 0:
        return [xp.stack([array, array])[1, ...]]
    reverse = (slice(None, None, -1),) * array.ndim
    return [
        xp.ascontiguousarray(array.T).T,
        xp.repeat(array, 2, axis=-1)[..., ::2],
        xp.ascontiguousarray(array[reverse])[reverse],
    ]


def second_moment(generator: np.random.Generator, size: int, rank: int | None = None) -> np.ndarray:
    """Return X^T X / rows of inputs X that are mixed, so that no direction and no pair of them counts alike."""
    mixing = generator.standard_normal((size, size)) * np.arange(1, size + 1.0) ** -1.0
    x_TD = generator.standard_normal((rank or 4 * size, size)) @ mixing
    return x_TD.T @ x_TD / len(x_TD)

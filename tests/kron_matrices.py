"""Matrices to try identities of the Kronecker product on, of every dtype, layout and device; and what equal means."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from math import sqrt
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.helpers import host
from tests.strategies import non_contiguous
from tinykron.backend import Array, to_device

LAYOUTS = 4  # in C order, transposed, strided, reversed
SIZES = list(permutations(range(1, 6), 4))
KINDS = list(product([np.float32, np.float64], range(LAYOUTS), range(6)))  # one in six has a matrix of zeros
ROUNDINGS = 50  # of the last digit, times sqrt(entries), that the two sides of an identity may differ by


@dataclass
class Matrices:
    """Makes matrices on the default device, of one dtype and layout, from a seed. The four sizes are all different."""

    m: int
    n: int
    p: int
    q: int
    dtype: Any
    layout: int
    zero: bool  # the first general matrix is 0
    generator: np.random.Generator

    def placed(self, values: np.ndarray) -> Array:
        """Values on the device, in the dtype and layout."""
        kind = np.result_type(self.dtype, np.complex64) if np.iscomplexobj(values) else self.dtype
        array = to_device(np.ascontiguousarray(values, dtype=kind))
        return [array, *non_contiguous(array)][self.layout]

    def normal(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape)

    def __call__(self, *shape: int) -> Array:
        """A general matrix or vector."""
        self.zero, zero = False, self.zero
        return self.placed(self.normal(*shape) * (0.0 if zero else 1.0))

    def complex_normal(self, *shape: int) -> Array:
        return self.placed(self.normal(*shape) + 1j * self.normal(*shape))

    def orthogonal(self, size: int) -> np.ndarray:
        """On the host, in float64."""
        return np.linalg.qr(self.normal(size, size))[0]

    def of_rank(self, m: int, n: int, rank: int) -> Array:
        """A matrix whose singular values are between 1 and 2, but for those that are 0."""
        values = self.generator.uniform(1.0, 2.0, rank)
        return self.placed((self.orthogonal(m)[:, :rank] * values) @ self.orthogonal(n)[:rank])

    def invertible(self, size: int) -> Array:
        """A square matrix, its determinant of either sign, its condition number at most 2."""
        return self.of_rank(size, size, size)

    def symmetric(self, size: int, positive: bool = False) -> Array:
        values = self.generator.uniform(1.0, 2.0, size)
        vectors = self.orthogonal(size)
        signs = 1.0 if positive else self.generator.choice([-1.0, 1.0], size)
        made = (vectors * values * signs) @ vectors.T
        return self.placed(0.5 * (made + made.T))


@st.composite
def matrices(draw: Any) -> Matrices:
    sizes, (dtype, layout, zero) = draw(st.sampled_from(SIZES)), draw(st.sampled_from(KINDS))
    return Matrices(*sizes, dtype, layout, zero == 0, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))


def exact(array: Array) -> np.ndarray:
    """The values on the host, in double precision: what references are computed from."""
    values = host(array)
    return values.astype(np.result_type(values.dtype, np.float64))


def assert_equal(found: Any, expected: Any, dtype: Any, scale: float = 1.0) -> None:
    """Compare an array of dtype, or a Python number, with a reference in double precision.

    The difference of any entry is at most 50 eps sqrt(entries) times the largest entry, or times `scale` if that is
    more: 1 unless an identity subtracts large numbers.
    """
    if isinstance(found, float | complex):
        found = np.asarray(found)
    else:
        found = host(found)
        real = np.finfo(found.dtype).dtype  # of a complex dtype, too
        assert real == np.dtype(dtype), f"dtype {found.dtype}, expected that of {np.dtype(dtype)}"
    expected = np.asarray(expected)
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    limit = ROUNDINGS * float(np.finfo(dtype).eps) * sqrt(found.size) * max(scale, np.abs(expected).max(initial=0.0))
    worst = np.abs(found - expected).max(initial=0.0)
    assert worst <= limit, f"differs by {worst:g}, allowed {limit:g}"

"""Multiplying by a sum of Kronecker products without building it."""

from __future__ import annotations

import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.strategies import KronPair, arrays, kron_pairs, non_contiguous
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import ShapeError
from tinykron.kron import product

DTYPES = [np.float32, np.float64]


class Product(NamedTuple):
    """Factors, and vectors (..., N*Q) to apply them to."""

    pair: KronPair
    x: np.ndarray


@st.composite
def products(draw: Any, dtype: Any = np.float64) -> Product:
    pair = draw(kron_pairs(dtype=dtype))
    lead = draw(st.sampled_from([(), (1,), (7,), (2, 3), (0,)]))
    return Product(pair, draw(arrays((*lead, pair.a_RMN.shape[2] * pair.b_RPQ.shape[2]), dtype=dtype)))


def check_apply(apply: Any, a: Any, b: Any, x: Any) -> None:
    dense = KronPair(host(a), host(b)).dense()
    assert_close(apply(a, b, x), host(x) @ dense.T, atol=1e-3 if x.dtype == np.float32 else None)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_apply_equals_dense(device: str, dtype: Any, data: Any) -> None:
    (a, b), x = data.draw(products(dtype=dtype))
    check_apply(kron.apply, to_device(a), to_device(b), to_device(x))


@given(product=products())
def test_apply_takes_arrays_that_are_not_contiguous(device: str, product: Product) -> None:
    (a, b), x = product
    views = (non_contiguous(to_device(array)) for array in (a, b, x))
    for a_view, b_view, x_view in zip(*views, strict=True):
        check_apply(kron.apply, a_view, b_view, x_view)


def swapped_factors(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    return kron.apply(b, a, x)


def column_major(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    x_TNQ = x.reshape(-1, b.shape[2], a.shape[2]).swapaxes(1, 2)
    return np.einsum("rmn,rpq,tnq->tpm", a, b, x_TNQ).reshape(len(x), -1)


def missing_term(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    return kron.apply(a[:-1], b[:-1], x)


def crossed_terms(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    return kron.apply(a, b[::-1], x)


@pytest.mark.parametrize("wrong", [swapped_factors, column_major, missing_term, crossed_terms])
def test_the_property_refuses(wrong: Any) -> None:
    generator = np.random.default_rng(0)
    a, b, x = (generator.standard_normal(shape) for shape in [(2, 2, 3), (2, 5, 4), (7, 12)])
    check_apply(kron.apply, a, b, x)
    with pytest.raises(AssertionError):
        check_apply(wrong, a, b, x)


@pytest.mark.parametrize("rows", [1, 4, 60])  # few rows of several terms are added up another way than many
@pytest.mark.parametrize(
    "sizes", [(5, 30, 2, 3), (2, 3, 5, 30), (30, 5, 3, 2), (3, 2, 30, 5), (6, 4, 2, 1), (6, 4, 1, 2)]
)
@pytest.mark.parametrize("terms", [1, 3])
def test_apply_in_either_order_with_few_and_many_rows(device: str, sizes: tuple, terms: int, rows: int) -> None:
    m, n, p, q = sizes
    generator = np.random.default_rng(0)
    shapes = (terms, m, n), (terms, p, q), (rows, n * q)
    check_apply(kron.apply, *(to_device(generator.standard_normal(shape)) for shape in shapes))


def multiplications(a: np.ndarray, b: np.ndarray, b_first: bool) -> int:
    """Count those of (A X B^T) for one X, products taken one after the other."""
    (_, m, n), (_, p, q) = a.shape, b.shape
    return n * q * p + m * n * p if b_first else m * n * q + m * q * p


@given(pair=kron_pairs())
def test_the_order_is_the_cheaper_one(pair: KronPair) -> None:
    chosen = product.b_is_inner(*pair)
    assert multiplications(*pair, chosen) <= multiplications(*pair, not chosen)


def test_the_order_of_kroneckerbert() -> None:
    a, b = np.empty((1, 8, 2)), np.empty((1, 384, 384))  # its first MLP matrix: 0.60 M operations against 2.37 M
    assert product.b_is_inner(a, b)
    assert multiplications(a, b, True) == 301_056 and multiplications(a, b, False) == 1_185_792


def test_multiplications_count_both_products_of_every_term_in_the_cheaper_order() -> None:
    b_first, a_first = 3 * 5 * 2 + 5 * 4 * 3, 2 * 4 * 3 + 4 * 5 * 2  # A (4, 3), B (5, 2)
    assert product.multiplications(np.empty((2, 4, 3)), np.empty((2, 5, 2))) == 2 * min(b_first, a_first)


def test_apply_never_holds_the_dense_matrix() -> None:
    a, b, x = np.ones((2, 256, 256)), np.ones((2, 8, 8)), np.ones((4, 2048))
    tracemalloc.start()
    kron.apply(a, b, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2048 * 2048 * 8 / 8


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 2, 3), (1, 5, 4), (12,)), r"the factors should be \(R, M, N\) and \(R, P, Q\)"),
        (((2, 3), (5, 4), (12,)), "the factors should be"),
        (((1, 2, 3), (1, 5, 4), (2, 11)), r"x is \(2, 11\), its last axis should be the 12 = 3\*4 inputs"),
        (((1, 2, 3), (1, 5, 4), ()), "its last axis"),
    ],
)
def test_apply_refuses_shapes_that_do_not_fit(shapes: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        kron.apply(*(np.ones(shape) for shape in shapes))

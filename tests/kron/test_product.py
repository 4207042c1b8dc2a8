"""Multiplying by a sum of Kronecker products without building it."""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.strategies import KronPair, arrays, kron_pairs, non_contiguous
from tinykron import kron
from tinykron.backend import to_device, xp_of
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron import order as order_module
from tinykron.kron import product
from tinykron.kron.algebra import rearrange
from tinykron.kron.order import Order, Wanted, order_of
from tinykron.threads import BLOCK_ELEMENTS, LARGE

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


@pytest.fixture(params=[False, True], ids=["as small", "as large"])
def large(request: Any, monkeypatch: Any) -> bool:
    """Whether factors and products count as large, however small they are."""
    if request.param:
        monkeypatch.setattr(order_module, "COPIED", 0)
        monkeypatch.setattr(order_module, "SMALL", 0)
    return request.param


@pytest.mark.parametrize("rows", [1, 4, 60])  # few rows of several terms are added up another way than many
@pytest.mark.parametrize(
    "sizes", [(5, 30, 2, 3), (2, 3, 5, 30), (30, 5, 3, 2), (3, 2, 30, 5), (6, 4, 2, 1), (6, 4, 1, 2)]
)
@pytest.mark.parametrize("terms", [1, 3])
def test_apply_in_either_order_with_few_and_many_rows(
    device: str, large: bool, sizes: tuple, terms: int, rows: int
) -> None:
    m, n, p, q = sizes
    generator = np.random.default_rng(0)
    shapes = (terms, m, n), (terms, p, q), (rows, n * q)
    check_apply(kron.apply, *(to_device(generator.standard_normal(shape)) for shape in shapes))


# Any order, any layout ------------------------------------------------------------------------------------------------


@given(product=products(), plan=st.sampled_from(get_args(Wanted)))
def test_every_plan_gives_the_same(device: str, product: Product, plan: Any) -> None:
    (a, b), x = product
    check_apply(partial(kron.apply, order=plan), to_device(a), to_device(b), to_device(x))


def gradients(order: Any, a: Any, b: Any, x_TNQ: Any, grad: Any, z: Any = None) -> tuple[Any, Any, Any]:
    """Return the gradients of x (T, N*Q), a and b."""
    grad_x = xp_of(x_TNQ).full_like(x_TNQ, np.nan)
    grads = product.backward(order, a, b, x_TNQ, grad, z, grad_x)
    return grad_x.reshape(len(grad_x), x_TNQ.shape[1] * x_TNQ.shape[2]), *grads


def check_gradients(backward: Any, order: Any, a: Any, b: Any, x: Any, grad: Any) -> None:
    """The gradients are those of the dense layer, pulled back to the factors; identities 81 to 84."""
    (terms, m, n), (_, p, q) = a.shape, b.shape
    inputs = [to_device(array) for array in (a, b, x.reshape(-1, n, q), grad.reshape(-1, m, p))]
    grads = backward(order, *inputs)
    _, z = product.forward(order, *inputs[:3], keep=True)
    for found, again in zip(backward(order, *inputs, z), grads, strict=True):
        assert_close(found, host(again))
    r = rearrange(grad.T @ x, (m, n))
    expected = [grad @ KronPair(a, b).dense(), b.reshape(terms, -1) @ r.T, a.reshape(terms, -1) @ r]
    for found, wanted, shape in zip(grads, expected, (x.shape, a.shape, b.shape), strict=True):
        assert_close(found, wanted.reshape(shape), atol=1e-9)
    assert_close((a * host(grads[1])).sum(axis=(1, 2)), (b * host(grads[2])).sum(axis=(1, 2)), atol=1e-8)


@given(pair=kron_pairs(), data=st.data(), order=st.sampled_from(get_args(Order)))
def test_gradients_in_every_order(device: str, pair: KronPair, data: Any, order: Any) -> None:
    (_, m, n), (_, p, q) = pair.a_RMN.shape, pair.b_RPQ.shape
    rows = data.draw(st.integers(0, 9))
    x, grad = data.draw(arrays((rows, n * q))), data.draw(arrays((rows, m * p)))
    check_gradients(gradients, order, *pair, x, grad)


# (M, N, P, Q): P and Q below and above FEW, in both layouts whatever the order
LAYOUTS = [(5, 3, 12, 9), (3, 5, 9, 12), (5, 4, 2, 12), (4, 5, 12, 2), (3, 2, 4, 3), (2, 3, 20, 30), (6, 4, 1, 1)]
LAYOUTS += [(5, 12, 9, 2), (12, 5, 2, 9)]  # with a row of several terms: many columns, one after the other
LAYOUTS += [(7, 1, 1, 6), (1, 7, 6, 1), (5, 4, 1, 6), (4, 5, 6, 1)]  # low rank, and other sums whose Z is flat


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("sizes", LAYOUTS)
@pytest.mark.parametrize("order", get_args(Order))
def test_blocks_of_rows_on_threads(
    monkeypatch: Any, large: bool, order: Any, sizes: Any, terms: int, rows: int
) -> None:
    monkeypatch.setattr(product, "BLOCK_ELEMENTS", 200)  # some rows a block
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    m, n, p, q = sizes
    generator = np.random.default_rng(0)
    shapes = (terms, m, n), (terms, p, q), (rows, n * q), (rows, m * p)
    a, b, x, grad = (generator.standard_normal(shape) for shape in shapes)
    check_apply(partial(kron.apply, order=order), a, b, x)
    check_gradients(gradients, order, a, b, x, grad)


def test_both_layouts_are_tested(large: bool) -> None:
    """And 50 rows are several blocks for some of them; and swapped products, of a few rows."""
    pairs = [(np.ones((3, m, n)), np.ones((3, p, q))) for m, n, p, q in LAYOUTS]
    layouts = [product.layout(order, a, b, 50) for a, b in pairs for order in ("a_first", "b_first")]
    assert {type(pair) for pair in layouts} == {product.ByRows} | ({product.ByColumns} if large else set())
    by_rows = [pair for pair in layouts if isinstance(pair, product.ByRows)]
    assert {pair.flat for pair in by_rows} == {True, False}
    assert all(BLOCK_ELEMENTS // pair.block * 50 > 200 for pair in by_rows if not pair.flat)
    assert any(order_module.swaps(3, a.shape[1:], b.shape[1:], 2) for a, b in pairs) == large


def test_what_is_kept_is_no_wider_than_x_and_y_together(device: str) -> None:
    for sizes, terms, expected in [((5, 4, 3, 2), 1, True), ((5, 4, 3, 2), 2, False), ((4, 9, 12, 11), 1, True)]:
        m, n, p, q = sizes
        a, b, x = (to_device(np.ones(shape)) for shape in [(terms, m, n), (terms, p, q), (6, n, q)])
        width = terms * n * p
        assert expected == (width <= n * q + m * p)
        for keep in (True, False):
            z = product.forward("b_first", a, b, x, keep)[1]
            assert (z is not None and z.size == 6 * width) == (expected and keep)
    assert product.forward("dense", a, b, x, True)[1] is None


def without_a_block(order: Any, a: Any, b: Any, x: Any, grad: Any, z: Any = None) -> Any:
    grad_x, grad_a, grad_b = gradients(order, a, b, x, grad)
    return grad_x, gradients(order, a, b, x[1:], grad[1:])[1], grad_b


def crossed_gradients(order: Any, a: Any, b: Any, x: Any, grad: Any, z: Any = None) -> Any:
    grad_x, grad_a, grad_b = gradients(order, a, b, x, grad)
    return grad_x, grad_a[::-1], grad_b


@pytest.mark.parametrize("wrong", [without_a_block, crossed_gradients])
def test_the_check_refuses_wrong_gradients(wrong: Any) -> None:
    generator = np.random.default_rng(0)
    a, b, x, grad = (generator.standard_normal(shape) for shape in [(2, 2, 3), (2, 5, 4), (7, 12), (7, 10)])
    check_gradients(gradients, "b_first", a, b, x, grad)
    with pytest.raises(AssertionError):
        check_gradients(wrong, "b_first", a, b, x, grad)


@given(rows=st.integers(0, 12), inner=st.sampled_from([1, 2, 9]), columns=st.integers(0, 12))
def test_product_is_matmul(device: str, rows: int, inner: int, columns: int) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, rows, inner)), generator.standard_normal((2, inner, columns))
    turned = to_device(np.ascontiguousarray(y.swapaxes(1, 2))).swapaxes(1, 2)
    for stored in (to_device(y), turned):
        assert_close(product.product(to_device(x), stored), x @ y)
        assert_close(product.product(to_device(x[0]), stored), x[0] @ y)
        assert_close(product.product(to_device(x[0]), stored[0]), x[0] @ y[0])


@pytest.mark.parametrize("columns", [2, 3, 40])
def test_product_of_a_large_matrix_and_a_few_columns(device: str, columns: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((700, 800), dtype=np.float32)
    y = generator.standard_normal((columns, 800), dtype=np.float32).T
    assert x.size >= LARGE
    assert_close(product.product(to_device(x), to_device(y)), x @ y, atol=1e-3)


# What it costs --------------------------------------------------------------------------------------------------------


def test_multiplications_count_both_products_of_every_term_in_the_cheaper_order() -> None:
    b_first, a_first = 3 * 5 * 2 + 5 * 4 * 3, 2 * 4 * 3 + 4 * 5 * 2  # A (4, 3), B (5, 2)
    assert product.multiplications(np.empty((2, 4, 3)), np.empty((2, 5, 2))) == 2 * min(b_first, a_first)


def peak_of(plan: str, backward: bool) -> int:
    """Return the most memory that multiplying by a (2048, 2048) matrix of float64 takes."""
    a, b, x = np.ones((2, 256, 256)), np.ones((2, 8, 8)), np.ones((4, 2048))
    x_TNQ = x.reshape(4, 256, 8)
    tracemalloc.start()
    if backward:
        gradients(order_of(plan, a, b, 4, "training", "cpu"), a, b, x_TNQ, x_TNQ)
    else:
        kron.apply(a, b, x, plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("plan", ["factors", "a_first", "b_first"])
def test_the_dense_matrix_is_never_held(plan: str, backward: bool) -> None:
    assert peak_of(plan, backward) < 2048 * 2048 * 8 / 8


@pytest.mark.parametrize("sizes", [(4096, 1, 1, 64), (1, 64, 64, 1), (512, 1, 1, 2048)])  # M, N, P, Q
def test_low_rank_adds_its_terms_up_within_a_product(sizes: Any) -> None:
    m, n, p, q = sizes
    a, b, x = np.ones((32, m, n)), np.ones((32, p, q)), np.ones((256, n * q))
    tracemalloc.start()
    kron.apply(a, b, x, "factors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 8 * (256 * (m * p + 32) + a.size + b.size)  # not one result a term


@pytest.mark.parametrize("swapped", [False, True])
def test_a_row_of_several_terms_copies_no_factor(swapped: bool) -> None:
    large, small = np.ones((4, 384, 192)), np.ones((4, 2, 16))
    a, b, order = (small, large, "a_first") if swapped else (large, small, "b_first")
    x = np.ones((1, 16 * 192))
    tracemalloc.start()
    kron.apply(a, b, x, order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.nbytes / 20


@pytest.mark.parametrize(("backward", "matrices"), [(False, 1), (True, 2)])
def test_the_memory_test_sees_a_dense_matrix(backward: bool, matrices: int) -> None:
    assert peak_of("dense", backward) > matrices * 2048 * 2048 * 8


def test_apply_refuses_a_plan_that_it_does_not_know() -> None:
    with pytest.raises(TinykronError, match='order: found "fastest", expected one of auto, factors, a_first, b_first'):
        kron.apply(np.ones((1, 2, 3)), np.ones((1, 5, 4)), np.ones(12), "fastest")


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

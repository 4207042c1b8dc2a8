"""The layers of Kronecker factors: equal to their dense matrix, forward and gradient, without building it."""

from __future__ import annotations

import tracemalloc
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykron as tk
from tests.helpers import assert_close, host
from tests.strategies import KronPair, arrays, kron_pairs
from tinykron import kron, nn
from tinykron.backend import to_device
from tinykron.errors import DataError, ShapeError
from tinykron.gradcheck import gradcheck
from tinykron.kron import product
from tinykron.kron.algebra import rearrange
from tinykron.kron.linear import KronApply, KronRows, kron_linear
from tinykron.kron.order import Wanted

# (M, N, P, Q): either order of the two products, and factors that are a row, a column or a number
SIZES = [(2, 5, 3, 4), (5, 2, 4, 3), (3, 4, 2, 1), (3, 4, 1, 2), (1, 3, 4, 2), (4, 1, 1, 5), (2, 3, 1, 1), (1, 1, 3, 2)]


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


def leaves(*values: np.ndarray) -> list[tk.Tensor]:
    return [tk.Tensor(value, requires_grad=True) for value in values]


# The function ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_of_kron_linear(device: str, sizes: tuple[int, ...], terms: int) -> None:
    m, n, p, q = sizes
    a, b, bias, x = drawn((terms, m, n), (terms, p, q), (m * p,), (2, 3, n * q))
    gradcheck(kron_linear, x, a, b, bias)
    gradcheck(kron_linear, x[0, 0], a, b)


def dense_gradients(a: Any, b: Any, x: Any, grad: Any) -> list[np.ndarray]:
    """The gradient of W = sum of A x B, from the dense layer, pulled back: dA = mat(R(dW) vec(B)), dB likewise."""
    r = rearrange(grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1]), a.shape[1:])
    grad_a, grad_b = b.reshape(len(b), -1) @ r.T, a.reshape(len(a), -1) @ r
    return [grad @ KronPair(a, b).dense(), grad_a.reshape(a.shape), grad_b.reshape(b.shape)]


@given(pair=kron_pairs(), data=st.data(), plan=st.sampled_from(get_args(Wanted)))
def test_gradients_are_those_of_the_dense_layer(device: str, pair: KronPair, data: Any, plan: str) -> None:
    (_, m, n), (_, p, q) = pair.a_RMN.shape, pair.b_RPQ.shape
    rows = data.draw(st.integers(0, 9))
    x, grad = data.draw(arrays((rows, n * q))), data.draw(arrays((rows, m * p)))
    tensors = leaves(x, *pair)
    kron_linear(*tensors, order=plan).backward(to_device(grad))
    for tensor, expected in zip(tensors, dense_gradients(*pair, x, grad), strict=True):
        assert_close(tensor.grad, expected, atol=1e-9)
    along_a, along_b = ((host(t.data) * host(t.grad)).sum(axis=(1, 2)) for t in tensors[1:])
    assert_close(along_a, along_b, atol=1e-8)  # (cA, B/c) is the same matrix: moving along c changes nothing


class SwappedGradients(KronApply):
    def backward(self, xp, grad):
        grad_x, grad_a, grad_b = super().backward(xp, grad)
        return grad_x, grad_b, grad_a


class OneTermsGradient(KronApply):
    def backward(self, xp, grad):
        grad_x, grad_a, grad_b = super().backward(xp, grad)
        return grad_x, xp.broadcast_to(grad_a[:1], grad_a.shape), grad_b


@pytest.mark.parametrize("wrong", [SwappedGradients, OneTermsGradient])
def test_the_check_refuses_wrong_gradients(wrong: Any) -> None:
    a, b, x = drawn((2, 3, 4), (2, 3, 4), (5, 16))
    gradcheck(KronApply.apply, x, a, b)
    with pytest.raises(tk.TinykronError):
        gradcheck(wrong.apply, x, a, b)


class Watched(KronApply):
    def backward(self, xp, grad):
        self.returned = super().backward(xp, grad)
        return self.returned


@pytest.mark.parametrize("plan", get_args(Wanted))
def test_the_gradient_of_x_is_handed_over_and_not_copied(device: str, plan: str) -> None:
    """A view of an array, such as a reshape returns, is none that the engine may keep."""
    function, inputs = Watched(plan), leaves(*drawn((2, 3, 20), (2, 3, 4), (2, 5, 5)))
    function(*inputs).sum().backward()
    assert inputs[0].grad is function.returned[0]


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES[:2])
def test_only_the_gradients_asked_for(sizes: tuple[int, ...], wanted: int) -> None:
    m, n, p, q = sizes
    values = drawn((6, n * q), (2, m, n), (2, p, q), (m * p,))
    every, one = leaves(*values), [tk.Tensor(v, requires_grad=i == wanted) for i, v in enumerate(values)]
    for inputs in (every, one):
        (kron_linear(*inputs) * 2.0).sum().backward()
    assert [tensor.grad is not None for tensor in one] == [i == wanted for i in range(4)]
    assert_close(one[wanted].grad, every[wanted].grad)


@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 1, 2)])
def test_frozen_factors_and_inputs(device: str, needs: tuple[int, ...]) -> None:
    values = [to_device(value) for value in drawn((6, 12), (2, 5, 3), (2, 2, 4))]
    every, some = leaves(*values), [tk.Tensor(v, requires_grad=i in needs) for i, v in enumerate(values)]
    for inputs in (every, some):
        (kron_linear(*inputs) * 2.0).sum().backward()
    for index, (one, other) in enumerate(zip(some, every, strict=True)):
        assert (one.grad is not None) == (index in needs)
        assert one.grad is None or np.array_equal(host(one.grad), host(other.grad)) or index == 0
    if 0 in needs:
        assert_close(some[0].grad, host(every[0].grad))


@pytest.mark.parametrize("sizes", [(256, 256, 8, 8), (8, 8, 256, 256)])
def test_neither_pass_holds_the_dense_matrix(sizes: tuple[int, ...]) -> None:
    m, n, p, q = sizes
    inputs = leaves(*(np.ones(s, np.float32) for s in [(4, n * q), (2, m, n), (2, p, q), (m * p,)]))
    tracemalloc.start()
    kron_linear(*inputs, order="factors").sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < m * n * p * q * 4 / 8


def test_kron_linear_refuses_another_width() -> None:
    with pytest.raises(ShapeError, match=r"x is \(2, 11\), its last axis should be the 12 = 4\*3 inputs"):
        kron_linear(np.ones((2, 11)), np.ones((1, 2, 4)), np.ones((1, 5, 3)))


def test_kron_linear_refuses_an_unknown_plan() -> None:
    with pytest.raises(tk.TinykronError, match='order: found "best"'):
        kron_linear(np.ones(12), np.ones((1, 2, 4)), np.ones((1, 5, 3)), order="best")


@pytest.mark.parametrize(("terms", "trained", "kept"), [(1, True, True), (1, False, False), (8, True, False)])
def test_narrow_products_of_the_first_factor_are_kept_for_training(terms: int, trained: bool, kept: bool) -> None:
    x, a, b = leaves(*drawn((6, 24), (terms, 5, 4), (terms, 3, 6)))
    function = KronApply("b_first")
    function(x, *((a, b) if trained else (a.data, b.data)))
    assert (function.saved[3] is not None) == kept


def test_wide_products_of_the_first_factor_are_not_kept_for_the_backward_pass() -> None:
    x, a, b = leaves(*(np.ones(shape, np.float32) for shape in [(512, 64), (8, 4, 8), (8, 16, 8)]))
    kron_linear(x, a, b, order="factors")  # the first call makes threads
    tracemalloc.start()
    y = kron_linear(x, a, b, order="factors")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1.1 * y.data.nbytes


# KronLinear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_layer_equals_its_dense_layer(device: str, sizes: tuple[int, ...], bias: bool) -> None:
    m, n, p, q = sizes
    layer = kron.KronLinear(n * q, m * p, (m, n), bias=bias, generator=np.random.default_rng(0))
    if layer.bias is not None:
        layer.bias.data += to_device(np.arange(m * p, dtype=np.float32))
    dense = layer.to_dense()
    assert dense.weight.shape == (n * q, m * p) and dense.weight.data.flags.c_contiguous
    for lead in [(), (1,), (2, 3)]:
        x = tk.Tensor(np.float32(drawn((*lead, n * q))[0]))
        assert_close(layer(x), host(dense(x).data))
    assert layer.factors.shape == (m * p, n * q)
    assert [name for name, _ in layer.named_parameters()] == ["a_RMN", "b_RPQ"] + ["bias"] * bias


@pytest.mark.parametrize("bias", [True, False])
def test_from_dense_holds_the_fit(device: str, bias: bool) -> None:
    dense = nn.Linear(12, 20, bias, np.random.default_rng(0))
    if dense.bias is not None:
        dense.bias.data += 0.5
    x = tk.Tensor(np.float32(drawn((3, 12))[0]))
    nearest = kron.nearest(dense.weight.data.T, (4, 3), terms=2)
    layer = kron.KronLinear.from_dense(dense, nearest)
    assert_close(layer.to_dense().weight, host(nearest.dense()).T)
    assert layer.energy == nearest.energy
    exact = kron.KronLinear.from_dense(dense, kron.nearest(dense.weight.data.T, (4, 3), terms=12))
    assert_close(exact(x), host(dense(x).data), atol=1e-6)
    if dense.bias is not None:  # a copy
        dense.bias.data += 1.0
        assert_close(exact.bias, [0.5] * 20)


def test_a_new_layer_starts_like_a_dense_one() -> None:
    for terms in (1, 4):
        layer = kron.KronLinear(400, 600, (20, 40), terms, generator=np.random.default_rng(0))
        assert float(host(layer.factors.dense()).std()) == pytest.approx(nn.INITIAL_STD, rel=0.1)
        assert layer.energy is None


def test_a_layer_stays_on_the_device_of_the_dense_one() -> None:
    with tk.device("fake"):
        linear, embedding = nn.Linear(4, 6), nn.Embedding(6, 4)
    made = [
        kron.KronLinear.from_dense(linear, kron.nearest(linear.weight.data.T, (3, 2))),
        kron.KronEmbedding.from_dense(embedding, kron.nearest(embedding.weight.data, (6, 2))),
    ]
    made += [layer.to_dense() for layer in made]
    assert {parameter.device for layer in made for parameter in layer.parameters()} == {"fake"}


def test_a_layer_refuses_shapes_that_do_not_divide() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 3\) does not divide a matrix \(6, 12\)"):
        kron.KronLinear(12, 6, (4, 3))
    with pytest.raises(ShapeError, match="takes 1 to 6 terms"):
        kron.KronEmbedding(12, 6, (4, 3), terms=13)


@pytest.mark.parametrize(("kind", "expected"), [(kron.KronLinear, "auto"), (kron.KronEmbedding, "factors")])
def test_the_plan_of_a_layer_is_its_way_to_multiply(monkeypatch: Any, kind: Any, expected: str) -> None:
    """The table of an embedding is the largest matrix of a model: it is built only where somebody asks for it."""
    inputs, outputs = (12, 20) if kind is kron.KronLinear else (20, 12)
    layer, orders = kind(12, 20, (4, 3) if kind is kron.KronLinear else (4, 4), terms=8), []
    forward = product.forward
    monkeypatch.setattr(
        product, "forward", lambda order, *rest, **keep: orders.append(order) or forward(order, *rest, **keep)
    )
    multiply = layer if kind is kron.KronLinear else layer.project
    x = tk.Tensor(np.ones((400, inputs), np.float32))  # with so many terms and rows, the dense matrix is worth building
    assert layer.order == expected
    found = [multiply(x).shape for layer.order in ("auto", "factors", "a_first", "dense")]
    assert found == [(400, outputs)] * 4
    assert orders == ["dense", "b_first", "a_first", "dense"]


# KronEmbedding --------------------------------------------------------------------------------------------------------


@given(pair=kron_pairs(), data=st.data())
def test_rows_and_scores_equal_those_of_the_dense_table(device: str, pair: KronPair, data: Any) -> None:
    (_, m, n), (_, p, q) = pair.a_RMN.shape, pair.b_RPQ.shape
    layer = kron.KronEmbedding(m * p, n * q, (m, n))
    layer.a_RMN.data, layer.b_RPQ.data = to_device(pair.a_RMN), to_device(pair.b_RPQ)
    shape = data.draw(st.sampled_from([(5,), (2, 3), (1, 1), (0,), ()]))
    ids = np.array(data.draw(st.lists(st.integers(0, m * p - 1), min_size=6, max_size=6)))
    ids = np.resize(ids, shape).astype(np.int64)
    assert_close(layer(ids), pair.dense()[ids])
    assert_close(layer(to_device(ids)), pair.dense()[ids])
    x = data.draw(arrays((3, n * q)))
    assert_close(layer.project(tk.Tensor(x)), x @ pair.dense().T)
    assert_close(layer.to_dense().weight, pair.dense())


@given(pair=kron_pairs(), data=st.data())
def test_gradients_of_rows_are_those_of_the_dense_table(device: str, pair: KronPair, data: Any) -> None:
    (_, m, n), (_, p, q) = pair.a_RMN.shape, pair.b_RPQ.shape
    ids = np.array(data.draw(st.lists(st.integers(0, m * p - 1), min_size=1, max_size=8)))  # repeats accumulate
    grad = data.draw(arrays((len(ids), n * q)))
    tensors = leaves(*pair)
    KronRows()(*tensors, to_device(ids)).backward(to_device(grad))
    one_hot = np.eye(m * p)[ids]
    for tensor, expected in zip(tensors, dense_gradients(*pair, grad, one_hot)[1:], strict=True):
        assert_close(tensor.grad, expected, atol=1e-9)


@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("sizes", [(5, 2, 1, 3), (3, 2, 2, 3), (1, 2, 5, 1)])
def test_gradients_of_rows_and_scores(device: str, sizes: tuple[int, ...], terms: int) -> None:
    m, n, p, q = sizes
    a, b, x = drawn((terms, m, n), (terms, p, q), (4, n * q))
    ids = to_device(np.array([[0, 2, 2], [4, 1, 2]]))
    gradcheck(lambda a, b: KronRows()(a, b, ids), a, b)
    gradcheck(lambda a, b, x: (kron_linear(x, a, b), KronRows()(a, b, ids)), a, b, x)  # a tied head


def test_from_dense_embedding(device: str) -> None:
    dense = nn.Embedding(10, 6, np.random.default_rng(0))
    layer = kron.KronEmbedding.from_dense(dense, kron.nearest(dense.weight.data, (10, 3)))
    assert_close(layer.to_dense().weight, host(kron.nearest(dense.weight.data, (10, 3)).dense()))
    exact = kron.KronEmbedding.from_dense(dense, kron.nearest(dense.weight.data, (10, 3), terms=2))
    ids = np.array([[3, 9], [0, 3]])
    assert_close(exact(ids), host(dense(ids).data))
    assert_close(exact.project(exact(ids)), host(dense.project(dense(ids)).data))
    assert exact.energy == 1.0


@pytest.mark.parametrize("bad", [-1, 10])
def test_an_id_out_of_range_is_named_with_its_place(device: str, bad: int) -> None:
    layer = kron.KronEmbedding(10, 6, (5, 3))
    ids = np.array([[0, 1], [bad, 2]])
    with pytest.raises(DataError, match=rf"position {bad} at \(1, 0\) is outside 0..9"):
        layer(to_device(ids), what="position")
    with pytest.raises(DataError, match="whole numbers, found float64"):
        layer(np.array([1.0]))


def test_a_layer_learns() -> None:
    """One small step of gradient descent lowers the loss by what the gradients of the factors predict."""
    layer = kron.KronLinear(6, 8, (4, 2), terms=2, generator=np.random.default_rng(0))
    x, target = (tk.Tensor(np.float32(value)) for value in drawn((5, 6), (5, 8)))

    def loss() -> tk.Tensor:
        return ((layer(x) - target) ** 2).mean()

    before = loss()
    before.backward()
    step = 1e-3
    slope = sum(float((parameter.grad**2).sum()) for parameter in layer.parameters())
    for parameter in layer.parameters():
        parameter.data -= step * parameter.grad
    assert before.item() - loss().item() == pytest.approx(step * slope, rel=0.02)


def test_the_old_name_of_an_order_still_works_and_says_the_new_one():
    layer = kron.KronLinear(6, 6, (2, 3), generator=np.random.default_rng(0))
    a, b, x = layer.factors.a, layer.factors.b, np.ones((2, 6), np.float32)
    with pytest.warns(DeprecationWarning, match=r"kron.apply\(plan=\) is called order= now"):
        old = kron.apply(a, b, x, plan="b_first")
    assert np.array_equal(old, kron.apply(a, b, x, order="b_first"))
    with pytest.warns(DeprecationWarning, match=r"KronLinear.plan is called order= now"):
        layer.plan = "dense"
    assert layer.order == "dense"
    with pytest.warns(DeprecationWarning):
        assert layer.plan == "dense"

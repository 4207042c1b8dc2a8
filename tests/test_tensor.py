"""The engine: the walk, accumulation, freeing, and the checks that name a badly written op."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.helpers import Double, assert_close, host, leaf
from tests.strategies import arrays, broadcastable_pairs, shapes
from tinykron import attention, ops
from tinykron import shapes as shapes_module
from tinykron.backend import to_device
from tinykron.errors import TinykronError
from tinykron.tensor import Function, Tensor, detect_anomaly, no_grad

# The walk ----------------------------------------------------------------------------


def test_a_chain_of_100_000_nodes() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert_close(x.grad, 1.0)


def test_a_long_chain_is_dropped_without_a_backward() -> None:
    y = leaf(1.0)
    for _ in range(100_000):
        y = -y
    del y  # a recursive deallocation would overflow the stack


def test_a_diamond_60_deep(device: str) -> None:
    x = leaf(1.0, np.float64)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert_close(x.grad, float(2**60), rtol=0)


def test_a_node_waits_for_all_its_consumers(device: str) -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    short, long = y * 1.0, y * 2.0
    for _ in range(5):
        long = long + 0.0
    (short + long * y).sum().backward()  # d/dy of y + 2 y^2
    assert_close(x.grad, np.array([3 * (1 + 4 * 3), 3 * (1 + 4 * 6)], np.float32))


def test_outputs_without_a_gradient_pull_nothing(device: str) -> None:
    class Pair(Function):
        def forward(self, xp, x, y):
            return x * 2.0, y * 3.0

        def backward(self, xp, grad_x, grad_y):
            return (None if grad_x is None else grad_x * 2.0), (None if grad_y is None else grad_y * 3.0)

    x, y = leaf([1.0]), leaf([1.0])
    first, _ = Pair()(x.exp(), y.exp())
    first.sum().backward()
    assert_close(x.grad, np.exp(np.array([1.0], np.float32)) * np.float32(2.0))
    assert y.grad is None


# Leaves ----------------------------------------------------------------------------


def test_leaves_accumulate(device: str) -> None:
    x = leaf([1.0, 2.0])
    for _ in range(3):
        (x * x).sum().backward()
    assert_close(x.grad, np.array([6.0, 12.0], np.float32))


def test_backward_of_a_leaf_itself(device: str) -> None:
    x = leaf([1.0, 2.0])
    seed = to_device(np.array([3.0, 4.0], np.float32))
    x.backward(seed)
    x.backward(Tensor(seed))
    assert_close(x.grad, np.array([6.0, 8.0], np.float32))
    assert_close(seed, np.array([3.0, 4.0], np.float32))


ALIASING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "add twice": lambda x, y: x + y + x + y,
    "reshape": lambda x, y: shapes_module.reshape(x, 4) + shapes_module.reshape(y, 4),
    "transpose": lambda x, y: x.T + y.T,
    "stack": lambda x, y: shapes_module.stack([x, y]),
    "concatenate": lambda x, y: shapes_module.concatenate([x, y]),
    "broadcast_to": lambda x, y: shapes_module.broadcast_to(x, (2, 2)) + shapes_module.broadcast_to(y, (2, 2)),
    "getitem": lambda x, y: x[:] + y[:],
    "sum": lambda x, y: x.sum() + y.sum(),
    "no node": lambda x, y: x,
}


@pytest.mark.parametrize("name", ALIASING)
def test_gradient_buffers_are_never_shared(name: str, device: str) -> None:
    """Scaling one leaf's gradient in place, as clipping does, changes nothing else."""
    x, y = leaf(np.ones((2, 2))), leaf(np.ones((2, 2)))
    out = ALIASING[name](x, y)
    seed = to_device(np.full(out.shape, 1.0, np.float32))
    out.backward(seed)
    before = {id(t): host(t.grad).copy() for t in (x, y) if t.grad is not None}
    x.grad *= 100.0
    assert_close(seed, np.full(out.shape, 1.0, np.float32))
    assert_close(x.grad, before[id(x)] * np.float32(100.0))
    if y.grad is not None:
        assert_close(y.grad, before[id(y)])
        assert host(y.grad).flags.writeable


def test_accumulation_in_place_spares_what_others_hold(device: str) -> None:
    x = leaf([1.0])
    y = x * 1.0
    seed = to_device(np.array([1.0], np.float32))
    (y + y + y).backward(seed)  # y's buffer collects three gradients, the first of which is the seed itself
    assert_close(seed, np.array([1.0], np.float32))
    assert_close(x.grad, np.array([3.0], np.float32))


# Broadcasting ----------------------------------------------------------------------------


@given(pair=broadcastable_pairs())
def test_broadcast_gradients_come_back_to_shape(device: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (Tensor(to_device(array), requires_grad=True) for array in pair)
    out = x + y
    out.sum().backward()
    for tensor, array in zip((x, y), pair, strict=True):
        copies = out.size // array.size
        assert_close(tensor.grad, np.full(array.shape, float(copies)))


# Not recording, freeing ----------------------------------------------------------------------------


@given(x=arrays(shapes()))
def test_no_grad_makes_no_node(device: str, x: np.ndarray) -> None:
    tensor = Tensor(to_device(x), requires_grad=True)
    with no_grad():
        y = (tensor * 2.0).exp().sum()
    assert y.node is None
    assert not y.requires_grad
    with pytest.raises(TinykronError, match="no input of this tensor requires a gradient"):
        y.backward()
    assert (tensor * 2.0).node is not None  # and recording is back on


def test_no_grad_saves_nothing() -> None:
    exp = ops.Exp()
    with no_grad():
        exp(leaf([1.0]))
    assert exp.saved is None


def test_recording_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (leaf([1.0]) * 2.0).node is not None


def test_what_needs_no_gradient_makes_no_node(device: str) -> None:
    assert (Tensor([1.0]) * 2.0).node is None
    assert (leaf([1.0]) > 0.0).node is None
    assert leaf([1.0]).detach().exp().node is None


def test_backward_twice_is_an_error(device: str) -> None:
    x = leaf([1.0])
    y = x.exp()
    z = y.sum()
    z.backward()
    for again in (z, y.sum() * 2.0):
        with pytest.raises(TinykronError, match="freed by an earlier backward"):
            again.backward()
    assert_close(x.grad, np.exp(np.ones(1, np.float32)))


def test_saved_arrays_are_dropped_by_backward(device: str) -> None:
    x = leaf([1.0])
    y = x.exp() * x
    nodes = [y.node, y.node.parents[0][0]]
    assert all(node.saved is not None for node in nodes)
    y.sum().backward()
    assert all(node.saved is None and node.parents is None for node in nodes)


def test_interior_memory_goes_without_the_garbage_collector() -> None:
    x = leaf(np.ones(3))
    y = x.exp()
    interior = weakref.ref(y.node)
    z = (y * y).sum()
    del y
    gc.disable()
    try:
        assert interior() is not None
        del z
        assert interior() is None
    finally:
        gc.enable()


def test_saved_arrays_go_while_the_walk_goes_on() -> None:
    """When the first op's backward runs, nothing of the ops behind it is held any more."""
    seen = []

    class Watch(Double):
        def backward(self, xp, grad):
            seen.append([array() is not None for array in watched])
            return grad * 2.0

    watched = []
    y = Watch()(leaf(np.ones(3)))
    for _ in range(4):
        y = y.tanh()
        watched.append(weakref.ref(y.node.saved))
    y.sum().backward()
    assert seen == [[False, False, False, True]]  # the last is the data of y, which this test holds


# Anomalies ----------------------------------------------------------------------------


def test_detect_anomaly_names_the_first_op_forward(device: str) -> None:
    x = leaf([1.0, -1.0])
    with np.errstate(invalid="ignore"), detect_anomaly(), pytest.raises(TinykronError, match="Log.*output.* 1 NaN"):
        ops.sqrt(x.log() + 1.0)


def test_detect_anomaly_names_the_first_op_backward(device: str) -> None:
    x = leaf([0.0, 1.0])
    with np.errstate(divide="ignore"), detect_anomaly():
        y = (x.sqrt() * 2.0).sum()
        with pytest.raises(TinykronError, match="Sqrt.*gradient 0 .*infinite"):
            y.backward()


def test_without_detect_anomaly_a_nan_passes(device: str) -> None:
    with np.errstate(invalid="ignore"):
        assert np.isnan(host(leaf([-1.0]).log())).all()


# Numbers and arrays beside a tensor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2), True], ids=repr)
def test_numbers_keep_float32(number: Any, device: str) -> None:
    x = leaf([3.0])
    for out in (x * number, number * x, x + number, number - x, x / number, number / x, x**number, number**x):
        assert isinstance(out, Tensor)
        out.sum().backward()
        assert (out.dtype, x.grad.dtype) == (np.float32, np.float32)


def test_a_device_array_on_the_left_reaches_the_tensor(device: str) -> None:
    x = to_device(np.array([1.0, 2.0], np.float32))
    out = x - leaf([0.5, 0.5])
    assert isinstance(out, Tensor)
    assert_close(out, np.array([0.5, 1.5], np.float32))


@pytest.mark.parametrize("operator", ["add", "sub", "mul", "truediv", "pow", "matmul", "lt", "ge", "eq", "ne"])
def test_an_ndarray_on_the_left_reaches_the_tensor(operator: str) -> None:
    left, right = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 3.0], [2.0, 4.0]])
    function = getattr(__import__("operator"), operator)
    out = function(left, Tensor(right))
    assert isinstance(out, Tensor)
    assert_close(out, function(left, right))


# What a tensor is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, dtype",
    [
        (1.0, np.float32),
        ([1.0, 2.0], np.float32),
        (np.float64(1.0), np.float64),
        (np.ones(2), np.float64),
        (np.ones(2, np.float16), np.float16),
        ([1, 2], np.int64),
        (True, np.bool_),
    ],
    ids=repr,
)
def test_the_dtype_of_a_tensor(data: Any, dtype: Any, device: str) -> None:
    tensor = Tensor(data)
    assert tensor.dtype == dtype
    assert tensor.device == device


def test_moving_a_tensor(device: str) -> None:
    x = Tensor(np.arange(3, dtype=np.float32), requires_grad=True)
    there = x.to("fake")
    assert (there.device, there.requires_grad, there.node) == ("fake", True, None)
    assert_close(there.to(device), x)


def test_what_a_tensor_tells(device: str) -> None:
    x = leaf([[1.0, 2.0, 3.0]])
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((1, 3), 2, 3, 1, np.float32)
    assert x[0, 1].item() == 2.0
    assert bool(x[0, 1] > 1.0)
    assert "requires_grad" in repr(x)
    assert "from Exp" in repr(x.exp())
    assert {x: "by identity"}[x] == "by identity"
    assert type(x.numpy()) is np.ndarray


def test_several_outputs_of_one_node(device: str) -> None:
    q, k, v = (leaf(np.ones((1, 1, 2, 2))) for _ in range(3))
    out, scores = attention.attention(q, k, v, causal=False, return_scores=True)
    assert out.node is scores.node
    (out.sum() + scores.sum()).backward()
    assert_close(v.grad, np.ones((1, 1, 2, 2), np.float32))

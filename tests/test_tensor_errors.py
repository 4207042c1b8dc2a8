"""What the engine refuses, with the op's name: badly written ops, mixed devices and dtypes, wrong seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import Double, leaf
from tinykron import shapes
from tinykron.backend import to_device
from tinykron.errors import DeviceError, DtypeError, ShapeError, TinykronError
from tinykron.tensor import Function, Tensor

# Badly written ops ----------------------------------------------------------------------------


def broken(forward: Any = None, backward: Any = None) -> Function:
    """Return an op called Broken that differs from Double in one method."""
    methods = {"forward": forward, "backward": backward}
    return type("Broken", (Double,), {name: f for name, f in methods.items() if f})()


FORWARDS: dict[str, tuple[Any, type[Exception], str]] = {
    "float64": (lambda self, xp, x: x.astype(np.float64), DtypeError, "Broken: its output is float64.*float32"),
    "float16": (lambda self, xp, x: x.astype(np.float16), DtypeError, "Broken: its output is float16"),
    "boolean": (lambda self, xp, x: x > 0, DtypeError, "Broken: its output is bool"),
    "no array": (lambda self, xp, x: None, DeviceError, "NoneType"),
    "raises": (lambda self, xp, x: x @ x, ValueError, r"Broken: .*float32 \(2, 3\)"),
    "not written": (Function.forward, TinykronError, "Broken has no forward"),
}

BACKWARDS: dict[str, tuple[Any, type[Exception], str]] = {
    "float64": (
        lambda self, xp, g: g.astype(np.float64),
        DtypeError,
        "Broken: gradient 0 is float64, its input float32",
    ),
    "transposed": (lambda self, xp, g: g.T, ShapeError, r"Broken: gradient 0 has shape \(3, 2\), its input \(2, 3\)"),
    "summed": (lambda self, xp, g: g.sum(axis=0), ShapeError, r"Broken: gradient 0 has shape \(3,\)"),
    "wider": (lambda self, xp, g: xp.stack([g, g]), ShapeError, r"Broken: gradient 0 has shape \(2, 2, 3\)"),
    "two gradients": (lambda self, xp, g: (g, g), TinykronError, "Broken.backward: returned 2 gradients for 1 inputs"),
    "none": (lambda self, xp, g: None, TinykronError, "Broken.backward: no gradient for input 0"),
    "raises": (lambda self, xp, g: g @ g, ValueError, "Broken.backward: "),
    "not written": (Function.backward, TinykronError, "Broken has no backward"),
}


@pytest.mark.parametrize("fault", FORWARDS)
def test_a_broken_forward_is_named(fault: str, device: str) -> None:
    forward, kind, message = FORWARDS[fault]
    with pytest.raises(kind, match=message):
        broken(forward=forward)(leaf(np.ones((2, 3))))


@pytest.mark.parametrize("fault", BACKWARDS)
def test_a_broken_backward_is_named(fault: str, device: str) -> None:
    backward, kind, message = BACKWARDS[fault]
    out = broken(backward=backward)(leaf(np.ones((2, 3))))
    with pytest.raises(kind, match=message):
        out.sum().backward()


def test_an_op_that_leaves_its_device_is_named() -> None:
    x = Tensor(to_device(np.ones(3, np.float32), "fake"), requires_grad=True)
    with pytest.raises(DeviceError, match='Broken: its output left "fake" for "cpu"'):
        broken(forward=lambda self, xp, x: x.get())(x)
    out = broken(backward=lambda self, xp, grad: grad.get())(x)
    with pytest.raises(DeviceError, match='Broken: gradient 0 left "fake"'):
        out.sum().backward()


def test_numpy_inside_an_op_is_caught_on_the_fake_device() -> None:
    x = Tensor(to_device(np.ones(3, np.float32), "fake"))
    with pytest.raises(TypeError, match="Broken: .*numpy.exp"):
        broken(forward=lambda self, xp, x: np.exp(x))(x)


# Mixing ----------------------------------------------------------------------------


def test_mixed_devices_are_named() -> None:
    here, there = Tensor([1.0]), Tensor(to_device(np.ones(1, np.float32), "fake"))
    for call in (
        lambda: here + there,
        lambda: there @ np.ones(1, np.float32),
        lambda: shapes.concatenate([here, there]),
    ):
        with pytest.raises(DeviceError, match='one input is on "(cpu|fake)", another on "(cpu|fake)"'):
            call()
    with pytest.raises(DeviceError, match="Add"):
        here + there


def test_mixed_dtypes_are_named(device: str) -> None:
    with pytest.raises(DtypeError, match="Multiply: float32 meets float64"):
        leaf([1.0]) * leaf([1.0], np.float64)
    with pytest.raises(DtypeError, match="Add: float64 meets float32"):
        to_device(np.ones(1)) + leaf([1.0])


# Wrong arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", ["text", None, {1.0}, [[1.0], [2.0, 3.0]], Tensor([1.0])], ids=lambda d: type(d).__name__
)
def test_what_is_no_tensor(data: object) -> None:
    with pytest.raises((TinykronError, ValueError)):
        Tensor(data)


def test_only_floats_require_gradients() -> None:
    with pytest.raises(DtypeError, match="float tensor, found int64"):
        Tensor([1, 2], requires_grad=True)


@pytest.mark.parametrize(
    "seed, kind, message",
    [
        (None, ShapeError, r"\(2,\) is no single value"),
        (np.ones(3, np.float32), ShapeError, r"\(3,\).* tensor float32 \(2,\)"),
        (np.ones(2), ShapeError, "float64"),
        (1.0, DeviceError, "found float"),
    ],
)
def test_a_wrong_seed_is_named(seed: Any, kind: type[TinykronError], message: str) -> None:
    with pytest.raises(kind, match=message):
        leaf([1.0, 2.0]).exp().backward(seed)

"""The checker itself: it refuses planted wrong gradients, of the kinds that people write, and accepts right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers import host
from tinykron import ops, shapes
from tinykron.backend import to_device
from tinykron.errors import TinykronError
from tinykron.gradcheck import GradientError, gradcheck
from tinykron.ops import Add, Divide, Exp, LogSumExp, MatMul, Max, Mean, Multiply, Power, Sum, Tanh
from tinykron.shapes import TakeRows


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# One wrong gradient each ----------------------------------------------------------------------------


class SwappedOperands(Divide):
    def backward(self, xp, grad):
        return super().backward(xp, grad)[::-1]


class TenThousandthTooMuch(Exp):
    def backward(self, xp, grad):
        return super().backward(xp, grad) * 1.0001


class DroppedTerm(Multiply):
    """x * y + x, whose backward forgets the second x."""

    def forward(self, xp, x, y):
        return super().forward(xp, x, y) + x


class WrongSign(Divide):
    def backward(self, xp, grad):
        grad_x, grad_y = super().backward(xp, grad)
        return grad_x, -grad_y


class MissingTranspose(MatMul):
    """Square matrices: the shapes fit, the values do not."""

    def backward(self, xp, grad):
        x, y = self.saved
        return grad @ y, x.T @ grad


class WrongAxis(Mean):
    """Divides by the length of another axis."""

    def backward(self, xp, grad):
        return super().backward(xp, grad) * (self.shape[self.axis] / self.shape[1 - self.axis])


class WrongAtSizeOneAxis(Add):
    """Right for every shape but where y is stretched along an axis of size 1: the mean for the sum."""

    def backward(self, xp, grad):
        shape = self.input_shapes[1]
        grad_y = grad
        for axis, size in enumerate(shape):
            if size == 1:
                grad_y = grad_y.mean(axis=axis, keepdims=True)
        return grad, grad_y


class MissingAccumulation(TakeRows):
    """Right unless an id occurs twice: the last one wins."""

    def backward(self, xp, grad):
        ids = host(self.saved)
        table = xp.zeros((self.rows, grad.shape[-1]), dtype=grad.dtype)
        for position, row in enumerate(ids):
            table[int(row)] = grad[position]
        return table, None


class WrongConstant(Tanh):
    def backward(self, xp, grad):
        return grad * (1.01 - self.saved * self.saved)


class StaleSavedValue(Exp):
    """Keeps what an earlier call saved."""

    first: Any = None

    def forward(self, xp, x):
        out = super().forward(xp, x)
        if StaleSavedValue.first is None:
            StaleSavedValue.first = xp.ones_like(x)
        self.saved = StaleSavedValue.first
        return out


class WrongForNegativeInputs(Power):
    def backward(self, xp, grad):
        x, _, _ = self.saved
        grad_x, _ = super().backward(xp, grad)
        return xp.where(x < 0, -grad_x, grad_x), None


class ForgetsTheGradientThatComesIn(Sum):
    def backward(self, xp, grad):
        return xp.ones(self.shape, dtype=grad.dtype)


class NotNormalised(LogSumExp):
    def backward(self, xp, grad):
        x, _ = self.saved
        return xp.exp(x) * self.kept(grad, x.shape)


class FirstElementOnly(Max):
    """One element of many is wrong."""

    def backward(self, xp, grad):
        result = super().backward(xp, grad)
        result[(0,) * result.ndim] += 1e-4
        return result


class NoGradientAtAll(Exp):
    def backward(self, xp, grad):
        return grad * 0.0


class GivesNaN(Exp):
    def backward(self, xp, grad):
        return grad * float("nan")


IDS = np.array([2, 0, 2])

WRONG: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "swapped operands": (SwappedOperands.apply, (normal(2, 3), 2.0 + normal(2, 3, seed=1) / 4)),
    "times 1.0001": (TenThousandthTooMuch.apply, (normal(2, 3),)),
    "dropped term": (DroppedTerm.apply, (normal(2, 3), normal(2, 3, seed=1))),
    "wrong sign": (WrongSign.apply, (normal(2, 3), 2.0 + normal(2, 3, seed=1) / 4)),
    "missing transpose": (MissingTranspose.apply, (normal(3, 3), normal(3, 3, seed=1))),
    "wrong axis": (lambda x: WrongAxis(axis=0)(x), (normal(2, 3),)),
    "wrong at a size-1 axis": (WrongAtSizeOneAxis.apply, (normal(2, 3), normal(2, 1, seed=1))),
    "missing accumulation": (lambda x: MissingAccumulation()(x, to_device(IDS)), (normal(3, 2),)),
    "wrong constant": (WrongConstant.apply, (normal(2, 3),)),
    "stale saved value": (StaleSavedValue.apply, (normal(2, 3),)),
    "wrong for negative inputs": (lambda x: WrongForNegativeInputs()(x, 3.0), (normal(2, 3),)),
    "forgets the gradient": (lambda x: ForgetsTheGradientThatComesIn(axis=0)(x), (normal(2, 3),)),
    "not normalised": (lambda x: NotNormalised(axis=1)(x), (normal(2, 3),)),
    "one element of many": (lambda x: FirstElementOnly(axis=1)(x), (normal(4, 5),)),
    "no gradient": (NoGradientAtAll.apply, (normal(2, 3),)),
    "NaN": (GivesNaN.apply, (normal(2, 3),)),
}


@pytest.mark.parametrize("method", ["complex", "central"])
@pytest.mark.parametrize("directions", [None, 3])
@pytest.mark.parametrize("fault", WRONG)
def test_refuses_a_wrong_gradient(fault: str, directions: int | None, method: str, device: str) -> None:
    function, inputs = WRONG[fault]
    StaleSavedValue.first = None
    with pytest.raises(GradientError):
        gradcheck(function, *map(to_device, inputs), method=method, directions=directions)


@pytest.mark.parametrize("fault", ["wrong at a size-1 axis", "missing accumulation", "wrong for negative inputs"])
def test_what_is_wrong_only_somewhere_passes_elsewhere(fault: str) -> None:
    """So the tests above refuse for the reason they give."""
    elsewhere: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
        "wrong at a size-1 axis": (WrongAtSizeOneAxis.apply, (normal(2, 3), normal(2, 3, seed=1))),
        "missing accumulation": (lambda x: MissingAccumulation()(x, np.array([2, 0, 1])), (normal(3, 2),)),
        "wrong for negative inputs": (lambda x: WrongForNegativeInputs()(x, 3.0), (np.abs(normal(2, 3)),)),
    }
    function, inputs = elsewhere[fault]
    gradcheck(function, *inputs)


RIGHT: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "divide": (Divide.apply, (normal(2, 3), 2.0 + normal(2, 3, seed=1) / 4)),
    "broadcast": (ops.multiply, (normal(2, 3), normal(2, 1, seed=1))),
    "matmul": (ops.matmul, (normal(3, 3), normal(3, 3, seed=1))),
    "repeated ids": (lambda x: shapes.take_rows(x, to_device(IDS)), (normal(3, 2),)),
    "several outputs": (lambda x: shapes.split(x, 3, axis=1), (normal(2, 3),)),
    "a composition": (lambda x, y: ((x @ y).tanh() * x).sum(axis=0), (normal(3, 3), normal(3, 3, seed=1))),
    "an input used twice": (lambda x: x * x.exp() + x, (normal(2, 3),)),
    "a single value": (ops.exp, (normal(),)),
    "nothing": (ops.exp, (normal(0, 3),)),
    "derivatives that are zero": (lambda x: x * 0.0, (normal(2, 3),)),
}


@pytest.mark.parametrize("method", ["complex", "central"])
@pytest.mark.parametrize("directions", [None, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_accepts_a_right_gradient(name: str, directions: int | None, method: str, device: str) -> None:
    function, inputs = RIGHT[name]
    found = gradcheck(function, *map(to_device, inputs), method=method, directions=directions)
    assert found.error <= (1e-9 if method == "complex" else 1e-6)


def test_the_complex_step_is_exact_to_rounding() -> None:
    assert gradcheck(ops.exp, normal(4, 5)).error < 1e-14


def test_float32_inputs_are_checked_in_float64() -> None:
    assert gradcheck(ops.exp, normal(4, 5).astype(np.float32)).error < 1e-14


def test_reports_the_worst_error_and_where(device: str) -> None:
    class WrongInOnePlace(Exp):
        def backward(self, xp, grad):
            result = super().backward(xp, grad)
            result[1, 2] *= 3.0
            result[0, 1] *= 1.5
            return result

    x = np.zeros((2, 3))
    with pytest.raises(
        GradientError, match=r"gradient of input 1 at \(1, 2\): analytic .*, complex .*, relative error 2"
    ) as caught:
        gradcheck(lambda y, x: ops.add(y, WrongInOnePlace()(x)), to_device(x), to_device(x))
    worst = caught.value.worst
    assert (worst.input, worst.index, worst.method) == (1, (1, 2), "complex")
    assert worst.analytic == pytest.approx(3.0 * worst.numeric)
    largest = 1.5  # weights are drawn between 0.5 and 1.5
    assert worst.error >= 2.0 * 0.5 / largest


def test_directions_are_named(device: str) -> None:
    with pytest.raises(GradientError, match="random direction [012]"):
        gradcheck(WrongConstant.apply, to_device(normal(50, 20)), directions=3)


def test_the_tolerance_is_an_argument() -> None:
    gradcheck(TenThousandthTooMuch.apply, normal(2, 3), tolerance=1e-3)
    with pytest.raises(GradientError):
        gradcheck(TenThousandthTooMuch.apply, normal(2, 3), tolerance=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gradcheck(ops.exp, normal(2), method="forward"), '"forward" is neither "complex" nor "central"'),
        (lambda: gradcheck(lambda x, y: x * 2.0, normal(2), normal(2)), "input 1 received no gradient"),
        (lambda: gradcheck(lambda: ops.exp(normal(2))), "no input"),
    ],
)
def test_a_check_that_checks_nothing_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TinykronError, match=message):
        call()

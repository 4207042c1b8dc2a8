"""Is a gradient right? Compare it with the complex step, or with central differences, element by element.

Complex step: for an analytic f, Im f(x + ih) / h is f'(x) with no subtraction and so no cancellation: exact to rounding
with h = 1e-20 (Squire & Trapp 1998). It needs a forward made of analytic ops; comparisons and |x| want "central".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykron.backend import Array, backend_of, to_device, to_host
from tinykron.errors import TinykronError
from tinykron.tensor import Tensor, no_grad

COMPLEX_STEP = 1e-20
CENTRAL_STEP = 1e-6
TOLERANCE = {"complex": 1e-9, "central": 1e-6}
SMALL = {"complex": 1e-3, "central": 1.0}  # where all derivatives are smaller, rounding is measured against this


class GradientError(TinykronError):
    """A gradient that differs from the numeric one; `.worst` says by how much and where."""

    def __init__(self, worst: GradientCheck) -> None:
        super().__init__(str(worst))
        self.worst = worst


@dataclass(frozen=True)
class GradientCheck:
    """The worst disagreement that a check found."""

    error: float  # |analytic - numeric|, relative to the largest numeric derivative of that input, or to SMALL
    input: int  # which argument
    index: tuple[int, ...] | str  # which element of it, or which random direction
    analytic: float
    numeric: float
    method: str

    def __str__(self) -> str:
        return (
            f"gradient of input {self.input} at {self.index}: analytic {self.analytic:.12g}, "
            f"{self.method} {self.numeric:.12g}, relative error {self.error:.3g}"
        )


def gradcheck(
    function: Callable[..., Any],
    *inputs: Any,
    method: str = "complex",
    directions: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Compare the gradient of `function` with a numeric one, in float64, for every element of every input.

    function    takes Tensors, returns a Tensor or a tuple of them; each output is weighted at random and summed
    inputs      arrays or Tensors; converted to float64, on their device
    method      "complex" (relative tolerance 1e-9) or "central" (1e-6)
    directions  None: every element; a number: so many random directions per input instead, for large inputs
    Returns the worst error and where it is. Raises GradientError if that error is above `tolerance`.
    """
    if method not in TOLERANCE:
        raise TinykronError(f'gradcheck: method "{method}" is neither "complex" nor "central"')
    generator = np.random.default_rng(seed)
    arrays = [_float64(x) for x in inputs]
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    outputs = _tuple(function(*tensors))
    weights = [to_device(generator.uniform(0.5, 1.5, out.shape), out.device) for out in outputs]
    _total(outputs, weights).backward()
    worst = None
    for which, (tensor, array) in enumerate(zip(tensors, arrays, strict=True)):
        if tensor.grad is None:
            raise TinykronError(f"gradcheck: input {which} received no gradient")
        analytic, numeric, places = [], [], []
        grad = to_host(tensor.grad)
        for place, direction in _steps(array.shape, directions, generator):
            stepped = [x.data if i != which else None for i, x in enumerate(tensors)]
            numeric.append(_derivative(function, stepped, which, array, direction, weights, method))
            analytic.append(float((grad * direction).sum()))
            places.append(place)
        found = _worst(which, places, np.array(analytic), np.array(numeric), method)
        worst = found if worst is None or not found.error <= worst.error else worst
    if worst is None:
        raise TinykronError("gradcheck: no input to check")
    if not worst.error <= (TOLERANCE[method] if tolerance is None else tolerance):  # a NaN is refused too
        raise GradientError(worst)
    return worst


def _float64(x: Any) -> Array:
    array = x.data if isinstance(x, Tensor) else x
    array = np.asarray(array) if isinstance(array, (list, float, int)) else array
    return array.astype(np.float64)


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _total(outputs: tuple[Tensor, ...], weights: list[Array]) -> Tensor:
    total = None
    for output, weight in zip(outputs, weights, strict=True):
        part = (output * weight).sum()
        total = part if total is None else total + part
    assert total is not None
    return total


def _steps(shape: tuple[int, ...], directions: int | None, generator: np.random.Generator) -> Any:
    """Yield (place, direction): each unit vector in turn, or random directions away from 0 in every entry."""
    if directions is None:
        for index in np.ndindex(*shape):
            unit = np.zeros(shape)
            unit[index] = 1.0
            yield index, unit
    else:
        for number in range(directions):
            signs = generator.choice([-1.0, 1.0], shape)
            yield f"random direction {number}", np.asarray(signs * generator.uniform(0.1, 1.0, shape))


def _derivative(
    function: Callable[..., Any],
    arrays: list[Array | None],
    which: int,
    array: Array,
    direction: np.ndarray,
    weights: list[Array],
    method: str,
) -> float:
    """Return the derivative of the weighted sum of outputs along `direction` of input `which`."""
    along = to_device(direction, backend_of(array).name)
    if method == "complex":  # all of them: a forward may work in place on buffers made from any input
        arrays = [None if x is None else x.astype(np.complex128) for x in arrays]

    def value(moved: Array) -> Any:
        with no_grad():
            outputs = _tuple(function(*[Tensor(moved if i == which else x) for i, x in enumerate(arrays)]))
            return to_host(_total(outputs, weights).data)

    if method == "complex":
        result = value(array + along * (COMPLEX_STEP * 1j))
        return float(np.imag(result)) / COMPLEX_STEP
    return float(value(array + along * CENTRAL_STEP) - value(array - along * CENTRAL_STEP)) / (2 * CENTRAL_STEP)


def _worst(which: int, places: list[Any], analytic: np.ndarray, numeric: np.ndarray, method: str) -> GradientCheck:
    if not places:
        return GradientCheck(0.0, which, "no element", 0.0, 0.0, method)
    scale = max(float(np.abs(numeric).max()), SMALL[method])
    errors = np.abs(analytic - numeric) / scale
    at = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    return GradientCheck(float(errors[at]), which, places[at], float(analytic[at]), float(numeric[at]), method)

"""The primitive operations: element-wise, reductions, matrix products; and, from shapes.py, shapes and indexing.

Each is a Function, its backward right under its forward, and a lower-case function that applies it. They take Tensors,
arrays on the same device, and Python numbers.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

from tinykron import backend
from tinykron.backend import Array
from tinykron.shapes import broadcast_to as broadcast_to
from tinykron.shapes import concatenate as concatenate
from tinykron.shapes import getitem as getitem
from tinykron.shapes import pad as pad
from tinykron.shapes import reshape as reshape
from tinykron.shapes import split as split
from tinykron.shapes import stack as stack
from tinykron.shapes import swapaxes as swapaxes
from tinykron.shapes import take_rows as take_rows
from tinykron.shapes import transpose as transpose
from tinykron.tensor import Function, Tensor

Axis = int | tuple[int, ...] | None


# Arithmetic ---------------------------------------------------------------------------------------------------------


class Add(Function):
    """x + y, broadcast."""

    broadcasts = True

    def forward(self, xp, x, y):
        return x + y

    def backward(self, xp, grad):
        return grad, grad


class Subtract(Function):
    """x - y, broadcast."""

    broadcasts = True

    def forward(self, xp, x, y):
        return x - y

    def backward(self, xp, grad):
        return grad, -grad if self.needs[1] else None


class Multiply(Function):
    """x * y, broadcast."""

    broadcasts = True

    def forward(self, xp, x, y):
        self.saved = x, y
        return x * y

    def backward(self, xp, grad):
        x, y = self.saved
        return grad * y if self.needs[0] else None, grad * x if self.needs[1] else None


class Divide(Function):
    """x / y, broadcast."""

    broadcasts = True

    def forward(self, xp, x, y):
        self.saved = x, y
        return x / y

    def backward(self, xp, grad):
        x, y = self.saved
        return grad / y if self.needs[0] else None, -grad * x / (y * y) if self.needs[1] else None


class Negative(Function):
    """-x."""

    def forward(self, xp, x):
        return -x

    def backward(self, xp, grad):
        return -grad


class Power(Function):
    """x ** y, broadcast. For a tensor y, x must be positive. Small whole exponents are products: 90x faster."""

    broadcasts = True

    def forward(self, xp, x, y):
        self.saved = x, y, out = x, y, _power(x, y)
        return out

    def backward(self, xp, grad):
        x, y, out = self.saved
        grad_x = grad * (y * _power(x, y - 1)) if self.needs[0] else None
        grad_y = grad * out * _log(xp, x) if self.needs[1] else None
        return grad_x, grad_y


def _log(xp: Any, x: Any) -> Any:
    return math.log(x) if isinstance(x, (int, float)) else xp.log(x)  # xp.log of a number would make float64


def _power(x: Any, y: Any) -> Any:
    if isinstance(y, (int, float)) and y in (1, 2, 3, 4):
        return x * x if y == 2 else x * x * x if y == 3 else (x * x) * (x * x) if y == 4 else x
    return x**y


class Exp(Function):
    """e to the power x."""

    def forward(self, xp, x):
        self.saved = out = xp.exp(x)
        return out

    def backward(self, xp, grad):
        return grad * self.saved


class Log(Function):
    """Natural logarithm of x > 0."""

    def forward(self, xp, x):
        self.saved = x
        return xp.log(x)

    def backward(self, xp, grad):
        return grad / self.saved


class Sqrt(Function):
    """Square root of x >= 0; the gradient at 0 is infinite."""

    def forward(self, xp, x):
        self.saved = out = xp.sqrt(x)
        return out

    def backward(self, xp, grad):
        return grad * 0.5 / self.saved


class Tanh(Function):
    """Hyperbolic tangent."""

    def forward(self, xp, x):
        self.saved = out = xp.tanh(x)
        return out

    def backward(self, xp, grad):
        return grad * (1.0 - self.saved * self.saved)


class Erf(Function):
    """The error function: 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""

    def forward(self, xp, x):
        self.saved = x
        return backend.erf(x)

    def backward(self, xp, grad):
        return grad * xp.exp(-self.saved * self.saved) * 1.1283791670955126  # 2 / sqrt(pi)


# Comparison and choice ----------------------------------------------------------------------------------------------


class Compare(Function):
    """A comparison by the array module's function `name`; its output is boolean and has no gradient."""

    broadcasts = True
    differentiable = False

    def __init__(self, comparison: str) -> None:
        self.comparison = comparison

    def forward(self, xp, x, y):
        return getattr(xp, self.comparison)(x, y)


class Where(Function):
    """x where the condition is true, y elsewhere; all three broadcast."""

    broadcasts = True

    def forward(self, xp, condition, x, y):
        self.saved = condition
        return xp.where(condition, x, y)

    def backward(self, xp, grad):
        condition = self.saved
        grad_x = xp.where(condition, grad, xp.zeros_like(grad)) if self.needs[1] else None
        grad_y = xp.where(condition, xp.zeros_like(grad), grad) if self.needs[2] else None
        return None, grad_x, grad_y


# Reductions ---------------------------------------------------------------------------------------------------------


class Reduction(Function):
    """What the reductions share: `axis` (None: all of them) and whether reduced axes stay, with size 1."""

    def __init__(self, axis: Axis = None, keepdims: bool = False) -> None:
        self.axis, self.keepdims = axis, keepdims

    def kept(self, out: Array, shape: tuple[int, ...]) -> Array:
        """Give the result for an input of `shape`, or its gradient, its axes of size 1."""
        axes = self.axes(len(shape))
        return out.reshape(tuple(1 if a in axes else size for a, size in enumerate(shape)))

    def dropped(self, out: Array) -> Array:
        """Take those axes away again, unless they were asked for."""
        axes = () if self.keepdims else self.axes(out.ndim)
        return out.reshape(tuple(size for a, size in enumerate(out.shape) if a not in axes))

    def axes(self, ndim: int) -> tuple[int, ...]:
        axes = range(ndim) if self.axis is None else self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(a % ndim for a in axes)


class Sum(Reduction):
    """Sum over `axis`."""

    def forward(self, xp, x):
        self.shape = x.shape
        return x.sum(axis=self.axis, keepdims=self.keepdims)

    def backward(self, xp, grad):
        return xp.broadcast_to(self.kept(grad, self.shape), self.shape)


class Mean(Reduction):
    """Mean over `axis`."""

    def forward(self, xp, x):
        self.shape = x.shape
        return x.mean(axis=self.axis, keepdims=self.keepdims)

    def backward(self, xp, grad):
        count = prod(self.shape[a] for a in self.axes(len(self.shape)))
        return xp.broadcast_to(self.kept(grad, self.shape) / float(count or 1), self.shape)


class Max(Reduction):
    """Maximum over `axis`; equal maxima share the gradient equally."""

    def forward(self, xp, x):
        out = x.max(axis=self.axis, keepdims=True)
        self.saved = x, out
        return self.dropped(out)

    def backward(self, xp, grad):
        x, out = self.saved
        chosen = (x == out).astype(grad.dtype)
        return chosen * (self.kept(grad, x.shape) / chosen.sum(axis=self.axis, keepdims=True))


class LogSumExp(Reduction):
    """log(sum(exp(x))) over `axis`, without overflow: the maximum is taken out first."""

    def forward(self, xp, x):
        top = x.max(axis=self.axis, keepdims=True)
        out = xp.log(xp.exp(x - top).sum(axis=self.axis, keepdims=True)) + top
        self.saved = x, out
        return self.dropped(out)

    def backward(self, xp, grad):
        x, out = self.saved
        return xp.exp(x - out) * self.kept(grad, x.shape)


# Matrix product -----------------------------------------------------------------------------------------------------


class MatMul(Function):
    """x @ y in every form NumPy has: vectors, matrices, stacks of matrices that broadcast."""

    broadcasts = True

    def forward(self, xp, x, y):
        self.saved = x, y
        return x @ y

    def backward(self, xp, grad):
        x, y = self.saved
        x2 = x[None, :] if x.ndim == 1 else x  # a vector on the left is a row
        y2 = y[:, None] if y.ndim == 1 else y  # on the right, a column
        if x.ndim == 1:
            grad = grad[..., None, :] if y.ndim > 1 else grad.reshape(1, 1)
        if y.ndim == 1 and x.ndim > 1:
            grad = grad[..., None]
        grad_x = grad_y = None
        if self.needs[0]:
            grad_x = grad @ y2.swapaxes(-1, -2)
            grad_x = grad_x.sum(axis=tuple(range(grad_x.ndim - 1))) if x.ndim == 1 else grad_x
        if self.needs[1]:
            if y2.ndim == 2 and x2.ndim > 2:  # one matrix for the whole stack: one product, no sum over a stack
                rows = prod(x2.shape[:-1])  # -1 would not do where an axis has length 0
                grad_y = x2.reshape(rows, x2.shape[-1]).T @ grad.reshape(rows, grad.shape[-1])
            else:
                grad_y = x2.swapaxes(-1, -2) @ grad
            grad_y = grad_y[..., 0].sum(axis=tuple(range(grad_y.ndim - 2))) if y.ndim == 1 else grad_y
        return grad_x, grad_y


# What to call -------------------------------------------------------------------------------------------------------

add, subtract, multiply, divide, negative = Add.apply, Subtract.apply, Multiply.apply, Divide.apply, Negative.apply
power, exp, log, sqrt, tanh, erf = Power.apply, Exp.apply, Log.apply, Sqrt.apply, Tanh.apply, Erf.apply
matmul = MatMul.apply


def equal(x: Any, y: Any) -> Tensor:
    """Return x == y, element by element, as a boolean tensor; so do the other five comparisons."""
    return Compare("equal")(x, y)


def not_equal(x: Any, y: Any) -> Tensor:
    return Compare("not_equal")(x, y)


def less(x: Any, y: Any) -> Tensor:
    return Compare("less")(x, y)


def less_equal(x: Any, y: Any) -> Tensor:
    return Compare("less_equal")(x, y)


def greater(x: Any, y: Any) -> Tensor:
    return Compare("greater")(x, y)


def greater_equal(x: Any, y: Any) -> Tensor:
    return Compare("greater_equal")(x, y)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """Return x where the boolean condition holds and y elsewhere; all three broadcast."""
    return Where()(condition, x, y)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the sum over `axis`, or of everything."""
    return Sum(axis, keepdims)(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the mean over `axis`, or of everything."""
    return Mean(axis, keepdims)(x)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return the maximum over `axis`, or of everything; equal maxima share the gradient."""
    return Max(axis, keepdims)(x)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Return log(sum(exp(x))) over `axis`, or of everything, without overflow."""
    return LogSumExp(axis, keepdims)(x)

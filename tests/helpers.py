"""Comparing arrays wherever they live; a leaf and an op to test with."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.tensor import Function, Tensor

RELATIVE = {"float32": 1e-5, "float64": 1e-11}  # a few dozen roundings
ABSOLUTE = {"float32": 1e-6, "float64": 1e-12}


def host(value: Any) -> np.ndarray:
    """Return a Tensor, an array of any device, a number or a list as a NumPy array."""
    if isinstance(value, Tensor):
        return value.numpy()
    return np.asarray(value) if isinstance(value, (int, float, list, tuple, np.generic)) else to_host(value)


def assert_close(actual: Any, expected: Any, rtol: float | None = None, atol: float | None = None) -> None:
    """Compare values, shape and dtype; NaN equals NaN. Default tolerances follow the dtype of `actual`.

    A Python number or list as `expected` takes the dtype of `actual`.
    """
    found = host(actual)
    wanted = host(expected)
    if isinstance(expected, (int, float, list)):
        wanted = wanted.astype(found.dtype)
    assert found.shape == wanted.shape, f"shape {found.shape}, expected {wanted.shape}"
    assert found.dtype == wanted.dtype, f"dtype {found.dtype}, expected {wanted.dtype}"
    rtol = RELATIVE.get(found.dtype.name, 0.0) if rtol is None else rtol
    atol = ABSOLUTE.get(found.dtype.name, 0.0) if atol is None else atol
    close = np.isclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if not close.all():
        with np.errstate(invalid="ignore"):
            excess = np.where(close, -np.inf, np.nan_to_num(np.abs(found - wanted) - rtol * np.abs(wanted), nan=np.inf))
        worst = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
        raise AssertionError(
            f"{(~close).sum()} of {close.size} values differ (rtol {rtol:g}, atol {atol:g}); worst at {list(worst)}: "
            f"{found[worst]!r}, expected {wanted[worst]!r}"
        )


def leaf(values: Any, dtype: Any = np.float32) -> Tensor:
    """Return a tensor on the default device that wants a gradient."""
    return Tensor(np.asarray(values, dtype), requires_grad=True)


class Double(Function):
    """2 x: an op written by the book."""

    def forward(self, xp, x):
        return x * 2.0

    def backward(self, xp, grad):
        return grad * 2.0

"""The primitive operations that move values and compute nothing: shapes, joining, cutting, indexing.

`ops` offers them beside the arithmetic, so that there is one place to call them from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinykron.backend import Array, backend_of, scatter_add, to_device
from tinykron.errors import ShapeError
from tinykron.tensor import Function, Tensor

# Shapes -------------------------------------------------------------------------------------------------------------


class Reshape(Function):
    """The same values, in C order, in another shape; one length may be -1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, xp, x):
        self.before = x.shape
        return x.reshape(self.shape)

    def backward(self, xp, grad):
        return grad.reshape(self.before)


class Transpose(Function):
    """Permute the axes; None reverses them."""

    def __init__(self, axes: tuple[int, ...] | None = None) -> None:
        self.axes = axes

    def forward(self, xp, x):
        return x.transpose(self.axes)

    def backward(self, xp, grad):
        if self.axes is None:
            return grad.transpose()
        axes = [a % grad.ndim for a in self.axes]
        return grad.transpose([axes.index(a) for a in range(grad.ndim)])  # the inverse permutation


class BroadcastTo(Function):
    """Repeat axes of size 1, and add axes in front, without copying."""

    broadcasts = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, xp, x):
        return xp.broadcast_to(x, self.shape)

    def backward(self, xp, grad):
        return grad


class Concatenate(Function):
    """Join arrays along an axis they have."""

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def forward(self, xp, *arrays):
        self.lengths = [array.shape[self.axis] for array in arrays]
        return xp.concatenate(arrays, axis=self.axis)

    def backward(self, xp, grad):
        return tuple(_pieces(grad, self.lengths, self.axis))


class Split(Function):
    """Cut an array along `axis` into pieces of the given lengths; the inverse of Concatenate."""

    def __init__(self, lengths: Sequence[int], axis: int) -> None:
        self.lengths, self.axis = list(lengths), axis

    def forward(self, xp, x):
        if sum(self.lengths) != x.shape[self.axis]:
            raise ShapeError(f"lengths {self.lengths} do not add up to the {x.shape[self.axis]} of axis {self.axis}")
        self.dims = x.shape
        return tuple(_pieces(x, self.lengths, self.axis))

    def backward(self, xp, *grads):
        like = next(grad for grad in grads if grad is not None)
        out = xp.empty(self.dims, dtype=like.dtype)
        for piece, grad in zip(_pieces(out, self.lengths, self.axis), grads, strict=True):
            piece[...] = 0.0 if grad is None else grad
        return out


def _pieces(array: Array, lengths: Sequence[int], axis: int) -> list[Array]:
    pieces, start = [], 0
    for length in lengths:
        index = [slice(None)] * array.ndim
        index[axis] = slice(start, start + length)
        pieces.append(array[tuple(index)])
        start += length
    return pieces


class Stack(Function):
    """Join arrays of one shape along a new axis."""

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def forward(self, xp, *arrays):
        return xp.stack(arrays, axis=self.axis)

    def backward(self, xp, grad):
        front = xp.moveaxis(grad, self.axis, 0)
        return tuple(front[i] for i in range(len(front)))


class Pad(Function):
    """Add `widths[axis] = (before, after)` entries of a constant value around an array."""

    def __init__(self, widths: Sequence[tuple[int, int]], value: float = 0.0) -> None:
        self.widths, self.value = tuple(widths), value

    def forward(self, xp, x):
        self.inside = tuple(slice(b, b + size) for (b, _), size in zip(self.widths, x.shape, strict=True))
        return xp.pad(x, self.widths, constant_values=self.value)

    def backward(self, xp, grad):
        return grad[self.inside]


# Indexing -----------------------------------------------------------------------------------------------------------


class GetItem(Function):
    """x[index], for slices, whole numbers, None, ..., and integer or boolean arrays; repeats accumulate."""

    def __init__(self, index: Any) -> None:
        self.key = index

    def forward(self, xp, x):
        self.shape = x.shape
        return x[self.key]

    def backward(self, xp, grad):
        out = xp.zeros(self.shape, dtype=grad.dtype)
        parts = self.key if isinstance(self.key, tuple) else (self.key,)
        if any(hasattr(part, "shape") for part in parts):
            scatter_add(out, self.key, grad)
        else:  # a basic index meets no element twice
            out[self.key] = grad
        return out


class TakeRows(Function):
    """Rows of a (V, D) table: (...) whole-number ids -> (..., D). The lookup of an embedding."""

    def forward(self, xp, table_VD, ids):
        self.saved, self.rows = ids, len(table_VD)
        return table_VD[ids]

    def backward(self, xp, grad):
        table = xp.zeros((self.rows, grad.shape[-1]), dtype=grad.dtype)
        scatter_add(table, self.saved.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        return table, None


# What to call -------------------------------------------------------------------------------------------------------


def reshape(x: Any, *shape: Any) -> Tensor:
    """Return the values of x in another shape: reshape(x, 2, -1) or reshape(x, (2, -1))."""
    return Reshape(tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)(x)


def transpose(x: Any, *axes: Any) -> Tensor:
    """Return x with its axes permuted, or reversed if none are given."""
    if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
        axes = tuple(axes[0])
    return Transpose(axes or None)(x)


def swapaxes(x: Any, first: int, second: int) -> Tensor:
    """Return x with two axes exchanged."""
    axes = list(range(x.ndim))
    axes[first], axes[second] = axes[second], axes[first]
    return Transpose(tuple(axes))(x)


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Tensor:
    """Return x repeated along axes of size 1, and along new axes in front, to `shape`."""
    return BroadcastTo(shape)(x)


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Return the tensors joined along an axis they have."""
    return Concatenate(axis)(*tensors)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Return tensors of one shape joined along a new axis."""
    return Stack(axis)(*tensors)


def split(x: Any, lengths: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Return x cut along `axis` into that many equal pieces, or into pieces of these lengths."""
    if isinstance(lengths, int):
        size = x.shape[axis]
        if lengths < 1 or size % lengths:
            raise ShapeError(f"split: axis {axis} of length {size} has no {lengths} equal pieces")
        lengths = [size // lengths] * lengths
    return Split(lengths, axis)(x)


def pad(x: Any, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Return x with widths[axis] = (before, after) entries of `value` around it."""
    if len(widths) != x.ndim:
        raise ShapeError(f"pad: {len(widths)} pairs of widths for {x.ndim} axes")
    return Pad(widths, value)(x)


def getitem(x: Any, index: Any) -> Tensor:
    """Return x[index]; index arrays may lie on the host, and are range-checked by NumPy's rules there."""
    parts = index if isinstance(index, tuple) else (index,)
    device = backend_of(x.data if isinstance(x, Tensor) else x).name
    if device != "cpu" and any(isinstance(part, (np.ndarray, list)) for part in parts):
        np.broadcast_to(False, x.shape)[index]  # the host checks: on a GPU an index out of range wraps in silence
    moved = tuple(_index_part(part, device) for part in parts)
    return GetItem(moved if isinstance(index, tuple) else moved[0])(x)


def _index_part(part: Any, device: str) -> Any:
    if isinstance(part, Tensor):
        part = part.data
    if isinstance(part, list):
        part = np.asarray(part)
    return to_device(part, device) if isinstance(part, np.ndarray) else part


def take_rows(table: Any, ids: Array) -> Tensor:
    """Return the rows of a (V, D) table at whole-number ids (...) on its device -> (..., D).

    The ids are not range-checked here: `nn.Embedding` does so on the host.
    """
    return TakeRows()(table, ids)

"""Operators: matrices known by how they multiply. `Spectral` is one known by its singular values or eigenvalues."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import numpy as np

from tinykron.backend import Array, backend_of, xp_of
from tinykron.errors import DeviceError, DtypeError, ShapeError, TinykronError
from tinykron.kron.algebra import Shape
from tinykron.kron.operators.factors import Scalar, number, reciprocal

DTYPES = ("float32", "float64", "complex64", "complex128")


class Operator(ABC):
    """A matrix of shape `shape` that multiplies: `k @ x`, `x @ k`, `k.apply(rows)`; `k.dense()` builds it."""

    __array_ufunc__ = None  # array @ operator asks the operator
    shape: Shape
    like: Array  # an array of the operator's device and dtype

    @property
    def dtype(self) -> Any:
        return self.like.dtype

    @property
    @abstractmethod
    def T(self) -> Operator:
        """The transpose."""

    @property
    @abstractmethod
    def H(self) -> Operator:
        """The conjugate transpose."""

    @abstractmethod
    def dense(self) -> Array:
        """Return the matrix as an array in C order. Nothing else takes the memory of all its entries."""

    @abstractmethod
    def _rows(self, x: Array) -> Array:
        """(T, columns) -> (T, rows)."""

    def _compose(self, other: Operator) -> Operator:
        raise TinykronError(f"{self!r} @ {other!r} has no Kronecker form: apply one after the other, or take dense()")

    def apply(self, x: Array) -> Array:
        """Multiply each of the vectors in x (..., columns): -> (..., rows). ShapeError, DtypeError, DeviceError."""
        self._check(x, "x")
        if not x.ndim or x.shape[-1] != self.shape[1]:
            raise ShapeError(f"x is {tuple(x.shape)}, its last axis should be the {self.shape[1]} columns of {self!r}")
        return self._rows(x.reshape(-1, self.shape[1])).reshape(*x.shape[:-1], self.shape[0])

    def __matmul__(self, x: Any) -> Any:
        """The product with a vector (columns,) or a matrix (columns, T); with another operator, an operator."""
        if isinstance(x, Operator):
            return self._compose(x)
        self._check_columns(x, "x", self.shape[1])
        return self.apply(x.T).T

    def __rmatmul__(self, x: Array) -> Array:
        """x (..., rows) @ operator -> (..., columns)."""
        return self.T.apply(x)

    def _check(self, x: Array, name: str) -> None:
        if backend_of(x) is not backend_of(self.like):
            raise DeviceError(f"{name} is on {backend_of(x).name}, the factors are on {backend_of(self.like).name}")
        if x.dtype.name not in DTYPES or np.finfo(x.dtype).eps != np.finfo(self.dtype).eps:
            raise DtypeError(f"{name} is {x.dtype}, the factors are {self.dtype}")

    def _check_columns(self, x: Array, name: str, rows: int) -> None:
        self._check(x, name)
        if x.ndim not in (1, 2) or x.shape[0] != rows:
            raise ShapeError(f"{self!r} takes {name} ({rows},) or ({rows}, T), found {tuple(x.shape)}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]}x{self.shape[1]})"


class Spectral(Operator):
    """left diag(values) right: orthonormal columns times real values times orthonormal rows, as of an SVD.

    left, values, right  operators (rows, K) and (K, columns), and an array (K,) in no order; they unpack as a tuple
    From `eigh` right is the conjugate transpose of left, and `map` makes every function of the matrix: K + 0.1 I is
    `k.eigh().map(lambda values: values + 0.1)`.
    """

    def __init__(self, left: Any, values: Array, right: Any) -> None:
        self.left, self.values, self.right = left, values, right
        self.shape, self.like = (left.shape[0], right.shape[1]), left.like

    def __iter__(self) -> Iterator[Any]:
        return iter((self.left, self.values, self.right))

    def map(self, function: Callable[[Array], Array]) -> Spectral:
        """Return the operator with function(values) in place of the values."""
        return Spectral(self.left, function(self.values), self.right)

    @property
    def T(self) -> Spectral:
        return Spectral(self.right.T, self.values, self.left.T)

    @property
    def H(self) -> Spectral:
        return Spectral(self.right.H, self.values, self.left.H)

    def dense(self) -> Array:
        return self.left @ (self.values[:, None] * self.right.dense())

    def _rows(self, x: Array) -> Array:
        return self.left.apply(self.values * self.right.apply(x))

    def pinv(self, kept: Array) -> Spectral:
        """Return the Moore-Penrose inverse if the values not `kept`, a boolean array, count as 0."""
        return self.H.map(lambda values: reciprocal(values, kept))

    def inverse(self) -> Spectral:
        """Return the inverse. Raises ShapeError unless it is square, TinykronError if a value is 0."""
        self._check_square("inverse")
        if not bool((self.values != 0.0).all()):
            raise TinykronError(f"{self!r} is singular: one of its values is 0")
        return self.H.map(lambda values: 1.0 / values)

    def slogdet(self) -> tuple[Scalar, float]:
        """Return the sign of the determinant and the logarithm of its size; 0, -inf if it is 0. Raises ShapeError."""
        self._check_square("determinant")
        xp = xp_of(self.values)
        if not bool((self.values != 0.0).all()):
            return 0.0, -inf
        turns = self.left.slogdet()[0] * self.right.slogdet()[0]
        return turns * (-1.0) ** int((self.values < 0.0).sum()), number(xp.log(xp.abs(self.values)).sum())

    def _check_square(self, what: str) -> None:
        if not self.shape[0] == self.shape[1] == len(self.values):
            raise ShapeError(
                f"{self!r} with {len(self.values)} values has no {what}: it is not square, or not of full rank"
            )

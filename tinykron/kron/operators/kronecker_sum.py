"""The Kronecker sum S x I + I x T: the operator of the Sylvester equation S X + X T^T = C, for X read row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log
from typing import Any

import numpy as np

from tinykron.backend import Array, backend_of, to_device, to_host, xp_of
from tinykron.errors import TinykronError
from tinykron.kron.operators.factors import Scalar, exponential, number
from tinykron.kron.operators.products import Kron, Sum
from tinykron.kron.operators.spectral import Spectral


class KroneckerSum(Sum):
    """S (P, P) x I (Q, Q) + I (P, P) x T (Q, Q): a `Sum` of two terms that has an exponential and an inverse to apply.

    Raises ShapeError, DtypeError, DeviceError. Horn & Johnson, "Topics in Matrix Analysis", section 4.4.
    """

    def __init__(self, s: Array, t: Array) -> None:
        self.pair = Kron(s, t)  # its factors, and what belongs to their product: exp and eigenvectors
        self.pair.check_square("Kronecker sum")
        xp = xp_of(s)
        self.s, self.t = self.pair.factors
        super().__init__(Kron(s, xp.eye(len(t), dtype=s.dtype)), Kron(xp.eye(len(s), dtype=s.dtype), t))

    def __repr__(self) -> str:
        return f"KroneckerSum({len(self.s)}x{len(self.s)}, {len(self.t)}x{len(self.t)})"

    def _rows(self, x: Array) -> Array:
        x_TPQ = x.reshape(-1, len(self.s), len(self.t))
        return (self.s @ x_TPQ + x_TPQ @ self.t.T).reshape(x.shape)

    @property
    def T(self) -> KroneckerSum:
        return KroneckerSum(self.s.T, self.t.T)

    @property
    def H(self) -> KroneckerSum:
        return KroneckerSum(self.s.conj().T, self.t.conj().T)

    def __mul__(self, scale: Scalar) -> KroneckerSum:
        scale = number(scale)
        if not isinstance(scale, int | float | complex):
            return NotImplemented
        return KroneckerSum(self.s * scale, self.t * scale)

    def exp(self) -> Kron:
        """Return the matrix exponential, exp(S) x exp(T), as the two terms commute. On the host, by SciPy."""
        from scipy.linalg import expm

        return Kron(*self.pair.each("exponential", partial(self._on_host, expm)))

    def eigenvalues(self) -> Array:
        """Return the eigenvalues, complex: every sum of one of S and one of T. On the host."""
        complex_type = np.result_type(self.dtype, np.complex64)
        return _sums(*self.pair.each("eigenvalues", partial(self._on_host, np.linalg.eigvals, dtype=complex_type)))

    def eigh(self) -> Spectral:
        """Return eigenvectors (Kron), real eigenvalues and the eigenvectors' H as one operator, for symmetric S and T.

        Raises TinykronError naming one that is not.
        """
        self.pair.check_symmetric("real eigenvalues")
        values, vectors = zip(*self.pair.each("eigenvalues", xp_of(self.s).linalg.eigh), strict=True)
        return Spectral(Kron(*vectors), _sums(*values), Kron(*vectors).H)

    def slogdet(self) -> tuple[Scalar, float]:
        """Return the sign of the determinant (of size 1 if complex), the logarithm of its size; 0, -inf if it is 0."""
        values = to_host(self.eigenvalues()).astype(np.complex128)
        sizes = np.abs(values)
        if not sizes.all():
            return 0.0, -inf
        sign = complex(np.prod(values / sizes))
        return sign if self.dtype.kind == "c" else float(round(sign.real)), sum(map(log, sizes.tolist()))

    def det(self) -> Scalar:
        """Return the determinant, the product of the eigenvalues; inf where that is beyond a float."""
        return exponential(*self.slogdet())

    def solve(self, b: Array) -> Array:
        """Return the x, shaped like b (P*Q,) or (P*Q, T), with self @ x = b: a Sylvester equation for each vector.

        On the host, column by column of T's Schur form: Bartels & Stewart 1972. Raises what @ does, and TinykronError
        if, up to rounding, an eigenvalue of S is minus one of T.
        """
        from scipy.linalg import schur

        self._check_columns(b, "b", self.shape[0])
        sizes = abs(to_host(self.eigenvalues()))
        if sizes.min() <= len(sizes) * np.finfo(self.dtype).eps * sizes.max():
            raise TinykronError(f"{self!r} is singular: an eigenvalue of S is minus one of T")
        s = to_host(self.s)
        t_QQ, vectors = schur(to_host(self.t).T, output="complex")  # T^T = vectors t vectors^H, t upper triangular
        c_BPQ = to_host(b.T).reshape(-1, len(s), len(t_QQ)) @ vectors
        y_BPQ = np.zeros_like(c_BPQ)
        for q, eigenvalue in enumerate(t_QQ.diagonal()):
            rest_BP = c_BPQ[:, :, q] - y_BPQ[:, :, :q] @ t_QQ[:q, q]
            y_BPQ[:, :, q] = np.linalg.solve(s + eigenvalue * np.eye(len(s)), rest_BP.T).T
        x = (y_BPQ @ vectors.conj().T).reshape(b.T.shape).T
        dtype = np.result_type(self.dtype, b.dtype)
        return to_device((x if dtype.kind == "c" else x.real).astype(dtype), backend_of(b).name)

    def _on_host(self, function: Callable[[Array], Array], factor: Array, dtype: Any = None) -> Array:
        made = function(to_host(factor)).astype(dtype or factor.dtype)
        return to_device(made, backend_of(factor).name)


def _sums(s_P: Array, t_Q: Array) -> Array:
    return (s_P[:, None] + t_Q[None, :]).reshape(-1)

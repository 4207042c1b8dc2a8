"""Sums of Kronecker products as arrays: which shapes fit together, and the rearrangement that makes them low rank.
Below, what the identities about vec need: its two orders, the commutation matrix, the Khatri-Rao product.

Letters: W (M*P, N*Q), out x in, is the sum of R terms A (M, N) x B (P, Q), stacked as `a_RMN` and `b_RPQ`; entry
[m*P + p, n*Q + q] of a term is A[m, n] * B[p, q].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as pairs_of
from math import isqrt
from typing import Any

import numpy as np

from tinykron.backend import Array, current_device, get, to_device, xp_of
from tinykron.errors import ShapeError

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class KronSum:
    """A sum of R Kronecker products, and how well it fits the matrix that it came from."""

    a: Array  # (R, M, N)
    b: Array  # (R, P, Q)
    error: float | None = None  # ||W - sum|| / ||W|| in the metric of the fit; None if this is no fit
    energy: float | None = None  # ||sum|| / ||W||, so that energy^2 + error^2 = 1
    bounds: tuple[float, float] | None = None  # where the error of the best such sum lies, when asked for

    @property
    def terms(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> Shape:
        """The shape (M*P, N*Q) of the matrix that the sum stands for."""
        return self.a.shape[1] * self.b.shape[1], self.a.shape[2] * self.b.shape[2]

    @property
    def parameters(self) -> int:
        return self.a.size + self.b.size

    def dense(self) -> Array:
        """Return the matrix (M*P, N*Q), in C order."""
        _, m, n = self.a.shape
        _, p, q = self.b.shape
        a_RK, b_RL = self.a.reshape(self.terms, m * n), self.b.reshape(self.terms, p * q)
        return xp_of(self.a).ascontiguousarray(unrearrange(a_RK.T @ b_RL, (m, n), (p, q)))


# Shapes ---------------------------------------------------------------------------------------------------------------


def factor_shapes(dense: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Shape, Shape]:
    """Return (M, N) and (P, Q) for a matrix of shape `dense`. Raises ShapeError, listing the nearest that divide."""
    if len(dense) != 2 or not all(dense):
        raise ShapeError(f"a Kronecker product is a matrix with rows and columns, found shape {tuple(dense)}")
    if len(shape) != 2 or not all(isinstance(size, int | np.integer) and size > 0 for size in shape):
        raise ShapeError(f"the shape of A is a pair (M, N) of whole numbers above 0, found {shape}")
    (rows, columns), (m, n) = dense, (int(shape[0]), int(shape[1]))
    if rows % m or columns % n:
        fits = ", ".join(str(pair) for pair in pairs_of(_nearest_divisors(rows, m), _nearest_divisors(columns, n)))
        raise ShapeError(f"A of shape ({m}, {n}) does not divide a matrix ({rows}, {columns}); the nearest are {fits}")
    return (m, n), (rows // m, columns // n)


def _nearest_divisors(size: int, wanted: int) -> list[int]:
    """Return `wanted` if it divides `size`, else the divisors next to it on either side."""
    every = divisors(size)
    below = [d for d in every if d <= wanted][-1:]
    return below if below == [wanted] else below + [d for d in every if d > wanted][:1]


def divisors(size: int) -> list[int]:
    """Return the divisors of a whole number above 0, in order."""
    low = [d for d in range(1, isqrt(size) + 1) if size % d == 0]
    return sorted({*low, *(size // d for d in low)})


def check_terms(terms: int, a_shape: Shape, b_shape: Shape) -> None:
    """Raise ShapeError unless 1 <= terms <= min(M*N, P*Q), where the sum can be any matrix."""
    limit = min(a_shape[0] * a_shape[1], b_shape[0] * b_shape[1])
    if not isinstance(terms, int | np.integer) or not 1 <= terms <= limit:
        raise ShapeError(f"A {a_shape} with B {b_shape} takes 1 to {limit} terms (min(M*N, P*Q)), found {terms}")


def rearrange(w: Array, shape: Shape) -> Array:
    """Return the (M*N, P*Q) matrix whose row m*N + n is block (m, n) of w (M*P, N*Q), row by row.

    A Kronecker product becomes an outer product: rearrange(A x B) = vec(A) vec(B)^T. Raises ShapeError if `shape`,
    (M, N), does not divide. Van Loan & Pitsianis 1993.
    """
    (m, n), (p, q) = factor_shapes(w.shape, shape)
    return w.reshape(m, p, n, q).transpose(0, 2, 1, 3).reshape(m * n, p * q)


def unrearrange(r: Array, a_shape: Shape, b_shape: Shape) -> Array:
    """Return w (M*P, N*Q) from its rearrangement r (M*N, P*Q): the inverse of `rearrange`. Raises ShapeError."""
    (m, n), (p, q) = a_shape, b_shape
    if r.shape != (m * n, p * q):
        raise ShapeError(f"rearrangement is {r.shape}, A {a_shape} and B {b_shape} need ({m * n}, {p * q})")
    return r.reshape(m, n, p, q).transpose(0, 2, 1, 3).reshape(m * p, n * q)


# Vec ------------------------------------------------------------------------------------------------------------------
# By rows (A x B) vec(X) = vec(A X B^T) with X (N, Q), by columns (A x B) vec(X) = vec(B X A^T) with X (Q, N): the same
# product, read with X and its outcome transposed. tinykron vectorises by rows, as NumPy does; many books by columns.


def vec(x: Array, columns: bool = False) -> Array:
    """Return the entries of a matrix (M, N) as a vector (M*N,): row by row, or column by column."""
    return (x.T if columns else x).reshape(-1)


def unvec(v: Array, shape: Shape, columns: bool = False) -> Array:
    """Return the matrix (M, N) whose `vec` is v (M*N,). Raises ShapeError."""
    if v.shape != (shape[0] * shape[1],):
        raise ShapeError(f"vec of a matrix {shape} is ({shape[0] * shape[1]},), found {v.shape}")
    return v.reshape(shape[::-1]).T if columns else v.reshape(shape)


def shuffle(m: int, n: int) -> Array:
    """Return the perfect shuffle (M*N,), whole numbers on the default device: the commutation matrix as an index.

    For X (M, N): vec(X^T) = vec(X)[shuffle(m, n)], both by columns; by rows it is shuffle(n, m). For A (M, N) and
    B (P, Q): B x A = (A x B)[shuffle(p, m)][:, shuffle(q, n)].
    """
    return to_device(np.arange(m * n).reshape(n, m).T.reshape(-1))


def commutation(m: int, n: int, dtype: Any = np.float32) -> Array:
    """Return the commutation matrix K (M*N, M*N): K vec(X) = vec(X^T), both by columns, for X (M, N).

    On the default device. Orthogonal; its transpose is commutation(n, m). To permute something, `shuffle` is cheaper.
    Magnus & Neudecker 1979.
    """
    xp = get(current_device()).xp
    return xp.eye(m * n, dtype=dtype)[shuffle(m, n)]


def khatri_rao(a: Array, b: Array) -> Array:
    """Return the Khatri-Rao product (M*P, N) of a (M, N) and b (P, N), a x b column by column. Raises ShapeError."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(f"a Khatri-Rao product takes (M, N) and (P, N), found {tuple(a.shape)} and {tuple(b.shape)}")
    return (a[:, None, :] * b[None, :, :]).reshape(-1, a.shape[1])

"""Kronecker products of arrays: applying a sum of them without building it, and finding the sum nearest to a matrix.

Letters: W (M*P, N*Q), out x in, is the sum of R terms A (M, N) x B (P, Q), stacked as `a_RMN` and `b_RPQ`; entry
[m*P + p, n*Q + q] of a term is A[m, n] * B[p, q]. T counts rows of an input, D is its width N*Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product as pairs_of
from math import isqrt, sqrt
from typing import Any

import numpy as np

from tinykron.backend import Array, xp_of
from tinykron.errors import DtypeError, ShapeError, TinykronError

Shape = tuple[int, int]

SLAB_ELEMENTS = 1 << 20  # of a matrix, turned to float64 at a time: 8 MB
OUTER_COLUMNS = 4  # up to so many columns, an outer product is faster column by column than by BLAS
GAUSSIAN_VALUES = 1024  # singular values to draw before an average counts as the expectation


@dataclass(frozen=True, eq=False)
class KronSum:
    """A sum of R Kronecker products, and how well it fits the matrix that it came from."""

    a: Array  # (R, M, N)
    b: Array  # (R, P, Q)
    error: float | None = None  # ||W - sum|| / ||W||, Frobenius; None if this is no fit
    energy: float | None = None  # ||sum|| / ||W||, so that energy^2 + error^2 = 1

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
    low = [d for d in range(1, isqrt(size) + 1) if size % d == 0]
    divisors = sorted({*low, *(size // d for d in low)})
    below = [d for d in divisors if d <= wanted][-1:]
    return below if below == [wanted] else below + [d for d in divisors if d > wanted][:1]


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


# Nearest sum ----------------------------------------------------------------------------------------------------------


def nearest(w: Array, shape: Shape, terms: int = 1) -> KronSum:
    """Return the sum of `terms` Kronecker products closest to `w` in the Frobenius norm.

    w      (M*P, N*Q) matrix, out x in, of floats
    shape  (M, N) of each A; must divide w's shape
    Returns a KronSum in w's dtype whose terms are sorted: the first k are the best k. ||A|| = ||B|| in each, and the
    first large entry of B is positive.
    Raises ShapeError, listing the nearest shapes that divide, or the number of terms that the shape allows;
    DtypeError if w is not real floats; TinykronError if it holds a NaN or an infinity.
    Van Loan & Pitsianis 1993; KroneckerBERT eq. 2-5.
    """
    a_shape, b_shape = factor_shapes(w.shape, shape)
    check_terms(terms, a_shape, b_shape)
    if w.dtype.kind != "f":
        raise DtypeError(f"nearest: expected a matrix of real floats, found {w.dtype}")
    xp = xp_of(w)
    bad = w.size - int(xp.isfinite(w).sum())
    if bad:
        raise TinykronError(f"nearest: {bad} of the {w.size} values of w are NaN or infinite")
    # The Gram matrix squares the singular values, which costs half of float64's digits: more than float32 has.
    fit = _by_svd if w.dtype == np.float64 else _by_gram
    a_KR, b_LR, squares = fit(xp, w, a_shape, b_shape, terms)
    total, tail = float(squares.sum()), float(squares[terms:].sum())
    lost = tail / total if total else 0.0
    sign_R = _signs(xp, b_LR)
    a_RMN = xp.ascontiguousarray((a_KR * sign_R).T).reshape(terms, *a_shape)
    b_RPQ = xp.ascontiguousarray((b_LR * sign_R).T).reshape(terms, *b_shape)
    return KronSum(a_RMN, b_RPQ, error=sqrt(lost), energy=sqrt(1.0 - lost))


def _by_svd(xp: Any, w: Array, a_shape: Shape, b_shape: Shape, terms: int) -> tuple[Array, Array, Array]:
    """Return the columns vec(A) and vec(B) of each term, and all squared singular values up to a common factor."""
    u, s, vt = xp.linalg.svd(rearrange(w, a_shape), full_matrices=False)
    root = xp.sqrt(s[:terms])
    return u[:, :terms] * root, vt[:terms].T * root, (s / (s[0] + (s[0] == 0.0))) ** 2


def _by_gram(xp: Any, w: Array, a_shape: Shape, b_shape: Shape, terms: int) -> tuple[Array, Array, Array]:
    """The same through the eigenvectors of R^T R on R's short side, read in slabs: R itself is never built."""
    wide = a_shape[0] * a_shape[1] < b_shape[0] * b_shape[1]
    gram = sum(slab.T @ slab for slab in _slabs(w, a_shape, b_shape, wide))
    values, vectors = xp.linalg.eigh(gram)
    short = vectors[:, ::-1][:, :terms]
    long = xp.empty((w.size // len(short), terms), dtype=w.dtype)
    squares, start = 0.0, 0
    for slab in _slabs(w, a_shape, b_shape, wide):
        part = slab @ short
        squares = squares + (part * part).sum(axis=0)
        long[start : start + len(part)] = part
        start += len(part)
    root = xp.sqrt(xp.sqrt(squares))  # of the singular values, from `long` itself: exact where an eigenvalue is noise
    long *= (1.0 / xp.where(root > 0.0, root, 1.0)).astype(w.dtype)
    short = (short * root).astype(w.dtype)
    eigenvalues = xp.maximum(values[::-1], 0.0)
    return (short, long, eigenvalues) if wide else (long, short, eigenvalues)


def _slabs(w: Array, a_shape: Shape, b_shape: Shape, wide: bool) -> Iterator[Array]:
    """Yield consecutive rows of the rearrangement of w, or of its transpose if it is wide, in float64."""
    (m, n), (p, q) = a_shape, b_shape
    w_MPNQ = w.reshape(m, p, n, q)
    tall = w_MPNQ.transpose(1, 3, 0, 2) if wide else w_MPNQ.transpose(0, 2, 1, 3)
    short = min(m * n, p * q)
    step = max(1, SLAB_ELEMENTS * len(tall) // w.size)
    for start in range(0, len(tall), step):
        yield tall[start : start + step].astype(np.float64).reshape(-1, short)


def _signs(xp: Any, b_LR: Array) -> Array:
    """Return +-1 per term that makes the first entry at least half as large as B's largest positive."""
    size = xp.abs(b_LR)
    first = xp.argmax(size >= 0.5 * size.max(axis=0), axis=0)
    return xp.where(b_LR[first, xp.arange(b_LR.shape[1])] < 0.0, -1.0, 1.0).astype(b_LR.dtype)


def gaussian_energy(dense: Shape, shape: Shape, terms: int = 1) -> float:
    """Return the energy that `nearest` would keep, on average, of a matrix of independent Gaussian numbers.

    The yardstick for a fit: a matrix that keeps no more than this has no Kronecker structure of this shape.
    dense, shape  of the matrix (M*P, N*Q) and of A (M, N)
    The mean over seeded draws of the singular values of a Gaussian (M*N, P*Q) matrix; they are those of a bidiagonal
    matrix of chi variables, so that no large matrix is drawn. Dumitriu & Edelman 2002. Raises ShapeError.
    """
    a_shape, b_shape = factor_shapes(dense, shape)
    check_terms(terms, a_shape, b_shape)
    short, long = sorted((a_shape[0] * a_shape[1], b_shape[0] * b_shape[1]))
    return _gaussian_energy(short, long, terms)


@cache
def _gaussian_energy(short: int, long: int, terms: int) -> float:
    from scipy.linalg import eigvalsh_tridiagonal

    if terms == short:
        return 1.0
    generator = np.random.default_rng(0)
    draws = max(4, GAUSSIAN_VALUES // short)
    energy = 0.0
    for _ in range(draws):
        diagonal = generator.chisquare(np.arange(long, long - short, -1))
        below = generator.chisquare(np.arange(short - 1, 0, -1))
        square = diagonal.copy()  # the bidiagonal matrix times its transpose: tridiagonal
        square[1:] += below
        top = eigvalsh_tridiagonal(
            square, np.sqrt(diagonal[:-1] * below), select="i", select_range=(short - terms, short - 1)
        )
        energy += sqrt(float(top.sum() / square.sum())) / draws
    return energy


# Applying a sum -------------------------------------------------------------------------------------------------------


def apply(a: Array, b: Array, x: Array) -> Array:
    """Multiply the vectors in x by the sum of Kronecker products, without building it.

    (R, M, N), (R, P, Q), (..., N*Q) -> (..., M*P). Two matrix products whatever R is, in the cheaper order.
    Raises ShapeError. KroneckerBERT eq. 6-7.
    """
    check_factors(a, b, x.shape)
    inner, outer, x_EQ = arranged(a, b, x)
    y_SM = outer_product(inner_product(inner, x_EQ, outer.shape[2]), outer)
    return in_order(y_SM, a, b).reshape(*x.shape[:-1], a.shape[1] * b.shape[1])


def check_factors(a: Any, b: Any, x_shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless a (R, M, N), b (R, P, Q) and x (..., N*Q) fit together."""
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0]:
        raise ShapeError(f"the factors should be (R, M, N) and (R, P, Q), found {tuple(a.shape)} and {tuple(b.shape)}")
    width = a.shape[2] * b.shape[2]
    if not x_shape or x_shape[-1] != width:
        raise ShapeError(
            f"x is {tuple(x_shape)}, its last axis should be the {width} = {a.shape[2]}*{b.shape[2]} inputs"
        )


def b_is_inner(a: Array, b: Array) -> bool:
    """Whether it is cheaper to multiply by the B factors first: multiplications per vector, KroneckerBERT eq. 7."""
    (_, m, n), (_, p, q) = a.shape, b.shape
    return n * p * (q + m) <= m * q * (n + p)


# For one x as a matrix X (N, Q), the result is Y (M, P) = sum of A X B^T. Below, the factor applied first is `inner`
# (R, P, Q), the other `outer` (R, M, N), as when B comes first; when A does, the two change places and X is transposed.


def arranged(a: Array, b: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return the inner factor, the outer factor, and x (..., N*Q) as rows (T*N, Q) for the inner one."""
    n, q = a.shape[2], b.shape[2]
    if b_is_inner(a, b):
        return b, a, x.reshape(-1, q)
    return a, b, x.reshape(-1, n) if q == 1 else x.reshape(-1, n, q).swapaxes(1, 2).reshape(-1, n)


def inner_product(inner_RPQ: Array, x_EQ: Array, n: int) -> Array:
    """(R, P, Q), (T*N, Q) -> (T*P, R, N): all terms in one product, arranged for the sum over R and N."""
    terms, p, q = inner_RPQ.shape
    z_EC = product(x_EQ, inner_RPQ.reshape(terms * p, q).T)
    return z_EC.reshape(-1, n, terms, p).transpose(0, 3, 2, 1).reshape(-1, terms, n)


def outer_product(z_SRN: Array, outer_RMN: Array) -> Array:
    """(T*P, R, N), (R, M, N) -> (T*P, M), summed over R and N in one product."""
    terms, m, n = outer_RMN.shape
    if terms > 1 and len(z_SRN) < n:  # few rows: bringing the terms side by side would cost more than the product
        return (z_SRN.transpose(1, 0, 2) @ outer_RMN.transpose(0, 2, 1)).sum(axis=0)
    return product(z_SRN.reshape(-1, terms * n), side_by_side(outer_RMN).T)


def side_by_side(outer_RMN: Array) -> Array:
    """(R, M, N) -> (M, R*N), a view if there is one term."""
    terms, m, n = outer_RMN.shape
    return outer_RMN.transpose(1, 0, 2).reshape(m, terms * n)


def in_order(y_SM: Array, a: Array, b: Array) -> Array:
    """Bring the outcome of `outer_product` into the order of the result: (T, M*P)."""
    m, p = a.shape[1], b.shape[1]
    return y_SM.reshape(-1, p, m).swapaxes(1, 2).reshape(-1, m * p) if b_is_inner(a, b) else y_SM.reshape(-1, m * p)


def product(x_SK: Array, y_KP: Array) -> Array:
    """x @ y, quickly also for the outer product of a long x with a short y, where BLAS takes five times longer."""
    if x_SK.shape[1] > 1 or y_KP.shape[1] > OUTER_COLUMNS:
        return x_SK @ y_KP
    xp = xp_of(x_SK)
    out = xp.empty((len(x_SK), y_KP.shape[1]), dtype=xp.result_type(x_SK.dtype, y_KP.dtype))
    for column in range(y_KP.shape[1]):
        xp.multiply(x_SK[:, 0], y_KP[0, column], out=out[:, column])
    return out

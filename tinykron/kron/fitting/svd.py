"""The nearest sum of Kronecker products in the Frobenius norm: a truncated singular value decomposition."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np

from tinykron.backend import Array, xp_of
from tinykron.kron.algebra import KronSum, Shape, factor_shapes, rearrange

SLAB_ELEMENTS = 1 << 20  # of a matrix, turned to float64 at a time: 8 MB


def truncated(w: Array, shape: Shape, terms: int, by_gram: bool = False) -> KronSum:
    """Return the sum of `terms` Kronecker products closest to w (M*P, N*Q), as `fit.nearest` describes it.

    Optimal by Eckart & Young 1936: the terms are outer products in the rearranged matrix. Van Loan & Pitsianis 1993;
    KroneckerBERT eq. 2-5. With `by_gram`, float64 is fitted as quickly as float32 is, to half of its digits.
    """
    a_shape, b_shape = factor_shapes(w.shape, shape)
    xp = xp_of(w)
    # The Gram matrix squares the singular values, which costs half of float64's digits: more than float32 has.
    fit = _by_svd if w.dtype == np.float64 and not by_gram else _by_gram
    a_KR, b_LR, squares = fit(xp, w, a_shape, b_shape, terms)
    total, tail = float(squares.sum()), float(squares[terms:].sum())
    lost = tail / total if total else 0.0
    sign_R = signs(b_LR)
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


def signs(b_LR: Array) -> Array:
    """Return +-1 per term that makes the first entry at least half as large as B's largest positive."""
    xp = xp_of(b_LR)
    size = xp.abs(b_LR)
    first = xp.argmax(size >= 0.5 * size.max(axis=0), axis=0)
    return xp.where(b_LR[first, xp.arange(b_LR.shape[1])] < 0.0, -1.0, 1.0).astype(b_LR.dtype)

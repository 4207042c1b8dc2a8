"""Multiplying by a sum of Kronecker products without building it: two matrix products whatever the number of terms.

Letters as in `algebra`; T counts rows of an input, whose width is N*Q.
"""

from __future__ import annotations

from typing import Any

from tinykron.backend import Array, xp_of
from tinykron.errors import ShapeError
from tinykron.kron.algebra import Shape

OUTER_COLUMNS = 4  # up to so many columns, an outer product is faster column by column than by BLAS


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


def b_is_inner(a: Any, b: Any) -> bool:
    """Whether it is cheaper to multiply by the B factors first. KroneckerBERT eq. 7."""
    b_first, a_first = _multiplications(a.shape[1:], b.shape[1:])
    return b_first <= a_first


def multiplications(a: Any, b: Any) -> int:
    """Return the multiplications that one vector takes, in the cheaper order. KroneckerBERT eq. 7."""
    return a.shape[0] * multiplications_of(a.shape[1:], b.shape[1:])


def multiplications_of(a_shape: Shape, b_shape: Shape) -> int:
    """Return the multiplications that one vector and one term take, in the cheaper order."""
    return min(_multiplications(a_shape, b_shape))


def _multiplications(a_shape: Shape, b_shape: Shape) -> tuple[int, int]:
    """Return those of one vector and one term, B first and A first."""
    (m, n), (p, q) = a_shape, b_shape
    return n * p * (q + m), m * q * (n + p)


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

"""Multiplying by a sum of Kronecker products without building it: two matrix products whatever the number of terms.

Letters as in `algebra`; T counts rows of an input, whose width is N*Q. A row x is a matrix X (N, Q), and its result
is Y (M, P) = sum of A X B^T.

B first: Z = X B^T for all terms, then Y = sum of A Z. Its gradients go the other way: dZ = A^T dY, dX = sum of dZ B.
A first is that other way, with the factors transposed: so two functions forward and two back serve both orders. Of a
few rows it is B first of the swapped product instead (`order.swaps`): Y^T = sum of B X^T A^T.
"""

from __future__ import annotations

from typing import Any

from tinykron import threads
from tinykron.backend import CPU, Array, backend_of, xp_of
from tinykron.errors import ShapeError
from tinykron.kron.algebra import Shape
from tinykron.kron.order import FEW, Order, by_columns, checked_order, is_flat, keeps, order_of, swaps
from tinykron.threads import BLOCK_ELEMENTS, FEW_ROWS, by_rows, thread_count

ALL = 1 << 62  # rows at once


def apply(a: Array, b: Array, x: Array, order: str = "auto", plan: str | None = None) -> Array:
    """Multiply the vectors in x by the sum of Kronecker products.

    a, b, x  (R, M, N), (R, P, Q), (..., N*Q) -> (..., M*P)
    order    "auto": the fastest way on this machine, by its cost model (order.py). With many terms and rows that is the
             dense matrix, which is then built for this call: M*P*N*Q numbers beside the result.
             "factors": never the dense matrix, always two products with the factors;
             "a_first", "b_first", "dense": this way.
    plan     is what `order` was called in the version before
    Raises ShapeError; TinykronError for another order. KroneckerBERT eq. 6-7.
    """
    order = renamed_order(order, plan, "kron.apply(plan=)")
    check_factors(a, b, x.shape)
    x_TNQ = x.reshape(-1, a.shape[2], b.shape[2])
    way = order_of(checked_order(order), a, b, len(x_TNQ), "forward", backend_of(x).name)
    return forward(way, a, b, x_TNQ)[0].reshape(*x.shape[:-1], a.shape[1] * b.shape[1])


def renamed_order(order: str, plan: str | None, name: str) -> str:
    """Return `order`, or what was given under its old name, with a DeprecationWarning."""
    if plan is None:
        return order
    from tinykron.support import renamed

    renamed.deprecated(name, "order=", level=4)
    return plan


def check_factors(a: Any, b: Any, x_shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless a (R, M, N), b (R, P, Q) and x (..., N*Q) fit together."""
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0]:
        raise ShapeError(f"the factors should be (R, M, N) and (R, P, Q), found {tuple(a.shape)} and {tuple(b.shape)}")
    width = a.shape[2] * b.shape[2]
    if not x_shape or x_shape[-1] != width:
        raise ShapeError(
            f"x is {tuple(x_shape)}, its last axis should be the {width} = {a.shape[2]}*{b.shape[2]} inputs"
        )


def multiplications(a: Any, b: Any) -> int:
    """Return the multiplications that one vector takes, in the cheaper order. KroneckerBERT eq. 7."""
    return a.shape[0] * multiplications_of(a.shape[1:], b.shape[1:])


def multiplications_of(a_shape: Shape, b_shape: Shape) -> int:
    """Return the multiplications that one vector and one term take, in the cheaper order."""
    (m, n), (p, q) = a_shape, b_shape
    return min(n * p * (q + m), m * q * (n + p))


def merged(a: Array, b: Array) -> Array:
    """Return the sum of A x B as one matrix (M*P, N*Q): a stack of products over the terms that needs no reordering."""
    (_, m, n), (_, p, q) = a.shape, b.shape
    a_M1NR, b_1PRQ = a.transpose(1, 2, 0)[:, None], b.transpose(1, 0, 2)[None]
    return (a_M1NR @ b_1PRQ).reshape(m * p, n * q)


# Forward and backward, in a given order -------------------------------------------------------------------------------


def forward(order: Order, a: Array, b: Array, x_TNQ: Array, keep: bool = False) -> tuple[Array, Array | None]:
    """Return Y (T, M*P), and Z if it is to be kept for `backward` and is not too wide for that (`order.keeps`)."""
    (_, m, n), (_, p, q) = a.shape, b.shape
    if order == "dense":
        return x_TNQ.reshape(-1, n * q) @ merged(a, b).T, None
    if order == "a_first" and swaps(len(a), (m, n), (p, q), len(x_TNQ)):
        y_TD, z = forward("b_first", b, a, x_TNQ.swapaxes(1, 2), keep)
        return y_TD.reshape(-1, p, m).swapaxes(1, 2).reshape(-1, m * p), z  # Y^T -> Y
    pair, xp = layout(order, a, b, len(x_TNQ)), xp_of(x_TNQ)
    first, second = (pair.from_x, pair.to_y) if order == "b_first" else (pair.from_y, pair.to_x)
    keep = keep and keeps(pair.terms, (pair.m, pair.n), (pair.p, pair.q))
    if len(x_TNQ) <= pair.block:
        z = first(x_TNQ)
        return second(z).reshape(-1, m * p), z if keep else None
    dtype = xp.result_type(a.dtype, b.dtype, x_TNQ.dtype)
    y_TMP = xp.empty((len(x_TNQ), m, p), dtype=dtype)
    z_TKP = xp.empty((len(x_TNQ), pair.terms * pair.n, pair.p), dtype=dtype) if keep else None

    def fill(x_TNQ: Array, y_TMP: Array, z_TKP: Array | None) -> None:
        z = first(x_TNQ)
        second(z, y_TMP)
        if z_TKP is not None:
            z_TKP[:] = z

    by_rows(fill, x_TNQ, y_TMP, z_TKP, block=pair.block, products=True)
    return y_TMP.reshape(-1, m * p), z_TKP


def backward(
    order: Order, a: Array, b: Array, x_TNQ: Array, grad_TMP: Array, z: Array | None, grad_x_TNQ: Array
) -> tuple[Array, Array]:
    """Write the gradient of X into `grad_x_TNQ`, which lies contiguous in memory, and return those of a and b.

    z is as `forward` returned it: one that was not kept is made again.
    """
    (_, m, n), (_, p, q) = a.shape, b.shape
    if order == "dense":
        return _dense_backward(a, b, x_TNQ, grad_TMP, grad_x_TNQ)
    if order == "a_first" and swaps(len(a), (m, n), (p, q), len(x_TNQ)):
        turned = [array.swapaxes(1, 2) for array in (x_TNQ, grad_TMP, grad_x_TNQ)]
        grad_b, grad_a = backward("b_first", b, a, turned[0], turned[1], z, turned[2])
        return grad_a, grad_b
    pair, b_first = layout(order, a, b, len(x_TNQ)), order == "b_first"
    sums: dict[int, list[Array]] = {}

    def add(x_TNQ: Array, grad_TMP: Array, grad_x_TNQ: Array, z: Array | None, rows: range) -> None:
        for start in range(0, max(1, len(rows)), pair.block):
            block = slice(start, start + pair.block)
            kept = z if z is None or len(rows) <= pair.block else z[block]
            if b_first:
                x, y = x_TNQ[block], grad_TMP[block]
                z_of_x, z_of_y = pair.from_x(x) if kept is None else kept, pair.from_y(y)
                pair.to_x(z_of_y, grad_x_TNQ[block])
            else:  # the factors are transposed: what the pair calls x and y have changed places
                x, y = grad_TMP[block], x_TNQ[block]
                z_of_x, z_of_y = pair.from_x(x), pair.from_y(y) if kept is None else kept
                pair.to_y(z_of_x, grad_x_TNQ[block])
            grads = [pair.grad_a(y, z_of_x), pair.grad_b(x, z_of_y)]
            if rows.start not in sums:
                sums[rows.start] = grads
            else:
                for total, grad in zip(sums[rows.start], grads, strict=True):
                    total += grad

    every = range(len(x_TNQ))
    if len(every) <= pair.block:
        add(x_TNQ, grad_TMP, grad_x_TNQ, z, every)
    else:  # a share for each thread, which adds up its own
        share = -(-len(every) // thread_count())
        by_rows(add, x_TNQ, grad_TMP, grad_x_TNQ, z, every, block=share, products=True)
    grad_a, grad_b = (sum(parts[1:], parts[0]) for parts in zip(*(sums[start] for start in sorted(sums)), strict=True))
    return grad_a, grad_b


def _dense_backward(a: Array, b: Array, x_TNQ: Array, grad_TMP: Array, grad_x_TNQ: Array) -> tuple[Array, Array]:
    """The dense layer's gradients; that of the matrix is pulled back: dA = mat(R(dW) vec(B)), dB likewise."""
    (terms, m, n), (_, p, q) = a.shape, b.shape
    grad_TD, x_TD = grad_TMP.reshape(-1, m * p), x_TNQ.reshape(-1, n * q)
    xp_of(grad_TD).matmul(grad_TD, merged(a, b), out=grad_x_TNQ.reshape(-1, n * q))
    r_KL = (grad_TD.T @ x_TD).reshape(m, p, n, q).swapaxes(1, 2).reshape(m * n, p * q)  # R(dW)
    grad_a = b.reshape(terms, p * q) @ r_KL.T
    grad_b = a.reshape(terms, m * n) @ r_KL
    return grad_a.reshape(a.shape), grad_b.reshape(b.shape)


# The two products, in one of two layouts ------------------------------------------------------------------------------


def layout(order: Order, a: Array, b: Array, rows: int) -> ByRows | ByColumns:
    """Return the pair of factors, in the layout that suits its sizes; A first is the pair transposed."""
    transposed = order == "a_first"
    if transposed:
        a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
    return (ByColumns if by_columns(len(a), a.shape[1:], b.shape[1], rows) else ByRows)(a, b, transposed)


class Pair:
    """Factors A and B; `transposed` says that their gradients are asked for as those of A^T and B^T."""

    def __init__(self, a: Array, b: Array, transposed: bool) -> None:
        (self.terms, self.m, self.n), (_, self.p, self.q) = a.shape, b.shape
        self.transposed = transposed

    def between(self, u: Array, v: Array) -> Array:
        """u^T v, or its transpose."""
        left, right = (v, u) if self.transposed else (u, v)
        left = left.swapaxes(-1, -2)
        if left.shape[-1] == 1:  # einsum is up to twice as fast as BLAS or a broadcast
            return xp_of(left).einsum("...ik,...kj->...ij", left, right)
        return left @ right

    def _grad_b(self, z_SL: Array, x_TNQ: Array) -> Array:
        """The gradient of B, of all terms in one product: X is read once."""
        grad = self.between(z_SL, x_TNQ.reshape(-1, self.q))  # (R*P, Q)
        if self.transposed:
            return grad.reshape(self.q, self.terms, self.p).swapaxes(0, 1)
        return grad.reshape(self.terms, self.p, self.q)


class ByRows(Pair):
    """Z (T, N*R, P) is a stack of matrices, one a row: no axis ever moves, whatever the number of terms.

    With P = 1 it is one matrix, and multiplying by A is one product: low rank has N = 1, too, and costs no copy of A.
    """

    def __init__(self, a: Array, b: Array, transposed: bool = False) -> None:
        super().__init__(a, b, transposed)
        self.a_MK = a.transpose(1, 2, 0).reshape(self.m, self.n * self.terms)
        self.b_LQ = b.reshape(self.terms * self.p, self.q)
        self.flat, width = is_flat(self.terms, self.p), self.n * self.terms * self.p
        small = backend_of(a) is CPU and not self.flat
        numbers = max(BLOCK_ELEMENTS, self.b_LQ.size)  # of Z, that stay in the cache; B is read once for each block
        self.block = max(1, numbers // width) if small else ALL

    def from_x(self, x_TNQ: Array) -> Array:
        return threads.product(x_TNQ.reshape(-1, self.q), self.b_LQ.T).reshape(-1, self.n * self.terms, self.p)

    def to_y(self, z_TKP: Array, out_TMP: Array | None = None) -> Array:
        if self.flat:
            return written((z_TKP[..., 0] @ self.a_MK.T)[..., None], out_TMP)
        return xp_of(z_TKP).matmul(self.a_MK, z_TKP, out=out_TMP)

    def from_y(self, y_TMP: Array) -> Array:
        return (y_TMP[..., 0] @ self.a_MK)[..., None] if self.flat else self.a_MK.T @ y_TMP

    def to_x(self, z_TKP: Array, out_TNQ: Array | None = None) -> Array:
        z_SL = z_TKP.reshape(-1, self.terms * self.p)
        if out_TNQ is None or not out_TNQ.flags.c_contiguous:
            return written((z_SL @ self.b_LQ).reshape(-1, self.n, self.q), out_TNQ)
        xp_of(z_SL).matmul(z_SL, self.b_LQ, out=out_TNQ.reshape(-1, self.q))
        return out_TNQ

    def grad_a(self, y_TMP: Array, z_TKP: Array) -> Array:
        if self.flat:
            grad = self.between(y_TMP[..., 0], z_TKP[..., 0])
        else:
            grad = self.between(y_TMP.swapaxes(1, 2), z_TKP.swapaxes(1, 2)).sum(axis=0)  # (M, N*R)
        if self.transposed:
            return grad.reshape(self.n, self.terms, self.m).swapaxes(0, 1)
        return grad.reshape(self.m, self.n, self.terms).transpose(2, 0, 1)

    def grad_b(self, x_TNQ: Array, z_TKP: Array) -> Array:
        return self._grad_b(z_TKP.reshape(-1, self.terms * self.p), x_TNQ)


class ByColumns(Pair):
    """Z (R, P*T, N) has the columns of X B^T one after the other: few large products where B has few columns."""

    def __init__(self, a: Array, b: Array, transposed: bool = False) -> None:
        super().__init__(a, b, transposed)
        self.a_RMN, self.b_LQ = a, b.reshape(self.terms * self.p, self.q)
        self.block = ALL  # these products are large, and BLAS has threads of its own

    def from_x(self, x_TNQ: Array) -> Array:
        return product(self.b_LQ, x_TNQ.reshape(-1, self.q).T).reshape(self.terms, -1, self.n)

    def to_y(self, z_RSN: Array, out_TMP: Array | None = None) -> Array:
        a_RNM = self.a_RMN.swapaxes(1, 2)
        y_SM = product(z_RSN[0], a_RNM[0]) if self.terms == 1 else product(z_RSN, a_RNM).sum(axis=0)
        y_PTM = y_SM.reshape(self.p, -1, self.m)
        few = self.p <= FEW and y_PTM.shape[1] > 1
        y_TMP = xp_of(y_PTM).stack(list(y_PTM), axis=-1) if few else y_PTM.transpose(1, 2, 0)
        return written(y_TMP, out_TMP)

    def from_y(self, y_TMP: Array) -> Array:
        y_SM = self._columns(y_TMP)
        return product(y_SM, self.a_RMN[0])[None] if self.terms == 1 else product(y_SM, self.a_RMN)

    def to_x(self, z_RSN: Array, out_TNQ: Array | None = None) -> Array:
        x_SQ = product(z_RSN.reshape(self.terms * self.p, -1).T, self.b_LQ)
        return written(x_SQ.reshape(-1, self.n, self.q), out_TNQ)

    def grad_a(self, y_TMP: Array, z_RSN: Array) -> Array:
        return self.between(self._columns(y_TMP), z_RSN)

    def grad_b(self, x_TNQ: Array, z_RSN: Array) -> Array:
        return self._grad_b(z_RSN.reshape(self.terms * self.p, -1).T, x_TNQ)

    def _columns(self, y_TMP: Array) -> Array:
        return y_TMP.transpose(2, 0, 1).reshape(-1, self.m)  # (P*T, M)


def written(result: Array, out: Array | None) -> Array:
    """Return the result, or `out` with the result in it."""
    if out is None:
        return result
    out[...] = result
    return out


def product(x: Array, y: Array) -> Array:
    """x @ y, of a pair or a stack; quick also where BLAS is slow: with a few rows, and where inner is 1."""
    (rows, inner), columns = x.shape[-2:], y.shape[-1]
    if inner == 1 and y.ndim == 2 and 0 < min(rows, columns) <= FEW:
        return x * y if rows <= columns else xp_of(x).stack([x[:, 0] * y[0, j] for j in range(columns)], axis=-1)
    if inner <= FEW:
        return x @ y
    if y.ndim == 2:
        turned = 1 < columns < min(rows, FEW) and x.size >= threads.LARGE
        return threads.product(y.T, x.T).T if turned else threads.product(x, y)
    if 1 < rows <= FEW_ROWS and y.strides[-2] == y.itemsize and backend_of(x) is CPU:  # stored the other way round
        return (y.swapaxes(-1, -2) @ x.swapaxes(-1, -2)).swapaxes(-1, -2)
    return x @ y

"""The layers that hold a matrix as a sum of Kronecker products: the same calls as nn.Linear and nn.Embedding.

Letters: W (M*P, N*Q), out x in, is the sum of R terms A (M, N) x B (P, Q). A dense Linear stores W^T; the table of an
embedding, (V, D), is W itself.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from tinykron.backend import Array, by_rows, scatter_add
from tinykron.kron import algebra, product
from tinykron.kron.algebra import KronSum, Shape
from tinykron.nn import INITIAL_STD, Embedding, Generator, Linear, Module, Unset, checked_ids, constant, normal
from tinykron.tensor import Function, Tensor

# Functions ------------------------------------------------------------------------------------------------------------


class KronApply(Function):
    """x (..., N*Q) times the transpose of a sum of Kronecker products, plus bias; two products forward, four back.

    KroneckerBERT eq. 6. The gradients are those of two matrix products in a row; W is never built.
    """

    def forward(self, xp, x, a_RMN, b_RPQ, bias=None):
        self.shape, self.b_inner = x.shape, product.b_is_inner(a_RMN, b_RPQ)
        inner, outer, x_EQ = product.arranged(a_RMN, b_RPQ, x)
        z_SRN = product.inner_product(inner, x_EQ, outer.shape[2])
        self.saved = inner, outer, x_EQ, z_SRN
        y_TD = product.in_order(product.outer_product(z_SRN, outer), a_RMN, b_RPQ)
        if bias is not None:
            y_TD = y_TD.astype(self.dtype, copy=False)
            by_rows(lambda block: xp.add(block, bias, out=block), y_TD)
        return y_TD.reshape(*x.shape[:-1], y_TD.shape[1])

    def backward(self, xp, grad):
        inner_RPQ, outer_RMN, x_EQ, z_SRN = self.saved
        (terms, p, q), (_, m, n) = inner_RPQ.shape, outer_RMN.shape
        needs_inner, needs_outer = self.needs[2 if self.b_inner else 1], self.needs[1 if self.b_inner else 2]
        grad_SM = grad.reshape(-1, m, p).swapaxes(1, 2).reshape(-1, m) if self.b_inner else grad.reshape(-1, m)
        grad_x = grad_inner = grad_outer = None
        if needs_outer:
            shape = (1, m, n) if terms == 1 else (m, terms, n)
            grad_outer = _product(xp, grad_SM.T, z_SRN.reshape(-1, terms * n), shape)
            grad_outer = grad_outer if terms == 1 else grad_outer.swapaxes(0, 1)
        if needs_inner or self.needs[0]:
            grad_z = product.product(grad_SM, product.side_by_side(outer_RMN)).reshape(-1, p, terms, n)
            grad_EC = grad_z.transpose(0, 3, 2, 1).reshape(-1, terms * p)
            if needs_inner:
                grad_inner = _product(xp, grad_EC.T, x_EQ, (terms, p, q))
            if self.needs[0]:
                grad_x = product.product(grad_EC, inner_RPQ.reshape(terms * p, q))
                grad_x = grad_x if self.b_inner else grad_x.reshape(-1, n, q).swapaxes(1, 2)
                grad_x = grad_x.reshape(self.shape)
        grad_a, grad_b = (grad_outer, grad_inner) if self.b_inner else (grad_inner, grad_outer)
        if len(self.needs) == 3:
            return grad_x, grad_a, grad_b
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(axis=0) if self.needs[3] else None
        return grad_x, grad_a, grad_b, grad_bias


def _product(xp: Any, x: Array, y: Array, shape: tuple[int, ...]) -> Array:
    """x @ y written into an array of `shape`: a reshaped product is a view, which the engine would have to copy."""
    out = xp.empty(shape, dtype=xp.result_type(x.dtype, y.dtype))
    xp.matmul(x, y, out=out.reshape(x.shape[0], y.shape[1]))
    return out


def kron_linear(x: Any, a: Any, b: Any, bias: Any = None) -> Tensor:
    """Return x (..., N*Q) @ (sum of a (R, M, N) x b (R, P, Q))^T + bias (M*P). Raises ShapeError."""
    product.check_factors(a, b, x.shape)
    return KronApply()(x, a, b) if bias is None else KronApply()(x, a, b, bias)


class KronRows(Function):
    """Rows of a table given by its factors: whole-number ids (...) in 0..M*P-1 -> (..., N*Q).

    Row m*P + p is the sum of the terms' A[m] x B[p]. KroneckerBERT eq. 8, where P = 1 and all rows share one B.
    """

    def forward(self, xp, a_RMN, b_RPQ, ids):
        (terms, _, n), (_, p, q) = a_RMN.shape, b_RPQ.shape
        ids_T = ids.reshape(-1)
        self.places = ids_T // p, ids_T % p if p > 1 else xp.zeros(1, dtype=ids_T.dtype)
        groups = len(self.places[1])  # of rows that share a row of B: all of them, or each alone
        a_GER = a_RMN[:, self.places[0]].transpose(1, 2, 0).reshape(groups, len(ids_T) * n // max(1, groups), terms)
        b_GRQ = b_RPQ[:, self.places[1]].transpose(1, 0, 2)
        self.shapes, self.saved = (a_RMN.shape, b_RPQ.shape), (a_GER, b_GRQ)
        rows = product.product(a_GER[0], b_GRQ[0]) if groups == 1 else a_GER @ b_GRQ
        return rows.reshape(*ids.shape, n * q)

    def backward(self, xp, grad):
        a_GER, b_GRQ = self.saved
        (a_shape, b_shape), (at_a, at_b) = self.shapes, self.places
        grad_GEQ = grad.reshape(a_GER.shape[:2] + b_shape[2:])
        grad_a = grad_b = None
        if self.needs[0]:
            grad_TNR = (grad_GEQ @ b_GRQ.swapaxes(1, 2)).reshape(len(at_a), a_shape[2], a_shape[0])
            grad_a = xp.zeros(a_shape, dtype=grad.dtype)
            for term in range(a_shape[0]):
                scatter_add(grad_a[term], at_a, grad_TNR[:, :, term])
        if self.needs[1]:
            grad_GRQ = a_GER.swapaxes(1, 2) @ grad_GEQ
            grad_b = xp.zeros(b_shape, dtype=grad.dtype)
            for term in range(b_shape[0]):
                scatter_add(grad_b[term], at_b, grad_GRQ[:, term])
        return grad_a, grad_b, None


# Layers ---------------------------------------------------------------------------------------------------------------


class KronModule(Module):
    """What the two layers share: a matrix of shape `dense` = (M*P, N*Q) as factors a_RMN and b_RPQ.

    `energy` is the share of the dense matrix's norm that was kept when the factors were fitted; None if never.
    """

    def __init__(self, dense: Shape, shape: Shape, terms: int, generator: Generator) -> None:
        a_shape, b_shape = algebra.factor_shapes(dense, shape)
        algebra.check_terms(terms, a_shape, b_shape)
        std = sqrt(INITIAL_STD) / terms**0.25  # an entry of the matrix, a sum of products, then has INITIAL_STD
        self.a_RMN = normal(generator, terms, *a_shape, std=std)
        self.b_RPQ = normal(generator, terms, *b_shape, std=std)
        self.energy: float | None = None

    @property
    def factors(self) -> KronSum:
        """The factors as arrays: the layer's own."""
        return KronSum(self.a_RMN.data, self.b_RPQ.data)

    def _take(self, fit: KronSum) -> None:
        self.a_RMN.data, self.b_RPQ.data, self.energy = fit.a, fit.b, fit.energy


class KronLinear(KronModule):
    """x (..., in) -> x @ (sum of A x B)^T + bias (out). `shape` is the (M, N) of A; it must divide (out, in)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: Shape,
        terms: int = 1,
        bias: bool = True,
        generator: Generator = None,
    ) -> None:
        super().__init__((outputs, inputs), shape, terms, generator)
        self.bias = constant(0.0, outputs) if bias else None

    @classmethod
    def from_dense(cls, linear: Linear, fit: KronSum) -> KronLinear:
        """Return a layer with the factors of a fit to a dense layer's matrix (out, in), and a copy of its bias."""
        outputs, inputs = fit.shape
        layer = cls(inputs, outputs, fit.a.shape[1:], fit.terms, linear.bias is not None, Unset())
        layer._take(fit)
        if layer.bias is not None and linear.bias is not None:
            layer.bias.data = linear.bias.data.copy()
        return layer

    def to_dense(self) -> Linear:
        """Return the dense layer with the same outputs."""
        outputs, inputs = self.factors.shape
        linear = Linear(inputs, outputs, self.bias is not None, Unset())
        a, b = self.a_RMN.data, self.b_RPQ.data
        linear.weight.data = KronSum(a.swapaxes(1, 2), b.swapaxes(1, 2)).dense()  # a Linear stores (in, out)
        if linear.bias is not None and self.bias is not None:
            linear.bias.data = self.bias.data.copy()
        return linear

    def forward(self, x: Tensor) -> Tensor:
        return kron_linear(x, self.a_RMN, self.b_RPQ, self.bias)


class KronEmbedding(KronModule):
    """A (V, D) table as factors: ids (...) -> rows (..., D); also an output head, x (..., D) -> logits (..., V).

    `shape` is the (M, N) of A; it must divide (V, D). With M = V every row keeps numbers of its own.
    """

    def __init__(self, count: int, width: int, shape: Shape, terms: int = 1, generator: Generator = None) -> None:
        super().__init__((count, width), shape, terms, generator)

    @classmethod
    def from_dense(cls, embedding: Embedding, fit: KronSum) -> KronEmbedding:
        """Return a table that holds the factors of a fit to a dense one."""
        layer = cls(*fit.shape, fit.a.shape[1:], fit.terms, Unset())
        layer._take(fit)
        return layer

    def to_dense(self) -> Embedding:
        """Return the dense embedding with the same rows."""
        embedding = Embedding(*self.factors.shape, Unset())
        embedding.weight.data = self.factors.dense()
        return embedding

    def forward(self, ids: Array, what: str = "token id") -> Tensor:
        """Look rows up; ids on the host, or on the table's device. DataError names an id out of range and its place."""
        count = self.factors.shape[0]
        return KronRows()(self.a_RMN, self.b_RPQ, checked_ids(ids, count, self.a_RMN.device, what))

    def project(self, x: Tensor) -> Tensor:
        """Return x @ table^T, the scores of each row of the table."""
        return kron_linear(x, self.a_RMN, self.b_RPQ)

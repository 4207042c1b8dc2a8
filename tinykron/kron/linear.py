"""The layers that hold a matrix as a sum of Kronecker products: the same calls as nn.Linear and nn.Embedding.

Letters: W (M*P, N*Q), out x in, is the sum of R terms A (M, N) x B (P, Q). A dense Linear stores W^T; the table of an
embedding, (V, D), is W itself.
"""

from __future__ import annotations

import copy
from math import sqrt
from typing import Any, Self

from tinykron.backend import Array, backend_of, scatter_add, xp_of
from tinykron.kron import algebra, product
from tinykron.kron.algebra import KronSum, Shape
from tinykron.kron.order import Order, Passes, checked_order, order_of
from tinykron.nn import (
    INITIAL_STD,
    Embedding,
    Generator,
    Linear,
    Module,
    Parameter,
    Unset,
    checked_ids,
    constant,
    normal,
)
from tinykron.tensor import Function, Tensor
from tinykron.threads import by_rows

# Functions ------------------------------------------------------------------------------------------------------------


class KronApply(Function):
    """x (..., N*Q) times the transpose of a sum of Kronecker products, plus bias. KroneckerBERT eq. 6.

    `wanted` is the order, as for `product.apply`; one serves both passes. Kept for the backward pass are the inputs,
    and what lies between the two products unless it is wider than x and y together: that is made again.
    """

    def __init__(self, wanted: str = "auto") -> None:
        self.wanted = checked_order(wanted)

    def forward(self, xp, x, a_RMN, b_RPQ, bias=None):
        training = self.needs[1] or self.needs[2]
        x_TNQ = x.reshape(-1, a_RMN.shape[2], b_RPQ.shape[2])
        order = self._order(a_RMN, b_RPQ, x_TNQ, "training" if training else "forward")
        y_TD, z = product.forward(order, a_RMN, b_RPQ, x_TNQ, keep=training)
        self.saved, self.order, self.shape = (x_TNQ, a_RMN, b_RPQ, z), order, x.shape
        if bias is not None:
            y_TD = y_TD.astype(self.dtype, copy=False)
            by_rows(lambda block: xp.add(block, bias, out=block), y_TD)
        return y_TD.reshape(*x.shape[:-1], y_TD.shape[1])

    def backward(self, xp, grad):
        x_TNQ, a_RMN, b_RPQ, z = self.saved
        grad_TMP = grad.reshape(-1, a_RMN.shape[1], b_RPQ.shape[1])
        grad_x = grad_a = grad_b = None
        if self.needs[1] or self.needs[2]:
            grad_x = xp.empty(self.shape, dtype=self.dtype)
            out_TNQ = grad_x.reshape(x_TNQ.shape)
            grad_a, grad_b = product.backward(self.order, a_RMN, b_RPQ, x_TNQ, grad_TMP, z, out_TNQ)
        elif self.needs[0]:  # frozen factors: dX is a product with the transposed sum, as a forward pass is
            a_RNM, b_RQP = a_RMN.swapaxes(1, 2), b_RPQ.swapaxes(1, 2)
            grad_x, _ = product.forward(self._order(a_RNM, b_RQP, grad_TMP, "forward"), a_RNM, b_RQP, grad_TMP)
            grad_x = grad_x.reshape(self.shape)
        grads = [grad_x, grad_a, grad_b]
        if len(self.needs) == 4:
            grads.append(grad.reshape(-1, grad.shape[-1]).sum(axis=0) if self.needs[3] else None)
        return tuple(grad if needed else None for grad, needed in zip(grads, self.needs, strict=True))

    def _order(self, a: Array, b: Array, x_TNQ: Array, passes: Passes) -> Order:
        return order_of(self.wanted, a, b, len(x_TNQ), passes, backend_of(x_TNQ).name)


def kron_linear(x: Any, a: Any, b: Any, bias: Any = None, order: str = "auto") -> Tensor:
    """Return x (..., N*Q) @ (sum of a (R, M, N) x b (R, P, Q))^T + bias (M*P); `order` as for `product.apply`.

    Raises ShapeError, TinykronError for another order.
    """
    product.check_factors(a, b, x.shape)
    return KronApply(order)(x, a, b) if bias is None else KronApply(order)(x, a, b, bias)


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


class Prefix(Function):
    """The first so many entries along each axis, None for all of them, side by side in memory."""

    def __init__(self, *counts: int | None) -> None:
        self.places = tuple(slice(count) for count in counts)

    def forward(self, xp, x):
        self.shape = x.shape
        return xp.ascontiguousarray(x[self.places])

    def backward(self, xp, grad):
        whole = xp.zeros(self.shape, dtype=grad.dtype)
        whole[self.places] = grad
        return whole


class KronModule(Module):
    """What the two layers share: a matrix of shape `dense` = (M*P, N*Q) as factors a_RMN and b_RPQ.

    `energy` is the share of the dense matrix's norm that was kept when the factors were fitted; None if never.
    `order` is the way to multiply, as for `kron.apply`; set it on a layer, or on the class for all of them.
    `used` is how many terms count, and how many rows and columns of A: the first ones, None for all of them.
    """

    order: str
    used: tuple[int | None, int | None, int | None] = (None, None, None)

    @property
    def plan(self) -> str:
        """What `order` was called in the version before; a DeprecationWarning says so."""
        return product.renamed_order("", self.order, "KronLinear.plan")

    @plan.setter
    def plan(self, order: str) -> None:
        self.order = product.renamed_order("", order, "KronLinear.plan")

    def __init__(self, dense: Shape, shape: Shape, terms: int, generator: Generator) -> None:
        a_shape, b_shape = algebra.factor_shapes(dense, shape)
        algebra.check_terms(terms, a_shape, b_shape)
        std = sqrt(INITIAL_STD) / terms**0.25  # an entry of the matrix, a sum of products, then has INITIAL_STD
        self.a_RMN = normal(generator, terms, *a_shape, std=std)
        self.b_RPQ = normal(generator, terms, *b_shape, std=std)
        self.energy: float | None = None

    @property
    def terms(self) -> int:
        """How many terms count."""
        return len(self.factors.a)

    @property
    def factors(self) -> KronSum:
        """What counts of the factors, as arrays: the layer's own."""
        terms, rows, columns = self.used
        return KronSum(self.a_RMN.data[:terms, :rows, :columns], self.b_RPQ.data[:terms])

    def first(self, terms: int | None = None, rows: int | None = None, columns: int | None = None) -> Self:
        """Return a layer with the same parameters, of which the first terms, rows and columns of A count."""
        made = copy.copy(self)
        pairs = zip((terms, rows, columns), self.factors.a.shape, strict=True)
        wanted = [size if count is None else min(count, size) for count, size in pairs]
        made.used = (wanted[0], wanted[1], wanted[2])
        return made

    def trimmed(self) -> Self:
        """Return a layer with parameters of its own that hold what counts, and no more."""
        made = copy.copy(self)
        for name, whole, kept in self._kept():
            parameter = Parameter(kept.copy())
            parameter.requires_grad = whole.requires_grad
            setattr(made, name, parameter)
        made.used, made.energy = (None, None, None), None if self.unused else self.energy
        return made

    @property
    def unused(self) -> int:
        """How many numbers the parameters hold that do not count."""
        return sum(whole.size - kept.size for _, whole, kept in self._kept())

    def _kept(self) -> list[tuple[str, Parameter, Array]]:
        """Return name, parameter and what counts of it, for each parameter."""
        fit, bias = self.factors, getattr(self, "bias", None)
        found = [("a_RMN", self.a_RMN, fit.a), ("b_RPQ", self.b_RPQ, fit.b)]
        return found if bias is None else [*found, ("bias", bias, bias.data[: fit.shape[0]])]

    def _in_use(self) -> tuple[Tensor, Tensor]:
        """Return what counts of the factors, to compute with."""
        if not self.unused:
            return self.a_RMN, self.b_RPQ
        return Prefix(*self.used)(self.a_RMN), Prefix(self.used[0])(self.b_RPQ)

    def _take(self, fit: KronSum) -> None:
        xp: Any = xp_of(fit.a)  # row by row: the first terms then lie side by side, as in a file
        self.a_RMN.data, self.b_RPQ.data = xp.ascontiguousarray(fit.a), xp.ascontiguousarray(fit.b)
        self.energy = fit.energy


class KronLinear(KronModule):
    """x (..., in) -> x @ (sum of A x B)^T + bias (out). `shape` is the (M, N) of A; it must divide (out, in).

    With many terms and rows the dense matrix may be the faster way: by order "auto" it is then built for a call, and
    gone after it: out*in numbers, three times as many in a backward pass. Order "factors" saves that memory.
    """

    order = "auto"

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
        a, b = self.factors.a, self.factors.b
        linear.weight.data = KronSum(a.swapaxes(1, 2), b.swapaxes(1, 2)).dense()  # a Linear stores (in, out)
        if linear.bias is not None and self.bias is not None:
            linear.bias.data = self.bias.data[:outputs].copy()
        return linear

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if bias is not None and self.unused:
            bias = Prefix(self.factors.shape[0])(bias)
        return kron_linear(x, *self._in_use(), bias, self.order)


class KronEmbedding(KronModule):
    """A (V, D) table as factors: ids (...) -> rows (..., D); also an output head, x (..., D) -> logits (..., V).

    `shape` is the (M, N) of A; it must divide (V, D). With M = V every row keeps numbers of its own. The table is the
    largest matrix of a model: it is never built, but by order "auto".
    """

    order = "factors"

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
        return KronRows()(*self._in_use(), checked_ids(ids, count, self.a_RMN.device, what))

    def project(self, x: Tensor) -> Tensor:
        """Return x @ table^T, the scores of each row of the table."""
        return kron_linear(x, *self._in_use(), order=self.order)

"""Matrices made of Kronecker products, computed with through their factors: none is built, except by `dense`.

`Kron(a, b, ...)` is a x b x ..., `Sum(k, l, ...)` a sum of these; s x I + I x t is in `kronecker_sum`. What mathematics
keeps in the family stays in it: the inverse of a Kron is a Kron. What a sum of several terms has not is refused.
Letters: A (M, N), B (P, Q), ...; entry [m*P + p, n*Q + q] of A x B is A[m, n] * B[p, q].
Van Loan, "The ubiquitous Kronecker product", 2000; Horn & Johnson, "Topics in Matrix Analysis", chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import exp, inf, log, prod, sqrt
from typing import Any

import numpy as np

from tinykron.backend import Array, backend_of, to_device, to_host, xp_of
from tinykron.errors import DtypeError, ShapeError, TinykronError
from tinykron.kron import product
from tinykron.kron.algebra import KronSum
from tinykron.kron.operators.factors import Factored, Scalar, exponential, number, outer, products, reciprocal
from tinykron.kron.operators.spectral import Operator, Spectral


class Sum(Operator):
    """A sum of Kronecker products of one shape, whose factors may differ in shape from term to term.

    terms  Kron or Sum; of one device and dtype
    Raises ShapeError, DtypeError, DeviceError.
    """

    def __init__(self, *terms: Sum) -> None:
        if not terms or not all(isinstance(term, Sum) for term in terms):
            raise TinykronError(f"the terms of a sum are Kron or Sum, one or more; found {terms}")
        self._terms: tuple[Kron, ...] = tuple(kron for given in terms for kron in given.terms)
        self.shape, self.like = self._terms[0].shape, self._terms[0].like
        for term in self._terms:
            self._check(term.like, repr(term))
            if term.shape != self.shape:
                raise ShapeError(f"terms of different shapes: {self._terms[0]!r} and {term!r}")

    @classmethod
    def of(cls, pair: KronSum) -> Sum:
        """Return the operator of stacked factors, such as `nearest` finds."""
        return cls(*map(Kron, pair.a, pair.b))

    def stacked(self) -> KronSum:
        """Return the factors, two a term and alike, stacked. Raises ShapeError if they are not so."""
        if len(self.terms[0].shapes) != 2 or any(term.shapes != self.terms[0].shapes for term in self.terms):
            raise ShapeError(f"to be stacked, terms have two factors each, of the same shapes; found {self.terms}")
        xp = xp_of(self.like)
        return KronSum(*(xp.stack([term.factors[place] for term in self.terms]) for place in (0, 1)))

    def __getattr__(self, name: str) -> Any:
        """What only a product has, `inverse` or `svd`: that of a lone term. Raises TinykronError if there are more."""
        if name.startswith("_") or not hasattr(Kron, name):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        if len(self.terms) > 1:
            raise TinykronError(f"a sum of {len(self.terms)} Kronecker products has no {name} in factors; take dense()")
        return getattr(self.terms[0], name)

    @property
    def terms(self) -> tuple[Kron, ...]:
        return self._terms

    @property
    def parameters(self) -> int:
        return sum(factor.size for term in self.terms for factor in term.factors)

    def dense(self) -> Array:
        return sum(term.dense() for term in self.terms)

    def _rows(self, x: Array) -> Array:
        shapes = {term.shapes for term in self.terms}
        if len(shapes) == 1 and len(self.terms[0].shapes) == 2:
            pair = self.stacked()
            return product.apply(pair.a, pair.b, x)  # two products whatever the number of terms
        return sum(term._rows(x) for term in self.terms)

    def _compose(self, other: Operator) -> Operator:
        """(A x B)(C x D) = AC x BD, every term with every term."""
        if not isinstance(other, Sum):
            return super()._compose(other)
        return Sum(*(one @ two for one in self.terms for two in other.terms))

    @property
    def T(self) -> Sum:
        return Sum(*(term.T for term in self.terms))

    @property
    def H(self) -> Sum:
        return Sum(*(term.H for term in self.terms))

    def __add__(self, other: Sum) -> Sum:
        return Sum(self, other) if isinstance(other, Sum) else NotImplemented

    def __sub__(self, other: Sum) -> Sum:
        return Sum(self, -other) if isinstance(other, Sum) else NotImplemented

    def __mul__(self, scale: Scalar) -> Sum:
        return Sum(*(term * scale for term in self.terms))

    def __rmul__(self, scale: Scalar) -> Any:
        return self * scale

    def __neg__(self) -> Any:
        return self * -1.0

    def entries(self, rows: Any, columns: Any) -> Array:
        """Return the entries [rows, columns], whole numbers on the host that broadcast. Raises ShapeError outside."""
        return sum(term.entries(rows, columns) for term in self.terms)

    def diagonal(self) -> Array:
        """Return the entries [i, i]."""
        places = np.arange(min(self.shape))
        return self.entries(places, places)

    def trace(self) -> Scalar:
        """Return the sum of the diagonal."""
        return sum(term.trace() for term in self.terms)

    def inner(self, other: Sum) -> Scalar:
        """Return the sum over all entries of conj(self) * other. Raises ShapeError if factors differ in shape.

        <A x B, C x D> = <A, C> <B, D>. In float64.
        """
        return sum(one._inner(two) for one in self.terms for two in other.terms)

    def norm(self, kind: Any = "fro") -> float:
        """Return the Frobenius norm, from inner products: of a sum that nearly cancels, half the digits are lost."""
        if kind != "fro":
            raise TinykronError(f"norm: of a sum, factors give the Frobenius norm alone, not {kind!r}; take dense()")
        return sqrt(max(0.0, number(self.inner(self)).real))


class Kron(Sum, Factored):
    """The Kronecker product of one or more matrices; a Kron among them stands for its factors.

    factors  two-dimensional, of one device and dtype: float32, float64, complex64 or complex128
    Raises ShapeError, DtypeError, DeviceError.
    """

    def __init__(self, *factors: Any) -> None:
        self.factors = tuple(f for given in factors for f in (given.factors if isinstance(given, Kron) else (given,)))
        if not self.factors:
            raise ShapeError("a Kronecker product has one factor or more")
        self.like = self.factors[0]
        for place, factor in enumerate(self.factors, 1):
            self._check(factor, f"factor {place}")
            if factor.dtype != self.dtype:
                raise DtypeError(f"factor {place} is {factor.dtype}, the first is {self.dtype}")
            if factor.ndim != 2 or not factor.size:
                raise ShapeError(f"factor {place} should be a matrix that is not empty, found {tuple(factor.shape)}")
        self.shape = prod(m for m, _ in self.shapes), prod(n for _, n in self.shapes)

    def __repr__(self) -> str:
        return f"Kron({', '.join(f'{m}x{n}' for m, n in self.shapes)})"

    @property
    def terms(self) -> tuple[Kron, ...]:
        return (self,)

    # Products ---------------------------------------------------------------------------------------------------------

    def dense(self) -> Array:
        return xp_of(self.like).ascontiguousarray(reduce(outer, self.factors[1:], self.factors[0].copy()))

    @property
    def order(self) -> list[int]:
        """Which factor to multiply by first, second, ...: the cheapest order for any number of factors.

        Of two in a row, i is better first if 1/N_i - 1/M_i is the smaller: all other sizes cancel.
        """
        return sorted(range(len(self.shapes)), key=lambda i: 1.0 / self.shapes[i][1] - 1.0 / self.shapes[i][0])

    def _rows(self, x: Array) -> Array:
        return self._axis_by_axis(x, [factor.__matmul__ for factor in self.factors])

    def _axis_by_axis(self, x_TD: Array, actions: Sequence[Callable[[Array], Array]]) -> Array:
        """Read each row of x as an array (N, Q, ...), and let action k turn its k-th axis into another."""
        xp = xp_of(x_TD)
        x = x_TD.reshape(-1, *(n for _, n in self.shapes))
        for k in self.order:
            front = xp.moveaxis(x, k + 1, 0)
            y = actions[k](front.reshape(len(front), x.size // len(front)))
            x = xp.moveaxis(y.reshape(len(y), *front.shape[1:]), 0, k + 1)
        return x.reshape(len(x_TD), prod(x.shape[1:]))

    def _compose(self, other: Operator) -> Operator:
        if not isinstance(other, Kron):
            return super()._compose(other)
        if [n for _, n in self.shapes] != [m for m, _ in other.shapes]:
            raise ShapeError(f"the factors of {self!r} @ {other!r} do not fit one by one")
        return Kron(*(a @ c for a, c in zip(self.factors, other.factors, strict=True)))

    @property
    def T(self) -> Kron:
        """The transpose: of each factor, in the same order."""
        return Kron(*(factor.T for factor in self.factors))

    @property
    def H(self) -> Kron:
        return Kron(*(factor.conj().T for factor in self.factors))

    def __mul__(self, scale: Scalar) -> Kron:
        scale = number(scale)
        if not isinstance(scale, int | float | complex):
            return NotImplemented
        return Kron(self.factors[0] * scale, *self.factors[1:])

    def hadamard(self, other: Kron) -> Kron:
        """Return the product entry by entry: (A x B) o (C x D) = (A o C) x (B o D). ShapeError if shapes differ."""
        self.check_alike(other)
        return Kron(*(a * c for a, c in zip(self.factors, other.factors, strict=True)))

    def balanced(self) -> Kron:
        """Return the same matrix with factors of equal Frobenius norm: cA x B/c is A x B for every c."""
        norms = [number(xp_of(factor).linalg.norm(factor)) for factor in self.factors]
        if not all(norms):
            return self
        mean = exp(sum(map(log, norms)) / len(norms))
        return Kron(*(factor * (mean / norm) for factor, norm in zip(self.factors, norms, strict=True)))

    # Entries and numbers ----------------------------------------------------------------------------------------------

    def entries(self, rows: Any, columns: Any) -> Array:
        try:
            at_rows = np.unravel_index(rows, [m for m, _ in self.shapes])
            at_columns = np.unravel_index(columns, [n for _, n in self.shapes])
        except (TypeError, ValueError) as error:
            raise ShapeError(f"entries of {self!r}: {error}") from None
        at = partial(to_device, name=backend_of(self.like).name)
        places = zip(self.factors, at_rows, at_columns, strict=True)
        return prod(factor[at(np.asarray(i)), at(np.asarray(j))] for factor, i, j in places)

    def trace(self) -> Scalar:
        """Return the sum of the diagonal: the product of the factors' traces, where they are square."""
        if self.square_factors:
            return prod(number(factor.trace()) for factor in self.factors)
        return number(self.diagonal().sum())

    def _inner(self, other: Kron) -> Scalar:
        self.check_alike(other)
        double = np.result_type(self.dtype, other.dtype, np.float64)
        pairs = zip(self.factors, other.factors, strict=True)
        return prod(number((a.conj().astype(double) * c.astype(double)).sum()) for a, c in pairs)

    def norm(self, kind: Any = "fro") -> float:
        """Return a norm: "fro", "nuc" (the sum of singular values), 1, 2, numpy.inf, or "max", the largest entry."""
        xp = xp_of(self.like)
        if kind == "max":
            return prod(number(xp.abs(factor).max()) for factor in self.factors)
        return prod(self.each("norm", lambda factor: number(xp.linalg.norm(factor, kind))))

    def slogdet(self) -> tuple[Scalar, float]:
        """Return the sign of the determinant (of size 1 if complex) and the logarithm of its size; 0, -inf if it is 0.

        det(A x B) = det(A)^P det(B)^M for A (M, M) and B (P, P). Raises ShapeError unless the product is square.
        """
        if self.shape[0] != self.shape[1]:
            raise ShapeError(f"{self!r} has no determinant: it is not square")
        if not self.square_factors:  # its rank is at most the product of the factors' short sides
            return 0.0, -inf
        sign, logarithm = 1.0, 0.0
        for factor in self.factors:
            its_sign, its_logarithm = map(number, xp_of(factor).linalg.slogdet(factor))
            power = self.shape[0] // len(factor)  # the size of all the others
            sign, logarithm = sign * its_sign**power, logarithm + its_logarithm * power
        return sign, logarithm

    def det(self) -> Scalar:
        """Return the determinant; inf where that is beyond a float, which is what `slogdet` is for."""
        return exponential(*self.slogdet())

    def singular_values(self) -> Array:
        """Return all products of singular values of the factors, the largest first. Any not among them are 0."""
        xp = xp_of(self.like)
        return xp.sort(products(self.each("singular values", partial(xp.linalg.svd, compute_uv=False))))[::-1]

    def rank(self, rtol: float | None = None) -> int:
        """Return how many singular values of the product exceed `rtol` times its largest.

        By default eps times the longer side, NumPy's. The rank of nearly singular factors may be less than the product
        of their ranks.
        """
        values = self.singular_values()
        return int((values > self._rtol(rtol) * values[0]).sum())

    def cond(self) -> float:
        """Return the largest singular value over the smallest, of as many as the short side; inf if that is 0."""
        values = self.singular_values()
        smallest = number(values[-1]) if len(values) == min(self.shape) else 0.0
        return number(values[0]) / smallest if smallest else inf

    # Inverses ---------------------------------------------------------------------------------------------------------

    def inverse(self) -> Kron:
        """Return the inverse. Raises ShapeError if a factor is not square, TinykronError if one is singular."""
        self.check_square("inverse")
        return Kron(*self.each("inverse", xp_of(self.like).linalg.inv))

    def solve(self, b: Array) -> Array:
        """Return the x, shaped like b (rows,) or (rows, T), with self @ x = b, by a small solve for each factor.

        Raises what `inverse` does, and what @ does.
        """
        self.check_square("inverse")
        self._check_columns(b, "b", self.shape[0])
        solve = xp_of(b).linalg.solve
        actions = [partial(self.attempt, place, "inverse", solve) for place in range(len(self.factors))]
        return self._axis_by_axis(b.T.reshape(-1, len(b)), actions).reshape(b.T.shape).T

    def pinv(self, rtol: float | None = None) -> Operator:
        """Return the Moore-Penrose inverse. Singular values of the product up to `rtol` times its largest count as 0.

        By default eps times the longer side. A Kron, pinv(A) x pinv(B), where the values that stay are all products of
        some of A's with some of B's. Near the cutoff they may not be: then no Kron equals it, and it is `Spectral`.
        """
        xp, (us, values, vs) = xp_of(self.like), self._svds()
        form = Spectral(Kron(*us), products(values), Kron(*vs))
        kept = form.values > self._rtol(rtol) * form.values.max()
        grid = kept.reshape([len(s) for s in values])  # an axis for each factor
        some = [xp.moveaxis(grid, axis, 0).reshape(len(s), -1).any(axis=1) for axis, s in enumerate(values)]
        if not bool((products(some) == kept).all()):
            return form.pinv(kept)
        pieces = zip(us, values, vs, some, strict=True)
        return Kron(*((v.conj().T * reciprocal(s, few)) @ u.conj().T for u, s, v, few in pieces))

    # Decompositions ---------------------------------------------------------------------------------------------------

    def svd(self) -> Spectral:
        """Return left (Kron), values, right (Kron) as one operator that unpacks; values in the order of the products.

        The reduced form of each factor: with A wide and B tall, fewer values than the short side; the others are 0.
        """
        us, values, vs = self._svds()
        return Spectral(Kron(*us), products(values), Kron(*vs))

    def _svds(self) -> Any:
        """Return the left vectors, values and right vectors of each factor: three tuples."""
        svd = partial(xp_of(self.like).linalg.svd, full_matrices=False)
        return zip(*self.each("singular values", svd), strict=True)

    def qr(self) -> tuple[Kron, Kron]:
        """Return Q with orthonormal columns and R, whose entries below the diagonal are 0, with Q @ R = self."""
        q, r = zip(*self.each("QR", xp_of(self.like).linalg.qr), strict=True)
        return Kron(*q), Kron(*r)

    def cholesky(self) -> Kron:
        """Return the lower triangular L with L @ L.H = self, for factors that are symmetric and positive definite.

        Raises TinykronError for others: two negative definite factors, too, though their product is positive definite.
        """
        self.check_symmetric("Cholesky factor")
        return Kron(*self.each("Cholesky factor", xp_of(self.like).linalg.cholesky))

    def eigh(self) -> Spectral:
        """Return eigenvectors (Kron), real eigenvalues and the eigenvectors' H as one operator, for symmetric factors.

        Eigenvalues in the order of the products. Raises TinykronError naming a factor that is not symmetric.
        """
        self.check_symmetric("real eigenvalues")
        values, vectors = zip(*self.each("eigenvalues", xp_of(self.like).linalg.eigh), strict=True)
        return Spectral(Kron(*vectors), products(values), Kron(*vectors).H)

    def eig(self) -> tuple[Array, Kron]:
        """Return the eigenvalues, complex and in the order of the products, and eigenvectors as the columns of a Kron.

        On the host, as older versions of CuPy have this for symmetric matrices alone. Raises ShapeError.
        """
        self.check_square("eigenvalues")
        values, vectors = zip(*self.each("eigenvalues", lambda factor: np.linalg.eig(to_host(factor))), strict=True)
        complex_type, device = np.result_type(self.dtype, np.complex64), backend_of(self.like).name
        on_device = [to_device(array.astype(complex_type), device) for array in (products(values), *vectors)]
        return on_device[0], Kron(*on_device[1:])

    def __pow__(self, power: float) -> Kron:
        """Return the matrix power: a whole number for square factors, any real one for positive definite ones.

        An int may be negative, if no factor is singular; 0.5 is the root R with R @ R = self. Raises ShapeError,
        TinykronError.
        """
        self.check_square("power")
        linalg, power = xp_of(self.like).linalg, number(power)
        if isinstance(power, int):
            return Kron(*self.each("inverse", lambda factor: linalg.matrix_power(factor, power)))
        self.check_symmetric(f"power {power}")
        roots = []
        for place, (values, vectors) in enumerate(self.each("eigenvalues", linalg.eigh), 1):
            if not number(values[0]) > 0.0:
                raise TinykronError(f"factor {place} of {self!r} has no power {power}: it is not positive definite")
            roots.append((vectors * values**power) @ vectors.conj().T)
        return Kron(*roots)

    def _rtol(self, rtol: float | None) -> float:
        return max(self.shape) * float(np.finfo(self.dtype).eps) if rtol is None else rtol

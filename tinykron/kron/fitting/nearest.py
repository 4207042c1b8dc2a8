"""Fitting a sum of Kronecker products to a matrix: the nearest one, in the plain norm or in what the data weigh.

Low rank is a special case: A (M*P, 1) x B (1, N*Q) is a column times a row, a sum of R of them has rank R, and the fit
weighted by the inputs is SVD-LLM's (arXiv 2403.07378).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from tinykron.backend import Array, xp_of
from tinykron.errors import DtypeError, TinykronError
from tinykron.kron.algebra import KronSum, Shape, check_terms, factor_shapes
from tinykron.kron.fitting import metric as metrics
from tinykron.kron.fitting.als import alternate
from tinykron.kron.fitting.metric import Metric, Root, Split
from tinykron.kron.fitting.svd import SLAB_ELEMENTS, signs, truncated

RIDGE = 1e-6  # of a metric's mean diagonal: directions that no calibration text excited still count a little
SWEEPS = 10  # at most: the first bring almost all
WORK = 1 << 37  # multiplications of all sweeps of one fit, at most: some seconds
TOLERANCE = 1e-5  # of the cost of the matrix: a sweep that gains less is the last


def best_of_largest(w: Array, sizes: Mapping[Shape, int], near: float, terms: int = 1) -> tuple[Shape, float]:
    """Return, of the largest shapes of A, the one whose nearest sum keeps most of w, and that share of its norm.

    sizes  parameters of a pair, by the shape of its A: a pair keeps the more the larger it is
    near   shapes whose sizes are within this share of the largest are compared by what they keep
    """
    largest = [shape for shape, size in sizes.items() if size >= (1.0 - near) * max(sizes.values())]
    kept = {shape: nearest(w, shape, terms).energy or 0.0 for shape in largest}
    shape = max(kept, key=lambda shape: kept[shape])
    return shape, kept[shape]


def nearest(
    w: Array,
    shape: Shape,
    terms: int = 1,
    covariance: Metric = None,
    output: Metric = None,
    *,
    ridge: float = RIDGE,
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
    certify: bool = False,
) -> KronSum:
    """Return the sum of `terms` Kronecker products closest to `w`: the least tr(G E C E^T) of the error E.

    w           (M*P, N*Q) matrix, out x in, of floats
    shape       (M, N) of each A; must divide w's shape
    covariance  C, (N*Q, N*Q) second moment of the inputs, or what `metric` allows; None measures every input alike
    output      G, the same for the outputs (M*P); a vector weighs the rows of a table by how often each occurs
    ridge       added to the diagonal of C and G, as a share of its mean; with 0, a singular one leaves directions free
    sweeps      of alternating least squares, at most, where there is no closed form; 0 keeps the starting point. Large
                sums get fewer: 2 (N*Q)^2 terms^2 multiplications, all sweeps together, are at most `WORK`
    tolerance   a sweep that gains less than this share of the cost of w is the last
    certify     also return bounds on the error of the best such sum
    Returns a KronSum in w's dtype whose terms are sorted, with ||A|| = ||B|| and the first large entry of B positive.
    Without C and G, the first k terms are the best k (Eckart & Young 1936; Van Loan & Pitsianis 1993; KroneckerBERT eq.
    2-5), and so they are where C is a Kronecker product with factors (N, N) and (Q, Q), as it always is where N or Q is
    1: whiten, truncate, whiten back. Elsewhere C is taken as it is: alternating least squares, from the closed form of
    the Kronecker product nearest to C, and the first k terms are the best k of the sum found, in that product's metric.
    A G that is no Kronecker product is replaced by the nearest; the error is measured in G itself.
    Raises ShapeError, listing the nearest shapes that divide, or the number of terms that the shape allows;
    DtypeError if w is not real floats; TinykronError if w, C or G holds a NaN or an infinity.
    """
    a_shape, b_shape = factor_shapes(w.shape, shape)
    check_terms(terms, a_shape, b_shape)
    check_matrix(w)
    if covariance is None and output is None:
        return truncated(w, shape, terms)
    covariance = metrics.checked(covariance, w.shape[1], "covariance", w, ridge)
    output = metrics.checked(output, w.shape[0], "output", w, ridge)
    search = Search(sweeps, tolerance, certify)
    if b_shape[0] == 1 and a_shape[0] > w.shape[1]:
        small, rows = compact(w, output)
        fit = search.one_sided(small, (len(small), a_shape[1]), terms, covariance)
        small = _finished(fit, w.dtype)
        lead_DK = (rows @ small.a.astype(np.float64)).transpose(1, 0, 2).reshape(len(rows), -1).astype(w.dtype)
        a_RMN = (w @ lead_DK).reshape(len(w), terms, -1).transpose(1, 0, 2)  # one product for all terms
        return _finished(replace(small, a=a_RMN), w.dtype)
    return _finished(search.two_sided(w.astype(np.float64), a_shape, b_shape, terms, covariance, output), w.dtype)


def check_matrix(w: Array) -> None:
    """Raise DtypeError unless w holds real floats, TinykronError if one is NaN or infinite."""
    if w.dtype.kind != "f":
        raise DtypeError(f"nearest: expected a matrix of real floats, found {w.dtype}")
    bad = w.size - int(xp_of(w).isfinite(w).sum())
    if bad:
        raise TinykronError(f"nearest: {bad} of the {w.size} values of w are NaN or infinite")


def compact(w: Array, output: Metric) -> tuple[Array, Array]:
    """Return (D, D) matrices: one that is as hard to fit as w (M, D) where P is 1, and one that leads back to w's rows.

    Where P is 1, every row of w has a row of A to itself, and for given B the best one is linear in w's row. So the fit
    depends on w^T G w alone, and a root of it stands for w: A = w @ rows @ A' for the factor A' of the smaller matrix.
    A table of 50,257 tokens becomes a matrix of 768 rows.
    """
    xp = xp_of(w)
    step = max(1, SLAB_ELEMENTS // w.shape[1])
    gram = xp.zeros((w.shape[1],) * 2)
    for start in range(0, len(w), step):
        slab = w[start : start + step].astype(np.float64)
        part = None if output is None else metrics.dense(output)[start : start + step]
        gram += slab.T @ (slab if part is None else slab * part[:, None] if part.ndim == 1 else part @ w)
    made = metrics.Root(0.5 * (gram + gram.T))
    return xp.ascontiguousarray(made.root.T), xp.ascontiguousarray(made.inverse.T)


# Weighted -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """How long to look for a fit that has no closed form; the arguments of `nearest`. Everything here is float64."""

    sweeps: int = SWEEPS
    tolerance: float = TOLERANCE
    certify: bool = False

    def two_sided(
        self, w: Array, a_shape: Shape, b_shape: Shape, terms: int, covariance: Metric, output: Metric
    ) -> KronSum:
        """Fit with a metric of the outputs, too: its root moves into w, and out of the factors afterwards."""
        if output is None:
            return self.one_sided(w, a_shape, terms, covariance)
        outputs = metrics.split(output, (a_shape[0], b_shape[0]))
        first, second = metrics.Root(outputs.first), metrics.Root(outputs.second)
        left = metrics.times(w.T, first.root, second.root, (a_shape[0], b_shape[0])).T
        fit = self.one_sided(left, a_shape, terms, covariance)
        a_RMN = first.divide(fit.a.swapaxes(1, 2)).swapaxes(1, 2)
        b_RPQ = second.divide(fit.b.swapaxes(1, 2)).swapaxes(1, 2)
        if outputs.exact:
            return replace(fit, a=a_RMN, b=b_RPQ)
        whole = metrics.cost(w, covariance, output)
        error = metrics.cost(w - KronSum(a_RMN, b_RPQ).dense(), covariance, output)
        bounds = fit.bounds
        if bounds is not None:
            share = metrics.cost(left, covariance, None) / whole
            low, high = loewner(output, outputs, first, second)
            bounds = bounds[0] * sqrt(low * share), bounds[1] * sqrt(high * share)
        return _measured(KronSum(a_RMN, b_RPQ, bounds=bounds), error, whole)

    def one_sided(self, w: Array, a_shape: Shape, terms: int, covariance: Metric) -> KronSum:
        """Fit with a metric of the inputs: whiten, truncate, whiten back; then alternate where that is not the best."""
        sizes = a_shape[1], w.shape[1] // a_shape[1]
        inputs = metrics.split(covariance, sizes)
        first, second = metrics.Root(inputs.first), metrics.Root(inputs.second)
        white = truncated(metrics.times(w, first.root, second.root, sizes), a_shape, terms, by_gram=True)
        a_RMN, b_RPQ = first.divide(white.a), second.divide(white.b)
        if inputs.exact:
            bound = white.error or 0.0
            return replace(white, a=a_RMN, b=b_RPQ, bounds=(bound, bound) if self.certify else None)
        full = metrics.dense(covariance)  # which may still be a diagonal
        whole = metrics.cost(w, full, None)
        bounds = None
        if self.certify:  # first: its memory is free again for the search
            low, high = loewner(full, inputs, first, second)
            tail = (white.error or 0.0) ** 2 * metrics.cost(w, (inputs.first, inputs.second), None) / whole
            bounds = sqrt(low * tail), sqrt(high * tail)
        found = KronSum(a_RMN, b_RPQ)
        cost = metrics.cost(w - found.dense(), full, None)
        if self.sweeps and whole:
            plain = truncated(w, a_shape, terms, by_gram=True)
            of_plain = metrics.cost(w - plain.dense(), full, None)
            if of_plain < cost:
                found, cost = plain, of_plain
            sweeps = min(self.sweeps, WORK // (2 * (w.shape[1] * terms) ** 2))
            if sweeps:
                square = full if full.ndim == 2 else xp_of(full).diag(full)
                a_RMN, b_RPQ, _ = alternate(w, square, found.a, found.b, sweeps, self.tolerance, cost)
                found = _in_order(a_RMN, b_RPQ, first, second)
                cost = metrics.cost(w - found.dense(), full, None)  # of what is returned, not of what led to it
        return _measured(replace(found, bounds=bounds), cost, whole)


def loewner(metric: Array, near: Split, first: Root, second: Root) -> tuple[float, float]:
    """Return the largest a and the least b with a K <= C <= b K, for C and the Kronecker product K that stands for it.

    They bracket the best cost: a times the tail that K's closed form leaves is no more, b times it no less. With E of
    the closed form and E* of the best fit: f_C(E) <= b f_K(E) <= b f_K(E*) <= (b / a) f_C(E*).
    """
    if near.exact:
        return 1.0, 1.0
    xp = xp_of(metric)
    if metric.ndim == 1:
        ratio = metric * xp.kron(first.inverse, second.inverse) ** 2
        return float(ratio.min()), float(ratio.max())
    sizes = first.root.shape[0], second.root.shape[0]
    whitened = metric.copy()
    for side in (whitened, whitened.T):  # in blocks, in place: it may be large
        for start in range(0, len(side), metrics.ROWS):
            rows = side[start : start + metrics.ROWS]
            rows[...] = metrics.times(rows, first.inverse.T, second.inverse.T, sizes)
    values = xp.linalg.eigvalsh(whitened)  # reads one triangle of it
    return max(0.0, float(values[0])), float(values[-1])


def _measured(fit: KronSum, cost: float, whole: float) -> KronSum:
    lost = min(1.0, max(0.0, cost / whole)) if whole else 0.0
    return replace(fit, error=sqrt(lost), energy=sqrt(1.0 - lost))


def _in_order(a_RMN: Array, b_RPQ: Array, first: Root, second: Root) -> KronSum:
    """Return the same sum in other terms: the first k are its best k-term part in the metric of the roots."""
    xp = xp_of(a_RMN)
    terms, sizes = len(a_RMN), (a_RMN.shape[2], b_RPQ.shape[2])
    a_KR = metrics.times(a_RMN, first.root, None, (sizes[0], 1)).reshape(terms, -1).T
    b_LR = metrics.times(b_RPQ, None, second.root, (1, sizes[1])).reshape(terms, -1).T
    (q_KR, upper_a), (q_LR, upper_b) = xp.linalg.qr(a_KR), xp.linalg.qr(b_LR)
    u, s, vt = xp.linalg.svd(upper_a @ upper_b.T, full_matrices=False)
    scale = xp.sqrt(s)
    a_RMN = (q_KR @ (u * scale)).T.reshape(a_RMN.shape)
    b_RPQ = (q_LR @ (vt.T * scale)).T.reshape(b_RPQ.shape)
    return KronSum(first.divide(a_RMN), second.divide(b_RPQ))


def _finished(fit: KronSum, dtype: Any) -> KronSum:
    """Return the fit in w's dtype, ||A|| = ||B|| in each term, the first large entry of B positive."""
    xp = xp_of(fit.a)
    norm_a, norm_b = (xp.sqrt(xp.stack([(one * one).sum() for one in factor])) for factor in (fit.a, fit.b))
    scale = xp.sqrt(norm_b / xp.where(norm_a > 0.0, norm_a, 1.0))
    scale = xp.where(scale > 0.0, scale, 1.0) * signs(fit.b.reshape(fit.terms, -1).T)
    scale_R11 = scale[:, None, None].astype(fit.a.dtype)
    a_RMN, b_RPQ = fit.a * scale_R11, fit.b / scale_R11
    return replace(fit, a=a_RMN.astype(dtype, copy=False), b=b_RPQ.astype(dtype, copy=False))

"""What a fit is measured against: low rank, and the papers' other ways to start. Each gives a KronSum to train from."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np

from tinykron.backend import Array, backend_of, to_device, xp_of
from tinykron.kron.algebra import KronSum, Shape, check_terms, factor_shapes
from tinykron.kron.fitting.metric import Metric
from tinykron.kron.fitting.nearest import check_matrix, nearest

KEPT_ALIVE = 0.1  # of B's first entry: Krony-PT's B is [1, 0.1], as a 0 would never receive a gradient


def low_rank(w: Array, rank: int, covariance: Metric = None) -> KronSum:
    """Return the best matrix of a given rank, as a sum of columns times rows: shape (M*P, 1), so that B is a row.

    w           (out, in)
    covariance  (in, in) second moment of the inputs: SVD-LLM (arXiv 2403.07378); None: a truncated SVD
    Raises what `nearest` raises.
    """
    return nearest(w, (w.shape[0], 1), rank, covariance)


def rank_of(parameters: float, dense: Shape) -> int:
    """Return the largest rank whose two factors have at most so many parameters; at least 1, at most the full rank."""
    return max(1, min(int(parameters) // sum(dense), min(dense)))


def rescaled(fit: KronSum, w: Array) -> KronSum:
    """Return the fit times ||w|| / ||fit||: Krony-PT's adaptive normalisation (arXiv 2412.12351, eq. 8).

    It raises the Frobenius error, and gives activations their size back. The scale goes into A.
    """
    norm = float(xp_of(w).sqrt((w.astype(np.float64) ** 2).sum()))
    own = _norm(fit)
    scale = norm / own if own else 1.0
    return replace(fit, a=fit.a * scale, error=_relative_error(fit.a * scale, fit.b, w), energy=scale * own / norm)


def pruned(w: Array, shape: Shape) -> KronSum:
    """Return A = every P-th row and Q-th column of w, B = 1 at its first entry and 0.1 elsewhere: Krony-PT's 96M.

    B (2, 1) or (1, 2) is the paper's case, [1, 0.1]. Raises what `nearest` raises.
    """
    (m, n), (p, q) = factor_shapes(w.shape, shape)
    check_matrix(w)
    xp = xp_of(w)
    b_PQ = xp.full((p, q), KEPT_ALIVE, dtype=w.dtype)
    b_PQ[0, 0] = 1.0
    a_RMN, b_RPQ = xp.ascontiguousarray(w[::p, ::q]).reshape(1, m, n), b_PQ.reshape(1, p, q)
    return KronSum(a_RMN, b_RPQ, error=_relative_error(a_RMN, b_RPQ, w))


def random(w: Array, shape: Shape, terms: int = 1, seed: int = 0) -> KronSum:
    """Return Gaussian factors whose sum has entries as large as w's, in the mean square: the control of every start.

    Raises what `nearest` raises.
    """
    a_shape, b_shape = factor_shapes(w.shape, shape)
    check_terms(terms, a_shape, b_shape)
    check_matrix(w)
    generator = np.random.default_rng(seed)
    root_mean_square = sqrt(float((w.astype(np.float64) ** 2).mean()))
    std = sqrt(root_mean_square / sqrt(terms))  # an entry of the sum adds up `terms` products of two such numbers
    a_RMN, b_RPQ = (
        to_device((std * generator.standard_normal((terms, *size))).astype(w.dtype), backend_of(w).name)
        for size in (a_shape, b_shape)
    )
    return KronSum(a_RMN, b_RPQ, error=_relative_error(a_RMN, b_RPQ, w))


def _norm(fit: KronSum) -> float:
    """Return the Frobenius norm of a sum, from its factors."""
    a_RK, b_RL = (factor.astype(np.float64).reshape(fit.terms, -1) for factor in (fit.a, fit.b))
    return sqrt(max(0.0, float(((a_RK @ a_RK.T) * (b_RL @ b_RL.T)).sum())))


def _relative_error(a_RMN: Array, b_RPQ: Array, w: Array) -> float:
    norm = float(xp_of(w).sqrt((w.astype(np.float64) ** 2).sum()))
    error = w.astype(np.float64) - KronSum(a_RMN, b_RPQ).dense()
    return sqrt(float((error * error).sum())) / norm if norm else 0.0

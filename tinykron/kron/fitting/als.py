"""Alternating least squares: a sum of Kronecker products fitted to a matrix where no closed form exists.

Minimised is tr(E C E^T), E = W - sum of A x B, for any second moment C of the inputs. With all B given, the best A
solve linear equations, and with all A given the best B: neither step can make the fit worse. Only C and W C are needed,
never the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

from tinykron.backend import Array, xp_of
from tinykron.kron.algebra import KronSum, rearrange
from tinykron.kron.fitting import metric as metrics
from tinykron.kron.order import CostModel
from tinykron.kron.product import apply

UNKNOWNS = 1024  # of one set of equations; terms beyond that are solved for in groups, one after the other
NUMBERS = 1 << 22  # of what is computed for pairs of terms at a time: 32 MB
RIDGE = 1e-13  # of the mean diagonal, against equations that are singular


def alternate(
    w: Array,
    covariance: Array,
    a_RMN: Array,
    b_RPQ: Array,
    sweeps: int,
    tolerance: float,
    cost: float | None = None,
) -> tuple[Array, Array, list[float]]:
    """Return better factors, and the cost at the start and after each sweep: it never rises.

    w           (M*P, N*Q), float64
    covariance  (N*Q, N*Q), symmetric, no eigenvalue below 0
    a_RMN, b_RPQ  where to start
    sweeps      at most so many; it ends where one gains less than `tolerance` of the cost of W itself
    cost        at the start, where it is known: it takes as long as half a sweep
    """
    _, m, n = a_RMN.shape
    wc_KL = rearrange(w @ covariance, (m, n))
    c_NNQQ = rearrange(covariance, (n, n))  # rows: pairs of inputs of the A, columns: pairs of inputs of the B

    def explained(a: Array, b: Array) -> Array:
        order = CostModel().choose(a.shape, b.shape, len(covariance))  # by multiplications: alike on every machine
        return rearrange(apply(a, b, covariance, order).T, (m, n))

    whole = float((rearrange(w, (m, n)) * wc_KL).sum())
    costs = [metrics.cost(w - KronSum(a_RMN, b_RPQ).dense(), covariance, None) if cost is None else cost]
    for _ in range(sweeps):
        a_RMN, saved_a = _best(c_NNQQ, wc_KL, b_RPQ, a_RMN, explained)
        b_RPQ, saved_b = _best(c_NNQQ.T, wc_KL.T, a_RMN, b_RPQ, lambda b, a: explained(a, b).T)
        costs.append(max(0.0, costs[-1] - saved_a - saved_b))
        if costs[-2] - costs[-1] <= tolerance * whole:
            break
    return a_RMN, b_RPQ, costs


def _best(
    c_NNQQ: Array, wc_KL: Array, b_RPQ: Array, a_RMN: Array, explained: Callable[[Array, Array], Array]
) -> tuple[Array, float]:
    """Return the best A for given B, and what it saves; or the best B for given A with all arguments turned around.

    For each term i and input j of A: the sum over terms h and inputs k of A_h[:, k] g[i, j, h, k] is row j of (W C
    rearranged) vec(B_i), where g[i, j, h, k] = sum over q, r of C[j, q; k, r] (B_i^T B_h)[q, r]. A group of terms
    solves these equations for what all terms together leave to be explained: by g of its pairs with every term, or
    where these are too many, by keeping up to date what is left.
    explained  returns what a sum of A x B has in the place of W C rearranged
    """
    xp: Any = xp_of(a_RMN)
    terms, m, n = a_RMN.shape
    q = b_RPQ.shape[2]
    group = max(1, min(UNKNOWNS // n, isqrt(NUMBERS) // max(n, q)))
    by_pairs = min(group, terms) * terms * max(n, q) ** 2 <= NUMBERS
    rest_KL = wc_KL if by_pairs else wc_KL - explained(a_RMN, b_RPQ)
    a_RMN, saved = a_RMN.copy(), 0.0
    for start in range(0, terms, group):
        some = slice(start, start + group)
        b_GPQ = b_RPQ[some]
        count = len(b_GPQ)
        b_HPQ, own = (b_RPQ, slice(start * n, (start + count) * n)) if by_pairs else (b_GPQ, slice(None))
        bb_GHQQ = b_GPQ.swapaxes(1, 2)[:, None] @ b_HPQ[None]
        g_NNGH = (c_NNQQ @ bb_GHQQ.reshape(-1, q * q).T).reshape(n, n, count, len(b_HPQ))
        g = g_NNGH.transpose(2, 0, 3, 1).reshape(count * n, -1)
        rest = (rest_KL @ b_GPQ.reshape(count, -1).T).reshape(m, n, count).swapaxes(1, 2).reshape(m, count * n)
        if by_pairs:
            rest = rest - a_RMN.swapaxes(0, 1).reshape(m, -1) @ g.T
        equations = g[:, own]
        ridge = RIDGE * float(xp.diagonal(equations).mean()) * xp.eye(count * n)
        change = xp.linalg.solve(0.5 * (equations + equations.T) + ridge, rest.T).T
        saved += float((change * rest).sum())  # of a quadratic cost, the step to its least times its slope there
        change_GMN = xp.ascontiguousarray(change.reshape(m, count, n).swapaxes(0, 1))
        a_RMN[some] += change_GMN
        if not by_pairs and start + group < terms:
            rest_KL = rest_KL - explained(change_GMN, b_GPQ)
    return a_RMN, saved

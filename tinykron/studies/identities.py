"""What both papers say of Kronecker products: identities that hold to rounding, K1 to K6, and what time they take.

Each seed draws other sizes and matrices. Papers: Van Loan & Pitsianis 1993; KroneckerBERT (arXiv 2109.06243), 3.1-3.4.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from tinykron import kron
from tinykron.gradcheck import gradcheck
from tinykron.kron.fitting.als import alternate
from tinykron.kron.linear import kron_linear
from tinykron.kron.plan import Choice
from tinykron.kron.planning.presets import published_flops
from tinykron.studies.claims import Relation, Values, below, both, relation
from tinykron.tensor import Tensor

IDENTITIES: list[Relation] = []
TIMES: list[Relation] = []
EXACT = 1e-9  # of float64 numbers around 1
SIZES = (2, 3, 4, 5)
RESTARTS = 100


def _drawn(seed: int, terms: int = 1) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Return factors a (R, M, N) and b (R, P, Q), float64, of sizes that the seed draws."""
    generator = np.random.default_rng((seed, 1))
    m, n, p, q = generator.permutation(SIZES)
    return generator, generator.standard_normal((terms, m, n)), generator.standard_normal((terms, p, q))


@relation(
    IDENTITIES,
    "K1",
    "(A x B) x is two small products, in either order, of as many FLOPs as eq. 7 says",
    "equations 6 and 7",
    "largest error; FLOPs counted less FLOPs of the formula",
    both(below("error, A first", EXACT), below("error, B first", EXACT), below("FLOPs, difference", 0.5)),
)
def k1(study: Any, seed: int) -> Values:
    generator, a, b = _drawn(seed)
    x = generator.standard_normal((7, a.shape[2] * b.shape[2]))
    wanted = x @ np.kron(a[0], b[0]).T
    found = {order: kron.apply(a, b, x, order=order) for order in ("a_first", "b_first")}
    (_, m, n), (_, p, q) = a.shape, b.shape
    formula = published_flops(Choice((m * p, n * q), (m, n)))
    return {
        "error, A first": float(np.abs(found["a_first"] - wanted).max()),
        "error, B first": float(np.abs(found["b_first"] - wanted).max()),
        "FLOPs, difference": float(abs(min(_counted(a[0], b[0])) - formula)),
    }


class Counted(float):
    """A number that counts what is done to it."""

    operations = 0

    def __mul__(self, other: Any) -> Counted:
        Counted.operations += 1
        return Counted(float(self) * float(other))

    def __add__(self, other: Any) -> Counted:
        Counted.operations += 1
        return Counted(float(self) + float(other))


def _counted(a_MN: np.ndarray, b_PQ: np.ndarray) -> list[int]:
    """Return how many multiplications and additions A (X B^T) and (A X) B^T take for one vector."""
    a, b = ([[Counted(value) for value in row] for row in matrix] for matrix in (a_MN, b_PQ.T))
    x = [[Counted(1.0)] * len(b) for _ in a[0]]
    counts = []
    for b_first in (True, False):
        Counted.operations = 0
        if b_first:
            _product(a, _product(x, b))
        else:
            _product(_product(a, x), b)
        counts.append(Counted.operations)
    return counts


def _product(left: list[list[Counted]], right: list[list[Counted]]) -> list[list[Counted]]:
    """Multiply two matrices by the definition."""
    result: list[list[Counted]] = []
    for row in left:
        result.append([])
        for column in zip(*right, strict=True):
            total, *rest = (one * other for one, other in zip(row, column, strict=True))
            for value in rest:
                total = total + value
            result[-1].append(total)
    return result


@relation(
    IDENTITIES,
    "K2",
    "min(MN, PQ) terms are any matrix; the squared error of fewer is the tail of the squared singular values",
    "equation 1",
    "relative error of all terms; largest difference to the tail",
    both(below("error, all terms", EXACT), below("difference to the tail", EXACT)),
)
def k2(study: Any, seed: int) -> Values:
    generator, a, b = _drawn(seed)
    (_, m, n), (_, p, q) = a.shape, b.shape
    w, limit = generator.standard_normal((m * p, n * q)), min(m * n, p * q)
    values = np.linalg.svd(kron.rearrange(w, (m, n)), compute_uv=False)
    fits = [kron.nearest(w, (m, n), terms) for terms in range(1, limit + 1)]
    errors = [((w - fit.dense()) ** 2).sum() - (values[fit.terms :] ** 2).sum() for fit in fits]
    return {
        "error, all terms": float(np.linalg.norm(w - fits[-1].dense()) / np.linalg.norm(w)),
        "difference to the tail": float(np.abs(errors).max()),
    }


@relation(
    IDENTITIES,
    "K3",
    "with a column and a row as factors, the nearest sum is the truncated SVD",
    "section 3.2.2",
    "largest difference, over all ranks",
    below("difference", EXACT),
)
def k3(study: Any, seed: int) -> Values:
    generator, a, b = _drawn(seed)
    w = generator.standard_normal((a.shape[1] * b.shape[1], a.shape[2] * b.shape[2]))
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    found = [
        np.abs(kron.nearest(w, (len(w), 1), rank).dense() - (u[:, :rank] * s[:rank]) @ vt[:rank]).max()
        for rank in range(1, len(s) + 1)
    ]
    return {"difference": float(max(found))}


@relation(
    IDENTITIES,
    "K4",
    "rank (A x B) = rank A rank B",
    "section 3.2",
    "largest difference, over all ranks of the factors",
    below("difference", 0.5),
)
def k4(study: Any, seed: int) -> Values:
    generator, a, b = _drawn(seed)
    differences = []
    for rank_a in range(1, min(a.shape[1:]) + 1):
        for rank_b in range(1, min(b.shape[1:]) + 1):
            left, right = (
                generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
                for (rows, columns), rank in ((a.shape[1:], rank_a), (b.shape[1:], rank_b))
            )
            differences.append(abs(int(np.linalg.matrix_rank(np.kron(left, right))) - rank_a * rank_b))
    return {"difference": float(max(differences))}


@relation(
    IDENTITIES,
    "K5",
    f"no product is nearer than the SVD's: not the best of {RESTARTS} random starts of alternating least squares",
    "equations 2 to 5",
    "errors of the SVD and of the best restart; how much nearer that is",
    below("restart nearer by", EXACT),
)
def k5(study: Any, seed: int) -> Values:
    generator, a, b = _drawn(seed)
    w = generator.standard_normal((a.shape[1] * b.shape[1], a.shape[2] * b.shape[2]))
    identity, norm = np.eye(w.shape[1]), float(np.linalg.norm(w))
    costs = []
    for _ in range(RESTARTS):
        start_a, start_b = (generator.standard_normal(factor.shape) for factor in (a, b))
        costs.append(alternate(w, identity, start_a, start_b, 50, 1e-12)[2][-1])
    best, svd = min(costs) ** 0.5 / norm, float(np.linalg.norm(w - kron.nearest(w, a.shape[1:]).dense())) / norm
    return {"SVD": svd, "best restart": best, "restart nearer by": svd - best}


@relation(
    IDENTITIES,
    "K6",
    "gradients of x, A and B are those of finite differences",
    "A^T dY B, sum of dY B X^T, sum of dY^T A X",
    "largest relative error",
    below("error", 1e-6),
)
def k6(study: Any, seed: int) -> Values:
    generator, a, b = _drawn(seed, terms=2)
    x = generator.standard_normal((3, a.shape[2] * b.shape[2]))
    inputs = [Tensor(array.astype(np.float32), requires_grad=True) for array in (x, a, b)]
    return {"error": gradcheck(kron_linear, *inputs).error}


ROWS, REPEATS = 128, 20
TIMED = {  # name -> weight (out, in), A: matrices of GPT-2 small, BERT-base and the shipped models
    "KnGPT2 768": ((768, 768), (384, 768)),
    "KroneckerBERT-8 768": ((768, 768), (384, 384)),
    "KroneckerBERT-21 768": ((768, 768), (384, 48)),
    "KroneckerBERT-8 MLP": ((3072, 768), (8, 2)),
    "KnGPT2 128": ((128, 128), (64, 128)),
    "KroneckerBERT-21 128": ((128, 128), (64, 8)),
}


def _all_faster(values: Values) -> int:
    ratios = [value for name, value in values.items() if name.startswith("time,")]
    return 1 if max(ratios) < 0.95 else -1 if max(ratios) > 1.05 else 0


@relation(
    TIMES,
    "R13",
    "fewer FLOPs take less time",
    "only FLOPs are published: 5.2 G and 1.4 G of 21.7 G",
    f"FLOPs and median time of a product with {ROWS} rows, of those of the dense matrix; all below 0.95 asked",
    _all_faster,
    "Timed on whatever else the machine was doing.",
)
def r13(study: Any, seed: int) -> Values:
    """Two small products, in the better order, and the matrix built anew for each call, beside the dense matrix."""
    generator, found = np.random.default_rng(seed), {}
    for name, (dense, shape) in TIMED.items():
        choice = Choice(dense, shape)
        a, b, x = (
            generator.standard_normal(size).astype(np.float32)
            for size in ((1, *shape), (1, *choice.other), (ROWS, dense[1]))
        )
        w = kron.KronSum(a, b).dense()
        times = _times(
            {
                "dense matrix": partial(np.matmul, x, w.T),
                "factors": partial(kron.apply, a, b, x, "factors"),
                "built anew": partial(kron.apply, a, b, x, "dense"),
            }
        )
        found[f"FLOPs, {name}"] = choice.flops / (2 * w.size)
        found[f"time, {name}"] = times["factors"] / times["dense matrix"]
        found[f"built anew, {name}"] = times["built anew"] / times["dense matrix"]
    return found


def _times(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of each way; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}

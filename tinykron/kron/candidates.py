"""All that a matrix can become: every shape of A that divides it, every number of terms, low rank and dense among them.

One decomposition per shape gives the loss of every number of terms: what the singular values behind leave. It is not
made where the size of the Gram matrix alone tells that low rank, which takes the fewest FLOPs that so many parameters
can, is also the better fit, whatever the number of terms.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

import numpy as np

from tinykron.backend import Array, backend_of, in_threads, to_host, xp_of
from tinykron.kron import metric as metrics
from tinykron.kron.algebra import Shape, divisors
from tinykron.kron.fit import RIDGE, check_matrix, compact
from tinykron.kron.metric import Metric
from tinykron.kron.product import multiplications_of
from tinykron.kron.svd import short_first

PROBES = 16  # random vectors, by which the size of a large Gram matrix is estimated before it is computed
PROBED = 256  # rows of a Gram matrix that is large
SLACK = 0.07  # that is added to the estimate: three of its standard deviations at 256 rows, more beyond


@dataclass(frozen=True)
class Candidates:
    """K options for one matrix, none of which another beats in parameters, FLOPs and loss alike; the last is dense."""

    dense: Shape
    shapes: np.ndarray  # (K, 2): (M, N) of A
    terms: np.ndarray  # (K,)
    parameters: np.ndarray  # (K,)
    flops: np.ndarray  # (K,) of one vector
    loss: np.ndarray  # (K,) float64: |E X|^2 / |W X|^2; of a shape with no closed form, in the nearest metric with one
    estimated: np.ndarray  # (K,) whether it is such an estimate
    low_rank: np.ndarray  # the loss of each rank, 0, 1, 2, ...

    def low_rank_loss(self, parameters: int) -> float:
        """Return the loss of the best low rank of at most so many parameters; 1 where not even rank 1 fits."""
        return float(self.low_rank[min(parameters // sum(self.dense), len(self.low_rank) - 1)])

    def corrected(self, ratio: float) -> Candidates:
        """Return the options whose estimates are off by a factor, as far as no other beats them then."""
        loss = np.where(self.estimated, np.minimum(1.0, ratio * self.loss), self.loss)
        kept = undominated(self.parameters, self.flops, loss)
        names = ("shapes", "terms", "parameters", "flops", "estimated")
        return replace(self, loss=loss[kept], **{name: getattr(self, name)[kept] for name in names})


def candidates(
    w: Array, covariance: Metric = None, output: Metric = None, own_rows: bool = False, reach: float = 0.0
) -> Candidates:
    """Return what a matrix (out, in) can become.

    covariance, output  metrics, as for `fit.nearest`
    own_rows            of a table: each row keeps numbers of its own (M is the number of rows)
    reach               Kronecker sums of a smaller share of the parameters are left out, low rank is not
    Left out are options that take as many parameters as the dense matrix, or more FLOPs. Raises what `nearest` raises.
    """
    check_matrix(w)
    covariance = metrics.checked(covariance, w.shape[1], "covariance", w, RIDGE)
    output = metrics.checked(output, w.shape[0], "output", w, RIDGE)
    rows, columns = w.shape
    matrix, on_host = w, backend_of(w).name == "cpu"
    if own_rows and rows > columns:
        matrix, output = compact(w, output)[0].astype(w.dtype), None
    rough = covariance if covariance is None or isinstance(covariance, tuple) else covariance.astype(w.dtype)
    as_it_is = _whitened(matrix, covariance, (1, columns))
    low_rank = np.ones(1)
    found: list[tuple[Shape, np.ndarray]] = []  # the loss of 0, 1, 2, ... terms
    if terms_of((rows, columns), (rows, 1), reach):  # low rank comes first, and the others are held against it
        low_rank = _losses((rows, columns), as_it_is, output, None, reach, (rows, 1))
        found.append(((rows, 1), low_rank))

    def of_columns(n: int) -> list[tuple[Shape, np.ndarray]]:
        """Return the losses of the other shapes whose A have so many columns: what these see is the same."""
        shapes = [(m, n) for m in ([rows] if own_rows else divisors(rows)[::-1]) if (m, n) != (rows, 1)]
        shapes = [shape for shape in shapes if terms_of((rows, columns), shape, reach)]
        if not shapes:
            return []
        white = as_it_is if 1 in (n, columns // n) else _whitened(matrix, rough, (n, columns // n))
        return [(shape, _losses((rows, columns), white, output, low_rank, reach, shape)) for shape in shapes]

    sizes = divisors(columns)
    for some in in_threads(of_columns, sizes) if on_host else map(of_columns, sizes):
        found += some
    estimated = [
        (covariance is not None and 1 not in (n, columns // n)) or (output is not None and 1 not in (m, rows // m))
        for (m, n), _ in found
    ]
    return _gathered((rows, columns), found, estimated, low_rank, reach)


def _whitened(w: Array, covariance: Metric, sizes: Shape) -> Array:
    """Return w times a root of the metric of its inputs, as a product of factors of two sizes."""
    inputs = metrics.split(covariance, sizes, tolerance=1e-4)
    return metrics.times(w, _root(inputs.first, w), _root(inputs.second, w), sizes)


def _losses(
    dense: Shape, white: Array, output: Metric, low_rank: np.ndarray | None, reach: float, shape: Shape
) -> np.ndarray:
    """Return the loss of 0, 1, 2, ... terms of a shape; of 0 only, where no number of terms can beat low rank.

    white  the matrix, whitened on the side of its inputs, or the smaller one that stands for a table
    """
    own = (shape[0] if len(white) == dense[0] else len(white)), shape[1]
    sizes = own[0], len(white) // own[0]
    if output is not None:
        outputs = metrics.split(output, sizes)
        white = metrics.times(white.T, _root(outputs.first, white), _root(outputs.second, white), sizes).T
    r_SL = short_first(white, own)
    xp, size = xp_of(r_SL), len(r_SL)
    terms = np.array(terms_of(dense, shape, reach))
    ranks = terms * (shape[0] * shape[1] + dense[0] * dense[1] // (shape[0] * shape[1])) // sum(dense)

    def hopeless(square: float, whole: float) -> bool:
        """Whether low rank is the better fit, by how much stands on the diagonal of R R^T, and in all of it squared."""
        if low_rank is None or not whole:
            return False
        least = _least_loss(terms, size, square / whole**2)
        return bool(np.all(least >= low_rank[np.minimum(ranks, len(low_rank) - 1)]))

    if size >= PROBED and hopeless((1.0 + SLACK) * _square(r_SL), float((r_SL * r_SL).sum())):
        return np.ones(1)
    gram = r_SL @ r_SL.T
    whole = float(xp.diagonal(gram).astype(np.float64).sum())
    if hopeless(float((gram * gram).astype(np.float64).sum()), whole):
        return np.ones(1)
    squares = to_host(xp.maximum(xp.linalg.eigvalsh(gram), 0.0)).astype(np.float64)
    tail = np.append(np.cumsum(squares)[::-1], 0.0)
    return tail / tail[0] if tail[0] else tail


def _square(r_SL: Array) -> float:
    """Return an estimate of the sum of squares of R R^T, from what it makes of random vectors. Hutchinson 1990.

    Its standard deviation is at most sqrt(2 / PROBES) of it, and close to sqrt(2 / (PROBES * S)) where no direction
    stands out; where one does, the bound that it serves is far from what it is held against.
    """
    xp = xp_of(r_SL)
    z_SK = xp.asarray(np.random.default_rng(0).standard_normal((len(r_SL), PROBES)).astype(r_SL.dtype))
    seen_SK = r_SL @ (r_SL.T @ z_SK)
    return float((seen_SK * seen_SK).sum(axis=0).astype(np.float64).sum()) / PROBES


def _least_loss(terms: np.ndarray, size: int, square: float) -> np.ndarray:
    """Return a bound on the loss of so many terms, from the sum of squares of `size` numbers that add up to 1.

    The largest k of them add up to at most k / size + sqrt(k (size - k) / size * (square - 1 / size)), for theirs and
    the others' means lie so far apart at most as the variance allows.
    """
    spread = terms * np.maximum(size - terms, 0) / size * max(0.0, square - 1.0 / size)
    return 1.0 - terms / size - np.sqrt(spread)


def _root(part: Array | None, like: Array) -> Array | None:
    root = metrics.Root(part).root
    return None if root is None else xp_of(like).ascontiguousarray(root.astype(like.dtype))


def terms_of(dense: Shape, shape: Shape, reach: float) -> range:
    """Return the numbers of terms that save parameters, cost no more FLOPs than the dense matrix, and keep `reach`."""
    (rows, columns), (m, n) = dense, shape
    p, q = rows // m, columns // n
    each, size = m * n + p * q, rows * columns
    if m == q == 1:
        return range(0)  # a row and a column: low rank once more
    most = min(m * n, p * q, (size - 1) // each, size // multiplications_of((m, n), (p, q)))
    return range(1 if n == p == 1 else max(1, -(-int(reach * size) // each)), most + 1)


def _gathered(
    dense: Shape, found: list[tuple[Shape, np.ndarray]], estimated: list[bool], low_rank: np.ndarray, reach: float
) -> Candidates:
    size = dense[0] * dense[1]
    columns: list[np.ndarray] = []
    for (shape, loss), guess in zip(found, estimated, strict=True):
        p, q = dense[0] // shape[0], dense[1] // shape[1]
        terms = np.array([number for number in terms_of(dense, shape, reach) if number < len(loss)], dtype=np.int64)
        parameters = terms * (shape[0] * shape[1] + p * q)
        flops = 2 * terms * multiplications_of(shape, (p, q))
        m, n = (np.full_like(terms, side) for side in shape)
        columns.append(np.stack([m, n, terms, parameters, flops, loss[terms], np.full_like(terms, guess)]))
    columns.append(np.array([[dense[0]], [dense[1]], [1.0], [size], [2.0 * size], [0.0], [0.0]]))
    every = np.concatenate(columns, axis=1)
    kept = undominated(every[3], every[4], every[5])
    m, n, terms, parameters, flops, loss, guessed = every[:, kept]
    shapes = np.stack([m, n], axis=1).astype(np.int64)
    counts = terms.astype(np.int64), parameters.astype(np.int64)
    return Candidates(dense, shapes, *counts, flops, loss, guessed > 0.0, low_rank)


def undominated(parameters: np.ndarray, flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return the indices (in order of parameters) of the points that no other is as good as in all three.

    A sweep by parameters over the staircase of FLOPs and loss that those before have left.
    """
    kept: list[int] = []
    stairs: list[float] = []  # FLOPs, rising
    heights: list[float] = []  # loss, falling
    for index in np.lexsort((loss, flops, parameters)):
        place = bisect_right(stairs, flops[index])
        if place and heights[place - 1] <= loss[index]:
            continue
        start = bisect_left(stairs, flops[index])
        end = start
        while end < len(stairs) and heights[end] >= loss[index]:
            end += 1
        stairs[start:end], heights[start:end] = [flops[index]], [loss[index]]
        kept.append(index)
    return np.array(kept)

"""All that a matrix can become: every shape of A that divides it, every number of terms, low rank and dense among them.

One decomposition per shape gives the loss of every number of terms: what the singular values behind leave. It is not
made where the size of the Gram matrix alone tells that low rank, which takes the fewest FLOPs that so many parameters
can, is also the better fit, whatever the number of terms. Where it tells so of all numbers of terms that are likely to
be chosen, a bound stands for the loss of the others: optimistic options, which the planner has decided if they matter.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import numpy as np

from tinykron.backend import Array, backend_of, to_host, xp_of
from tinykron.kron.algebra import Shape, divisors
from tinykron.kron.fitting import metric as metrics
from tinykron.kron.fitting.metric import Metric
from tinykron.kron.fitting.nearest import RIDGE, check_matrix, compact
from tinykron.kron.plan import Choice
from tinykron.kron.product import multiplications_of
from tinykron.threads import in_threads

PROBES = 16  # random vectors, by which the size of a large Gram matrix is estimated before it is computed
PROBED = 256  # rows of a Gram matrix that is large
LEADING, PASSES = 16, 4  # directions in which a closer look is taken, and passes over the matrix to find them
SLACK = 0.07  # that is added to the estimate: three of its standard deviations at 256 rows, more beyond


@dataclass(frozen=True)
class Candidates:
    """K options for one matrix, none of which another beats in parameters, FLOPs and loss alike; the last is dense.

    By an optimistic one no other counts as beaten.
    """

    dense: Shape
    shapes: np.ndarray  # (K, 2): (M, N) of A
    terms: np.ndarray  # (K,)
    parameters: np.ndarray  # (K,)
    flops: np.ndarray  # (K,) of one vector
    loss: np.ndarray  # (K,) float64: |E X|^2 / |W X|^2; of a shape with no closed form, in the nearest metric with one
    estimated: np.ndarray  # (K,) whether it is such an estimate
    optimistic: np.ndarray  # (K,) whether it is a bound only: the true loss is no smaller
    low_rank: np.ndarray  # the loss of each rank, 0, 1, 2, ...
    reach: float  # the share of the parameters below which there are bounds
    ratio: float = 1.0  # that the estimates were corrected by

    def low_rank_loss(self, parameters: int) -> float:
        """Return the loss of the best low rank of at most so many parameters; 1 where not even rank 1 fits."""
        return float(self.low_rank[min(parameters // sum(self.dense), len(self.low_rank) - 1)])

    def choice(self, number: int) -> Choice:
        """Return an option as a plan has it."""
        m, n = self.shapes[number].tolist()
        return Choice(self.dense, (m, n), int(self.terms[number]))

    def known(self) -> Candidates:
        """Return the options whose loss is known."""
        return self._only(np.flatnonzero(~self.optimistic))

    def _only(self, kept: np.ndarray) -> Candidates:
        names = ("shapes", "terms", "parameters", "flops", "loss", "estimated", "optimistic")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def corrected(self, ratio: float) -> Candidates:
        """Return the options whose estimates are off by a factor, as far as no other beats them then."""
        loss = np.where(self.estimated, np.minimum(1.0, ratio * self.loss), self.loss)
        kept = _kept(np.stack([self.parameters, self.flops, loss]), self.optimistic)
        return replace(self, loss=loss, ratio=ratio * self.ratio)._only(kept)


def candidates(
    w: Array, covariance: Metric = None, output: Metric = None, own_rows: bool = False, reach: float = 0.0
) -> Candidates:
    """Return what a matrix (out, in) can become.

    covariance, output  metrics, as for `fit.nearest`
    own_rows            of a table: each row keeps numbers of its own (M is the number of rows)
    reach               Kronecker sums of a smaller share of the parameters may come with a bound instead of their loss
    Left out are options that take as many parameters as the dense matrix, or more FLOPs. Raises what `nearest` raises.
    """
    source = _Source(w, covariance, output, own_rows)
    del covariance, output  # they may take more memory than all else
    rows, columns = source.dense
    flat = (rows, 1)  # low rank comes first, and the others are held against it
    found = source.losses([flat], None, 0.0)
    low_rank = found[0][1].loss if found else np.ones(1)
    shapes = [(m, n) for n in divisors(columns) for m in ([rows] if own_rows else divisors(rows)[::-1])]
    found += source.losses([shape for shape in shapes if shape != flat], low_rank, reach)
    size = rows * columns
    dense = np.array([[rows], [columns], [1.0], [size], [2.0 * size], [0.0], [0.0], [0.0]])
    every = np.concatenate([*(source.options(*each) for each in found), dense], axis=1)
    return _gathered(source.dense, every, low_rank, reach)


def decided(
    known: Candidates,
    needed: dict[Shape, np.ndarray],
    w: Array,
    covariance: Metric = None,
    output: Metric = None,
    own_rows: bool = False,
) -> Candidates:
    """Return what `candidates` returned, with closer bounds, or losses, for some of the shapes that had bounds.

    needed  the loss of 0, 1, 2, ... terms of each of them, below which it matters; no loss is computed if none is
    """
    source = _Source(w, covariance, output, own_rows)
    del covariance, output
    made = [source.options(*each) for each in source.losses(list(needed), known.low_rank, known.reach, needed)]
    columns = known.terms, known.parameters, known.flops, known.loss, known.estimated, known.optimistic
    before = np.stack([*known.shapes.T, *columns])
    bounds = {(m, n, terms): loss for m, n, terms, loss, bound in before[[0, 1, 2, 5, 7]].T.tolist() if bound}
    for some in made:
        some[5] = np.where(some[6] > 0.0, np.minimum(1.0, known.ratio * some[5]), some[5])
        if some[7].any():  # the better of two bounds
            some[5] = [max(loss, bounds.get((m, n, terms), 0.0)) for m, n, terms, loss in some[[0, 1, 2, 5]].T.tolist()]
    others = [not bound or (m, n) not in needed for m, n, bound in before[[0, 1, 7]].T.tolist()]
    every = np.concatenate([before[:, others], *made], axis=1)
    return replace(_gathered(known.dense, every, known.low_rank, known.reach), ratio=known.ratio)


@dataclass(frozen=True)
class Losses:
    """Of one shape, with 0, 1, 2, ... terms; `optimistic` says that they are bounds."""

    loss: np.ndarray
    optimistic: bool = False


class _Source:
    """A matrix and its metrics, from which the losses of any shapes come."""

    def __init__(self, w: Array, covariance: Metric, output: Metric, own_rows: bool) -> None:
        check_matrix(w)
        self.covariance = metrics.checked(covariance, w.shape[1], "covariance", w, RIDGE)
        self.weighted = [covariance is not None, output is not None]
        self.output = metrics.checked(output, w.shape[0], "output", w, RIDGE)
        self.dense, self.matrix = w.shape, w
        if own_rows and w.shape[0] > w.shape[1]:
            self.matrix, self.output = compact(w, self.output)[0].astype(w.dtype), None

    def losses(
        self,
        shapes: list[Shape],
        low_rank: np.ndarray | None,
        reach: float,
        needed: dict[Shape, np.ndarray] | None = None,
    ) -> list[tuple[Shape, Losses]]:
        """Return the losses of shapes that can save anything; the other arguments as for `_losses`."""
        by_columns: dict[int, list[Shape]] = {}
        for shape in shapes:
            if terms_of(self.dense, shape):
                by_columns.setdefault(shape[1], []).append(shape)

        def of_columns(n: int) -> list[tuple[Shape, Losses]]:
            white = self._whitened(n)  # what shapes whose A have so many columns see is the same
            white_NDQ = xp_of(white).ascontiguousarray(white.reshape(len(white), n, -1).swapaxes(0, 1))
            fixed = self.dense, white_NDQ, self.output, low_rank, reach
            return [(shape, _losses(*fixed, shape, needed[shape] if needed else None)) for shape in by_columns[n]]

        threaded = len(by_columns) > 1 and backend_of(self.matrix).name == "cpu"
        each = in_threads(of_columns, list(by_columns)) if threaded else map(of_columns, by_columns)
        return [pair for some in each for pair in some]

    def _whitened(self, n: int) -> Array:
        """Return the matrix times a root of the metric of its inputs, as a product of factors of two sizes."""
        if 1 in (n, self.dense[1] // n):
            return self._as_it_is
        return _times_root(self.matrix, self._rough, (n, self.dense[1] // n))

    @cached_property
    def _rough(self) -> Metric:
        exact = self.covariance
        return exact if exact is None or isinstance(exact, tuple) else exact.astype(self.matrix.dtype)

    @cached_property
    def _as_it_is(self) -> Array:
        return _times_root(self.matrix, self.covariance, (1, self.dense[1]))

    def options(self, shape: Shape, losses: Losses) -> np.ndarray:
        """Return the numbers of a shape's options (8, K), in the order of the fields of `Candidates`."""
        (m, n), (p, q) = shape, (self.dense[0] // shape[0], self.dense[1] // shape[1])
        terms = np.array([number for number in terms_of(self.dense, shape) if number < len(losses.loss)], np.int64)
        estimated = (self.weighted[0] and 1 not in (n, q)) or (self.weighted[1] and 1 not in (m, p))
        same = [np.full(len(terms), number, float) for number in (m, n, estimated, losses.optimistic)]
        parameters, flops = terms * (m * n + p * q), 2 * terms * multiplications_of(shape, (p, q))
        return np.stack([*same[:2], terms, parameters, flops, losses.loss[terms], *same[2:]])


def _times_root(w: Array, covariance: Metric, sizes: Shape) -> Array:
    inputs = metrics.split(covariance, sizes, tolerance=1e-4)
    return metrics.times(w, _root(inputs.first, w), _root(inputs.second, w), sizes)


def _losses(
    dense: Shape,
    white_NDQ: Array,
    output: Metric,
    low_rank: np.ndarray | None,
    reach: float,
    shape: Shape,
    needed: np.ndarray | None,
) -> Losses:
    """Return the losses of a shape; of no term only, where no number of terms can beat low rank.

    white_NDQ  the matrix, whitened on the side of its inputs, or the smaller one that stands for a table
    low_rank   the loss of each rank; None where it is what is asked for
    reach      as for `candidates`: the share below which bounds do, if low rank beats all that is above it
    needed     as for `decided`; None at first
    """
    n, rows, _ = white_NDQ.shape
    m = shape[0] if rows == dense[0] else rows
    if output is not None:
        outputs = metrics.split(output, (m, rows // m))
        first, second = _root(outputs.first, white_NDQ), _root(outputs.second, white_NDQ)
        white_NDQ = metrics.times(white_NDQ.swapaxes(1, 2), first, second, (m, rows // m)).swapaxes(1, 2)
    r_KL = white_NDQ.reshape(n * m, -1)  # the rearranged matrix, its rows in another order: that of N before M
    r_SL = r_KL if len(r_KL) <= r_KL.shape[1] else r_KL.T
    xp, size = xp_of(r_SL), len(r_SL)
    terms = np.array(terms_of(dense, shape))
    parameters = terms * (shape[0] * shape[1] + dense[0] * dense[1] // (shape[0] * shape[1]))

    of_low_rank = low_rank if low_rank is None else low_rank[np.minimum(parameters // sum(dense), len(low_rank) - 1)]
    whole = float((r_SL * r_SL).sum())
    compared = of_low_rank is not None and whole > 0.0
    small = parameters < reach * dense[0] * dense[1]
    if compared and needed is None and size >= PROBED:
        least = _least_loss(terms, size, whole, (1.0 + SLACK) * _square(r_SL))
        hopeful = least < of_low_rank
        if not hopeful[~small].any():
            return Losses(np.append(1.0, least[small & hopeful.any()]), optimistic=True)
    if compared and needed is not None and size > LEADING:
        least = np.append(1.0, _closer(terms[small], r_SL, whole))
        count = min(len(least), len(needed))  # sums of more terms are beaten already
        if not (least[:count] < needed[:count]).any():
            return Losses(least, optimistic=True)
    gram = r_SL @ r_SL.T
    square = float((gram * gram).sum())
    if compared and not (_least_loss(terms, size, whole, square) < of_low_rank).any():
        return Losses(np.ones(1))
    squares = to_host(xp.maximum(xp.linalg.eigvalsh(gram), 0.0)).astype(np.float64)
    tail = np.append(np.cumsum(squares)[::-1], 0.0)
    return Losses(tail / tail[0] if tail[0] else tail)


def _square(r_SL: Array) -> float:
    """Return an estimate of the sum of squares of R R^T, from what it makes of random vectors. Hutchinson 1990.

    Its standard deviation is at most sqrt(2 / PROBES) of it, and close to sqrt(2 / (PROBES * S)) where no direction
    stands out; where one does, the bound that it serves is far from what it is held against.
    """
    return _mean_square(r_SL @ (r_SL.T @ _probes(r_SL)))


def _probes(r_SL: Array) -> Array:
    probes = np.random.default_rng(0).standard_normal((len(r_SL), PROBES))
    return xp_of(r_SL).asarray(probes.astype(r_SL.dtype))


def _mean_square(seen_SK: Array) -> float:
    return float((seen_SK * seen_SK).sum(axis=0).astype(np.float64).sum()) / PROBES


def _least_loss(terms: np.ndarray, size: int, whole: float, square: float) -> np.ndarray:
    """Return a bound on the loss of `terms` terms, from the sum of `size` numbers, and that of their squares.

    The largest k of them add up to at most k / size + sqrt(k (size - k) / size * (square - 1 / size)) of a whole of 1,
    for theirs and the others' means lie so far apart at most as the variance allows.
    """
    spread = terms * np.maximum(size - terms, 0) / size * max(0.0, square / whole**2 - 1.0 / size)
    return 1.0 - terms / size - np.sqrt(spread)


def _closer(terms: np.ndarray, r_SL: Array, whole: float) -> np.ndarray:
    """Return a better bound on the loss of a few terms, where some singular values stand out.

    The directions of the largest ones are looked for: a basis, in which R R^T is A, B in what is left, and X across.
    The k largest eigenvalues add up to no more than those of A and B together, and those of X and its transpose, which
    by Cauchy and Schwarz are at most sqrt(LEADING) |X|. Fan 1949.
    """
    xp = xp_of(r_SL)
    basis_SD = xp.asarray(np.random.default_rng(1).standard_normal((len(r_SL), LEADING)).astype(r_SL.dtype))
    for _ in range(PASSES):
        basis_SD = xp.linalg.qr(r_SL @ (r_SL.T @ basis_SD))[0]
    together = xp.concatenate([basis_SD, _without(_probes(r_SL), basis_SD)], axis=1)
    seen = r_SL.T @ together  # once for the directions, and for the estimate of what is left without them
    back = r_SL @ seen
    of_basis = seen[:, :LEADING].T @ seen[:, :LEADING]
    leading = np.maximum(to_host(xp.linalg.eigvalsh(of_basis)).astype(np.float64)[::-1], 0.0) / whole
    aside_SD = back[:, :LEADING] - basis_SD @ of_basis
    across = sqrt(LEADING * float((aside_SD * aside_SD).sum())) / whole
    rest, size = max(0.0, 1.0 - float(leading.sum())), len(r_SL) - LEADING
    square = (1.0 + SLACK) * _mean_square(_without(back[:, LEADING:], basis_SD)) / whole**2
    of_leading = np.append(0.0, np.cumsum(leading))
    taken = np.arange(LEADING + 1)  # of the terms, so many for the directions that lead, the others for the rest
    others = np.maximum(terms[:, None] - taken, 0)
    of_rest = rest * (1.0 - _least_loss(others, size, rest, square)) if rest else np.zeros(others.shape)
    most = np.where(taken <= terms[:, None], of_leading + of_rest, 0.0).max(axis=1) + across
    return np.maximum(1.0 - most, 0.0)


def _without(x_SK: Array, basis_SD: Array) -> Array:
    """Return what of some columns lies in none of the directions of a basis."""
    return x_SK - basis_SD @ (basis_SD.T @ x_SK)


def _root(part: Array | None, like: Array) -> Array | None:
    root = metrics.Root(part).root
    return None if root is None else xp_of(like).ascontiguousarray(root.astype(like.dtype))


def terms_of(dense: Shape, shape: Shape) -> range:
    """Return the numbers of terms that save parameters and cost no more FLOPs than the dense matrix."""
    (rows, columns), (m, n) = dense, shape
    p, q = rows // m, columns // n
    each, size = m * n + p * q, rows * columns
    if m == q == 1:
        return range(0)  # a row and a column: low rank once more
    most = min(m * n, p * q, (size - 1) // each, size // multiplications_of((m, n), (p, q)))
    return range(1, most + 1)


def _gathered(dense: Shape, every: np.ndarray, low_rank: np.ndarray, reach: float) -> Candidates:
    """Return the options that count, of all of them (8, K): in the order of the fields."""
    kept = _kept(every[3:6], every[7] > 0.0)
    m, n, terms, parameters, flops, loss, estimated, optimistic = every[:, kept]
    shapes = np.stack([m, n], axis=1).astype(np.int64)
    counts = terms.astype(np.int64), parameters.astype(np.int64)
    return Candidates(dense, shapes, *counts, flops, loss, estimated > 0.0, optimistic > 0.0, low_rank, reach)


def _kept(points: np.ndarray, optimistic: np.ndarray) -> np.ndarray:
    """Return the indices, in order of parameters, of what none beats whose loss is known.

    points  parameters, FLOPs, loss: (3, K)
    """
    known, hoped = np.flatnonzero(~optimistic), np.flatnonzero(optimistic)
    best = known[undominated(*points[:, known])]
    beaten = np.any(np.all(points[:, None, best] <= points[:, hoped, None], axis=0), axis=1)
    kept = np.append(best, hoped[~beaten])
    parameters, flops, loss = points[:, kept]
    return kept[np.lexsort((loss, flops, parameters))]


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

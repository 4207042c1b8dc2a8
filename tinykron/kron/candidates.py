"""All that a matrix can become: every shape of A that divides it, every number of terms, low rank and dense among them.

One decomposition per shape gives the loss of every number of terms: what the singular values behind leave.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import partial

import numpy as np

from tinykron.backend import Array, backend_of, in_threads, to_host, xp_of
from tinykron.kron import metric as metrics
from tinykron.kron.algebra import Shape, divisors
from tinykron.kron.fit import RIDGE, check_matrix, compact
from tinykron.kron.metric import Metric
from tinykron.kron.product import multiplications_of
from tinykron.kron.svd import squared_singular_values

REACH = 1 / 32  # a shape that cannot hold this share of the parameters without costing more FLOPs than the dense matrix
#                 is left out: balanced shapes of many terms are slower than dense, and keep little when they are not


@dataclass(frozen=True)
class Candidates:
    """K options for one matrix, none of which another beats in parameters, FLOPs and loss alike; the last is dense."""

    dense: Shape
    shapes: np.ndarray  # (K, 2): (M, N) of A
    terms: np.ndarray  # (K,)
    parameters: np.ndarray  # (K,)
    flops: np.ndarray  # (K,) of one vector
    loss: np.ndarray  # (K,) float64: |E X|^2 / |W X|^2; of a shape with no closed form, in the nearest metric with one
    low_rank: np.ndarray  # the loss of each rank, 0, 1, 2, ...

    def low_rank_loss(self, parameters: int) -> float:
        """Return the loss of the best low rank of at most so many parameters; 1 where not even rank 1 fits."""
        return float(self.low_rank[min(parameters // sum(self.dense), len(self.low_rank) - 1)])


def candidates(w: Array, covariance: Metric = None, output: Metric = None, own_rows: bool = False) -> Candidates:
    """Return what a matrix (out, in) can become.

    covariance, output  metrics, as for `fit.nearest`
    own_rows            of a table: each row keeps numbers of its own (M is the number of rows)
    Left out are options that take as many parameters as the dense matrix, or more FLOPs. Raises what `nearest` raises.
    """
    check_matrix(w)
    covariance = metrics.checked(covariance, w.shape[1], "covariance", w, RIDGE)
    output = metrics.checked(output, w.shape[0], "output", w, RIDGE)
    rows, columns = w.shape
    matrix = w
    if own_rows and rows > columns:
        matrix, output = compact(w, output)[0].astype(w.dtype), None
    found: list[tuple[Shape, np.ndarray]] = []  # the loss of 0, 1, 2, ... terms
    for n in divisors(columns):
        inputs = metrics.split(covariance, (n, columns // n))
        first, second = (_root(part, w) for part in (inputs.first, inputs.second))
        white = metrics.times(matrix, first, second, (n, columns // n))
        shapes = [(m, n) for m in ([rows] if own_rows else divisors(rows)) if _terms((rows, columns), (m, n))]
        losses = partial(_losses, white, output)
        at = [(len(matrix), n)] * len(shapes) if own_rows else shapes
        found += zip(shapes, in_threads(losses, at) if backend_of(w).name == "cpu" else map(losses, at), strict=True)
    return _gathered((rows, columns), found)


def _losses(white: Array, output: Metric, shape: Shape) -> np.ndarray:
    """Return the loss of 0, 1, 2, ... terms of a shape, for a matrix that is whitened on the side of its inputs."""
    sizes = shape[0], white.shape[0] // shape[0]
    outputs = metrics.split(output, sizes)
    if output is not None:
        white = metrics.times(white.T, _root(outputs.first, white), _root(outputs.second, white), sizes).T
    squares = to_host(squared_singular_values(white, shape)).astype(np.float64)
    tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return tail / tail[0] if tail[0] else tail


def _root(part: Array | None, like: Array) -> Array | None:
    root = metrics.root(part).root
    return None if root is None else xp_of(like).ascontiguousarray(root.astype(like.dtype))


def _terms(dense: Shape, shape: Shape) -> int:
    """Return how many terms of a shape are worth looking at."""
    (rows, columns), (m, n) = dense, shape
    p, q = rows // m, columns // n
    each, size = m * n + p * q, rows * columns
    most = min(m * n, p * q, (size - 1) // each, size // multiplications_of((m, n), (p, q)))
    return most if most * each >= REACH * size else 0


def _gathered(dense: Shape, found: list[tuple[Shape, np.ndarray]]) -> Candidates:
    size = dense[0] * dense[1]
    columns: list[np.ndarray] = []
    low_rank = np.ones(1)
    for shape, loss in found:
        p, q = dense[0] // shape[0], dense[1] // shape[1]
        terms = np.arange(1, min(_terms(dense, shape), len(loss) - 1) + 1)
        parameters = terms * (shape[0] * shape[1] + p * q)
        flops = 2 * terms * multiplications_of(shape, (p, q))
        columns.append(
            np.stack(
                [np.full_like(terms, shape[0]), np.full_like(terms, shape[1]), terms, parameters, flops, loss[terms]]
            )
        )
        if shape[1] == 1 and p == 1:
            low_rank = loss
    columns.append(np.array([[dense[0]], [dense[1]], [1.0], [size], [2.0 * size], [0.0]]))
    every = np.concatenate(columns, axis=1)
    kept = undominated(every[3], every[4], every[5])
    m, n, terms, parameters, flops, loss = every[:, kept]
    shapes = np.stack([m, n], axis=1).astype(np.int64)
    return Candidates(dense, shapes, terms.astype(np.int64), parameters.astype(np.int64), flops, loss, low_rank)


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

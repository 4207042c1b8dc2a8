"""Which errors count: second moments of a layer's inputs, and weights of its outputs.

The error E = W - sum of A x B of a fit costs tr(G E C E^T). C (N*Q, N*Q) is the second moment of the inputs, so that
without G the cost is the mean squared error of the outputs. G (M*P, M*P) weighs these: the second moment of their
gradients (K-FAC's metric), or a vector, its diagonal: how often each token of a table occurs. A metric is one of
- None: every direction counts alike
- a matrix (D, D), symmetric, none of its eigenvalues below 0; or a vector (D,), its diagonal
- a pair of these, whose Kronecker product it is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykron.backend import Array, linalg_errors, xp_of
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.algebra import Shape, rearrange

Metric = Any  # None, Array, or a pair of Arrays

WELL_CONDITIONED = 1e-6  # least over largest diagonal entry of a Cholesky factor that is fit to be inverted
RANK = 1e-12  # eigenvalues below this share of the largest count as 0
POWER_STEPS = 50
ROWS = 256  # of a large matrix, at a time


# Checks ---------------------------------------------------------------------------------------------------------------


def checked(metric: Metric, size: int, name: str, like: Array, ridge: float) -> Metric:
    """Return a metric of `size` directions in float64, with `ridge` times its mean diagonal added to the diagonal.

    like  an array on the device where the metric has to be
    Raises ShapeError for another size, TinykronError for NaN, infinity, a matrix that is not symmetric, or a negative
    diagonal; each names the metric.
    """
    if metric is None:
        return None
    if isinstance(metric, tuple):
        first, second = metric
        if first.shape[0] * second.shape[0] != size:
            raise ShapeError(f"{name}: factors of {first.shape[0]} and {second.shape[0]}, expected {size} together")
        return tuple(checked(part, part.shape[0], name, like, ridge) for part in metric)
    if metric.shape not in ((size,), (size, size)):
        raise ShapeError(f"{name}: found shape {tuple(metric.shape)}, expected ({size}, {size}), or ({size},)")
    xp = xp_of(like)
    if xp_of(metric) is not xp:
        raise TinykronError(f"{name}: lies on another device than the matrix")
    bad = metric.size - int(xp.isfinite(metric).sum())
    if bad:
        raise TinykronError(f"{name}: {bad} of its {metric.size} values are NaN or infinite")
    metric = metric.astype(np.float64, order="C")  # a copy, changed in place from here on: it may be large
    diagonal = metric if metric.ndim == 1 else metric.reshape(-1)[:: size + 1]
    if float(diagonal.min()) < 0.0 or not float(diagonal.max()) > 0.0:
        low, high = float(diagonal.min()), float(diagonal.max())
        raise TinykronError(f"{name}: expected a diagonal from 0 on, not all 0; found {low:g} to {high:g}")
    if metric.ndim == 2:
        asymmetry = max(
            float(xp.abs(metric[i : i + ROWS, i:] - metric[i:, i : i + ROWS].T).max()) for i in _blocks(size)
        )
        if asymmetry > 1e-5 * max(float(metric.max()), -float(metric.min())):
            raise TinykronError(f"{name}: expected a symmetric matrix, found entries that differ by {asymmetry:g}")
        for i in _blocks(size) if asymmetry else ():  # the mean with its transpose, on both sides of the diagonal
            metric[i : i + ROWS, i:] = 0.5 * (metric[i : i + ROWS, i:] + metric[i:, i : i + ROWS].T)
            metric[i:, i : i + ROWS] = metric[i : i + ROWS, i:].T
    diagonal += ridge * float(diagonal.mean())
    return metric


def _blocks(size: int) -> range:
    return range(0, size, ROWS)


# Kronecker factors of a metric ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """A metric as the Kronecker product of two; `exact` says that it is one, else it is the nearest."""

    first: Array | None
    second: Array | None
    exact: bool


def split(metric: Metric, sizes: Shape, tolerance: float = 1e-9) -> Split:
    """Return the factors, of `sizes`, of a metric that `checked` returned; the nearest ones to within `tolerance`.

    Exact for None, for a pair of these sizes, and for any metric where one of the sizes is 1.
    """
    if metric is None:
        return Split(None, None, True)
    if isinstance(metric, tuple):
        if (metric[0].shape[0], metric[1].shape[0]) == tuple(sizes):
            return Split(metric[0], metric[1], True)
        metric = dense(metric)
    if sizes[0] == 1:
        return Split(None, metric, True)
    if sizes[1] == 1:
        return Split(metric, None, True)
    first, second = _nearest(metric, sizes, tolerance)
    return Split(first, second, False)


def dense(metric: Metric) -> Array:
    """Return a metric as one matrix, or as one vector where it is diagonal."""
    if not isinstance(metric, tuple):
        return metric
    xp = xp_of(metric[0])
    if metric[0].ndim == metric[1].ndim:
        return xp.kron(*metric)
    return xp.kron(*(part if part.ndim == 2 else xp.diag(part) for part in metric))


def _nearest(metric: Array, sizes: Shape, tolerance: float) -> tuple[Array, Array]:
    """Return the factors of the Kronecker product nearest to a metric: the power method on its rearrangement.

    Each step adds up blocks of the metric with the weights of a positive semi-definite matrix, which keeps the factors
    positive semi-definite, as those of the nearest product are. Van Loan & Pitsianis 1993, theorem 5.8.
    """
    xp = xp_of(metric)
    r_FS = metric.reshape(sizes) if metric.ndim == 1 else xp.ascontiguousarray(rearrange(metric, (sizes[0],) * 2))
    first_F = (
        xp.ones(sizes[0], dtype=metric.dtype) if metric.ndim == 1 else xp.eye(sizes[0], dtype=metric.dtype).reshape(-1)
    )
    for _ in range(POWER_STEPS):
        second_S = (first_F * (1.0 / float(xp.abs(first_F).max()))) @ r_FS  # so that float32 suffices for its squares
        second_S = second_S * (1.0 / float(xp.sqrt((second_S * second_S).sum())))
        new_F = r_FS @ second_S
        change = float(xp.abs(new_F - first_F).max()) / float(xp.abs(new_F).max())
        first_F = new_F
        if change < tolerance:
            break
    if metric.ndim == 1:
        return first_F, second_S
    first, second = first_F.reshape(sizes[0], -1), second_S.reshape(sizes[1], -1)
    return 0.5 * (first + first.T), 0.5 * (second + second.T)


# Roots ----------------------------------------------------------------------------------------------------------------


class Root:
    """A square root of a factor, S = root @ root^T. A vector stands for a diagonal, None for I.

    Cholesky's; or the eigenvectors' where S is singular or nearly so.
    """

    def __init__(self, s: Array | None) -> None:
        self.root: Any = s
        self._inverse: Any = s
        self._triangular = False
        if s is None:
            return
        xp = xp_of(s)
        if s.ndim == 1:
            self.root = xp.sqrt(s)
            self._inverse = xp.where(s > 0.0, 1.0 / xp.where(s > 0.0, self.root, 1.0), 0.0)
            return
        try:
            with linalg_errors(s):
                self.root = xp.linalg.cholesky(s)
            diagonal = xp.diagonal(self.root)
            self._triangular = float(diagonal.min()) > WELL_CONDITIONED * float(diagonal.max())
        except np.linalg.LinAlgError:
            pass
        if not self._triangular:
            values, vectors = xp.linalg.eigh(s)
            kept = values > RANK * float(values[-1])
            values = xp.sqrt(xp.where(kept, values, 0.0))
            self.root = vectors * values
            self._inverse = (vectors * xp.where(kept, 1.0 / xp.where(kept, values, 1.0), 0.0)).T

    @property
    def inverse(self) -> Any:
        """The inverse of the root; where S is singular the pseudo-inverse: what S does not see is set to 0."""
        if self._triangular:
            self._inverse, self._triangular = _inverse_of_lower(self.root), False
        return self._inverse

    def divide(self, x: Array) -> Array:
        """Return x (..., D) times the inverse of the root, which is not built where x has fewer rows than it."""
        if self.root is None:
            return x
        if self.root.ndim == 1:
            return x * self._inverse
        rows = x.reshape(-1, x.shape[-1])
        if self._triangular and len(rows) < len(self.root):
            return _divided_by_lower(rows, self.root).reshape(x.shape)
        return (rows @ self.inverse).reshape(x.shape)


def _divided_by_lower(x: Array, root: Array) -> Array:
    """Return x times the inverse of a lower triangular matrix, by halves, the last columns first."""
    half = len(root) // 2
    if half < ROWS:
        return x @ xp_of(root).linalg.inv(root)
    last = _divided_by_lower(x[:, half:], root[half:, half:])
    first = _divided_by_lower(x[:, :half] - last @ root[half:, :half], root[:half, :half])
    return xp_of(x).concatenate([first, last], axis=1)


def _inverse_of_lower(root: Array) -> Array:
    """Return the inverse of a lower triangular matrix, by halves: a third of the work, and of the memory, of `inv`."""
    xp, half = xp_of(root), len(root) // 2
    if half < ROWS:
        return xp.linalg.inv(root)
    inverse = xp.zeros_like(root)
    inverse[:half, :half] = _inverse_of_lower(root[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(root[half:, half:])
    inverse[half:, :half] = -(inverse[half:, half:] @ root[half:, :half]) @ inverse[:half, :half]
    return inverse


def times(x: Array, first: Array | None, second: Array | None, sizes: Shape) -> Array:
    """Return x (..., N*Q) @ (first x second), for factors (N, N) and (Q, Q), vectors or None, without building it."""
    n, q = sizes
    y = x.reshape(-1, n, q)
    if second is not None:
        y = y * second if second.ndim == 1 else (y.reshape(-1, q) @ second).reshape(y.shape)  # one product
    if first is not None and first.ndim == 1:
        y = y * first[:, None]
    elif first is not None:
        y = (y.swapaxes(1, 2).reshape(-1, n) @ first).reshape(-1, q, n).swapaxes(1, 2)  # N last, and back
    return y.reshape(x.shape)


def cost(error: Array, covariance: Metric, output: Metric) -> float:
    """Return tr(G E C E^T) for an error E (M*P, N*Q)."""
    weighed = _with(error, covariance)
    if output is not None:
        weighed = _with(weighed.T, output).T
    return float((weighed * error).sum())


def _with(x: Array, metric: Metric) -> Array:
    if metric is None:
        return x
    if isinstance(metric, tuple):
        return times(x, metric[0], metric[1], (metric[0].shape[0], metric[1].shape[0]))
    return x * metric if metric.ndim == 1 else x @ metric

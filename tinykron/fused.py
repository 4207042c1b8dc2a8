"""Layers' inner work as single nodes: fewer passes over memory, better numerics, a shorter graph.

Each equals a composition of the primitives in ops.py, which the tests compare it with. Element-wise parts run on row
blocks (`by_rows`), so that a block passes through all its steps while it is in the cache.

Letters: B batch, T query time, S key time, H heads, G key/value heads, K head width, D model width, V vocabulary;
N = rows, all leading axes taken together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinykron.backend import Array, backend_of, erf, to_device, to_host
from tinykron.errors import DataError, ShapeError, TinykronError
from tinykron.tensor import Function, Tensor
from tinykron.threads import by_rows, product

MASKED = -1e9  # added to a score that must not count: finite, so that a row with nothing to see gives no NaN


def _rows(x: Array) -> Array:
    """View x as (N, D): all leading axes become rows."""
    return x.reshape(-1, x.shape[-1])


# Linear -------------------------------------------------------------------------------------------------------------


class Linear(Function):
    """x (..., in) @ weight (in, out) + bias: one two-dimensional product forward, one each for the two gradients.

    With `transposed`, the weight is (out, in), as an embedding table is that serves as the output head.
    """

    def __init__(self, transposed: bool = False) -> None:
        self.transposed = transposed

    def forward(self, xp, x, weight, bias=None):
        x_ND, self.shape = _rows(x), x.shape
        self.saved = x_ND, weight
        out_NF = product(x_ND, weight.T if self.transposed else weight)
        if bias is not None:
            out_NF = out_NF.astype(self.dtype, copy=False)
            by_rows(lambda block: xp.add(block, bias, out=block), out_NF)
        return out_NF.reshape(*x.shape[:-1], out_NF.shape[-1])

    def backward(self, xp, grad):
        x_ND, weight = self.saved
        grad_NF = _rows(grad)
        grad_x = grad_weight = None
        if self.needs[0]:
            grad_x = (grad_NF @ (weight if self.transposed else weight.T)).reshape(self.shape)
        if self.needs[1]:
            grad_weight = grad_NF.T @ x_ND if self.transposed else x_ND.T @ grad_NF
        if len(self.needs) == 2:
            return grad_x, grad_weight
        return grad_x, grad_weight, grad_NF.sum(axis=0) if self.needs[2] else None


def linear(x: Any, weight: Any, bias: Any = None, transposed: bool = False) -> Tensor:
    """Return x (..., in) @ weight (in, out) + bias (out); `transposed` takes a weight (out, in)."""
    width = weight.shape[1 if transposed else 0]
    if x.shape[-1] != width:
        raise ShapeError(f"linear: x is {tuple(x.shape)}, its last axis should be the {width} inputs of the weight")
    return Linear(transposed)(x, weight) if bias is None else Linear(transposed)(x, weight, bias)


# Softmax and cross-entropy ------------------------------------------------------------------------------------------


class Softmax(Function):
    """exp(x) / sum(exp(x)) over the last axis, the maximum taken out first."""

    def forward(self, xp, x):
        self.saved = out = xp.empty(x.shape, dtype=x.dtype)
        by_rows(lambda x, out: _softmax_rows(xp, x, out), _rows(x), _rows(out))
        return out

    def backward(self, xp, grad):
        out = self.saved
        result = xp.empty(out.shape, dtype=out.dtype)
        by_rows(lambda p, g, r: _softmax_backward_rows(xp, p, g, r), _rows(out), _rows(grad), _rows(result))
        return result


def _softmax_rows(xp: Any, x: Array, out: Array) -> None:
    xp.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    xp.exp(out, out=out)
    xp.multiply(out, 1.0 / out.sum(axis=-1, keepdims=True), out=out)


def _softmax_backward_rows(xp: Any, out: Array, grad: Array, result: Array) -> None:
    """Pull a gradient back through out = softmax(x); `result` may be `grad` itself."""
    total = (grad * out).sum(axis=-1, keepdims=True)
    xp.subtract(grad, total, out=result)
    xp.multiply(result, out, out=result)


class LogSoftmax(Function):
    """x - log(sum(exp(x))) over the last axis."""

    def forward(self, xp, x):
        shifted = x - x.max(axis=-1, keepdims=True)
        self.saved = out = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
        return out

    def backward(self, xp, grad):
        return grad - xp.exp(self.saved) * grad.sum(axis=-1, keepdims=True)


def softmax(x: Any) -> Tensor:
    """Return the softmax of x (..., D) over its last axis."""
    return Softmax()(x)


def log_softmax(x: Any) -> Tensor:
    """Return the logarithm of the softmax of x (..., D) over its last axis."""
    return LogSoftmax()(x)


class CrossEntropy(Function):
    """Mean of -log softmax(logits)[target] over the rows whose target counts; logits (N, V), targets (N,), a scalar.

    The softmax is never stored: forward keeps one number a row, backward computes the gradient in one pass.
    """

    def __init__(self, ignore_index: int, label_smoothing: float, count: int) -> None:
        self.ignore_index, self.smoothing, self.count = ignore_index, label_smoothing, count

    def forward(self, xp, logits_NV, targets_N):
        rows, vocabulary = logits_NV.shape
        logsumexp_N = xp.empty(rows, dtype=logits_NV.dtype)
        by_rows(lambda x, out: _logsumexp_rows(xp, x, out), logits_NV, logsumexp_N)
        counts_N = targets_N != self.ignore_index
        targets_N = xp.where(counts_N, targets_N, 0)
        self.saved = logits_NV, logsumexp_N, counts_N, targets_N
        loss_N = logsumexp_N - (1.0 - self.smoothing) * logits_NV[xp.arange(rows), targets_N]
        if self.smoothing:
            loss_N = loss_N - self.smoothing * logits_NV.mean(axis=-1)
        return (loss_N * counts_N).sum() / float(self.count)

    def backward(self, xp, grad):
        logits_NV, logsumexp_N, counts_N, targets_N = self.saved
        scale_N = counts_N * (grad / float(self.count))
        result = xp.empty(logits_NV.shape, dtype=logits_NV.dtype)

        def rows(x, logsumexp, target, scale, out):
            xp.subtract(x, logsumexp[:, None], out=out)
            xp.exp(out, out=out)
            if self.smoothing:
                xp.subtract(out, self.smoothing / x.shape[-1], out=out)
            out[xp.arange(len(out)), target] -= 1.0 - self.smoothing
            xp.multiply(out, scale[:, None], out=out)

        by_rows(rows, logits_NV, logsumexp_N, targets_N, scale_N, result)
        return result, None


def _logsumexp_rows(xp: Any, x: Array, out: Array) -> None:
    top = x.max(axis=-1)
    out[...] = xp.log(xp.exp(x - top[:, None]).sum(axis=-1)) + top


def cross_entropy(logits: Any, targets: Array, ignore_index: int = -100, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits (..., V) against whole-number targets (...).

    targets          NumPy, or on the device of the logits; `ignore_index` marks rows that do not count
    label_smoothing  share of the target spread evenly over the V classes
    Returns a scalar, 0 if no row counts. Raises DataError naming a target outside 0..V-1 and its row.
    """
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        raise ShapeError(f"cross_entropy: logits {tuple(logits.shape)} need targets {tuple(logits.shape[:-1])}")
    host = to_host(targets).reshape(-1)
    counts = host != ignore_index
    check_range(np.where(counts, host, 0), logits.shape[-1], "cross_entropy target")
    device = backend_of(logits.data if isinstance(logits, Tensor) else logits).name
    op = CrossEntropy(ignore_index, label_smoothing, max(1, int(counts.sum())))
    return op(logits.reshape(-1, logits.shape[-1]), to_device(targets, device).reshape(-1))


def check_range(ids: np.ndarray, size: int, what: str) -> None:
    """Raise DataError naming the first of `ids` outside 0..size-1 and its place. On a GPU it would wrap in silence."""
    if ids.dtype.kind not in "iu":
        raise DataError(f"{what}s must be whole numbers, found {ids.dtype}")
    bad = (ids < 0) | (ids >= size)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(f"{what} {int(ids[place])} at {place} is outside 0..{size - 1}")


# Normalisation ------------------------------------------------------------------------------------------------------


class LayerNorm(Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis. Ba et al. 2016."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, xp, x, weight, bias):
        out = xp.empty(x.shape, dtype=self.dtype)
        normal = xp.empty(x.shape, dtype=self.dtype)  # (x - mean) / deviation
        inverse_N1 = xp.empty((out.size // max(1, x.shape[-1]), 1), dtype=self.dtype)
        width = float(x.shape[-1])

        def rows(x, normal, inverse, out):
            xp.subtract(x, x.sum(axis=-1, keepdims=True) / width, out=normal)
            xp.multiply(normal, normal, out=out)
            inverse[...] = 1.0 / xp.sqrt(out.sum(axis=-1, keepdims=True) / width + self.eps)
            xp.multiply(normal, inverse, out=normal)
            xp.multiply(normal, weight, out=out)
            xp.add(out, bias, out=out)

        by_rows(rows, _rows(x), _rows(normal), inverse_N1, _rows(out))
        self.saved = normal, inverse_N1, weight
        return out

    def backward(self, xp, grad):
        normal, inverse_N1, weight = self.saved
        grad_ND, normal_ND = _rows(grad), _rows(normal)
        result = xp.empty(grad.shape, dtype=grad.dtype)
        width = float(grad.shape[-1])

        def rows(grad, normal, inverse, out):
            scaled = grad * weight
            xp.multiply(scaled, normal, out=out)
            along = out.sum(axis=-1, keepdims=True) / width
            xp.multiply(normal, -along, out=out)
            out += scaled
            out -= scaled.sum(axis=-1, keepdims=True) / width
            xp.multiply(out, inverse, out=out)

        by_rows(rows, grad_ND, normal_ND, inverse_N1, _rows(result))
        return result, (grad_ND * normal_ND).sum(axis=0), grad_ND.sum(axis=0)


class RMSNorm(Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Zhang & Sennrich 2019."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, xp, x, weight):
        square = (x * x).sum(axis=-1, keepdims=True) / float(x.shape[-1])  # .mean() takes twice as long on one row
        inverse = 1.0 / xp.sqrt(square + self.eps)
        normal = x * inverse
        self.saved = normal, inverse, weight
        return normal * weight

    def backward(self, xp, grad):
        normal, inverse, weight = self.saved
        scaled = grad * weight
        along = (scaled * normal).mean(axis=-1, keepdims=True)
        return inverse * (scaled - normal * along), _rows(grad * normal).sum(axis=0)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Tensor:
    """Return x (..., D), each row centred and scaled to unit variance, times weight (D) plus bias (D)."""
    return LayerNorm(eps)(x, weight, bias)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Tensor:
    """Return x (..., D), each row scaled to unit mean square, times weight (D)."""
    return RMSNorm(eps)(x, weight)


# Activations --------------------------------------------------------------------------------------------------------


class Activation(Function):
    """An element-wise op given by `rows`, which fills its value and, unless it is None, its slope.

    The slope is made while the block is in the cache and shares the costly part with the value. It is saved in place of
    x: backward is one product.
    """

    def forward(self, xp, x):
        out = xp.empty(x.shape, dtype=x.dtype)
        self.saved = slope = xp.empty(x.shape, dtype=x.dtype) if any(self.needs) else None
        by_rows(lambda *blocks: self.rows(xp, *blocks), *_flat(x, out, slope))
        return out

    def backward(self, xp, grad):
        out = xp.empty(grad.shape, dtype=grad.dtype)
        by_rows(lambda slope, grad, out: xp.multiply(slope, grad, out=out), *_flat(self.saved, grad, out))
        return out

    def rows(self, xp, x, out, slope):
        raise TinykronError(f"{self.name} has no rows")


def _flat(*arrays: Array | None) -> list[Array | None]:
    return [None if array is None else array.reshape(-1) for array in arrays]


class GeluErf(Activation):
    """x * Phi(x), with Phi the normal distribution function. Hendrycks & Gimpel 2016; BERT's "gelu"."""

    def rows(self, xp, x, out, slope):
        out[...] = erf(x * 0.7071067811865476)
        out += 1.0
        out *= 0.5
        if slope is not None:
            xp.multiply(x, x, out=slope)
            slope *= -0.5
            xp.exp(slope, out=slope)
            slope *= 0.3989422804014327  # the normal density
            slope *= x
            slope += out
        out *= x


class GeluTanh(Activation):
    """The tanh approximation of GELU, GPT-2's "gelu_new": x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).

    It is computed as x * sigmoid(2u): an exponential takes half the time of tanh. Powers are products.
    """

    def rows(self, xp, x, out, slope):
        xp.multiply(x, x, out=out)
        if slope is not None:
            xp.multiply(out, 3.0 * 0.044715 * 1.5957691216057308, out=slope)
            slope += 1.5957691216057308
        out *= -0.044715 * 1.5957691216057308
        out -= 1.5957691216057308
        out *= x
        _gate(xp, x, out, slope)


class Silu(Activation):
    """x * sigmoid(x)."""

    def rows(self, xp, x, out, slope):
        xp.negative(x, out=out)
        if slope is not None:
            slope[...] = 1.0
        _gate(xp, x, out, slope)


def _gate(xp: Any, x: Array, out: Array, slope: Array | None) -> None:
    """Turn out = -z and slope = dz/dx into x s and its derivative, s + s (1 - s) x dz/dx, with s = sigmoid(z)."""
    _one_plus_exp(xp, out)
    if slope is not None:
        sigmoid = 1.0 / out
        slope *= 1.0 - sigmoid
        slope *= x
        slope += 1.0
        slope *= sigmoid
    xp.divide(x, out, out=out)  # the same bits with a slope and without


def _one_plus_exp(xp: Any, out: Array) -> None:
    with np.errstate(over="ignore"):  # the exponential of a large number becomes infinity, and its reciprocal 0
        xp.exp(out, out=out)
    out += 1.0


def _sigmoid(xp: Any, x: Array, out: Array) -> None:
    xp.negative(x, out=out)
    _one_plus_exp(xp, out)
    xp.divide(1.0, out, out=out)


class SwiGLU(Function):
    """silu(gate) * up: LLaMA's MLP between its matrices. Shazeer 2020."""

    def forward(self, xp, gate, up):
        self.saved = gate, up
        out = xp.empty(gate.shape, dtype=self.dtype)

        def rows(gate, up, out):
            _sigmoid(xp, gate, out)
            out *= gate
            out *= up

        by_rows(rows, *_flat(gate, up, out))
        return out

    def backward(self, xp, grad):
        gate, up = self.saved
        grad_gate = xp.empty(gate.shape, dtype=gate.dtype)
        grad_up = xp.empty(gate.shape, dtype=gate.dtype)

        def rows(gate, up, grad, grad_gate, grad_up):
            _sigmoid(xp, gate, grad_up)
            xp.multiply(grad_up, 1.0 + gate * (1.0 - grad_up), out=grad_gate)
            grad_gate *= up
            grad_gate *= grad
            grad_up *= gate
            grad_up *= grad

        by_rows(rows, *_flat(gate, up, grad, grad_gate, grad_up))
        return grad_gate, grad_up


gelu_erf, gelu_tanh, silu, swiglu = GeluErf.apply, GeluTanh.apply, Silu.apply, SwiGLU.apply

"""Attention, rotary positions and dropout as single nodes. Letters as in fused.py."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from tinykron.backend import Array
from tinykron.errors import ShapeError, TinykronError
from tinykron.fused import MASKED, _softmax_backward_rows, _softmax_rows
from tinykron.tensor import Function, Tensor
from tinykron.threads import BLOCK_ELEMENTS, by_rows

QUERY_BLOCK = 64  # causal queries taken at once; the products and exponentials of their future are never computed


class Attention(Function):
    """softmax(q k^T / sqrt(K) + mask) v for q (B, H, T, K) and k, v (B, G, S, K).

    M = H / G query heads share a key head; the T queries are the last T of the S positions. Work goes by items
    E = B * G, one key head of one sequence each, and by blocks of queries, whose scores stay in the cache from product
    to product. Vaswani et al. 2017; grouped queries: Ainslie et al. 2023.
    """

    def __init__(self, causal: bool, return_scores: bool, keep_BHTS: np.ndarray | None) -> None:
        self.causal, self.return_scores, self.keep = causal, return_scores, keep_BHTS

    def forward(self, xp, q_BHTK, k_BGSK, v_BGSK, mask_BS=None):
        batch, heads, queries, width = q_BHTK.shape
        groups, keys = k_BGSK.shape[1:3]
        items, self.scale = batch * groups, 1.0 / sqrt(width)
        q_EMTK = q_BHTK.reshape(items, heads // groups, queries, width)
        k_E1SK, v_E1SK = k_BGSK.reshape(items, 1, keys, width), v_BGSK.reshape(items, 1, keys, -1)
        weights_shape = (items, heads // groups, queries, keys)
        self.blocks = _query_blocks(queries, keys, self.causal and not self.return_scores)
        rows = self.blocks[0][1] if self.blocks else 1
        self.step = max(1, BLOCK_ELEMENTS // (2 * max(1, heads // groups * rows * keys)))  # the scores and a copy
        keep_EMTS = None if self.keep is None else xp.asarray(self.keep).reshape(weights_shape)
        bias_E11S = None if mask_BS is None else self._padding(xp, mask_BS, groups)
        weights_EMTS = xp.empty(weights_shape, dtype=self.dtype) if any(self.needs) else None
        raw_EMTS = xp.empty(weights_shape, dtype=self.dtype) if self.return_scores else None
        out_EMTK = xp.empty((*weights_shape[:3], v_BGSK.shape[-1]), dtype=self.dtype)
        future_TT = self._future(xp, self.blocks[0][1]) if self.causal and queries > 1 else None

        def attend(q, k, v, keep, bias, weights, raw, out):
            for start, stop, seen in self.blocks:
                scores = (q[:, :, start:stop] * self.scale) @ k[:, :, :seen].swapaxes(-1, -2)
                if raw is not None:
                    raw[...] = scores
                if bias is not None:
                    scores += bias[:, :, :, :seen]
                if future_TT is not None:  # all before the block's first query is past, whatever the query
                    scores[..., keys - queries + start :] += future_TT[: stop - start, : seen - keys + queries - start]
                _softmax_rows(xp, scores, scores)
                if weights is not None:
                    weights[:, :, start:stop, :seen] = scores
                if keep is not None:
                    scores *= keep[:, :, start:stop, :seen]
                out[:, :, start:stop] = scores @ v[:, :, :seen]

        arrays = (q_EMTK, k_E1SK, v_E1SK, keep_EMTS, bias_E11S, weights_EMTS, raw_EMTS, out_EMTK)
        by_rows(attend, *arrays, block=self.step, products=True)
        self.saved = q_EMTK, k_E1SK, v_E1SK, keep_EMTS, weights_EMTS
        self.shapes = q_BHTK.shape, k_BGSK.shape, v_BGSK.shape
        out_BHTK = out_EMTK.reshape(batch, heads, queries, -1)
        return out_BHTK if raw_EMTS is None else (out_BHTK, raw_EMTS.reshape(batch, heads, queries, keys))

    def _padding(self, xp: Any, mask_BS: Array, groups: int) -> Array:
        """Return what padding adds to the scores: (E, 1, 1, S)."""
        bias_BS = xp.where(mask_BS, 0.0, MASKED).astype(self.dtype)
        return xp.repeat(bias_BS, groups, axis=0)[:, None, None, :]

    def _future(self, xp: Any, size: int) -> Array:
        """Return what a block of `size` queries adds to the scores of the keys from its first query on."""
        return xp.where(xp.arange(size)[:, None] < xp.arange(size), MASKED, 0.0).astype(self.dtype)

    def backward(self, xp, grad_BHTK, grad_scores_BHTS=None):
        q_EMTK, k_E1SK, v_E1SK, keep_EMTS, weights_EMTS = self.saved
        out_shape = (*q_EMTK.shape[:3], v_E1SK.shape[-1])
        grad_EMTK = None if grad_BHTK is None else grad_BHTK.reshape(out_shape)
        grad_scores = None if grad_scores_BHTS is None else grad_scores_BHTS.reshape(weights_EMTS.shape)
        grad_q, grad_k, grad_v = (xp.empty(a.shape, dtype=a.dtype) for a in (q_EMTK, k_E1SK, v_E1SK))

        def pull(q, k, v, keep, weights, grad, grad_scores, grad_q, grad_k, grad_v):
            grad_k[...] = 0.0
            grad_v[...] = 0.0
            for start, stop, seen in self.blocks:
                rows = slice(start, stop)
                if grad is None:
                    delta = xp.zeros_like(weights)
                else:
                    p = weights[:, :, rows, :seen]
                    used = p if keep is None else p * keep[:, :, rows, :seen]
                    grad_v[:, 0, :seen] += (used.swapaxes(-1, -2) @ grad[:, :, rows]).sum(axis=1)
                    delta = grad[:, :, rows] @ v[:, :, :seen].swapaxes(-1, -2)
                    if keep is not None:
                        delta *= keep[:, :, rows, :seen]
                    _softmax_backward_rows(xp, p, delta, delta)
                if grad_scores is not None:
                    delta += grad_scores
                delta *= self.scale
                grad_q[:, :, rows] = delta @ k[:, :, :seen]
                grad_k[:, 0, :seen] += (delta.swapaxes(-1, -2) @ q[:, :, rows]).sum(axis=1)

        arrays = (q_EMTK, k_E1SK, v_E1SK, keep_EMTS, weights_EMTS, grad_EMTK, grad_scores, grad_q, grad_k, grad_v)
        by_rows(pull, *arrays, block=self.step, products=True)
        gradients = [g.reshape(shape) for g, shape in zip((grad_q, grad_k, grad_v), self.shapes, strict=True)]
        return tuple(gradients) if len(self.needs) == 3 else (*gradients, None)


def _query_blocks(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """Return (start, stop, keys seen) of each block of queries: a causal one sees no further than its last query."""
    if not causal or queries == 1:
        return [(0, queries, keys)]
    starts = range(0, queries, QUERY_BLOCK)
    stops = [min(start + QUERY_BLOCK, queries) for start in starts]
    return [(start, stop, keys - queries + stop) for start, stop in zip(starts, stops, strict=True)]


def attention(
    q_BHTK: Any,
    k_BGSK: Any,
    v_BGSK: Any,
    mask_BS: Array | None = None,
    *,
    causal: bool,
    return_scores: bool = False,
    dropout: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Any:
    """Return softmax(q k^T / sqrt(K)) v, (B, H, T, K); with `return_scores` also the scores (B, H, T, S).

    mask_BS        True where a key may be seen; False for padding
    causal         query t sees key s only if s <= t + S - T
    return_scores  the scores q k^T / sqrt(K) before mask and softmax, for distillation
    dropout        share of the weights set to 0 in training, drawn on the host from `generator`
    """
    heads, groups = q_BHTK.shape[1], k_BGSK.shape[1]
    if heads % groups:
        raise ShapeError(f"attention: {heads} query heads cannot share {groups} key heads evenly")
    if causal and q_BHTK.shape[2] > k_BGSK.shape[2]:
        raise ShapeError(f"attention: {q_BHTK.shape[2]} causal queries for {k_BGSK.shape[2]} keys")
    keep = None
    if dropout:
        keep = _keep_mask((*q_BHTK.shape[:3], k_BGSK.shape[2]), dropout, generator, q_BHTK.dtype)
    inputs = (q_BHTK, k_BGSK, v_BGSK) if mask_BS is None else (q_BHTK, k_BGSK, v_BGSK, mask_BS)
    return Attention(causal, return_scores, keep)(*inputs)


def _keep_mask(shape: tuple[int, ...], rate: float, generator: np.random.Generator | None, dtype: Any) -> np.ndarray:
    """Draw 1 / (1 - rate) where a value is kept and 0 where it is dropped: on the host, alike on every device."""
    if generator is None:
        raise TinykronError("dropout needs a random generator: call nn.seed_dropout(model, seed) before training")
    kept = generator.random(shape, dtype=np.float32) >= rate
    return kept.astype(dtype) * (1.0 / (1.0 - rate))


class Dropout(Function):
    """x * keep, with keep drawn on the host. Srivastava et al. 2014."""

    def __init__(self, keep: np.ndarray) -> None:
        self.keep = keep

    def forward(self, xp, x):
        self.saved = keep = xp.asarray(self.keep)
        return x * keep

    def backward(self, xp, grad):
        return grad * self.saved


def dropout(x: Any, rate: float, generator: np.random.Generator | None) -> Tensor:
    """Return x with a share `rate` of its values set to 0 and the rest scaled by 1 / (1 - rate)."""
    return Dropout(_keep_mask(x.shape, rate, generator, x.dtype))(x)


class Rotary(Function):
    """Turn each pair (x[i], x[i + K/2]) by its position's angle: the half-split order of Hugging Face files.

    x (B, H, T, K), cos and sin (T, K/2) or (B, 1, T, K/2). Su et al. 2021.
    """

    def forward(self, xp, x, cos, sin):
        self.saved = cos, sin
        return _turn(xp, x, cos, sin)

    def backward(self, xp, grad):
        cos, sin = self.saved
        return _turn(xp, grad, cos, -sin), None, None  # a rotation's transpose turns back


def _turn(xp: Any, x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = xp.empty(x.shape, dtype=x.dtype)
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
    return out


def rotary(x_BHTK: Any, cos: Array, sin: Array) -> Tensor:
    """Return x (B, H, T, K) with rotary positions applied; cos, sin (T, K/2) or (B, 1, T, K/2) on the same device."""
    if x_BHTK.shape[-1] % 2:
        raise ShapeError(f"rotary: the head width must be even, found {x_BHTK.shape[-1]}")
    return Rotary()(x_BHTK, cos, sin)

"""Each fused op twice more: in plain NumPy (or SciPy), and composed of primitive ops, named `composed_...`."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import numpy as np
from scipy import special

from tests.helpers import host
from tinykron import attention as attention_module
from tinykron import ops, shapes
from tinykron.tensor import Tensor

# Linear -------------------------------------------------------------------------------------------------------------


def linear(x: np.ndarray, weight: np.ndarray, bias: Any = 0.0, transposed: bool = False) -> np.ndarray:
    return np.einsum("...i,oi->...o" if transposed else "...i,io->...o", x, weight) + bias


def composed_linear(x: Tensor, weight: Tensor, bias: Any = 0.0, transposed: bool = False) -> Tensor:
    return x @ (weight.T if transposed else weight) + bias


# Softmax and cross-entropy --------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    return special.softmax(x, axis=-1)


def composed_softmax(x: Tensor) -> Tensor:
    powers = (x - x.max(axis=-1, keepdims=True)).exp()
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return special.log_softmax(x, axis=-1)


def composed_log_softmax(x: Tensor) -> Tensor:
    return x - x.logsumexp(axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray, ignore_index: int, label_smoothing: float) -> np.ndarray:
    log_NV = log_softmax(logits).reshape(-1, logits.shape[-1])
    losses = [
        -(1.0 - label_smoothing) * log_V[target] - label_smoothing * log_V.mean()
        for log_V, target in zip(log_NV, targets.reshape(-1), strict=True)
        if target != ignore_index
    ]
    return np.asarray(np.sum(losses) / max(1, len(losses)))


def composed_cross_entropy(logits: Tensor, targets: Any, ignore_index: int, label_smoothing: float) -> Tensor:
    targets_N = host(targets).reshape(-1)
    rows = np.flatnonzero(targets_N != ignore_index)
    log_NV = composed_log_softmax(logits).reshape(-1, logits.shape[-1])
    right = log_NV[rows, targets_N[rows]].sum()
    uniform = log_NV[rows].sum() / float(logits.shape[-1])
    return -((1.0 - label_smoothing) * right + label_smoothing * uniform) / float(max(1, len(rows)))


# Normalisation --------------------------------------------------------------------------------------------------------


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def composed_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / ((centred * centred).mean(axis=-1, keepdims=True) + eps).sqrt() * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight


def composed_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps).sqrt() * weight


# Activations ----------------------------------------------------------------------------------------------------------


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return x * special.ndtr(x)


def composed_gelu_erf(x: Tensor) -> Tensor:
    return x * ((x / sqrt(2.0)).erf() + 1.0) * 0.5


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def composed_gelu_tanh(x: Tensor) -> Tensor:
    return x * (((x + x**3 * 0.044715) * sqrt(2.0 / pi)).tanh() + 1.0) * 0.5


def silu(x: np.ndarray) -> np.ndarray:
    return x * special.expit(x)


def composed_silu(x: Tensor) -> Tensor:
    return x / ((-x).exp() + 1.0)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return silu(gate) * up


def composed_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return composed_silu(gate) * up


# Attention ------------------------------------------------------------------------------------------------------------

SEED = 5  # of every dropout drawn here


def seeded_attention(*inputs: Any, dropout: float, **options: Any) -> Any:
    return attention_module.attention(*inputs, dropout=dropout, generator=np.random.default_rng(SEED), **options)


def seeded_dropout(x: Tensor, rate: float) -> Tensor:
    return attention_module.dropout(x, rate, np.random.default_rng(SEED))


def kept(shape: tuple[int, ...], rate: float) -> np.ndarray:
    """What the package multiplies by: 0 where a value is dropped, 1 / (1 - rate) elsewhere."""
    return (np.random.default_rng(SEED).random(shape, dtype=np.float32) >= rate) / (1.0 - rate)


def visible(queries: int, keys: int, causal: bool, mask_BS: np.ndarray | None) -> np.ndarray:
    """Return (B or 1, 1, T, S): whether a query may see a key, the queries being the last of the positions."""
    seen = np.ones((1, 1, queries, keys), bool)
    for t in range(queries):
        seen[0, 0, t, keys - queries + t + 1 :] = not causal
    return seen if mask_BS is None else seen & mask_BS[:, None, None, :]


def attention(
    q_BHTK: np.ndarray,
    k_BGSK: np.ndarray,
    v_BGSK: np.ndarray,
    mask_BS: np.ndarray | None = None,
    *,
    causal: bool,
    return_scores: bool,
    dropout: float,
) -> Any:
    share = q_BHTK.shape[1] // k_BGSK.shape[1]
    k_BHSK, v_BHSK = (np.repeat(x, share, axis=1) for x in (k_BGSK, v_BGSK))
    scores_BHTS = np.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHSK) / np.sqrt(q_BHTK.shape[-1])
    seen = visible(*scores_BHTS.shape[2:], causal, mask_BS)
    weights_BHTS = softmax(np.where(seen, scores_BHTS, -np.inf)) * kept(scores_BHTS.shape, dropout)
    out_BHTK = np.einsum("bhts,bhsk->bhtk", weights_BHTS, v_BHSK)
    return (out_BHTK, scores_BHTS) if return_scores else out_BHTK


def composed_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_BS: Any = None,
    *,
    causal: bool,
    return_scores: bool,
    dropout: float,
) -> Any:
    group_of_head = np.arange(q_BHTK.shape[1]) // (q_BHTK.shape[1] // k_BGSK.shape[1])
    k_BHSK, v_BHSK = k_BGSK[:, group_of_head], v_BGSK[:, group_of_head]
    scores_BHTS = q_BHTK @ k_BHSK.swapaxes(-1, -2) / sqrt(q_BHTK.shape[-1])
    seen = visible(*scores_BHTS.shape[2:], causal, None if mask_BS is None else host(mask_BS))
    weights_BHTS = composed_softmax(ops.where(Tensor(seen), scores_BHTS, -1e9))
    out_BHTK = weights_BHTS * Tensor(kept(scores_BHTS.shape, dropout).astype(q_BHTK.dtype)) @ v_BHSK
    return (out_BHTK, scores_BHTS) if return_scores else out_BHTK


def dropout(x: np.ndarray, rate: float) -> np.ndarray:
    return x * kept(x.shape, rate)


def composed_dropout(x: Tensor, rate: float) -> Tensor:
    return x * Tensor(kept(x.shape, rate).astype(x.dtype))


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def composed_rotary(x: Tensor, cos: Any, sin: Any) -> Tensor:
    first, second = shapes.split(x, 2, axis=-1)
    return shapes.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

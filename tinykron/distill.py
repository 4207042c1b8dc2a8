"""Intermediate-layer distillation: teacher and student run side by side on one batch, and are compared inside.

KnGPT2 (2110.08152), section "intermediate layer knowledge distillation": the loss is a weighted sum of embedding MSE,
attention KL, hidden-state MSE and the cross-entropy with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykron import fused
from tinykron.attention import MASKED
from tinykron.backend import Array, by_rows
from tinykron.errors import ShapeError, TinykronError
from tinykron.models.transformer import Output
from tinykron.nn import Module
from tinykron.tensor import Function, Tensor, no_grad


@dataclass(frozen=True)
class Losses:
    """The weight of each term; a term of weight 0 is not computed."""

    embedding: float = 1.0  # mean squared error of what enters the first block
    attention: float = 1.0  # KL(teacher || student) of each query's attention, mean over queries, summed over layers
    hidden: float = 1.0  # mean squared error of what leaves each block, summed over layers
    cross_entropy: float = 1.0  # with the text, in nats a token

    def __post_init__(self) -> None:
        weights = vars(self)
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
            raise TinykronError(f"losses: expected weights of at least 0, not all 0, found {weights}")

    @property
    def needs_teacher(self) -> bool:
        return bool(self.embedding or self.attention or self.hidden)


class AttentionKL(Function):
    """Mean over queries of KL(teacher || student), from scores (B, H, T, S) before mask and softmax.

    Its gradient for a student's score is its attention less the teacher's, over the number of queries.
    """

    def __init__(self, causal: bool) -> None:
        self.causal = causal

    def forward(self, xp, student_BHTS, teacher_BHTS, mask_BS=None):
        batch, heads, queries, keys = student_BHTS.shape
        hidden_TS = xp.zeros((queries, keys), dtype=self.dtype)
        if self.causal:
            ahead_TS = xp.arange(queries)[:, None] + (keys - queries) < xp.arange(keys)
            hidden_TS += xp.where(ahead_TS, MASKED, 0.0).astype(self.dtype)
        shape = (batch * heads, queries, keys)
        padding_E1S = xp.zeros((batch * heads, 1, keys), dtype=self.dtype)
        if mask_BS is not None:
            padding_E1S += xp.repeat(xp.where(mask_BS, 0.0, MASKED).astype(self.dtype), heads, axis=0)[:, None]
        difference_ETS = xp.empty(shape, dtype=self.dtype)
        kl_ET = xp.empty(shape[:2], dtype=self.dtype)

        def rows(student, teacher, padding, difference, kl):
            log_s = _log_softmax(xp, student + hidden_TS + padding)
            log_t = _log_softmax(xp, teacher + hidden_TS + padding)
            p_t = xp.exp(log_t)
            kl[...] = (p_t * (log_t - log_s)).sum(axis=-1)
            xp.subtract(xp.exp(log_s), p_t, out=difference)

        by_rows(rows, student_BHTS.reshape(shape), teacher_BHTS.reshape(shape), padding_E1S, difference_ETS, kl_ET)
        self.count = float(batch * heads * queries)
        self.saved = difference_ETS.reshape(student_BHTS.shape)
        return kl_ET.sum() / self.count

    def backward(self, xp, grad):
        result = self.saved * (grad / self.count)
        return (result, *(None for _ in self.needs[1:]))


def _log_softmax(xp: Any, scores: Array) -> Array:
    scores -= scores.max(axis=-1, keepdims=True)
    scores -= xp.log(xp.exp(scores).sum(axis=-1, keepdims=True))
    return scores


def attention_kl(student_BHTS: Tensor, teacher_BHTS: Array, mask_BS: Array | None = None, *, causal: bool) -> Tensor:
    """Return the mean over batch, heads and queries of KL(teacher || student), from pre-softmax scores, in nats."""
    if tuple(student_BHTS.shape) != tuple(teacher_BHTS.shape):
        raise ShapeError(f"attention KL: student {student_BHTS.shape} and teacher {teacher_BHTS.shape} differ")
    extra = () if mask_BS is None else (mask_BS,)
    return AttentionKL(causal)(student_BHTS, teacher_BHTS, *extra)


def mean_squared_error(student: Tensor, teacher: Array) -> Tensor:
    """Return the mean of (student - teacher)^2 over all elements."""
    if tuple(student.shape) != tuple(teacher.shape):
        raise ShapeError(f"mean squared error: student {student.shape} and teacher {teacher.shape} differ")
    difference = student - teacher
    return (difference * difference).mean()


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher's layer for each of the student's: evenly spread, the last for the last. TinyBERT's map."""
    if not 1 <= student_layers <= teacher_layers:
        raise ShapeError(f"layer map: {student_layers} student layers for {teacher_layers} teacher layers")
    return [-(-(layer + 1) * teacher_layers // student_layers) - 1 for layer in range(student_layers)]


def compare(
    student: Output, teacher: Output | None, targets_BT: np.ndarray, losses: Losses, layers: Sequence[int]
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted loss, and each term's own value before weighting (nats, or squared units).

    layers  the teacher's layer for each layer of the student
    Raises ShapeError where widths, heads or layers do not match.
    """
    if teacher is None and losses.needs_teacher:
        raise TinykronError("distillation: the losses compare with a teacher, and none is given")
    depth, deepest = len(student.hidden) - 1, len(teacher.hidden) - 1 if teacher else 0
    if teacher and (len(layers) != depth or not all(0 <= layer < deepest for layer in layers)):
        raise ShapeError(f"layer map: found {list(layers)}, expected {depth} teacher layers in 0..{deepest - 1}")
    terms: dict[str, Tensor] = {}
    if losses.cross_entropy:
        terms["cross_entropy"] = fused.cross_entropy(student.logits, targets_BT)
    if teacher is not None and losses.embedding:
        terms["embedding"] = mean_squared_error(student.hidden[0], teacher.hidden[0].data)
    if teacher is not None and losses.hidden:
        pairs = zip(student.hidden[1:], (teacher.hidden[layer + 1] for layer in layers), strict=True)
        terms["hidden"] = total([mean_squared_error(ours, theirs.data) for ours, theirs in pairs])
    if teacher is not None and losses.attention:
        if student.attention_scores is None or teacher.attention_scores is None:
            raise TinykronError("distillation: the attention term needs both outputs with attention_scores=True")
        pairs = zip(student.attention_scores, (teacher.attention_scores[layer] for layer in layers), strict=True)
        terms["attention"] = total([attention_kl(ours, theirs.data, causal=True) for ours, theirs in pairs])
    weighted = [getattr(losses, name) * term for name, term in terms.items()]
    return total(weighted), {name: term.item() for name, term in terms.items()}


def total(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of one or more scalars."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def side_by_side(
    student: Module,
    teacher: Module | None,
    inputs_BT: np.ndarray,
    targets_BT: np.ndarray,
    losses: Losses,
    layers: Sequence[int],
) -> tuple[Tensor, dict[str, float]]:
    """Run teacher (without a tape) and student on one batch; return the loss and its terms."""
    scores = bool(teacher is not None and losses.attention)
    known = None
    if teacher is not None and losses.needs_teacher:
        with no_grad():
            known = teacher(inputs_BT, attention_scores=scores)
    return compare(student(inputs_BT, attention_scores=scores), known, targets_BT, losses, layers)

"""How far a student is from its teacher, on one batch: each distance with its equation.

All are means, so that neither batch nor width nor padding changes their size; all are exactly 0, with a gradient of
exactly 0, where the two agree. The teacher's side is a plain array. A mask is True where a position counts; it lies on
the tensors' device.

Letters: B batch, T query time, S key time, H heads, K head width, A relation heads, D width, V vocabulary, C classes;
E = B * H.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from tinykron.backend import Array, xp_of
from tinykron.errors import ShapeError, TinykronError
from tinykron.fused import MASKED
from tinykron.tensor import Function, Tensor
from tinykron.threads import by_rows

TINY = 1e-12  # added to a squared length, so that a vector of zeros has one


def _same_shape(what: str, student: Tensor, teacher: Array) -> None:
    if tuple(student.shape) != tuple(teacher.shape):
        raise ShapeError(f"{what}: student {student.shape} and teacher {teacher.shape} differ")


# States: what enters the first block, what leaves each block ----------------------------------------------------------


def mean_squared_error(student: Tensor, teacher: Array, mask_BT: Array | None = None) -> Tensor:
    """Return mean((student - teacher)^2), a scalar, over all elements (..., D) of the positions that count.

    KnGPT2: L_emb = MSE(E^S, E^T), and L_hid of each layer; KroneckerBERT, section 3.5.1: L_Emb, and L_FFN of each.
    """
    _same_shape("mean squared error", student, teacher)
    difference = student - teacher
    squared = difference * difference
    return squared.mean() if mask_BT is None else _mean_over(squared.mean(axis=-1), mask_BT)


def cosine_distance(student: Tensor, teacher: Array, mask_BT: Array | None = None) -> Tensor:
    """Return mean(1 - cos(student, teacher)), a scalar from 0 to 2, of vectors (..., D) at the positions that count.

    Computed as |s - t|^2 / 2 of the two at unit length, which is the same number and has no rounding to cancel.
    DistilBERT (Sanh et al. 2019): L_cos.
    """
    _same_shape("cosine distance", student, teacher)
    xp = xp_of(teacher)
    teacher = teacher / xp.sqrt((teacher * teacher).sum(axis=-1, keepdims=True) + TINY)
    difference = student / ((student * student).sum(axis=-1, keepdims=True) + TINY).sqrt() - teacher
    half = (difference * difference).sum(axis=-1) * 0.5
    return half.mean() if mask_BT is None else _mean_over(half, mask_BT)


def _mean_over(x_BT: Tensor, mask_BT: Array) -> Tensor:
    counted = max(1.0, float(mask_BT.sum()))
    return (x_BT * (mask_BT.astype(x_BT.dtype) * (1.0 / counted))).sum()


# Attention ------------------------------------------------------------------------------------------------------------


class SoftmaxKL(Function):
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over rows; from scores (B, H, T, S), in nats.

    Its gradient for a student's score is T (q - p), over the number of rows: the student's probability less the
    teacher's. With a large T it tends to a difference of scores, whatever T is; hence T^2. Hinton et al. 2015, eq. 2-4.

    causal   key s is out of the sight of query t if s > t + S - T
    keys_BS  False: nothing sees that key;  rows_BT  False: that query is left out of the mean
    """

    def __init__(self, causal: bool, temperature: float, keys_BS: Array | None, rows_BT: Array | None) -> None:
        self.causal, self.temperature, self.keys, self.rows = causal, temperature, keys_BS, rows_BT

    def forward(self, xp, student_BHTS, teacher_BHTS):
        batch, heads, queries, keys = student_BHTS.shape
        shape, sharpness = (batch * heads, queries, keys), 1.0 / self.temperature
        future_TS = padding_E1S = None
        if self.causal:
            future_TS = xp.where(_past(xp, queries, keys), 0.0, MASKED).astype(teacher_BHTS.dtype)
        if self.keys is not None:
            padding_BS = xp.where(self.keys, 0.0, MASKED).astype(teacher_BHTS.dtype)
            padding_E1S = xp.repeat(padding_BS, heads, axis=0)[:, None]
        difference_ETS = xp.empty(shape, dtype=self.dtype)
        kl_ET = xp.empty(shape[:2], dtype=self.dtype)

        def logarithms(scores, padding):
            scores = scores * sharpness
            for hidden in (future_TS, padding):
                if hidden is not None:
                    scores += hidden
            scores -= scores.max(axis=-1, keepdims=True)
            scores -= xp.log(xp.exp(scores).sum(axis=-1, keepdims=True))
            return scores

        def rows(student, teacher, padding, difference, kl):
            log_q, log_p = logarithms(student, padding), logarithms(teacher, padding)
            p = xp.exp(log_p)
            kl[...] = (p * (log_p - log_q)).sum(axis=-1)
            xp.subtract(xp.exp(log_q), p, out=difference)

        by_rows(rows, student_BHTS.reshape(shape), teacher_BHTS.reshape(shape), padding_E1S, difference_ETS, kl_ET)
        self.count = float(batch * heads * queries)
        if self.rows is not None:
            counts_ET = xp.repeat(self.rows, heads, axis=0)
            kl_ET *= counts_ET
            difference_ETS *= counts_ET[..., None]
            self.count = max(1.0, float(counts_ET.sum()))
        self.saved = difference_ETS.reshape(student_BHTS.shape)
        return kl_ET.sum() * self.temperature**2 / self.count

    def backward(self, xp, grad):
        return self.saved * (grad * self.temperature / self.count), None


class ScoreError(Function):
    """The mean of (student - teacher)^2 over the (query, key) pairs that see each other; scores (B, H, T, S)."""

    def __init__(self, causal: bool, mask_BS: Array | None) -> None:
        self.causal, self.mask = causal, mask_BS

    def forward(self, xp, student_BHTS, teacher_BHTS):
        batch, heads, queries, keys = student_BHTS.shape
        difference_BHTS = student_BHTS - teacher_BHTS
        seen_BTS = xp.ones((batch, queries, keys), dtype=bool)
        if self.causal:
            seen_BTS &= _past(xp, queries, keys)
        if self.mask is not None:
            seen_BTS &= self.mask[:, None, :] & _queries(self.mask, queries)[:, :, None]
        difference_BHTS *= seen_BTS[:, None]
        self.count = max(1.0, float(seen_BTS.sum()) * heads)
        self.saved = difference_BHTS
        flat = difference_BHTS.reshape(-1)
        return (flat @ flat) / self.count

    def backward(self, xp, grad):
        return self.saved * (grad * 2.0 / self.count), None


def _past(xp: Any, queries: int, keys: int) -> Array:
    """Return where a query sees a key under the causal mask, (T, S)."""
    return xp.arange(keys) <= xp.arange(queries)[:, None] + (keys - queries)


def _queries(mask_BS: Array, queries: int) -> Array:
    """Return which queries count, (B, T): they are the last T of the S positions."""
    return mask_BS[:, mask_BS.shape[1] - queries :]


def attention_kl(student_BHTS: Tensor, teacher_BHTS: Array, mask_BS: Array | None = None, *, causal: bool) -> Tensor:
    """Return KL(teacher || student) of what each query attends to, the mean over batch, heads and queries, in nats.

    Takes the scores before mask and softmax: q k^T / sqrt(K). Queries that are padding are left out of the mean.
    KnGPT2: L_att = KL(Att^S, Att^T) of each layer. MiniLM (Wang et al. 2020) has the same mean, of the last.
    """
    _same_shape("attention KL", student_BHTS, teacher_BHTS)
    rows_BT = None if mask_BS is None else _queries(mask_BS, student_BHTS.shape[2])
    return SoftmaxKL(causal, 1.0, mask_BS, rows_BT)(student_BHTS, teacher_BHTS)


def attention_mse(student_BHTS: Tensor, teacher_BHTS: Array, mask_BS: Array | None = None, *, causal: bool) -> Tensor:
    """Return mean((O_S - O_T)^2) of scores O = q k^T / sqrt(K) before mask and softmax.

    The mean is over batch, heads and pairs that see each other: neither padding nor a future key counts.
    KroneckerBERT, section 3.5.1: L_Att, with O of eq. 9.
    """
    _same_shape("attention scores", student_BHTS, teacher_BHTS)
    return ScoreError(causal, mask_BS)(student_BHTS, teacher_BHTS)


def relation_kl(
    student: Sequence[Tensor],
    teacher: Sequence[Array],
    mask_BT: Array | None = None,
    *,
    causal: bool,
    heads: int = 0,
) -> Tensor:
    """Return KL(teacher || student) of relations softmax(x y^T / sqrt(K)), the mean over batch, heads and queries.

    student, teacher  (x, y), each (B, H, T, K): values twice, queries twice, keys twice, or queries and keys
    heads             A: cuts the joint width H * K anew, so that models of other heads compare; 0 keeps the own
    A relation is (T, T) whatever the width: no projection is needed.
    MiniLM (Wang et al. 2020), value-relation transfer; MiniLMv2 (Wang et al. 2021): queries, keys and values, A heads.
    """
    ours_BATT, theirs_BATT = _relation(student, heads), _relation(teacher, heads)
    _same_shape("relation", ours_BATT, theirs_BATT)
    return attention_kl(ours_BATT, theirs_BATT, mask_BT, causal=causal)


def _relation(pair: Sequence[Any], heads: int) -> Any:
    """Return x y^T / sqrt(K) of two tensors, or of two arrays."""
    x_BATK, y_BATK = (_cut_anew(x_BHTK, heads) for x_BHTK in pair)
    if x_BATK.shape != y_BATK.shape:
        raise ShapeError(f"relation: {x_BATK.shape} and {y_BATK.shape} share no heads; cut both into as many")
    return x_BATK @ y_BATK.swapaxes(-1, -2) * (1.0 / sqrt(x_BATK.shape[-1]))


def _cut_anew(x_BHTK: Any, heads: int) -> Any:
    """Cut the heads' joint width into `heads` equal parts: (B, A, T, H * K / A)."""
    batch, own, time, width = x_BHTK.shape
    if heads in (0, own):
        return x_BHTK
    if own * width % heads:
        raise ShapeError(f"relation heads: {heads} do not divide the width of {own} heads of {width}")
    x_BTD = x_BHTK.swapaxes(1, 2).reshape(batch, time, own * width)  # the heads side by side
    return x_BTD.reshape(batch, time, heads, -1).swapaxes(1, 2)


# Logits ---------------------------------------------------------------------------------------------------------------


def logit_kl(
    student: Tensor, teacher: Array, mask_BT: Array | None = None, temperature: float = 1.0, spans: bool = False
) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over what is predicted, in nats.

    Logits are (B, T, V), whose positions that are padding are left out of the mean, or (B, C); with `spans` (B, T, 2):
    two distributions over the positions that count. Raises TinykronError for one class, which is no distribution.
    Hinton et al. 2015, section 2; Sanh et al. 2019: L_ce.
    """
    _same_shape("logits", student, teacher)
    if spans:
        batch, time, _ = student.shape
        shape = batch, 1, 2, time  # as two queries of one head: start and end
        ours_B12T, theirs_B12T = (logits.swapaxes(1, 2).reshape(shape) for logits in (student, teacher))
        return SoftmaxKL(False, temperature, mask_BT, None)(ours_B12T, theirs_B12T)
    classes = student.shape[-1]
    if classes == 1:
        raise TinykronError('logits: a single number is no distribution; logits_form="mse" compares it')
    rows_N1 = None if mask_BT is None or student.ndim == 2 else mask_BT.reshape(-1, 1)
    student_N11V, teacher_N11V = student.reshape(-1, 1, 1, classes), teacher.reshape(-1, 1, 1, classes)
    return SoftmaxKL(False, temperature, None, rows_N1)(student_N11V, teacher_N11V)

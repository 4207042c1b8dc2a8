"""Each distance once more, in plain float64 NumPy and loops over positions, with the pairs it is tested on.

A mask is (B, S) booleans on the host, or None. Of scores, the T queries are the last T of the S positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.strategies import arrays

Mask = np.ndarray | None


# Pairs ----------------------------------------------------------------------------------------------------------------


@st.composite
def masks(draw: Any, batch: int, keys: int, first: bool = True) -> Mask:
    """(B, S) or None; with `first`, no key 0 is padding: the earliest query sees it."""
    mask_BS = draw(st.none() | hnp.arrays(bool, (batch, keys)))
    if mask_BS is not None and first:
        mask_BS[:, 0] = True
    return mask_BS


@st.composite
def scores_and_masks(draw: Any, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray, Mask, bool]:
    """(student (B, H, T, S), teacher, mask, causal): S >= T, every query sees a key."""
    batch, heads, queries, past = (draw(st.integers(low, 3)) for low in (1, 1, 1, 0))
    shape = (batch, heads, queries, queries + past)
    student, teacher = draw(arrays(shape, dtype=dtype)), draw(arrays(shape, dtype=dtype))
    return student, teacher, draw(masks(batch, queries + past)), draw(st.booleans())


@st.composite
def states_and_masks(draw: Any, dtype: Any = np.float64, **domain: float) -> tuple[np.ndarray, np.ndarray, Mask]:
    """(student (B, T, D), teacher, mask), perhaps with no position that counts."""
    batch, time, width = (draw(st.integers(1, 4)) for _ in range(3))
    student, teacher = (draw(arrays((batch, time, width), dtype=dtype, **domain)) for _ in range(2))
    return student, teacher, draw(masks(batch, time, first=False))


@st.composite
def heads_and_masks(draw: Any) -> tuple[list[np.ndarray], list[np.ndarray], Mask, bool, int]:
    """(student's two (B, H, T, K), teacher's of other heads, mask, causal, relation heads A)."""
    batch, time, relations = (draw(st.integers(1, 3)) for _ in range(3))
    pairs = []
    for _ in range(2):
        heads, part = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        shape = (batch, relations * heads, time, part)  # the joint width is a multiple of A
        pairs.append([draw(arrays(shape)) for _ in range(2)])
    return pairs[0], pairs[1], draw(masks(batch, time)), draw(st.booleans()), relations


# References -----------------------------------------------------------------------------------------------------------


def counted(mask: Mask, batch: int, time: int) -> Iterator[tuple[int, int]]:
    """The positions that count."""
    return ((b, t) for b in range(batch) for t in range(time) if mask is None or mask[b, t])


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def kl_of_rows(student: np.ndarray, teacher: np.ndarray) -> float:
    """KL(softmax(teacher) || softmax(student)) of two vectors."""
    p, q = (np.exp(row) / np.exp(row).sum() for row in (teacher, student))
    return float((p * np.log(p / q)).sum())


def seen(b: int, t: int, shape: tuple[int, ...], mask: Mask, causal: bool) -> list[int]:
    """The keys that query t of row b sees."""
    queries, keys = shape[2:]
    last = t + keys - queries if causal else keys - 1
    return [s for s in range(keys) if s <= last and (mask is None or mask[b, s])]


def query_counts(b: int, t: int, shape: tuple[int, ...], mask: Mask) -> bool:
    return mask is None or bool(mask[b, t + shape[3] - shape[2]])


def attention_kl(student: np.ndarray, teacher: np.ndarray, mask: Mask, causal: bool) -> float:
    batch, heads, queries, _ = shape = student.shape
    rows = []
    for b, h, t in np.ndindex(batch, heads, queries):
        if query_counts(b, t, shape, mask):
            keys = seen(b, t, shape, mask, causal)
            rows.append(kl_of_rows(student[b, h, t, keys], teacher[b, h, t, keys]))
    return mean(rows)


def attention_mse(student: np.ndarray, teacher: np.ndarray, mask: Mask, causal: bool) -> float:
    batch, heads, queries, _ = shape = student.shape
    pairs = []
    for b, h, t in np.ndindex(batch, heads, queries):
        if query_counts(b, t, shape, mask):
            pairs += [(student[b, h, t, s] - teacher[b, h, t, s]) ** 2 for s in seen(b, t, shape, mask, causal)]
    return mean(pairs)


def mean_squared_error(student: np.ndarray, teacher: np.ndarray, mask: Mask) -> float:
    places = counted(mask, *student.shape[:2])
    return mean([float(((student[place] - teacher[place]) ** 2).mean()) for place in places])


def cosine_distance(student: np.ndarray, teacher: np.ndarray, mask: Mask) -> float:
    pairs = [(student[place], teacher[place]) for place in counted(mask, *student.shape[:2])]
    return mean([1.0 - float(s @ t / np.sqrt((s @ s) * (t @ t))) for s, t in pairs])


def logit_kl(student: np.ndarray, teacher: np.ndarray, mask: Mask, temperature: float) -> float:
    pairs = [(student[place], teacher[place]) for place in counted(mask, *student.shape[:2])]
    return temperature**2 * mean([kl_of_rows(s / temperature, t / temperature) for s, t in pairs])


def relation_kl(
    student: list[np.ndarray], teacher: list[np.ndarray], mask: Mask, causal: bool, relations: int
) -> float:
    def scores(pair: list[np.ndarray]) -> np.ndarray:
        batch, heads, time, width = pair[0].shape
        part = heads * width // relations
        found = np.empty((batch, relations, time, time))
        for b, a, t, s in np.ndindex(*found.shape):
            x, y = (np.concatenate([one[b, h, at] for h in range(heads)]) for one, at in zip(pair, (t, s), strict=True))
            cut = slice(a * part, (a + 1) * part)
            found[b, a, t, s] = x[cut] @ y[cut] / np.sqrt(part)
        return found

    return attention_kl(scores(student), scores(teacher), mask, causal)

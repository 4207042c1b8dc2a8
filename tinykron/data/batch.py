"""A batch: what models read, and what is true of it; a few windows of a text as batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykron.data.corpus import Document
from tinykron.data.masking import Masking
from tinykron.data.tokens import encode
from tinykron.errors import DataError, TinykronError

CONTEXT = 512  # tokens of a window, at most: longer ones tell a calibration little more
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Batch:
    """Texts or examples side by side, and what is true of each. On the host."""

    ids_BT: np.ndarray
    targets: np.ndarray  # (B, T) token ids, -100 where none counts; (B,) int64 classes or float32 scores; (B, 2) spans
    mask_BT: np.ndarray | None = None  # nonzero where a position counts
    types_BT: np.ndarray | None = None  # 0 for the first text, 1 for the second: BERT's
    other_B: np.ndarray | None = None  # 1 where the second text is another one, 0 where it follows the first


def inputs(model: Any, batch: Batch) -> list[np.ndarray | None]:
    """Return what a model reads of a batch: ids, the mask if there is one, token types if the model knows them."""
    read: list[np.ndarray | None] = [batch.ids_BT]
    if batch.types_BT is not None and not model.causal:
        return [*read, batch.mask_BT, batch.types_BT]
    return read if batch.mask_BT is None else [*read, batch.mask_BT]


def batches(model: Any, documents: list[Document], tokens: int, seed: int = 0) -> list[np.ndarray]:
    """Return at most `tokens` ids of a text as windows (B, T): some documents of it, drawn without repetition.

    A masked model's windows are framed, and some of their tokens hidden, as in its training. Raises DataError for a
    text that is too short.
    """
    if model.tokenizer is None:
        raise TinykronError("calibration: the model has no tokenizer to read text with")
    order = np.random.default_rng(seed).permutation(len(documents))
    parts: list[np.ndarray] = []
    for index in order:  # no more of a long text than is needed
        if sum(map(len, parts)) >= tokens:
            break
        parts.append(encode(model.tokenizer, [documents[index]]))
    stream = np.concatenate(parts)[:tokens].astype(np.int64) if parts else np.zeros(0, np.int64)
    causal = model.causal
    inner = min(model.context, CONTEXT) - (0 if causal else 2)
    inner = min(inner, len(stream))
    if inner < 2:
        raise DataError(f"calibration: found {len(stream)} tokens, expected a text of at least 2")
    ids_WT = stream[: len(stream) // inner * inner].reshape(-1, inner)
    if not causal:
        masking = Masking.of(model.tokenizer)
        ids_WT, _ = masking.hide(masking.frame(ids_WT), np.random.default_rng(seed))
    step = max(1, BATCH_TOKENS // ids_WT.shape[1])
    return [ids_WT[start : start + step] for start in range(0, len(ids_WT), step)]

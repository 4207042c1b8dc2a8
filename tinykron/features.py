"""Labelled examples as token ids: padded batches of them, and the logits that a model has for each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykron.errors import TinykronError
from tinykron.nn import Module, evaluating
from tinykron.progress import Progress
from tinykron.tensor import Tensor, no_grad

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Target = int | float | tuple[int, int]  # a class, a score, or where a span starts and ends (both inside)


@dataclass(frozen=True)
class Features:
    """One example as a model reads it."""

    ids: Sequence[int]
    types: Sequence[int]  # 0 for the first text, 1 for the second
    target: Target = 0  # means nothing where there is no label


@dataclass(frozen=True)
class Batch:
    """Examples side by side, padded behind to the longest. On the host."""

    ids_BT: np.ndarray
    mask_BT: np.ndarray  # 1 where a position counts
    types_BT: np.ndarray
    targets: np.ndarray  # (B,) int64 classes, (B,) float32 scores, or (B, 2) int64 first and last position


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], context: int) -> list[tuple[list[int], list[int]]]:
    """Return the ids and the token types of each text or pair of texts, framed as the tokenizer does.

    Beyond `context` tokens, the longer of two texts is cut first. The tokenizer stays as it is.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(context, strategy="longest_first")
    encodings = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in texts])
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


def collate(features: Sequence[Features]) -> Batch:
    """Return one batch of features."""
    longest = max(len(example.ids) for example in features)
    ids_BT, mask_BT, types_BT = np.zeros((3, len(features), longest), np.int64)
    for row, example in enumerate(features):
        length = len(example.ids)
        ids_BT[row, :length], types_BT[row, :length], mask_BT[row, :length] = example.ids, example.types, 1
    targets = np.array([example.target for example in features])
    return Batch(ids_BT, mask_BT, types_BT, targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64))


def logits_of(model: Any, batch: Batch) -> Tensor:
    """Return what the model's head says of a batch: (B, C) of a sequence head, (B, T, 2) of a span head."""
    return model(batch.ids_BT, batch.mask_BT, batch.types_BT).logits


def predict(model: Module, features: Sequence[Features], batch: int = 32, title: str = "") -> list[np.ndarray]:
    """Return the logits of each example, in the given order, float32 on the host: (C,), or (T, 2) without padding.

    Runs without dropout and without a tape; texts of like length go together. With a `title`, progress is shown.
    Raises TinykronError without an example.
    """
    if not features:
        raise TinykronError("predict: expected examples, found none")
    order = sorted(range(len(features)), key=lambda index: len(features[index].ids))
    found: dict[int, np.ndarray] = {}
    progress_bar = Progress(title, len(order), "examples") if title else nullcontext()
    with no_grad(), evaluating(model), progress_bar as progress:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            logits = logits_of(model, collate([features[index] for index in rows])).numpy()
            for index, row in zip(rows, logits, strict=True):
                found[index] = row if row.ndim == 1 else row[: len(features[index].ids)]
            if progress:
                progress.advance(len(rows))
    return [found[index] for index in range(len(order))]

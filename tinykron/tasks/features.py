"""Labelled examples as token ids: padded batches of them, and the logits that a model has for each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykron.data.batch import Batch, inputs
from tinykron.data.tokens import end_token
from tinykron.errors import TinykronError
from tinykron.nn import Module, evaluating
from tinykron.support.progress import Progress
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


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], context: int) -> list[tuple[list[int], list[int]]]:
    """Return the ids and the token types of each text or pair of texts, framed as the tokenizer does.

    A tokenizer that frames nothing, such as GPT-2's, gets its token for the end of a text between the two of a pair,
    and in place of a text of no tokens.
    Beyond `context` tokens, the longer of two texts is cut first. The tokenizer stays as it is.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.no_padding()
    if not tokenizer.num_special_tokens_to_add(True):
        return _joined(tokenizer, texts, context)
    tokenizer.enable_truncation(context, strategy="longest_first")
    encodings = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in texts])
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


def _joined(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], context: int) -> list[tuple[list[int], list[int]]]:
    end = end_token(tokenizer)
    tokenizer.no_truncation()
    sides = [tokenizer.encode_batch(list(side), add_special_tokens=False) for side in zip(*texts, strict=True)]
    found = []
    for encodings in zip(*sides, strict=True):
        parts = [encoding.ids for encoding in encodings]
        while sum(map(len, parts)) > context - (len(parts) - 1):
            max(parts, key=len).pop()
        ids = parts[0] if len(parts) == 1 else [*parts[0], end, *parts[1]]
        found.append((ids or [end], [0] * max(1, len(ids))))
    return found


def collate(features: Sequence[Features]) -> Batch:
    """Return one batch of features."""
    longest = max(len(example.ids) for example in features)
    ids_BT, mask_BT, types_BT = np.zeros((3, len(features), longest), np.int64)
    for row, example in enumerate(features):
        length = len(example.ids)
        ids_BT[row, :length], types_BT[row, :length], mask_BT[row, :length] = example.ids, example.types, 1
    targets = np.array([example.target for example in features])
    return Batch(ids_BT, targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64), mask_BT, types_BT)


def logits_of(model: Any, batch: Batch) -> Tensor:
    """Return what the model's head says of a batch: (B, C) of a sequence head, (B, T, 2) of a span head."""
    return model(*inputs(model, batch)).logits


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

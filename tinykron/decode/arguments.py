"""The arguments of `generate`, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.decode.sampling import whole
from tinykron.errors import DataError, ShapeError, TinykronError
from tinykron.fused import check_range
from tinykron.models.checks import check_exit
from tinykron.models.transformer import Decoder
from tinykron.nn import Module

SKIPPED = ("recompute", "copy")


def check_thresholds(confidence: Mapping[int, float] | None, skipped: str, depth: int) -> dict[int, float] | None:
    """Return the thresholds of exits above which there are blocks; None for none."""
    if skipped not in SKIPPED:
        raise TinykronError(f"skipped: found {skipped!r}, expected one of {', '.join(SKIPPED)}")
    if confidence is None:
        if skipped != SKIPPED[0]:
            raise TinykronError(f'skipped: "{skipped}" says how confidence exits leave their keys; none are given')
        return None
    for blocks, threshold in confidence.items():
        _below(blocks, depth, "confidence")
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0.0 <= threshold <= 1.0:
            raise TinykronError(f"confidence: expected a threshold in [0, 1] for exit {blocks}, found {threshold!r}")
    return {int(blocks): float(threshold) for blocks, threshold in confidence.items()}


def _below(exit: Any, depth: int, name: str) -> int:
    """Return an exit above which there are blocks."""
    if depth == 1:
        raise TinykronError(f"{name}: exit 1 has no exit below it")
    return check_exit(exit, depth - 1, name)


def check_draft(draft: Any, draft_length: int | None, skipped: str, model: Any, depth: int, end: int) -> Any:
    """Return what drafts: a number of blocks, a model, or None."""
    if draft is None:
        if draft_length is not None:
            raise TinykronError(f"draft_length: found {draft_length!r} and no draft")
        return None
    if skipped == "copy":
        raise TinykronError('skipped: "copy" is for texts without a draft; a draft recomputes what it skipped')
    if draft_length is not None:
        whole("draft_length", draft_length, 1)
    if not isinstance(draft, Module):
        return _below(draft, depth, "draft")
    if not isinstance(draft, Decoder):
        raise TinykronError(f"draft: a {type(draft).__name__} is no causal language model")
    if draft.config.vocab_size != model.config.vocab_size:
        sizes = f"{draft.config.vocab_size} tokens, the model {model.config.vocab_size}"
        raise TinykronError(f"draft: it knows {sizes}; expected one vocabulary")
    if draft.context < end:
        raise TinykronError(f"draft: {end} tokens are more than its context of {draft.context}")
    return draft


def check_stops(stop: int | Sequence[int] | None, config: Any, vocabulary: int) -> list[int]:
    """Return the stop tokens as a list; those of a configuration may lie outside the vocabulary, and never occur."""
    given = config.extra.get("eos_token_id") if stop is None else stop
    if given is None:
        return []
    name = "eos_token_id" if stop is None else "stop"
    found = [whole(name, token, 0) for token in ([given] if isinstance(given, (int, np.integer)) else given)]
    inside = [token for token in found if token < vocabulary]
    if stop is not None and len(inside) < len(found):
        raise DataError(f"stop: token ids must be in 0..{vocabulary - 1}, found {max(found)}")
    return inside


def check_prompts(ids: Any, mask: Any, vocabulary: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts (B, T), padded on the left, and where they count, (B, T) booleans; all checked."""
    if isinstance(ids, str):
        raise TinykronError("ids: expected token ids, found text; encode it with model.tokenizer.encode(text).ids")
    if not isinstance(ids, (list, tuple)):
        ids = to_host(ids)
        if ids.ndim not in (1, 2):
            raise ShapeError(f"ids: expected (time,) or (batch, time), found shape {ids.shape}")
        rows = list(np.atleast_2d(ids))
    else:
        rows = [np.asarray(row) for row in (ids if ids and not np.isscalar(ids[0]) else [ids])]
    for number, row in enumerate(rows):
        if row.ndim != 1:
            raise ShapeError(f"ids: row {number} should be a list of token ids, found shape {row.shape}")
        if len(row) == 0:
            raise ShapeError(f"ids: the prompt in row {number} is empty; it needs at least one token")
        check_range(row, vocabulary, f"ids: in row {number}, token id")
    if not rows:
        raise ShapeError("ids: no prompt; expected at least one")
    longest = max(len(row) for row in rows)
    ids_BT = np.full((len(rows), longest), pad, dtype=np.int64)
    mask_BT = np.zeros((len(rows), longest), dtype=bool)
    for number, row in enumerate(rows):
        ids_BT[number, longest - len(row) :] = row
        mask_BT[number, longest - len(row) :] = True
    return ids_BT, mask_BT if mask is None else _left_padding(mask, mask_BT)


def _left_padding(mask: Any, filled_BT: np.ndarray) -> np.ndarray:
    """Return a given mask as booleans, after checking that it hides the left of each row alone."""
    if not filled_BT.all():
        raise ShapeError("mask: prompts of unequal lengths make their own; pass one only with prompts of one length")
    mask_BT = np.atleast_2d(np.asarray(mask) if isinstance(mask, (list, tuple)) else to_host(mask)) != 0
    if mask_BT.shape != filled_BT.shape:
        raise ShapeError(f"mask: expected the shape of ids, {filled_BT.shape}, found {mask_BT.shape}")
    wrong = ~mask_BT[:, -1] | (mask_BT[:, :-1] & ~mask_BT[:, 1:]).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ShapeError(f"mask: row {row} should be zeros, then ones (padding on the left), and end with a one")
    return mask_BT


def check_end(start: int, max_new_tokens: int | None, context: int) -> int:
    """Return how many positions prompt and new tokens take. Raises TinykronError where they do not fit."""
    if start > context:
        raise TinykronError(f"ids: a prompt of {start} tokens is longer than the model's context of {context}")
    if max_new_tokens is None:
        return context
    end = start + whole("max_new_tokens", max_new_tokens, 1)
    if end > context:
        raise TinykronError(
            f"max_new_tokens: {start} tokens of prompt + {max_new_tokens} new ones are more than the model's context "
            f"of {context}; ask for at most {context - start}, or None for what fits"
        )
    return end

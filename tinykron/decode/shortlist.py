"""A short list of the vocabulary, for drafts: they read the rows of the head that are used most, not all of it.

A small model's head takes longer than its blocks. What drafts can say need not be all that the model can: a token that
no draft proposes has probability 0 there, and the check gives it the model's own. FR-Spec, Zhao et al. 2025
(arXiv 2502.14856), where the list is of the most frequent tokens of a text, as it is here.

Letters: B batch, T positions, K tokens of the list, V vocabulary, D model width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import fused
from tinykron.backend import to_host
from tinykron.errors import CheckpointError, DataError
from tinykron.nn import Module
from tinykron.support import files
from tinykron.tensor import Tensor

FILE = "frequent_tokens.json"  # of a folder: ids, the most frequent of what the model was trained on first
KEPT = 8192  # tokens in it, at most


def frequent(ids: np.ndarray, count: int = KEPT) -> np.ndarray:
    """Return the `count` most frequent of token ids (...), the most frequent first; of equals the lower id."""
    counts_V = np.bincount(ids.reshape(-1))
    order = np.argsort(-counts_V, kind="stable")[:count]
    return order[counts_V[order] > 0]


class Shortlist:
    """Some tokens of a vocabulary, and the rows of heads that belong to them, each taken out once."""

    def __init__(self, tokens: Any, vocabulary: int) -> None:
        """Raises DataError unless `tokens` (K,) are ids, each once, in 0..vocabulary - 1."""
        self.tokens_K, self.vocabulary = np.atleast_1d(np.asarray(tokens)), vocabulary
        if self.tokens_K.dtype.kind not in "iu" or self.tokens_K.ndim != 1 or not len(self.tokens_K):
            raise DataError(f"shortlist: expected a list of token ids, found {tokens!r}")
        fused.check_range(self.tokens_K, vocabulary, "shortlist: token id")
        if len(np.unique(self.tokens_K)) < len(self.tokens_K):
            raise DataError("shortlist: expected each token once")
        self._rows: dict[Module, Tensor] = {}

    def logits(self, x_BTD: Tensor, head: Any) -> np.ndarray:
        """Return, on the host, the logits (B, T, V) of a table that is an output head: -inf for all other tokens."""
        if head not in self._rows:
            self._rows[head] = head(self.tokens_K)  # looks rows up, whatever the table is made of
        scores_BTK = to_host(fused.linear(x_BTD, self._rows[head], transposed=True).data)
        logits_BTV = np.full((*scores_BTK.shape[:-1], self.vocabulary), -np.inf, dtype=scores_BTK.dtype)
        logits_BTV[..., self.tokens_K] = scores_BTK
        return logits_BTV


def write(tokens: np.ndarray, folder: str | Path) -> None:
    """Keep a list in a checkpoint's folder."""
    files.write(Path(folder) / FILE, json.dumps([int(token) for token in tokens]) + "\n")


def read(folder: str | Path, count: int | None = None) -> np.ndarray:
    """Return the first `count` tokens, or all, of a folder's list. Raises CheckpointError if it has none, or not so."""
    path = Path(folder) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {FILE}; `tinykron sort` writes one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a list of token ids in JSON: {error}") from None
    if not isinstance(found, list) or not found or not all(type(token) is int for token in found):
        raise CheckpointError(f"{path}: expected a list of token ids")
    return np.array(found[:count])

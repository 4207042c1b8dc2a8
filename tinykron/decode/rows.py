"""The rows that a generation writes: prompts, what is added to them until they end, and text as it becomes final.

Letters: B batch, T prompt positions, N new tokens, S all positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


class Continuations:
    """Prompts of unequal length and their new tokens; a row ends with a stop token or after `most` new tokens."""

    def __init__(
        self,
        prompt_BT: np.ndarray,
        mask_BT: np.ndarray,
        most: int,
        stops: Sequence[int] = (),
        said: Callable[[int], object] | None = None,
    ) -> None:
        """`mask_BT` is nonzero where a prompt's tokens count; `said` is called with each new token of row 0."""
        self.prompt_BT, self.most, self.stops, self.said = prompt_BT, most, frozenset(stops), said
        self.tokens = [row[counts].tolist() for row, counts in zip(prompt_BT, mask_BT, strict=True)]
        self.new: list[list[int]] = [[] for _ in self.tokens]
        self.depths: list[list[int]] = [[] for _ in self.tokens]  # blocks behind each new token
        self.room = [most for _ in self.tokens]  # tokens that a row still takes: 0 once it has ended

    @property
    def active(self) -> list[int]:
        """The rows that have not ended."""
        return [row for row, room in enumerate(self.room) if room]

    @property
    def lengths_B(self) -> np.ndarray:
        """How many tokens each row has, prompt included."""
        return np.array([len(tokens) for tokens in self.tokens])

    def add(self, row: int, tokens: Iterable[int], depth: int) -> None:
        """Give a row its next tokens, made by `depth` blocks; those after its end are dropped."""
        for token in tokens:
            if not self.room[row]:
                return
            self.tokens[row].append(token)
            self.new[row].append(token)
            self.depths[row].append(depth)
            self.room[row] = 0 if token in self.stops else self.room[row] - 1
            if self.said:
                self.said(token)

    def last_BT(self, count: int) -> np.ndarray:
        """Return the last `count` tokens of each row, (B, count), a shorter row behind zeros."""
        last_BT = np.zeros((len(self.tokens), count), dtype=np.int64)
        for row, tokens in enumerate(self.tokens):
            kept = tokens[-count:]
            last_BT[row, count - len(kept) :] = kept
        return last_BT

    def ids_BS(self) -> np.ndarray:
        """Return prompts as they were given and new tokens; a row that ended early repeats its last token."""
        longest = max(map(len, self.new))
        filled = [tokens + tokens[-1:] * (longest - len(tokens)) for tokens in self.new]
        return np.concatenate([self.prompt_BT, np.array(filled, dtype=np.int64).reshape(len(filled), longest)], axis=1)

    def depths_BN(self) -> np.ndarray:
        """Return how many blocks made each new token; 0 behind a row's end."""
        longest = max(map(len, self.depths))
        filled = [depths + [0] * (longest - len(depths)) for depths in self.depths]
        return np.array(filled, dtype=np.int64).reshape(len(filled), longest)


class TextStream:
    """Turns token ids, one by one, into text that is final: bytes of an unfinished character are held back.

    The pieces, `end()` included, join to `tokenizer.decode` of all ids. That function decides on the whole each time,
    so that it holds for every tokenizer whose text only grows, such as byte-level BPE and SentencePiece.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.sent = 0  # characters

    def put(self, token_id: int) -> str:
        """Add a token; return the text that is now final, "" if it ends within a character."""
        self.ids.append(token_id)
        text = self.tokenizer.decode(self.ids)
        return self._advance(text.rstrip("\ufffd"))  # an unfinished character decodes to replacement characters

    def end(self) -> str:
        """Return what was held back: "", or a replacement character for bytes that never became one."""
        return self._advance(self.tokenizer.decode(self.ids))

    def _advance(self, text: str) -> str:
        piece = text[self.sent :]
        self.sent += len(piece)
        return piece

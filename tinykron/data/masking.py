"""Masked language modelling, BERT's task: its tokenizer, and batches with hidden tokens. Devlin et al. 2019."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinykron.data.corpus import Document
from tinykron.data.tokens import IGNORED, sample_batch
from tinykron.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END, MASK = "[CLS]", "[SEP]", "[MASK]"
SPECIAL = ("[PAD]", "[UNK]", START, END, MASK)  # ids 0 to 4 of a tokenizer that is trained here


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden, and which tokens frame a window."""

    start: int  # id of [CLS]
    end: int  # id of [SEP]
    mask: int  # id of [MASK]
    vocabulary: int
    share: float = 0.15  # of the tokens that are to be predicted; 0: none, the text is read as it is

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Masking:
        """Return the masking for a tokenizer. Raises DataError if it lacks one of the three tokens."""
        start, end, mask = (tokenizer.token_to_id(token) for token in (START, END, MASK))
        if start is None or end is None or mask is None:
            lacking = [token for token in (START, END, MASK) if tokenizer.token_to_id(token) is None]
            raise DataError(f"a masked language model needs {START}, {END} and {MASK}; the tokenizer lacks {lacking}")
        return cls(start, end, mask, tokenizer.get_vocab_size())

    def hide(self, ids_BT: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs_BT, targets_BT): `share` of the ids become targets, all others are left out of the loss.

        Of those, 80 % read [MASK], 10 % a random token, 10 % stay as they are. Frame tokens are never chosen; each row
        has at least one target unless `share` is 0.
        """
        if not self.share:
            return ids_BT, np.full_like(ids_BT, IGNORED)
        drawn_BT = generator.random(ids_BT.shape)
        drawn_BT[(ids_BT == self.start) | (ids_BT == self.end)] = 2.0
        chosen_BT = (drawn_BT < self.share) | (drawn_BT == drawn_BT.min(axis=1, keepdims=True))
        targets_BT = np.where(chosen_BT, ids_BT, IGNORED)
        kind_BT = generator.random(ids_BT.shape)
        random_BT = generator.integers(0, self.vocabulary, ids_BT.shape)
        hidden_BT = np.where(kind_BT < 0.8, self.mask, np.where(kind_BT < 0.9, random_BT, ids_BT))
        return np.where(chosen_BT, hidden_BT, ids_BT), targets_BT

    def frame(self, ids_BT: np.ndarray) -> np.ndarray:
        """Return [CLS] ids [SEP] for each row, (B, T + 2)."""
        start, end = (np.full((len(ids_BT), 1), token, dtype=np.int64) for token in (self.start, self.end))
        return np.concatenate([start, ids_BT, end], axis=1)

    def sample_batch(
        self, tokens: np.ndarray, batch: int, context: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs_BT, targets_BT), int64: framed random windows of `tokens`, some of their tokens hidden."""
        window_BT, _ = sample_batch(tokens, batch, context - 2, generator)
        return self.hide(self.frame(window_BT), generator)

    def windows(self, tokens: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs_WT, targets_WT): windows side by side, framed, with the same tokens hidden each time.

        Raises DataError without a token, or a context that has no room for one.
        """
        inner = min(context - 2, len(tokens))
        if inner < 1:
            raise DataError(f"masked windows: found {len(tokens)} tokens and a context of {context}, need 1 and 3")
        ids_WT = self.frame(tokens[: len(tokens) // inner * inner].reshape(-1, inner).astype(np.int64))
        return self.hide(ids_WT, np.random.default_rng(0))

    def sample_pairs(
        self, tokens: np.ndarray, batch: int, context: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return (inputs_BT, targets_BT, types_BT, other_B), int64: [CLS] A [SEP] B [SEP] with hidden tokens.

        In half of the rows, drawn, B is what follows A in `tokens`, and `other_B` is 0; elsewhere it comes from another
        place, and `other_B` is 1: next-sentence prediction, of windows in place of sentences. `types_BT` is 1 in B.
        Raises DataError where the tokens have no other place. Devlin et al. 2019, section 3.1.
        """
        first = (context - 3) // 2
        second = context - 3 - first
        places = len(tokens) - second + 1  # where B can start
        if first < 1 or places - first < 1:
            need = f"need {context - 3} of them, and a context of at least 5"
            raise DataError(f"pairs of windows: found {len(tokens)} tokens and a context of {context}, {need}")
        starts_B = generator.integers(0, places - first, size=batch)
        other_B = generator.integers(0, 2, size=batch)
        away_B = other_B * generator.integers(1, places, size=batch)  # 0 where B follows A; never a whole round
        follows_B = (starts_B + first + away_B) % places
        a_BT = tokens[starts_B[:, None] + np.arange(first)].astype(np.int64)
        b_BT = tokens[follows_B[:, None] + np.arange(second)].astype(np.int64)
        start_B1, end_B1 = (np.full((batch, 1), token, dtype=np.int64) for token in (self.start, self.end))
        inputs_BT, targets_BT = self.hide(np.concatenate([start_B1, a_BT, end_B1, b_BT, end_B1], axis=1), generator)
        types_BT = np.zeros_like(inputs_BT)
        types_BT[:, first + 2 :] = 1
        return inputs_BT, targets_BT, types_BT, other_B


def train_wordpiece(documents: Sequence[Document], vocab_size: int = 2048) -> Tokenizer:
    """Train a lower-casing WordPiece in BERT's manner: `encode` frames a text by [CLS] and [SEP].

    A small corpus can hold fewer pieces than asked for: `tokenizer.get_vocab_size()` tells. Same text, same tokenizer.
    A word with a rare character, one beyond the `vocab_size` / 8 most frequent ones, reads [UNK].
    Raises DataError for a vocabulary that cannot hold the special tokens and an alphabet. Schuster & Nakajima 2012.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    least = 8 * len(SPECIAL)
    if vocab_size < least:
        raise DataError(f"vocab_size: found {vocab_size}, expected at least {least}")
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for document in documents:
        text = normalizer.normalize_str(document.text)
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    characters: Counter[str] = Counter()
    for word, times in words.items():
        characters.update({character: times * word.count(character) for character in set(word)})
    by_count = sorted(characters, key=lambda character: (-characters[character], character))
    alphabet = sorted(by_count[: vocab_size // 8])
    # The library numbers pieces of one character in a hash map's order; given as special tokens, they keep this one.
    given = [*SPECIAL, *alphabet, *(f"##{character}" for character in alphabet)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=given, show_progress=False)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = set(alphabet)
    learner.train_from_iterator(
        (" ".join([word] * words[word]) for word in sorted(words) if known >= set(word)), trainer
    )

    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return tokenizer

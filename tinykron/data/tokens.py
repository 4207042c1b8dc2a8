"""Token ids of documents: training a tokenizer, encoding, and cutting the stream into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinykron.data.corpus import Document
from tinykron.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "[SEP]")  # GPT-2's, LLaMA 2's, LLaMA 3's, BERT's
IGNORED = -100  # the target that cross-entropy leaves out
ENCODE_AT_ONCE = 256  # documents: bounds the memory that the tokenizer's results take beside the ids


def train_tokenizer(documents: Sequence[Document], vocab_size: int = 2048) -> Tokenizer:
    """Train a byte-level BPE in GPT-2's manner: any text encodes, and decodes to itself. `<|endoftext|>` is id 0.

    A small corpus can hold fewer pairs than asked for: `tokenizer.get_vocab_size()` tells. Same text, same tokenizer.
    Raises DataError for a vocabulary that cannot hold the 256 bytes. Sennrich et al. 2016; Radford et al. 2019.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = 257  # the 256 bytes and the end of text
    if vocab_size < least:
        raise DataError(f"vocab_size: found {vocab_size}, expected at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> np.ndarray:
    """Return all documents as one stream of token ids (N,) int32, each document closed by a token that ends a text.

    That is the first the tokenizer has of `ENDS`: GPT-2's `<|endoftext|>`, LLaMA's, BERT's `[SEP]`.
    Truncation and padding set in the tokenizer are not applied. Raises DataError if the tokenizer has no such token.
    """
    end = end_token(tokenizer)
    tokenizer = uncut(tokenizer)
    parts = []
    for start in range(0, len(documents), ENCODE_AT_ONCE):
        texts = [document.text for document in documents[start : start + ENCODE_AT_ONCE]]
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], dtype=np.int32))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id of the first token of `ENDS` that a tokenizer has. Raises DataError if it has none."""
    end = next((number for token in ENDS if (number := tokenizer.token_to_id(token)) is not None), None)
    if end is None:
        raise DataError(f"the tokenizer has none of {', '.join(ENDS)}; one has to stand behind each text")
    return end


def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer without truncation and padding: itself, or a copy where it has them set."""
    if tokenizer.truncation or tokenizer.padding:
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # the caller's stays as it is
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def sample_batch(
    tokens: np.ndarray, batch: int, context: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs_BT, targets_BT), int64: random windows of `tokens`, and the same windows one token later.

    All that is random comes from `generator`: with its state restored, training goes on with the very same batches.
    Raises DataError when there are not context + 1 tokens.
    """
    _need(tokens, context + 1)
    starts_B = generator.integers(0, len(tokens) - context, size=batch)
    window = tokens[starts_B[:, None] + np.arange(context + 1)].astype(np.int64)
    return window[:, :-1], window[:, 1:]


def windows(tokens: np.ndarray, context: int, stride: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs_WT, targets_WT), int64: W windows in which every token but the first is a target exactly once.

    Each window starts `stride` (default: context) tokens after the one before. Where windows overlap, the targets that
    the earlier one had are -100, as are those after the end of the text: cross-entropy leaves them out.
    Raises DataError for fewer than two tokens, or a stride outside 1..context.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise DataError(f"stride: found {stride}, expected 1 to {context} (the context)")
    _need(tokens, 2)
    targets = len(tokens) - 1
    count = 1 + max(0, -(-(targets - context) // stride))
    starts_W = stride * np.arange(count)
    padded = np.full(starts_W[-1] + context + 1, IGNORED, dtype=np.int64)
    padded[: len(tokens)] = tokens
    window = padded[starts_W[:, None] + np.arange(context + 1)]
    inputs_WT, targets_WT = window[:, :-1].copy(), window[:, 1:].copy()
    inputs_WT[inputs_WT == IGNORED] = 0  # behind the text: any valid id will do, nothing looks at it
    targets_WT[1:, : context - stride] = IGNORED
    return inputs_WT, targets_WT


def _need(tokens: np.ndarray, count: int) -> None:
    if len(tokens) < count:
        raise DataError(f"the text is too short: found {len(tokens)} tokens, need {count}")

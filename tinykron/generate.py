"""Decoding: greedy and sampled text from a causal language model, one position at a time behind a key/value cache.

Letters: B batch, T prompt positions, S all positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.errors import DataError, ShapeError, TinykronError
from tinykron.fused import check_range
from tinykron.nn import Module
from tinykron.tensor import no_grad


def generate(
    model: Any,
    ids: Any,
    max_new_tokens: int | None = 40,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: int | Sequence[int] | None = None,
    mask: Any = None,
    stream: Callable[[str], object] | None = None,
) -> np.ndarray:
    """Continue prompts, and return them with their continuations: int64 (B, S) on the host, S <= T + max_new_tokens.

    model           a causal model with `cache(capacity)`, such as GPT2; it runs without dropout and without a tape
    ids             a prompt: list of token ids or (T,) array; or several: list of lists, padded on the left to the
                    longest with the first stop token (0 if there is none), or a (B, T) array
    max_new_tokens  how many tokens to add at most; None fills the context
    temperature     0 takes the most likely token; otherwise logits are divided by it and a token is drawn
    top_k, top_p    draw only from the k most likely tokens, then only from the fewest whose probability reaches p
    seed            row b draws from its own stream, seeded (seed, b): its text does not depend on the other rows
    stop            token ids that end a row, which repeats its last one until all rows have ended; by default the
                    `eos_token_id` of the model's configuration, () for none
    mask            (B, T), nonzero where a token of an array `ids` counts: padding on the left does not
    stream          called with pieces of the new text of a single prompt as they become final, special tokens left
                    out; together they are `model.tokenizer.decode` of the new ids
    Positions are counted from a row's first token that counts, so that padding changes nothing.
    Raises DataError for an id outside the vocabulary, ShapeError for prompts or masks of a wrong form, TinykronError
    for an argument out of range and where prompt and new tokens do not fit the context: all before the model runs.
    """
    if not hasattr(model, "cache"):
        raise TinykronError(f"generate: a {type(model).__name__} is no causal language model")
    _check_sampling(temperature, top_k, top_p, seed)
    vocabulary = model.config.vocab_size
    stops = _stop_ids(stop, model.config, vocabulary)
    prompt_BT, mask_BT = _prompts(ids, mask, vocabulary, pad=stops[0] if stops else 0)
    batch, start = prompt_BT.shape
    end = _end(start, max_new_tokens, model.context)
    text = _text_stream(model, stream, batch)

    ids_BS = np.empty((batch, end), dtype=np.int64)
    ids_BS[:, :start] = prompt_BT
    mask_BS = np.ones((batch, end), dtype=bool)
    mask_BS[:, :start] = mask_BT
    positions_BS = np.maximum(np.cumsum(mask_BS, axis=1) - 1, 0)
    padded = not mask_BT.all()
    generators = [np.random.default_rng((seed, row)) for row in range(batch)]
    ended_B = np.zeros(batch, dtype=bool)
    with no_grad(), _evaluating(model):
        cache, cached, filled = model.cache(end), 0, start
        while filled < end and not ended_B.all():
            logits_B1V = model(
                ids_BS[:, cached:filled],
                mask_BS[:, :filled] if padded else None,
                positions_BT=positions_BS[:, cached:filled],
                cache=cache,
                last_only=True,
            ).logits
            next_B = _choose(to_host(logits_B1V.data)[:, -1], temperature, top_k, top_p, generators)
            ids_BS[:, filled] = np.where(ended_B, ids_BS[:, filled - 1], next_B)
            ended_B |= np.isin(next_B, stops)
            cached, filled = filled, filled + 1
            if text and stream:
                _send(stream, text.put(int(next_B[0])))
    if text and stream:
        _send(stream, text.end())
    return ids_BS[:, :filled].copy()


def distribution(
    logits_V: np.ndarray, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """Return the probabilities (V,), float64, that sampling draws from: temperature, then top-k, then top-p.

    Tokens as likely as the k-th stay with it, so that more than k may remain. Top-p keeps the fewest most likely
    tokens whose probabilities, after top-k, add up to at least `top_p`: always one; of equals the lower id goes first.
    Top-k: Fan et al. 2018; top-p: Holtzman et al. 2020; the order and the ties are those of transformers.
    """
    scores = logits_V.astype(np.float64)
    scores -= scores.max()
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the largest to -inf
        scores /= temperature
    if top_k is not None and top_k < len(scores):
        scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
    probabilities = np.exp(scores)
    probabilities /= probabilities.sum()
    if top_p is not None and top_p < 1.0:
        # Tokens below (1 - p) / V weigh less than 1 - p together: none is among those that reach p, none needs sorting.
        likely = np.flatnonzero(probabilities >= (1.0 - top_p) / len(probabilities))
        order = likely[np.argsort(-probabilities[likely], kind="stable")]
        kept = order[: np.searchsorted(np.cumsum(probabilities[order]), top_p) + 1]
        nucleus = np.zeros_like(probabilities)
        nucleus[kept] = probabilities[kept] / probabilities[kept].sum()
        return nucleus
    return probabilities


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


# Arguments ------------------------------------------------------------------------------------------------------------


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> None:
    if not 0.0 <= temperature < float("inf"):
        raise TinykronError(f"temperature: expected a finite number >= 0, found {temperature}")
    if top_k is not None:
        _whole("top_k", top_k, 1)
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise TinykronError(f"top_p: expected a probability in (0, 1], found {top_p}")
    _whole("seed", seed, 0)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise TinykronError(f"{name}: expected a whole number >= {least}, found {value!r}")
    return int(value)


def _stop_ids(stop: int | Sequence[int] | None, config: Any, vocabulary: int) -> list[int]:
    """Return the stop tokens as a list; those of a configuration may lie outside the vocabulary, and never occur."""
    given = config.extra.get("eos_token_id") if stop is None else stop
    if given is None:
        return []
    name = "eos_token_id" if stop is None else "stop"
    found = [_whole(name, token, 0) for token in ([given] if isinstance(given, (int, np.integer)) else given)]
    inside = [token for token in found if token < vocabulary]
    if stop is not None and len(inside) < len(found):
        raise DataError(f"stop: token ids must be in 0..{vocabulary - 1}, found {max(found)}")
    return inside


def _prompts(ids: Any, mask: Any, vocabulary: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
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


def _end(start: int, max_new_tokens: int | None, context: int) -> int:
    """Return how many positions prompt and new tokens take. Raises TinykronError where they do not fit."""
    if start > context:
        raise TinykronError(f"ids: a prompt of {start} tokens is longer than the model's context of {context}")
    if max_new_tokens is None:
        return context
    end = start + _whole("max_new_tokens", max_new_tokens, 1)
    if end > context:
        raise TinykronError(
            f"max_new_tokens: {start} tokens of prompt + {max_new_tokens} new ones are more than the model's context "
            f"of {context}; ask for at most {context - start}, or None for what fits"
        )
    return end


def _text_stream(model: Any, stream: Any, batch: int) -> TextStream | None:
    if stream is None:
        return None
    if batch > 1:
        raise TinykronError(f"stream: takes the text of one prompt, found {batch}")
    if model.tokenizer is None:
        raise TinykronError("stream: the model has no tokenizer to make text with")
    return TextStream(model.tokenizer)


# One step -------------------------------------------------------------------------------------------------------------


def _choose(
    logits_BV: np.ndarray,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generators: list[np.random.Generator],
) -> np.ndarray:
    """Return the next token of each row, (B,) int64: the most likely one, or one drawn from the row's generator."""
    best_B = logits_BV.argmax(axis=-1)
    if not np.isfinite(logits_BV[np.arange(len(best_B)), best_B]).all():  # argmax finds a NaN first
        raise TinykronError("generate: the model's logits are not finite; its weights may be damaged")
    if temperature == 0:
        return best_B
    return np.array(
        [
            draw(distribution(logits_V, temperature, top_k, top_p), generator)
            for logits_V, generator in zip(logits_BV, generators, strict=True)
        ]
    )


def draw(probabilities_V: np.ndarray, generator: np.random.Generator) -> int:
    """Draw an index by inverting the cumulative sum: one uniform number a token, and never one of probability 0."""
    reached_V = np.cumsum(probabilities_V)
    return int(np.searchsorted(reached_V, generator.random() * reached_V[-1], side="right"))


def _send(stream: Callable[[str], object], piece: str) -> None:
    if piece:
        stream(piece)


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Switch dropout off for a block; every module gets back the mode it had."""
    before = [(module, module.training) for _, module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training

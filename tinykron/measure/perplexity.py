"""How well a model predicts text: perplexity from left to right, pseudo-perplexity of a masked language model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import exp, inf, log
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data
from tinykron.data.batch import CONTEXT
from tinykron.data.masking import Masking
from tinykron.errors import DataError, TinykronError
from tinykron.fused import cross_entropy
from tinykron.nn import evaluating
from tinykron.support.progress import Progress
from tinykron.tensor import no_grad

LOGITS_AT_ONCE = 2048  # rows of logits: in bounds with a vocabulary of 50,257; the longest window by default


@dataclass(frozen=True)
class Evaluation:
    """What a text costs a model."""

    measure: str  # "perplexity" or "pseudo-perplexity"
    tokens: int  # that were predicted
    of: int  # that could have been
    context: int  # longest window, in tokens
    stride: int  # from one window's start to the next one's
    nats: float  # per predicted token
    text_bytes: int  # UTF-8, of the whole text; that of the predicted share, where only some tokens were
    documents: int
    text: str  # where it came from

    @property
    def perplexity(self) -> float:
        return bounded_exp(self.nats)

    @property
    def bits_per_byte(self) -> float:
        """The same cost in a unit that no tokenizer changes."""
        return self.nats * self.tokens / (log(2.0) * self.text_bytes)


def bounded_exp(nats: float) -> float:
    """Return e to the power `nats`, infinity where that is beyond the largest float."""
    return exp(nats) if nats < log(sys.float_info.max) else inf


def perplexity(
    model: Any, tokens: np.ndarray, context: int, batch: int | None = None, stride: int | None = None, title: str = ""
) -> float:
    """Return exp(mean cross-entropy per token) over `tokens`: every token but the first is predicted once.

    Infinity where that is beyond the largest float. Windows of `context` tokens start `stride` (default: context)
    apart; a token is predicted from those before it in its window. `batch` windows go at once; by default as many as
    make about 2,048 tokens, whose logits stay in bounds with a vocabulary of 50,257. With a `title`, progress is shown.
    """
    nats, count = _total_nats(model, [tokens], context, batch, stride, title)
    return bounded_exp(nats / count)


def _total_nats(
    model: Any, streams: Sequence[np.ndarray], context: int, batch: int | None, stride: int | None, title: str
) -> tuple[float, int]:
    """Return the summed cross-entropy of all tokens but the first of each stream, and how many those are."""
    parts = [data.windows(tokens, context, stride) for tokens in streams]
    inputs_WT, targets_WT = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    batch = batch or max(1, LOGITS_AT_ONCE // context)
    nats, count = 0.0, 0
    with (
        no_grad(),
        evaluating(model),
        Progress(title, len(inputs_WT), "windows") if title else nullcontext() as progress,
    ):
        for start in range(0, len(inputs_WT), batch):
            targets_BT = targets_WT[start : start + batch]
            counted = int((targets_BT != data.IGNORED).sum())
            loss = cross_entropy(model(inputs_WT[start : start + batch]).logits, targets_BT, data.IGNORED)
            nats, count = nats + loss.item() * counted, count + counted
            if progress:
                progress.advance(len(targets_BT))
    return nats, count


def masked_perplexity(model: Any, tokens: np.ndarray, context: int, masking: Masking, batch: int = 16) -> float:
    """Return exp(mean cross-entropy) of hidden tokens, the same ones each time, in consecutive windows of `tokens`.

    It is what training minimises, and cheap; pseudo-perplexity hides one token at a time.
    """
    inputs_WT, targets_WT = masking.windows(tokens, context)
    nats, count = 0.0, 0
    with no_grad(), evaluating(model):
        for start in range(0, len(inputs_WT), batch):
            targets_BT = targets_WT[start : start + batch]
            counted = int((targets_BT != data.IGNORED).sum())
            loss = cross_entropy(model(inputs_WT[start : start + batch]).logits, targets_BT, data.IGNORED)
            nats, count = nats + loss.item() * counted, count + counted
    return bounded_exp(nats / count)


def held_out_perplexity(model: Any, tokens: np.ndarray, context: int, masking: Masking | None) -> float:
    """Return the perplexity that training lowers: of each next token, or of those that `masking` hides."""
    if masking:
        return masked_perplexity(model, tokens, context, masking)
    return perplexity(model, tokens, context)


def pseudo_nats(
    model: Any,
    streams: Sequence[np.ndarray],
    masking: Masking,
    context: int,
    limit: int | None = None,
    title: str = "",
) -> tuple[float, int]:
    """Return the summed cost in nats of tokens that are hidden one at a time, and how many those are.

    streams  of (N,) tokens; [CLS] and [SEP] are put around each window of at most `context`, and are never hidden
    limit    hide at most so many tokens, evenly spaced over all streams; None: every one
    The exponential of their mean is the pseudo-perplexity. Salazar et al. 2020.
    """
    windows, places = _to_hide(streams, masking, context - 2, limit)
    nats, count = 0.0, sum(map(len, places))
    with no_grad(), evaluating(model), Progress(title, count, "tokens") if title else nullcontext() as progress:
        for window_T, places_C in zip(windows, places, strict=True):
            framed_1T = masking.frame(window_T[None])
            step = max(1, LOGITS_AT_ONCE // framed_1T.shape[1])
            for first in range(0, len(places_C), step):
                hidden_B = 1 + places_C[first : first + step]  # behind [CLS]
                rows_B = np.arange(len(hidden_B))
                ids_BT = np.repeat(framed_1T, len(hidden_B), axis=0)
                targets_BT = np.full_like(ids_BT, data.IGNORED)
                targets_BT[rows_B, hidden_B] = ids_BT[rows_B, hidden_B]
                ids_BT[rows_B, hidden_B] = masking.mask
                nats += cross_entropy(model(ids_BT).logits, targets_BT, data.IGNORED).item() * len(hidden_B)
                if progress:
                    progress.advance(len(hidden_B))
    return nats, count


def _to_hide(
    streams: Sequence[np.ndarray], masking: Masking, inner: int, limit: int | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the windows (T,) of all streams, and in each the places (C,) of the tokens to hide."""
    windows = [
        np.asarray(tokens[start : start + inner], np.int64)
        for tokens in streams
        for start in range(0, len(tokens), inner)
    ]
    places = [np.flatnonzero((window != masking.start) & (window != masking.end)) for window in windows]
    count = sum(map(len, places))
    if count == 0:
        raise DataError("pseudo-perplexity: the text is empty, expected at least one token")
    if limit is None or limit >= count:
        return windows, places
    chosen = np.zeros(count, bool)
    chosen[np.linspace(0, count - 1, limit).round().astype(int)] = True
    ends = np.cumsum([len(part) for part in places])[:-1]
    return windows, [part[kept] for part, kept in zip(places, np.split(chosen, ends), strict=True)]


def evaluate(
    model: Any,
    source: str | Path | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> Evaluation:
    """Return what a text costs a model: perplexity, or pseudo-perplexity of a BERT with its masked-LM head.

    source   a text file, read as one stream exactly as `model.tokenizer.encode` gives it, with the special tokens that
             it adds (none around a masked model's, whose windows are framed); a folder, each file such a stream; None:
             the documents that training holds out of the embedded corpus, one stream in which a token ends each
    context  longest window in tokens; by default the model's own, at most 2,048
    stride   from one window to the next; by default the context. A smaller one gives each token more to be told from
    limit    of tokens that a masked model hides; None: all
    With a stride below the context, the windows are those of transformers' documentation: `context` tokens, the last
    of them predicted from all others. With a stride equal to it, that would leave out each window's first token; so
    here the token behind a window is predicted from it, as in training, and every token but the first is counted once.
    Raises TinykronError, before the model runs, for a model that predicts no tokens and for settings out of range.
    """
    causal = model.causal
    if not model.writes and not model.fills:
        raise TinykronError(f"eval: this {type(model).__name__} has no head that predicts tokens")
    if model.tokenizer is None:
        raise TinykronError("eval: the model has no tokenizer to read text with")
    context = min(model.context, LOGITS_AT_ONCE) if context is None else context
    least = 1 if causal else 3
    if not least <= context <= model.context:
        raise TinykronError(f"context: found {context}, expected {least} to the model's {model.context}")
    if not causal and stride is not None:
        raise TinykronError("stride: a masked language model is read in windows side by side; leave it out")
    if stride is not None and not 1 <= stride <= context:
        raise TinykronError(f"stride: found {stride}, expected 1 to {context} (the context)")
    if causal and limit is not None:
        raise TinykronError("limit: a causal model predicts every token of a window at once; leave it out")
    if limit is not None and limit < 1:
        raise TinykronError(f"limit: found {limit}, expected at least 1")
    masking = None if causal else Masking.of(model.tokenizer)
    streams, size, where = _streams(model.tokenizer, source, causal)
    if masking is None:
        stride = context if stride is None else stride
        inputs = context if stride == context else context - 1
        nats, count = _total_nats(model, streams, inputs, None, stride, "reading the text")
        return Evaluation("perplexity", count, count, context, stride, nats / count, size, len(streams), where)
    nats, count = pseudo_nats(model, streams, masking, context, limit, "hiding tokens")
    of = sum(int(((tokens != masking.start) & (tokens != masking.end)).sum()) for tokens in streams)
    size = round(size * count / of)  # of those that were hidden; the others cost as much on average
    return Evaluation("pseudo-perplexity", count, of, context, context - 2, nats / count, size, len(streams), where)


def _streams(tokenizer: Any, source: str | Path | None, special: bool) -> tuple[list[np.ndarray], int, str]:
    """Return the token streams of a text, its size in bytes, and words for where it came from."""
    if source is None:
        _, held_out = data.split(data.documents())
        size = sum(len(document.text.encode()) for document in held_out)
        where = f"{len(held_out)} documents that training holds out of the text that every Python carries, one stream"
        return [data.encode(tokenizer, held_out)], size, f"{where}, a token behind each"
    tokenizer, files = data.uncut(tokenizer), data.whole_files(source)
    streams = [np.array(tokenizer.encode(text, add_special_tokens=special).ids, np.int64) for _, text in files]
    for (name, _), stream in zip(files, streams, strict=True):
        if len(stream) < (2 if special else 1):
            raise DataError(f"{source}: {name} is too short to predict a token of it")
    return streams, sum(len(text.encode()) for _, text in files), str(source)


def render(found: Evaluation) -> str:
    """Return an evaluation as lines for a terminal."""
    plural = "" if found.documents == 1 else "s"
    share = f" of {found.of:,}, evenly spaced" if found.of > found.tokens else ""
    lines: Sequence[str] = [
        f"{found.measure} {found.perplexity:.2f}: {found.nats:.4f} nats a token, {found.bits_per_byte:.4f} bits a byte",
        f"{found.tokens:,} tokens predicted{share}, context {found.context}, stride {found.stride}; "
        f"{found.documents} text{plural}: {found.text}",
    ]
    return "\n".join(lines)


MEASURED_TOKENS = 8192  # of held-out text


def measured(model: Any, documents: list[data.Document]) -> float | None:
    """Return the perplexity of some held-out text; None for a model that predicts no tokens."""
    causal = model.causal
    if not model.writes and not model.fills:
        return None
    tokens = data.encode(model.tokenizer, documents)[:MEASURED_TOKENS]
    context = min(model.context, CONTEXT)
    return held_out_perplexity(model, tokens, context, None if causal else Masking.of(model.tokenizer))

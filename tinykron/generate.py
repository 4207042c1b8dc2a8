"""Decoding: text from a causal language model: greedy or sampled, by all blocks, by fewer, or with a draft.

Letters: B batch, T prompt positions, N new tokens, S all positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.continuation import Continuations, TextStream
from tinykron.errors import DataError, ShapeError, TinykronError
from tinykron.exits import confidence as confidence_of
from tinykron.fused import check_range
from tinykron.kron.nested import part
from tinykron.models.transformer import check_exit
from tinykron.nn import Module, evaluating
from tinykron.partial import PartialPass
from tinykron.sampling import Sampler, whole
from tinykron.shortlist import Shortlist
from tinykron.speculate import Window, speculate
from tinykron.tensor import no_grad

SKIPPED = ("recompute", "copy")


@dataclass
class Trace:
    """What a generation did; `generate(..., trace=trace)` fills it in."""

    depths: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))  # (B, N): blocks that made a token
    steps: int = 0  # positions times blocks of the model, for each row: its work
    draft_steps: int = 0  # the same of a draft that is a model of its own
    rounds: int = 0  # passes that checked drafts
    drafted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (B,) tokens
    accepted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (B,) tokens
    refused: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (B,) tokens; others were not judged
    draft_depths: dict[int, int] = field(default_factory=dict)  # {blocks: tokens that they drafted}

    @property
    def acceptance(self) -> float:
        """How likely a draft was accepted that followed accepted ones: of those judged, the share. NaN without any."""
        judged = self.accepted.sum() + self.refused.sum()
        return float(self.accepted.sum() / judged) if judged else float("nan")


def generate(
    model: Any,
    ids: Any,
    max_new_tokens: int | None = 40,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    exit: int | None = None,
    confidence: Mapping[int, float] | None = None,
    draft: Any = None,
    *,
    terms: int | None = None,
    width: float | None = None,
    skipped: str = "recompute",
    draft_length: int | None = None,
    shortlist: Any = None,
    stop: int | Sequence[int] | None = None,
    mask: Any = None,
    stream: Callable[[str], object] | None = None,
    trace: Trace | None = None,
) -> np.ndarray:
    """Continue prompts, and return them with their continuations: int64 (B, S) on the host, S <= T + max_new_tokens.

    model           a causal model with `cache(capacity)`, such as GPT2; it runs without dropout and without a tape
    ids             a prompt: list of token ids or (T,) array; or several: list of lists, padded on the left to the
                    longest with the first stop token (0 if there is none), or a (B, T) array
    max_new_tokens  how many tokens to add at most; None fills the context
    temperature     0 takes the most likely token; otherwise logits are divided by it and a token is drawn
    top_k, top_p    draw only from the k most likely tokens, then only from the fewest whose probability reaches p
    seed            row b draws from its own stream, seeded (seed, b): its text does not depend on the other rows
    exit            decode with the first `exit` blocks, the final norm and the head; None: with all blocks
    confidence      {blocks: threshold}: a token leaves at the first of these depths where its largest probability (of
                    the softmax, whatever the temperature) reaches the threshold. Sorted LLaMA, section 4.3. With a
                    draft, this is where drafts leave, and the text stays what it is. S2D, Kavehzadeh et al. 2024
    terms, width    decode with the first terms of each Kronecker sum (`kron.first_terms`) and with a share of the MLPs'
                    units (`kron.first_units`); None: with all
    skipped         what blocks above an exit are to know of a token that left below. "recompute": its state waits and
                    goes up with the next token that goes so deep; all logits are those of the full keys and values.
                    "copy": they take their keys and values from the state it left with at once; approximate, cheaper
    draft           how drafts are made: by the first `draft` blocks of the model, or by another model of the same
                    vocabulary, such as `kron.first_terms` of it. The text keeps the model's law: the same tokens if
                    greedy, the same distribution if not
    draft_length    how many tokens to draft at once; None: 4 at first, 2 more after a full success, else 1 less
    shortlist       ids of the tokens that drafts are made of, such as the most frequent: drafts then read those rows of
                    the head alone. The text keeps the model's law. None: all. FR-Spec, Zhao et al. 2025
    stop            token ids that end a row, which repeats its last one until all rows have ended; by default the
                    `eos_token_id` of the model's configuration, () for none
    mask            (B, T), nonzero where a token of an array `ids` counts: padding on the left does not
    stream          called with pieces of the new text of a single prompt as they become final, special tokens left
                    out; together they are `model.tokenizer.decode` of the new ids
    trace           takes the depth that made each token, and counts of work and of drafts
    Positions are counted from a row's first token that counts, so that padding changes nothing.
    Raises DataError for an id outside the vocabulary, ShapeError for prompts or masks of a wrong form, TinykronError
    for an argument out of range and where prompt and new tokens do not fit the context: all before the model runs.
    """
    if not hasattr(model, "cache") or getattr(model.config, "head", None):
        raise TinykronError(f"generate: a {type(model).__name__} is no causal language model")
    depth = len(model.blocks) if exit is None else check_exit(exit, len(model.blocks))
    model = part(model, None, terms, width)
    vocabulary = model.config.vocab_size
    stops = _stop_ids(stop, model.config, vocabulary)
    prompt_BT, mask_BT = _prompts(ids, mask, vocabulary, pad=stops[0] if stops else 0)
    batch, start = prompt_BT.shape
    end = _end(start, max_new_tokens, model.context)
    drafter = _draft(draft, draft_length, skipped, model, depth, end)
    if shortlist is not None and drafter is None:
        raise TinykronError("shortlist: of tokens for drafts, and no draft")
    listed = None if shortlist is None else Shortlist(shortlist, vocabulary)
    top = depth if drafter is None else drafter if isinstance(drafter, int) else len(drafter.blocks)
    thresholds = _thresholds(confidence, skipped, top)
    text = _text_stream(model, stream, batch)
    sampler = Sampler(temperature, top_k, top_p, seed, batch)
    said = (lambda token: _send(stream, text.put(token))) if text and stream else None
    texts = Continuations(prompt_BT, mask_BT, end - start, stops, said)
    trace = trace or Trace()
    with ExitStack() as stack:
        for each in {id(each): each for each in (model, drafter) if isinstance(each, Module)}.values():
            stack.enter_context(evaluating(each))
        stack.enter_context(no_grad())
        if drafter is not None:
            _with_draft(model, texts, depth, drafter, draft_length, thresholds, listed, sampler, trace)
        elif thresholds is not None:
            _by_confidence(model, texts, depth, thresholds, skipped, sampler, trace)
        else:
            _plainly(model, texts, depth, sampler, trace)
    if text and stream:
        _send(stream, text.end())
    trace.depths = texts.depths_BN()
    return texts.ids_BS()


def changes(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int = 40, batch: int = 16, **options: Any
) -> Callable[[Mapping[int, float]], np.ndarray]:
    """Return a function of confidence thresholds that says which prompts' greedy text they change: (P,) booleans.

    It is what `exits.calibrate` asks. options: `skipped`, `stop`, `exit`, `terms`, `width`, as in `generate`;
    `batch` prompts go at once.
    """

    def written(thresholds: Mapping[int, float]) -> list[list[int]]:
        texts = []
        for start in range(0, len(prompts), batch):
            part, trace = list(prompts[start : start + batch]), Trace()
            ids_BS = generate(model, part, max_new_tokens, confidence=thresholds, trace=trace, **options)
            lengths_B = (trace.depths > 0).sum(axis=1)  # a row that ended repeats its last token until all have
            new_BN = ids_BS[:, ids_BS.shape[1] - trace.depths.shape[1] :]
            texts += [row[:length].tolist() for row, length in zip(new_BN, lengths_B, strict=True)]
        return texts

    full: list[list[int]] = []

    def changed(thresholds: Mapping[int, float]) -> np.ndarray:
        if not full:
            full.extend(written({}))
        pairs = zip(written(thresholds), full, strict=True)
        return np.array([early != late for early, late in pairs])

    return changed


# Ways to decode -------------------------------------------------------------------------------------------------------


def _plainly(model: Any, texts: Continuations, depth: int, sampler: Sampler, trace: Trace) -> None:
    """One token after the other, each by the first `depth` blocks."""
    batch, time = texts.prompt_BT.shape
    cache, ids_BT = model.cache(time + texts.most), texts.last_BT(time)
    start_B1 = time - texts.lengths_B[:, None]
    while texts.active:
        slots_T = np.arange(cache.length, cache.length + ids_BT.shape[1])
        positions_BT = np.maximum(slots_T - start_B1, 0)
        mask_BS = np.arange(slots_T[-1] + 1) >= start_B1 if start_B1.any() else None
        out = model(ids_BT, mask_BS, positions_BT=positions_BT, cache=cache, last_only=True, exit=depth)
        logits_BV = to_host(out.logits.data)[:, -1]
        for row in texts.active:
            texts.add(row, [sampler.take(logits_BV[row], row)], depth)
        trace.steps += len(slots_T) * depth
        ids_BT = texts.last_BT(1)


def _by_confidence(
    model: Any,
    texts: Continuations,
    depth: int,
    thresholds: Mapping[int, float],
    skipped: str,
    sampler: Sampler,
    trace: Trace,
) -> None:
    """One token after the other, each by as many blocks as it takes to be sure; all rows wait for the deepest."""
    time = texts.prompt_BT.shape[1]
    run = PartialPass(model, texts.lengths_B, time + texts.most, depth)
    ids_BT = texts.last_BT(time)
    if skipped == "copy" and time > 1 and texts.active:  # only what is generated may leave early
        run.feed(ids_BT[:, :-1])
        run.logits(depth)
        ids_BT = ids_BT[:, -1:]
    while texts.active:
        run.feed(ids_BT)
        left_B = np.array([room == 0 for room in texts.room])
        for place in [*sorted(thresholds), depth]:
            logits_BV = run.logits(place, held_B=left_B if skipped == "copy" and left_B.any() else None)[:, -1]
            sure_B = confidence_of(logits_BV) >= thresholds[place] if place < depth else ~left_B
            for row in np.flatnonzero(sure_B & ~left_B).tolist():
                texts.add(row, [sampler.take(logits_BV[row], row)], place)
            left_B |= sure_B
            if left_B.all():
                break
        if skipped == "copy":
            run.fill()
        ids_BT = texts.last_BT(1)
    trace.steps = run.steps


def _with_draft(
    model: Any,
    texts: Continuations,
    depth: int,
    drafter: Any,
    draft_length: int | None,
    thresholds: Mapping[int, float] | None,
    shortlist: Shortlist | None,
    sampler: Sampler,
    trace: Trace,
) -> None:
    """Several tokens a round: drafted by an exit of the model or by another model, then checked in one pass."""
    time, rows = texts.prompt_BT.shape[1], len(texts.tokens)
    capacity = time + texts.most + min(texts.most, draft_length or texts.most)  # rows near their end draft no less
    target = PartialPass(model, texts.lengths_B, capacity, depth)
    draft, draft_depth = target, drafter
    if isinstance(drafter, Module):
        draft = PartialPass(drafter, texts.lengths_B, capacity)
        draft_depth = draft.depth
    tally = speculate(
        texts, target, depth, draft, draft_depth, Window(rows, draft_length), sampler.law, sampler.chances, thresholds,
        shortlist=shortlist,
    )  # fmt: skip
    trace.steps, trace.rounds = target.steps, tally.rounds
    trace.draft_steps = draft.steps if draft is not target else 0
    trace.drafted, trace.accepted = np.array(tally.drafted), np.array(tally.accepted)
    trace.refused, trace.draft_depths = np.array(tally.refused), dict(sorted(tally.depths.items()))


# Arguments ------------------------------------------------------------------------------------------------------------


def _thresholds(confidence: Mapping[int, float] | None, skipped: str, depth: int) -> dict[int, float] | None:
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


def _draft(draft: Any, draft_length: int | None, skipped: str, model: Any, depth: int, end: int) -> Any:
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
    if not hasattr(draft, "cache"):
        raise TinykronError(f"draft: a {type(draft).__name__} is no causal language model")
    if draft.config.vocab_size != model.config.vocab_size:  # type: ignore[attr-defined]
        sizes = f"{draft.config.vocab_size} tokens, the model {model.config.vocab_size}"  # type: ignore[attr-defined]
        raise TinykronError(f"draft: it knows {sizes}; expected one vocabulary")
    if draft.context < end:  # type: ignore[attr-defined]
        raise TinykronError(f"draft: {end} tokens are more than its context of {draft.context}")  # type: ignore[attr-defined]
    return draft


def _stop_ids(stop: int | Sequence[int] | None, config: Any, vocabulary: int) -> list[int]:
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
    end = start + whole("max_new_tokens", max_new_tokens, 1)
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


def _send(stream: Callable[[str], object], piece: str) -> None:
    if piece:
        stream(piece)

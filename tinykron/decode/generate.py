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
from tinykron.decode.arguments import check_draft, check_end, check_prompts, check_stops, check_thresholds
from tinykron.decode.partial_pass import PartialPass
from tinykron.decode.rows import Continuations, TextStream
from tinykron.decode.sampling import Sampler
from tinykron.decode.sampling import confidence as confidence_of
from tinykron.decode.shortlist import Shortlist
from tinykron.decode.speculate import Window, speculate
from tinykron.errors import TinykronError
from tinykron.kron.nested import part
from tinykron.models.checks import check_exit
from tinykron.models.transformer import Decoder, Model
from tinykron.nn import Module, evaluating
from tinykron.tensor import no_grad


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
    model: Model,
    ids: Any,
    max_new_tokens: int | None = 40,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    exit: int | None = None,
    confidence: Mapping[int, float] | None = None,
    draft: Model | int | None = None,
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
    if not isinstance(model, Decoder) or not model.writes:
        raise TinykronError(f"generate: a {type(model).__name__} is no causal language model")
    depth = len(model.blocks) if exit is None else check_exit(exit, len(model.blocks))
    model = part(model, None, terms, width)
    vocabulary = model.config.vocab_size
    stops = check_stops(stop, model.config, vocabulary)
    prompt_BT, mask_BT = check_prompts(ids, mask, vocabulary, pad=stops[0] if stops else 0)
    batch, start = prompt_BT.shape
    end = check_end(start, max_new_tokens, model.context)
    drafter = check_draft(draft, draft_length, skipped, model, depth, end)
    if shortlist is not None and drafter is None:
        raise TinykronError("shortlist: of tokens for drafts, and no draft")
    listed = None if shortlist is None else Shortlist(shortlist, vocabulary)
    top = depth if drafter is None else drafter if isinstance(drafter, int) else len(drafter.blocks)
    thresholds = check_thresholds(confidence, skipped, top)
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

    It is what `exits.promise` asks. options: `skipped`, `stop`, `exit`, `terms`, `width`, as in `generate`;
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

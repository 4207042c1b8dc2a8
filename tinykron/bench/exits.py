"""What exits are worth on this machine: drafts, predicted and measured; leaving early, beside what it loses.

Every way to decode takes turns with plain decoding, at batch 1, so that a busy moment of the machine meets both. A way
that promises the same text is not timed before it has written it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tinykron import checkpoint, data
from tinykron.bench.engine import Spread, at_least_one, describe_machine
from tinykron.decode import shortlist
from tinykron.decode.generate import Trace, generate
from tinykron.decode.speed import LENGTHS, Costs, costs_of, predicted_speedup
from tinykron.errors import DataError, TinykronError
from tinykron.exits.promises import losses_by_confidence
from tinykron.exits.thresholds import FILE, read
from tinykron.models.checks import check_exits
from tinykron.support.progress import Progress

LEVELS = (0.95, 0.8, 0.6, 0.4)  # thresholds that all exits have in common
PROMPT, NEW, LOSS_TOKENS = 12, 32, 8192  # tokens of a prompt, of its continuation, and of the text of the losses
LOSS_CONTEXT = 256

Windows = tuple[np.ndarray, np.ndarray]  # inputs and targets, (W, T) each


@dataclass(frozen=True)
class Drafts:
    """Drafting by an exit, so many tokens a round. Times are milliseconds for each token of the text."""

    exit: int
    length: int
    listed: int | None  # tokens of the vocabulary that drafts are made of; None: all
    acceptance: float  # of a draft that follows accepted ones
    predicted: float  # how many times as fast, by blocks alone
    costed: float  # the same, with what heads and passes of several rows take
    speedup: Spread  # measured, turn by turn
    ms: Spread
    heads: float  # ms that reading logits takes, beyond plain decoding's
    rows: float  # ms that blocks take longer for the rows of a check than for one
    rest: float  # ms that are neither blocks nor heads: embeddings, laws, lining up; less plain decoding's


@dataclass(frozen=True)
class Early:
    """Leaving early: at a fixed exit, or where sure."""

    name: str
    speedup: Spread
    ms: Spread
    depth: float  # blocks behind a token, on average
    loss: float  # nats a token
    change: float  # of the loss, as a share of the full model's


@dataclass
class Report:
    """What `tinykron bench exits` found, and on which machine."""

    machine: dict[str, str]
    model: str
    blocks: int
    ms: float  # a token, plain decoding
    loss: float  # of all blocks
    costs: Costs
    drafts: list[Drafts] = field(default_factory=list)
    early: list[Early] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


def bench_exits(
    folder: str | Path,
    exits: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    source: str | Path | None = None,
    prompts: int = 4,
    new: int | None = None,
    threads: int = 2,
    repeats: int = 3,
    shortlists: Sequence[int] | None = None,
) -> Report:
    """Time every exit of a checkpoint as a draft, as a fixed exit and with confidence, beside plain greedy decoding.

    exits    blocks of the exits, below all; None: those that the folder lists as trained, else three, evenly spaced
    lengths  of drafts, in tokens; None: 1, 2, 4, 6
    source   text file or folder to take prompts from and measure losses on; None: what training holds out
    prompts  how many, of 12 tokens, each continued by `new` tokens; None: 32, or what the context holds
    threads  for BLAS
    repeats  turns of each way, beside plain decoding each time
    shortlists  how many of the tokens that the folder found frequent drafts may be made of; drafts of the whole
             vocabulary are measured, too. None: a sixteenth of it, if the folder says which; () for none
    Ctrl-C ends it with what was measured until then. Raises TinykronError for a bad argument, and where drafts write
    another text than plain decoding.
    """
    from threadpoolctl import threadpool_limits

    at_least_one(prompts=prompts, threads=threads, repeats=repeats)
    model = checkpoint.load(folder)
    if not model.causal:
        raise TinykronError(f"bench: a {type(model).__name__} is no causal language model")
    trained = [exit for exit in model.exits if exit < len(model.blocks)]
    depths = _exits(len(model.blocks), trained if exits is None else exits)
    new = min(NEW, model.context - PROMPT) if new is None else new
    if not 2 <= new <= model.context - PROMPT:
        limit = f"2 to {model.context - PROMPT}: a context of {model.context} less a prompt of {PROMPT}"
        raise TinykronError(f"bench: new tokens: found {new}, expected {limit}")
    lengths = [length for length in LENGTHS if length < new] if lengths is None else lengths
    if not lengths or sorted({*lengths}) != list(lengths) or not 1 <= lengths[0] <= lengths[-1] < new:
        raise TinykronError(f"bench: draft lengths: expected some of 1..{new - 1}, rising, found {tuple(lengths)}")
    tokens = _tokens(model, source)
    starts = np.linspace(0, len(tokens) - PROMPT, prompts).astype(int)
    windows = data.windows(tokens[:LOSS_TOKENS], min(model.context, LOSS_CONTEXT))
    lists = _lists(Path(folder), shortlists, model.config.vocab_size)
    with threadpool_limits(threads, "blas"):
        turns = Turns(model, [tokens[start : start + PROMPT].tolist() for start in starts], new, repeats)
        costs = costs_of(model, [1, *(length + 1 for length in lengths)], lists)
        found = Report(describe_machine(threads), str(folder), len(model.blocks), 0.0, _loss(model, windows, {}), costs)
        ways = [(depth, length, listed) for depth in depths for listed in (None, *lists) for length in lengths]
        rules: dict[str, dict[str, Any]] = {f"exit {depth}": {"exit": depth} for depth in depths}
        rules |= {f"where sure to {level}": {"confidence": dict.fromkeys(depths, level)} for level in LEVELS}
        if (Path(folder) / FILE).exists():
            rules["the folder's thresholds"] = {"confidence": read(folder).thresholds}
        with Progress("bench", len(ways) + len(rules), "ways to decode") as progress:
            try:
                for depth, length, listed in ways:
                    known = None if listed is None else lists[listed]
                    found.drafts.append(_drafts(turns, costs, depth, length, known))
                    progress.advance(1, f"exit {depth} drafts {length}")
                for name, rule in rules.items():
                    found.early.append(_early(turns, name, rule, windows, found.loss))
                    progress.advance(1, name)
            except KeyboardInterrupt:
                done = len(found.drafts) + len(found.early)
                found.notes.append(f"interrupted after {done} of {progress.total} ways to decode")
                found.interrupted = True
    found.ms = turns.plain_ms
    return found


def _exits(blocks: int, exits: Sequence[int]) -> list[int]:
    """Return the exits to measure, shallow to deep and below all blocks; three where none is named."""
    if blocks == 1:
        raise TinykronError("bench: a model of 1 block has no exit below it")
    if not exits:
        return sorted({max(1, round(blocks * part / 4)) for part in (1, 2, 3)})
    if list(exits) != sorted(exits):
        raise TinykronError(f"bench: exits: expected them from shallow to deep, found {tuple(exits)}")
    return list(check_exits(None, exits, blocks - 1))


def _lists(folder: Path, sizes: Sequence[int] | None, vocabulary: int) -> dict[int, np.ndarray]:
    """Return shortlists of the folder's frequent tokens by their length, which is no more than it knows."""
    if sizes is None:
        sizes = [vocabulary // 16] if (folder / shortlist.FILE).exists() else []
    at_least_one(**{f"shortlist {size}": size for size in sizes})
    lists = [shortlist.read(folder, size) for size in sizes]
    return {len(tokens): tokens for tokens in lists}


def _tokens(model: Any, source: str | Path | None) -> np.ndarray:
    if model.tokenizer is None:
        raise TinykronError("bench: the model has no tokenizer to read text with")
    documents = data.documents(source)
    tokens = data.encode(model.tokenizer, data.split(documents)[1] if source is None else documents)
    if len(tokens) < 2 * PROMPT:
        raise DataError(f"bench: {source}: expected at least {2 * PROMPT} tokens, found {len(tokens)}")
    return tokens


# Measuring ------------------------------------------------------------------------------------------------------------


class Turns:
    """Prompts that are continued in several ways, each in turns with plain decoding."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], new: int, repeats: int) -> None:
        self.model, self.prompts, self.new, self.repeats = model, prompts, new, repeats
        self.blocks, self.tokens = len(model.blocks), len(prompts) * new
        self.plain_times: list[float] = []  # ms a token
        _, self.texts, _ = self.write({})

    @property
    def plain_ms(self) -> float:
        """A token, by plain decoding; NaN before anything was timed."""
        return median(self.plain_times) if self.plain_times else float("nan")

    def write(self, options: Mapping[str, Any]) -> tuple[float, list[list[int]], list[Trace]]:
        """Continue every prompt greedily; return ms a token, the texts, and what happened."""
        traces = [Trace() for _ in self.prompts]
        start = time.perf_counter()
        texts = [
            generate(self.model, prompt, self.new, stop=(), trace=trace, **options)
            for prompt, trace in zip(self.prompts, traces, strict=True)
        ]
        seconds = time.perf_counter() - start
        return seconds * 1e3 / self.tokens, [text[0].tolist() for text in texts], traces

    def timed(self, options: Mapping[str, Any]) -> tuple[Spread, Spread]:
        """Return how many times as fast as plain decoding, pair by pair, and ms a token."""
        pairs = [(self.write({})[0], self.write(options)[0]) for _ in range(self.repeats)]
        self.plain_times += [plain for plain, _ in pairs]
        return Spread.of([plain / other for plain, other in pairs]), Spread.of([other for _, other in pairs])


def _drafts(turns: Turns, costs: Costs, exit: int, length: int, tokens: np.ndarray | None = None) -> Drafts:
    """Check that drafts change nothing, then time them."""
    options = {"draft": exit, "draft_length": length, "shortlist": tokens}
    listed = None if tokens is None else len(tokens)
    _, texts, traces = turns.write(options)
    check_same(texts, turns.texts, f"exit {exit} drafts {length} tokens")
    speedup, ms = turns.timed(options)
    drafted, rounds, accepted, refused = (
        sum(int(np.sum(getattr(trace, name))) for trace in traces)
        for name in ("drafted", "rounds", "accepted", "refused")
    )
    block, head, above = costs.block[1], costs.head[1], turns.blocks - exit
    heads = (drafted * costs.draft_head(listed) + rounds * costs.head[length + 1]) / turns.tokens - head
    rows = rounds * above * (costs.block[length + 1] - block) / turns.tokens
    blocks = ((drafted + rounds) * exit + rounds * above) * block / turns.tokens
    rest = (ms.least - blocks - head - heads - rows) - (min(turns.plain_times) - turns.blocks * block - head)
    acceptance = accepted / (accepted + refused)
    predicted = predicted_speedup(exit, turns.blocks, length, acceptance)
    costed = costs.speedup(exit, turns.blocks, length, acceptance, listed)
    return Drafts(exit, length, listed, acceptance, predicted, costed, speedup, ms, heads, rows, rest)


def check_same(texts: Sequence[Sequence[int]], plain: Sequence[Sequence[int]], way: str) -> None:
    """Raise TinykronError where drafts changed a text."""
    for number, (found, expected) in enumerate(zip(texts, plain, strict=True)):
        if list(found) != list(expected):
            place = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
            raise TinykronError(
                f"bench: {way}: token {place} of prompt {number} is {found[place]}, expected {expected[place]}, which "
                "plain decoding writes; two may be equally likely but for rounding: tk.bit_exact decides alike"
            )


def _early(turns: Turns, name: str, rule: Mapping[str, Any], windows: Windows, full: float) -> Early:
    _, _, traces = turns.write(rule)
    speedup, ms = turns.timed(rule)
    depth = float(np.mean([trace.depths.mean() for trace in traces]))
    loss = _loss(turns.model, windows, rule.get("confidence") or {rule["exit"]: 0.0})
    return Early(name, speedup, ms, depth, loss, loss / full - 1.0)


def _loss(model: Any, windows: Windows, thresholds: Mapping[int, float]) -> float:
    """Return the mean cross-entropy of a text, nats a token, where tokens leave as thresholds say."""
    total = count = 0.0
    for inputs_1T, targets_1T in zip(*(array[:, None] for array in windows), strict=True):
        counted = int((targets_1T != data.IGNORED).sum())
        total += float(losses_by_confidence(model, (inputs_1T, targets_1T), thresholds)[0]) * counted
        count += counted
    return total / count

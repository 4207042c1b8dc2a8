"""What a token costs, and what drafts would gain: timed blocks and heads, predicted speed-ups."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.decode import shortlist
from tinykron.decode.sampling import whole
from tinykron.errors import TinykronError
from tinykron.models.checks import check_exit
from tinykron.nn import evaluating
from tinykron.tensor import no_grad

LENGTHS = (1, 2, 4, 6)  # tokens drafted a round
TIMINGS = 15  # of a block and of the head
BEHIND = 12  # tokens of the text that a timed token continues


@dataclass(frozen=True)
class Costs:
    """Milliseconds, by the number of rows that go through at once, behind a short text: the least of some timings."""

    block: dict[int, float]  # one block
    head: dict[int, float]  # final norm and head, logits on the host
    listed: dict[int, float] = field(default_factory=dict)  # the same of one row, by the tokens of a shortlist

    def draft_head(self, listed: int | None) -> float:
        """Return what a draft takes to be read: by the whole head, or by a shortlist of so many tokens."""
        return self.head[1] if listed is None else self.listed[listed]

    def speedup(self, exit: int, blocks: int, length: int, acceptance: float, listed: int | None = None) -> float:
        """Return the speed-up by drafts that these times predict: heads count, and the rows of a check."""
        block, head, rows = self.block[1], self.head[1], length + 1
        drafting = length * (exit * block + self.draft_head(listed)) + exit * block
        checking = (blocks - exit) * self.block[rows] + self.head[rows]
        return sum(acceptance**place for place in range(rows)) * (blocks * block + head) / (drafting + checking)


def costs_of(model: Any, rows: Sequence[int], lists: Mapping[int, np.ndarray] | None = None) -> Costs:
    """Time a block and the head for so many rows at once, 1 among them, behind a short text; shortlists for one."""
    start = max(1, min(BEHIND, model.context - max(rows)))
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in rows}
    cache = model.cache(start + max(rows))
    with no_grad(), evaluating(model):
        model(np.zeros((1, start), np.int64), cache=cache)
        for count in [*rows] * TIMINGS:
            positions_1T = np.arange(start, start + count)[None]
            x_1TD, angles = model.embed(np.zeros_like(positions_1T), positions_1T), model.angles(positions_1T)
            begin = time.perf_counter()
            for each, layer in zip(model.blocks, cache.layers, strict=True):
                x_1TD = each(x_1TD, None, layer, False, angles)[0]
            to_host(x_1TD.data)  # a GPU has finished by then
            middle = time.perf_counter()
            to_host(model.read(x_1TD).data)
            times[count].append(((middle - begin) * 1e3 / len(model.blocks), (time.perf_counter() - middle) * 1e3))
            for layer in cache.layers:
                layer.realign((), start)
    block, head = ({count: min(pair[i] for pair in times[count]) for count in rows} for i in (0, 1))
    return Costs(block, head, {size: _list_cost(model, x_1TD[:, :1], tokens) for size, tokens in (lists or {}).items()})


def _list_cost(model: Any, x_1TD: Any, tokens: np.ndarray) -> float:
    """Time the final norm and the rows of the head that belong to some tokens, for one row."""
    (norm, head), listed, times = model.reader(), shortlist.Shortlist(tokens, model.config.vocab_size), []
    with no_grad(), evaluating(model):
        for _ in range(TIMINGS + 1):  # the first takes the rows out
            start = time.perf_counter()
            listed.logits(norm(x_1TD), head)
            times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def predicted_speedup(exit: int, blocks: int, draft: int, acceptance: float, shared: bool = True) -> float:
    """Return how many times as fast as plain decoding drafts are, where time is passes through blocks.

    exit, blocks  of the draft, E, and of the model, L
    draft         d, tokens drafted in a round
    acceptance    a, how likely a draft is accepted that follows accepted ones: `Trace.acceptance`
    shared        the draft is an exit of the model; a draft of its own runs its blocks beside all of the model's
    A round writes 1 + a + ... + a^d tokens on average. Shared, it runs the E blocks d + 1 times and the others once:
    L(1 - a^(d+1)) / ((1 - a)((d+1)E + L - E)), whose limit at a = 1 is L(d+1) / ((d+1)E + L - E). Heads, the number of
    tokens in a pass and all other work count as nothing. Leviathan et al. 2023, theorem 3.8, for shared blocks.
    Raises TinykronError for numbers out of range.
    """
    check_exit(exit, blocks)
    whole("draft", draft, 0)
    if not 0 <= acceptance <= 1:
        raise TinykronError(f"acceptance: expected a share in [0, 1], found {acceptance}")
    passes = (draft + 1) * exit + blocks - exit if shared else draft * exit + blocks
    return blocks * sum(acceptance**place for place in range(draft + 1)) / passes


def fastest_draft(
    acceptances: Mapping[int, float], lengths: Sequence[int], predict: Callable[[int, int, float], float]
) -> tuple[int, int, float] | None:
    """Return (exit, draft length, speed-up) of the best prediction; None where none is above 1.

    acceptances  {exit: how likely a draft is accepted}
    predict      the speed-up of an exit, a draft length and an acceptance, such as `predicted_speedup` makes
    """
    found = [
        (predict(exit, length, acceptance), exit, length)
        for exit, acceptance in acceptances.items()
        for length in lengths
    ]
    speedup, exit, length = max(found, default=(0.0, 0, 0))
    return (exit, length, speedup) if speedup > 1.0 else None

"""Speculative decoding: a draft proposes tokens, the model checks them all in one pass, and its own law is kept.

The draft is an exit of the same model (LayerSkip, Elhoushi et al. 2024): cache and hidden states are shared, and the
check runs only the blocks above the exit. Or it is another model, such as a compressed one of the same parent. Either
may leave early itself where it is sure (S2D, Kavehzadeh et al. 2024), and may know a part of the vocabulary alone
(FR-Spec, Zhao et al. 2025). Leviathan et al. 2023; Chen et al. 2023.

Letters: B batch, N drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tinykron.decode.rows import Continuations
from tinykron.decode.sampling import Certain, confidence
from tinykron.decode.shortlist import Shortlist

FIRST_WINDOW = 4  # tokens drafted in the first round, where their number adapts


class Side(Protocol):
    """What drafts or checks: a PartialPass, or a table of laws."""

    length: int

    def feed(self, ids_BT: np.ndarray) -> None: ...
    def logits(self, depth: int, count: int = 1, *, shortlist: Shortlist | None = None) -> np.ndarray: ...
    def realign(self, lengths_B: np.ndarray) -> None: ...


class Window:
    """How many tokens to draft for each row: always as many, or more where drafts are good.

    Adaptive: 4 at first; 2 more after a round whose drafts were all accepted, else 1 less, and never less than 1: the
    rule of transformers' assisted decoding, with which Sorted LLaMA was measured.
    """

    def __init__(self, rows: int, fixed: int | None = None) -> None:
        self.adaptive = fixed is None
        self.sizes = [fixed or FIRST_WINDOW] * rows

    def learn(self, row: int, drafted: int, accepted: int) -> None:
        """Take the outcome of a round into account."""
        if self.adaptive:
            self.sizes[row] = self.sizes[row] + 2 if accepted == drafted else max(1, self.sizes[row] - 1)


@dataclass
class Tally:
    """What came of the drafts: tokens of each row, and rounds."""

    drafted: list[int]
    accepted: list[int]
    refused: list[int]  # at most one a round: what is drafted behind it is not judged
    rounds: int = 0
    depths: dict[int, int] = field(default_factory=dict)  # {blocks: tokens that they drafted}


def speculate(
    texts: Continuations,
    target: Side,
    depth: int,
    draft: Side,
    draft_depth: int,
    window: Window,
    law: Callable[[np.ndarray], Any],
    chances: Sequence[Any],
    early: Mapping[int, Any] | None = None,
    sureness: Callable[[np.ndarray], Any] = confidence,
    shortlist: Shortlist | None = None,
) -> Tally:
    """Write all rows to their ends, several tokens a round; each token follows the target's law.

    target, draft  nothing fed yet; one and the same where the draft is an exit
    depth          blocks that make the target's logits; draft_depth: the draft's
    law            turns logits (V,) into probabilities, for both sides alike
    chances        the random decisions of each row: `draw` a token from a law, `happens` something likely so far
    early          {blocks: threshold}: a draft leaves at the first of these depths where `sureness` of its logits (V,)
                   reaches the threshold. It depends on what came before alone, so that the draft still has one law
    shortlist      the tokens that drafts are made of; None: all
    A row's text does not depend on the other rows: what others draft beyond its window is not looked at.
    """
    rows, separate = len(texts.tokens), draft is not target
    tally = Tally([0] * rows, [0] * rows, [0] * rows)
    while texts.active:
        longest = int(texts.lengths_B.max())
        limits = {row: min(window.sizes[row], texts.room[row] - 1) for row in texts.active}
        count = max(limits.values())
        target.feed(texts.last_BT(longest - target.length))
        if separate and count:
            draft.feed(texts.last_BT(longest - draft.length))
        drafted_BN = np.zeros((rows, count), dtype=np.int64)
        draft_laws: list[list[Any]] = [[] for _ in range(rows)]
        for place in range(count):
            drafting = [row for row, limit in limits.items() if place < limit]
            leaving = _sure_logits(draft, draft_depth, early or {}, sureness, drafting, shortlist)
            for row, (made_by, logits_V) in leaving.items():
                draft_laws[row].append(law(logits_V))
                drafted_BN[row, place] = chances[row].draw(draft_laws[row][place])
                tally.depths[made_by] = tally.depths.get(made_by, 0) + 1
            token_B1 = drafted_BN[:, place : place + 1]
            target.feed(token_B1)
            if separate and place + 1 < count:  # what follows the last draft is the target's to say
                draft.feed(token_B1)
        logits_BNV = target.logits(depth, count + 1)
        for row, limit in limits.items():
            tokens = checked(drafted_BN[row, :limit].tolist(), draft_laws[row], logits_BNV[row], law, chances[row])
            accepted = len(tokens) - 1
            tally.drafted[row] += limit
            tally.accepted[row] += accepted
            tally.refused[row] += accepted < limit
            window.learn(row, limit, accepted)
            texts.add(row, tokens, depth)
        tally.rounds += 1
        for side in (target, draft):  # to one and the same, the second time changes nothing
            side.realign(texts.lengths_B)
    return tally


def _sure_logits(
    draft: Side,
    depth: int,
    early: Mapping[int, Any],
    sureness: Callable[[np.ndarray], Any],
    rows: Sequence[int],
    shortlist: Shortlist | None,
) -> dict[int, tuple[int, np.ndarray]]:
    """Return of each row the depth at which its draft leaves, and the logits (V,) there; all wait for the deepest."""
    found: dict[int, tuple[int, np.ndarray]] = {}
    for place in [*sorted(early), depth]:
        logits_BV = draft.logits(place, shortlist=shortlist)[:, -1]
        for row in rows:
            if row not in found and (place == depth or sureness(logits_BV[row]) >= early[place]):
                found[row] = place, logits_BV[row]
        if len(found) == len(rows):
            break
    return found


def checked(
    drafted: Sequence[int],
    draft_laws: Sequence[Any],
    logits_NV: np.ndarray,
    law: Callable[[np.ndarray], Any],
    chance: Any,
) -> list[int]:
    """Return the drafted tokens that are accepted, and one more token: their joint law is the target's.

    A token x is accepted with probability min(1, p(x) / q(x)); in place of the first that is refused comes one drawn
    from what p has over q; behind the last one comes one drawn from p. Leviathan et al. 2023, algorithm 1.
    """
    for place, token in enumerate(drafted):
        p_V, q_V = law(logits_NV[place]), draft_laws[place]
        if not chance.happens(acceptance(p_V[token], q_V[token])):
            return [*drafted[:place], chance.draw(residual(p_V, q_V))]
    return [*drafted, chance.draw(law(logits_NV[len(drafted)]))]


def acceptance(p: Any, q: Any) -> Any:
    """Return min(1, p / q), for q > 0."""
    return 1 if p >= q else p / q


def residual(p_V: Any, q_V: Any) -> Any:
    """Return the distribution of what p has over q; p itself where rounding or a certain p leaves nothing."""
    if isinstance(p_V, Certain):
        return p_V
    over_V = np.maximum(p_V - q_V, 0)
    total = over_V.sum()
    return over_V / total if total > 0 else p_V


# Is it worth it? ------------------------------------------------------------------------------------------------------

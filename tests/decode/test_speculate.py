"""Speculation keeps the target's law: exactly, in rational numbers, over the whole tree of what may happen."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykron as tk
from tests.decoders import deep
from tinykron.decode import speculate as module
from tinykron.decode.partial_pass import PartialPass
from tinykron.decode.rows import Continuations
from tinykron.decode.sampling import Certain, Sampler, distribution
from tinykron.decode.speculate import Window, checked, residual, speculate
from tinykron.decode.speed import fastest_draft, predicted_speedup
from tinykron.errors import TinykronError

Law = dict[tuple[int, ...], Any]  # of each text, its probability
PROMPT = 1
TARGET, DRAFT, EARLY = 2, 1, 0  # depths


class Table:
    """Stands in for a model: a random rational law for each context and depth, fixed when it is first asked for."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.vocabulary, self.random, self.known = vocabulary, random.Random(seed), {}

    def law(self, depth: int, context: tuple[int, ...]) -> list[Fraction]:
        if (depth, context) not in self.known:
            weights = [self.random.randint(0, 6) for _ in range(self.vocabulary)]
            weights = weights if any(weights) else [1] * self.vocabulary
            self.known[depth, context] = [Fraction(weight, sum(weights)) for weight in weights]
        return self.known[depth, context]


class Reader:
    """One row that reads a table as a model reads its parameters: the side of a speculation."""

    def __init__(self, table: Table) -> None:
        self.table, self.fed = table, []

    @property
    def length(self) -> int:
        return len(self.fed)

    def feed(self, ids_BT: np.ndarray) -> None:
        self.fed += ids_BT[0].tolist()

    def logits(self, depth: int, count: int = 1, *, shortlist: Any = None) -> np.ndarray:
        ends = range(len(self.fed) - count + 1, len(self.fed) + 1)
        laws = [self.table.law(depth, tuple(self.fed[:end])) for end in ends]
        return np.array([laws if shortlist is None else [among(shortlist, law) for law in laws]], dtype=object)

    def realign(self, lengths_B: np.ndarray) -> None:
        del self.fed[int(lengths_B[0]) - 1 :]


def among(tokens: Sequence[int], law: Sequence[Fraction]) -> list[Fraction]:
    """Return the law of what is left of a vocabulary; all alike where nothing of it was likely."""
    total = sum(law[token] for token in tokens)
    some = Fraction(1, len(tokens))
    return [(weight / total if total else some) if token in tokens else Fraction(0) for token, weight in enumerate(law)]


class Path:
    """Chances that take one branch at each decision, note how likely it was, and which branches are left to take."""

    def __init__(self, start: Sequence[int]) -> None:
        self.start, self.taken, self.weight, self.others = start, [], 1, []

    def _take(self, options: list[tuple[Any, Any]]) -> Any:
        possible = [(value, weight) for value, weight in options if weight > 0]
        place = len(self.taken)
        branch = self.start[place] if place < len(self.start) else 0
        if place >= len(self.start):
            self.others += [[*self.taken, other] for other in range(1, len(possible))]
        self.taken.append(branch)
        self.weight *= possible[branch][1]
        return possible[branch][0]

    def draw(self, law_V: np.ndarray) -> int:
        return self._take(list(enumerate(law_V)))

    def happens(self, probability: Any) -> bool:
        return self._take([(True, probability), (False, 1 - probability)])


def law_of(write: Callable[[Path], tuple[int, ...]], path: type[Path] = Path) -> Law:
    """Return the law of the text that `write` makes, over every path through its decisions."""
    found: Law = {}
    starts: list[list[int]] = [[]]
    while starts:
        taken = path(starts.pop())
        text = write(taken)
        found[text] = found.get(text, 0) + taken.weight
        starts += taken.others
    return found


def plain_law(law: Callable[[tuple[int, ...]], Sequence[Any]], most: int, stops: tuple[int, ...]) -> Law:
    """The law of decoding one token after the other."""
    found, running = {}, {(): 1}
    for _ in range(most):
        following: Law = {}
        for text, weight in running.items():
            for token, probability in enumerate(law((PROMPT, *text))):
                if probability:
                    place = found if token in stops else following
                    place[*text, token] = place.get((*text, token), 0) + weight * probability
        running = following
    return found | running


def speculated(
    table: Table,
    most: int,
    length: int | None,
    stops: tuple[int, ...],
    separate: bool = False,
    path: type[Path] = Path,
    early: dict[int, Fraction] | None = None,
    shortlist: Any = None,
) -> Law:
    def write(chance: Path) -> tuple[int, ...]:
        texts = Continuations(np.array([[PROMPT]]), np.array([[True]]), most, stops)
        target = Reader(table)
        draft = Reader(table) if separate else target
        window = Window(1, length)
        speculate(texts, target, TARGET, draft, DRAFT, window, lambda law: law, [chance], early, max, shortlist)
        return tuple(texts.new[0])

    return law_of(write, path)


CASES = [
    (vocabulary, most, length, stops, separate)
    for vocabulary, most in ((2, 4), (3, 3))
    for length in (1, 2, None)
    for stops in ((), (0,))
    for separate in (False, True)
]
LARGER = [
    pytest.param(vocabulary, most, length, (), False, marks=pytest.mark.slow)
    for vocabulary, most in ((2, 6), (3, 4), (4, 3))
    for length in (2, 4, None)
]


@pytest.mark.parametrize(("vocabulary", "most", "length", "stops", "separate"), [*CASES, *LARGER])
def test_the_law_of_the_text_is_the_targets(vocabulary, most, length, stops, separate):
    for seed in range(3):
        table = Table(vocabulary, seed)
        found = speculated(table, most, length, stops, separate)
        expected = plain_law(lambda context, table=table: table.law(TARGET, context), most, stops)
        assert all(isinstance(weight, Fraction) for weight in found.values())
        assert found == expected
        assert sum(found.values()) == 1


@pytest.mark.parametrize(("vocabulary", "most", "length", "stops", "separate"), [*CASES, *LARGER])
def test_drafts_that_leave_early_keep_the_law(vocabulary, most, length, stops, separate):
    for seed in (5, 6):
        table = Table(vocabulary, seed)
        found = speculated(table, most, length, stops, separate, early={EARLY: Fraction(3, 5)})
        assert found == plain_law(lambda context, table=table: table.law(TARGET, context), most, stops)


@pytest.mark.parametrize("shortlist", [[0], [2, 1]])
@pytest.mark.parametrize(("length", "separate"), [(1, False), (2, True), (None, False)])
def test_drafts_of_some_tokens_keep_the_law(length, separate, shortlist):
    for seed in range(4):
        table = Table(3, seed)
        found = speculated(table, 3, length, (0,), separate, shortlist=shortlist)
        assert found == plain_law(lambda context, table=table: table.law(TARGET, context), 3, (0,))


@pytest.mark.parametrize("mistake", ["checked by the law of all tokens", "none"])
def test_the_proof_refuses_a_short_draft_that_is_checked_as_if_it_knew_all_tokens(mistake, monkeypatch):
    table, shortlist = Table(3, 11), [2, 1]

    def checked_by_all(drafted, draft_laws, logits_NV, law, chance):
        all_laws = {str(among(shortlist, law)): law for (depth, _), law in table.known.items() if depth == DRAFT}
        laws = [np.array(all_laws[str(list(one))], dtype=object) for one in draft_laws]
        return checked(drafted, laws, logits_NV, law, chance)

    if mistake != "none":
        monkeypatch.setattr(module, "checked", checked_by_all)
    found = speculated(table, 3, 2, (), shortlist=shortlist)
    assert (found == plain_law(lambda context: table.law(TARGET, context), 3, ())) == (mistake == "none")


def test_the_cases_above_leave_early_and_do_not():
    asked: dict[int, set[tuple[int, ...]]] = {EARLY: set(), DRAFT: set()}
    for seed in (5, 6):
        table = Table(3, seed)
        speculated(table, 3, 2, (), early={EARLY: Fraction(3, 5)})
        for depth in asked:
            asked[depth] |= {(seed, *context) for known, context in table.known if known == depth}
    assert asked[DRAFT] and asked[DRAFT] < asked[EARLY]


@pytest.mark.parametrize("mistake", ["draw from the law of the first exit", "none"])
def test_the_proof_refuses_a_draft_that_is_checked_by_another_exits_law(mistake):
    table = Table(3, 11)

    class DrawsShallow(Path):
        def draw(self, law_V: np.ndarray) -> int:
            deep_laws = {str(law): context for (depth, context), law in table.known.items() if depth == DRAFT}
            context = deep_laws.get(str(list(law_V))) if mistake != "none" else None
            return super().draw(law_V if context is None else table.law(EARLY, context))

    found = speculated(table, 3, 2, (), path=DrawsShallow, early={EARLY: Fraction(3, 5)})
    assert (found == plain_law(lambda context: table.law(TARGET, context), 3, ())) == (mistake == "none")


def planted(name: str, monkeypatch: pytest.MonkeyPatch, table: Table) -> type[Path]:
    """Plant one of the mistakes that implementations have made."""
    if name == "resample from p":
        monkeypatch.setattr(module, "residual", lambda p_V, q_V: p_V)
    if name == "accept as if q were one-hot":
        monkeypatch.setattr(module, "acceptance", lambda p, q: p)
    if name == "always accept":
        monkeypatch.setattr(module, "acceptance", lambda p, q: 1)

    class DraftsGreedily(Path):
        """Drafts are the likeliest token, and are checked as if they had been drawn."""

        def draw(self, law_V: np.ndarray) -> int:
            drafts = [law for (depth, _), law in table.known.items() if depth == DRAFT]
            return int(law_V.argmax()) if law_V.tolist() in drafts else super().draw(law_V)

    return DraftsGreedily if name == "draft greedily" else Path


@pytest.mark.parametrize(
    "mistake", ["resample from p", "accept as if q were one-hot", "always accept", "draft greedily", "none"]
)
def test_the_proof_refuses_mistakes(mistake, monkeypatch):
    table = Table(3, 11)
    path = planted(mistake, monkeypatch, table)
    found = speculated(table, 3, 2, (), path=path)
    expected = plain_law(lambda context: table.law(TARGET, context), 3, ())
    assert (found == expected) == (mistake == "none")


@pytest.mark.parametrize(
    ("family", "temperature", "top_k", "top_p"),
    [("gpt2", 0.7, 2, None), ("llama", 2.0, None, 0.8), ("gpt2", 1.5, 2, 0.6), ("llama", 0, None, None)],
)
def test_a_models_law_is_kept(family, temperature, top_k, top_p):
    """The whole tree of a model's own laws: temperature, top-k and top-p count on both sides."""
    model = deep(family, 5, layers=3, vocabulary=3)
    sampler = Sampler(temperature, top_k, top_p, 0, 1)

    def write(chance: Path) -> tuple[int, ...]:
        texts = Continuations(np.array([[PROMPT]]), np.array([[True]]), 3)
        target = PartialPass(model, np.array([1]), 4)
        speculate(texts, target, 3, target, 1, Window(1, 2), sampler.law, [chance])
        return tuple(texts.new[0])

    def next_law(context: tuple[int, ...]) -> np.ndarray:
        return distribution(model([list(context)]).logits.numpy()[0, -1], temperature, top_k, top_p)

    with tk.no_grad():
        found, expected = law_of(write), plain_law(next_law, 3, ())
    assert found.keys() == expected.keys()
    assert all(abs(found[text] - expected[text]) < 1e-5 for text in expected)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_equal_laws_accept_every_draft_and_leave_a_law_to_draw_from():
    p_V = np.array([0.25, 0.75])
    assert residual(p_V, p_V).tolist() == p_V.tolist()
    assert residual(p_V, np.array([0.75, 0.25])).tolist() == [0.0, 1.0]
    assert residual(p_V, p_V * (1 + 1e-16)).tolist() == p_V.tolist()  # nothing is left by rounding alone
    for q_V in (np.array([1.0, 0.0]), Certain(0, 2)):
        assert list(residual(Certain(1, 2), q_V)) == [0.0, 1.0]  # greedy: what is not drafted right is put right
    laws = [p_V] * 3
    for branch in (0, 1):  # acceptance has one outcome: the path takes a branch in the last draw alone
        assert checked([1, 0], laws, np.array(laws), lambda law: law, Path([0, 0, branch])) == [1, 0, branch]


def test_a_fixed_window_stays_and_an_adaptive_one_learns():
    fixed, adaptive = Window(2, 3), Window(2)
    for accepted in (3, 0, 2):
        fixed.learn(0, 3, accepted)
    assert fixed.sizes == [3, 3]
    sizes = []
    for accepted in (4, 5, 5, 0, 0, 0, 0, 0, 1):
        adaptive.learn(1, adaptive.sizes[1], accepted)
        sizes.append(adaptive.sizes[1])
    assert sizes == [6, 5, 7, 6, 5, 4, 3, 2, 1]
    adaptive.learn(1, 1, 0)
    assert adaptive.sizes == [4, 1]


def test_rounds_and_accepted_drafts_are_counted():
    certain = Table(2, 0)
    certain.law = lambda depth, context: [Fraction(0), Fraction(1)]  # type: ignore[method-assign]
    texts = Continuations(np.array([[PROMPT]]), np.array([[True]]), 9)
    reader = Reader(certain)
    tally = speculate(texts, reader, TARGET, reader, DRAFT, Window(1, 3), lambda law: law, [Path([])])
    assert texts.new == [[1] * 9]
    assert (tally.drafted, tally.accepted, tally.rounds) == ([6], [6], 3)  # 4 + 4 + 1: the last token needs no draft
    assert tally.refused == [0]


# Is it worth it? ------------------------------------------------------------------------------------------------------


class Passes(Reader):
    """Counts the blocks of a model of `blocks` that run one after the other: an exit's for a draft, all for a check."""

    def __init__(self, table: Table, exit: int, blocks: int) -> None:
        super().__init__(table)
        self.depths, self.run = {DRAFT: exit, TARGET: blocks}, 0

    def logits(self, depth: int, count: int = 1, *, shortlist: Any = None) -> np.ndarray:
        self.run += self.depths[depth]
        return np.array([[self.table.law(depth, ())] * count])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("exit", "blocks", "draft"), [(1, 4, 1), (2, 8, 3), (4, 8, 6)])
@pytest.mark.parametrize("same", [0.5, 0.9])
def test_the_prediction_is_what_counting_blocks_finds(exit, blocks, draft, same, shared):
    """Laws for which a draft is accepted with probability `same`, whatever came before."""
    table = Table(2, 0)
    laws = {TARGET: [0.0, 1.0], DRAFT: [1.0 - same, same]}
    table.law = lambda depth, context: laws[depth]  # type: ignore[method-assign,assignment,return-value]
    texts, target = Continuations(np.array([[PROMPT]]), np.array([[True]]), 12000), Passes(table, exit, blocks)
    side = target if shared else Passes(table, exit, blocks)
    chance = Sampler(1.0, None, None, 1, 1).chances[0]
    tally = speculate(texts, target, TARGET, side, DRAFT, Window(1, draft), lambda law: law.astype(float), [chance])
    found = blocks * 12000 / (target.run + (0 if shared else side.run))
    assert found == pytest.approx(predicted_speedup(exit, blocks, draft, same, shared), rel=0.03)
    assert tally.accepted[0] / (tally.accepted[0] + tally.refused[0]) == pytest.approx(same, abs=0.03)


@given(
    exit=st.integers(1, 9), above=st.integers(0, 9), draft=st.integers(0, 9), acceptance=st.fractions(0, 1).filter(bool)
)
def test_the_prediction_is_the_closed_form(exit, above, draft, acceptance):
    a, d, e, blocks = acceptance, draft, exit, exit + above
    found = predicted_speedup(exit, blocks, draft, acceptance)
    if a < 1:
        assert found == blocks * (1 - a ** (d + 1)) / ((1 - a) * ((d + 1) * e + blocks - e))
    else:
        assert found == Fraction(blocks * (d + 1), (d + 1) * e + blocks - e)
    assert predicted_speedup(exit, blocks, 0, acceptance) == 1


def test_the_fastest_draft_is_the_best_prediction():
    def predict(exit: int, length: int, acceptance: float) -> float:
        return predicted_speedup(exit, 8, length, acceptance)

    found = fastest_draft({2: 0.6, 4: 0.9}, (1, 2, 3, 6), predict)
    assert found == (4, 3, predicted_speedup(4, 8, 3, 0.9))
    assert found[2] == max(predict(e, d, a) for e, a in ((2, 0.6), (4, 0.9)) for d in (1, 2, 3, 6))
    assert fastest_draft({2: 0.1, 6: 0.2}, range(1, 9), predict) is None
    assert fastest_draft({}, (1,), predict) is None


@pytest.mark.parametrize("wrong", [(0, 4, 2, 0.5), (5, 4, 2, 0.5), (2, 4, -1, 0.5), (2, 4, 2, 1.5), (2, 4, 2, np.nan)])
def test_no_prediction_for_numbers_out_of_range(wrong):
    with pytest.raises(TinykronError):
        predicted_speedup(*wrong)

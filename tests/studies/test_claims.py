"""Relations: verdicts that wrong numbers do not get, rows that an interruption does not cost, and reports."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.errors import CheckpointError, TinykronError
from tinykron.studies import claims as rel


def made(rule: rel.Rule, run: Any = None) -> rel.Relation:
    return rel.Relation("T1", "ours is less", "0.5", "nats", run or (lambda study, seed: {}), rule)


BUDGETS = {"a 0": 9, "b 0": 1, "a 5": 1, "b 5": 2, "a 20": 1, "b 20": 2}  # 0 is before any training


def verdict(rule: rel.Rule, *values: rel.Values) -> str:
    return rel.Answer(made(rule), tuple(rel.Row("T1", i, value, 1.0) for i, value in enumerate(values))).verdict


def pair(ours: float, theirs: float) -> rel.Values:
    return {"ours": ours, "theirs": theirs}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([pair(1, 2), pair(1, 3), pair(2, 3)], rel.HOLDS),
        ([pair(2, 1), pair(3, 1), pair(3, 2)], rel.FAILS),
        ([pair(1, 2), pair(1, 3), pair(3, 2)], rel.OPEN),  # the seeds do not agree
        ([pair(1, 1), pair(1, 1), pair(1, 1)], rel.OPEN),
        ([pair(1, 2), pair(1, 2)], rel.OPEN),  # two seeds are too few
    ],
)
def test_a_verdict_needs_all_of_three_seeds(values: list[rel.Values], expected: str) -> None:
    assert {verdict(rel.less("ours", "theirs"), *order) for order in permutations(values)} == {expected}


@pytest.mark.parametrize(
    ("rule", "yes", "no"),
    [
        (rel.less("ours", "theirs", 0.1), pair(0.8, 1), pair(1.2, 1)),
        (rel.near("ours", "theirs", 0.1), pair(1.05, 1), pair(1.2, 1)),
        (rel.not_above("ours", "theirs"), pair(1, 1), pair(1.1, 1)),
        (rel.above("ours", 1.0), pair(1, 0), pair(0.9, 0)),
        (rel.below("ours", 1.0), pair(0.9, 0), pair(1, 0)),
        (rel.falling("loss"), {"loss 2": 3, "loss 10": 1}, {"loss 2": 1, "loss 10": 3}),
        (rel.rising("gain"), {"gain 2": 1, "gain 10": 3, "x 1": 9}, {"gain 2": 3, "gain 10": 1}),
        (rel.each_less("a", "b"), {"a 1": 1, "b 1": 2, "a 2": 1, "b 2": 3}, {"a 1": 1, "b 1": 2, "a 2": 4, "b 2": 3}),
        (
            rel.each_less("a", "b", skip=1),
            {"a 1": 3, "b 1": 2, "a 2": 1, "b 2": 3},
            {"a 1": 1, "b 1": 2, "a 2": 4, "b 2": 3},
        ),
        (rel.both(rel.above("ours", 0.0), rel.below("ours", 1.0)), pair(0.5, 0), pair(1.5, 0)),
        (rel.agree(rel.above("ours", 0.0), rel.below("theirs", 0.0)), pair(1, -1), pair(-1, 1)),
        (rel.throughout("a", "b"), BUDGETS, {"a 0": 1, "b 0": 9, "a 5": 2, "b 5": 1, "a 20": 2, "b 20": 1}),
        (rel.throughout("a", "b", -0.1), {"a 5": 1.05, "b 5": 1}, {"a 5": 1.2, "b 5": 1}),
    ],
)
def test_rules_tell_a_claim_from_its_contrary(rule: rel.Rule, yes: rel.Values, no: rel.Values) -> None:
    assert (rule(yes), rule(no)) == (1, -1)


def test_within_a_margin_nothing_is_said() -> None:
    assert rel.less("ours", "theirs", 0.1)(pair(0.95, 1)) == 0
    assert rel.throughout("a", "b", 0.1)({"a 5": 0.95, "b 5": 1}) == 0


@pytest.mark.parametrize("mixed", [{"a 5": 3, "b 5": 2}, {"a 20": 2, "b 20": 2}, {"a 40": 9, "b 40": 1}])
def test_budgets_that_do_not_agree_say_nothing(mixed: rel.Values) -> None:
    rule = rel.throughout("a", "b")
    assert rule(BUDGETS) == 1 and rule(BUDGETS | mixed) == 0
    assert verdict(rule, BUDGETS, BUDGETS, BUDGETS | mixed) == rel.OPEN


@given(
    gap=st.floats(0.1, 1.0),
    noise=st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_a_planted_effect_gets_its_verdict_whatever_the_order(gap: float, noise: list[float], order: Any) -> None:
    """Noise of less than the gap does not hide it, turned around it fails, and noise across it leaves it open."""
    rule = rel.throughout("a", "b")
    held = [{"a 5": 10.0 + 0.4 * gap * one, "b 5": 10.0 + gap} for one in noise]
    turned = [{"a 5": row["b 5"], "b 5": row["a 5"]} for row in held]
    across = [*held, {"a 5": 10.0 + 2.0 * gap, "b 5": 10.0 + gap}]
    for rows, expected in ((held, rel.HOLDS), (turned, rel.FAILS), (across, rel.OPEN)):
        order.shuffle(rows)
        assert verdict(rule, *rows) == expected


def test_what_is_no_number_says_nothing_and_what_has_no_bound_is_shown() -> None:
    assert verdict(rel.less("ours", "theirs"), *[pair(1, 2)] * 3, pair(math.nan, 2)) == rel.OPEN
    assert rel.spread([1.0, math.inf]) == "inf" and rel.spread([math.nan, 1.0]) == "nan"


def test_an_interrupted_run_does_not_run_a_row_twice(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(study: str, seed: int) -> rel.Values:
        if seed == 2 and len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(seed)
        return pair(seed, seed + 1.0)

    relation = made(rel.less("ours", "theirs"), answer)
    with pytest.raises(KeyboardInterrupt):
        rel.run([relation], "study", 3, tmp_path, {"steps": 1}, say=lambda line: None)
    asked.append(-1)
    said: list[str] = []
    answers = rel.run([relation], "study", 3, tmp_path, {"steps": 1}, say=said.append)
    assert asked == [0, 1, -1, 2] and answers[0].verdict == rel.HOLDS and "seed 2 (1 of 1)" in said[0]
    assert [
        row.seed for row in rel.Kept(tmp_path, rel.Row, rel.SETTINGS, (tmp_path / rel.SETTINGS).read_text()[:-1]).rows
    ] == [0, 1, 2]
    with pytest.raises(CheckpointError, match="rows of another run"):
        rel.run([relation], "study", 3, tmp_path, {"steps": 2}, say=lambda line: None)


def test_a_report_has_the_claim_the_figure_and_ours() -> None:
    rows = tuple(rel.Row("T1", seed, pair(1.0 + seed, 9.0), 60.0) for seed in range(3))
    answers = [rel.Answer(made(rel.less("ours", "theirs")), rows)]
    text = rel.markdown("title", answers, "how it was run", "command")
    assert "| T1 | ours is less | 0.5 | nats: ours 2 ± 1; theirs 9 ± 0 (3 seeds) | **holds** | 3.0 |" in text
    assert "how it was run" in text and "`command --only RELATION`" in text
    [entry] = json.loads(json.dumps(rel.as_dict(answers)))
    assert entry["verdict"] == rel.HOLDS and len(entry["rows"]) == 3


def test_relations_are_chosen_by_name() -> None:
    one, other = made(rel.above("x", 0.0)), rel.Relation("T2", "", "", "", lambda study, seed: {}, rel.above("x", 0.0))
    assert rel.chosen([one, other], None) == [one, other] and rel.chosen([one, other], "T2") == [other]
    with pytest.raises(TinykronError, match="--only: found T3, expected some of T1, T2"):
        rel.chosen([one, other], "T1,T3")

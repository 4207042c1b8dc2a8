"""SQuAD's scores beside the steps of its two scripts, on random answers; and on answers whose score is plain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.squad_official import evaluate_1, evaluate_2
from tests.tasks.test_metrics import TEXTS
from tinykron.errors import DataError
from tinykron.tasks.squad import official_1, official_2

GOLD = st.lists(TEXTS, min_size=1, max_size=3)
ODDS = st.integers(-2, 2).map(lambda number: number / 2)  # with ties


def dataset(gold: list[list[str]]) -> list[dict[str, Any]]:
    """Questions q0, q1, ... in SQuAD's layout, two a paragraph."""
    asked = [{"id": f"q{n}", "answers": [{"text": text} for text in texts]} for n, texts in enumerate(gold)]
    return [{"paragraphs": [{"qas": asked[n : n + 2]} for n in range(0, len(asked), 2)]}]


def by_id(values: list[Any]) -> dict[str, Any]:
    return {f"q{number}": value for number, value in enumerate(values)}


@given(st.lists(st.tuples(GOLD, TEXTS, st.booleans()), min_size=1, max_size=8))
def test_random_answers_score_as_by_the_script_of_1(drawn):
    gold = [texts for texts, _, _ in drawn]
    answers = {f"q{n}": answer for n, (_, answer, given_) in enumerate(drawn) if given_}
    assert official_1(by_id(gold), answers) == pytest.approx(evaluate_1(dataset(gold), answers))


@given(
    st.lists(st.tuples(st.one_of(GOLD, st.just([])), st.one_of(TEXTS, st.just("")), ODDS), min_size=1, max_size=8),
    st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
    st.sets(st.integers(1, 7)),
)
def test_random_answers_score_as_by_the_script_of_2(drawn, threshold, missing):
    gold = [texts for texts, _, _ in drawn]
    answers = {f"q{n}": answer for n, (_, answer, _) in enumerate(drawn) if n not in missing}
    null = by_id([odds for _, _, odds in drawn])
    plain = official_2(by_id(gold), answers)
    assert plain == pytest.approx(evaluate_2(dataset(gold), answers))
    assert "best_f1" not in plain
    found = official_2(by_id(gold), answers, null, threshold)
    expected = evaluate_2(dataset(gold), answers, null, threshold)
    assert list(found) == list(expected) and found == pytest.approx(expected)


def test_scores_that_are_plain():
    gold = {"a": ["Denver Broncos", "The Denver Broncos"], "b": ["1,000 men"], "c": []}
    answers = {"a": "the denver broncos!", "b": "1000 women", "c": ""}
    assert official_2(gold, answers) == {
        "exact": pytest.approx(200 / 3), "f1": pytest.approx(250 / 3), "total": 3,
        "HasAns_exact": 50.0, "HasAns_f1": 75.0, "HasAns_total": 2,
        "NoAns_exact": 100.0, "NoAns_f1": 100.0, "NoAns_total": 1,
    }  # fmt: skip
    assert official_1({"a": gold["a"], "b": gold["b"]}, answers) == {"exact_match": 50.0, "f1": 75.0}
    assert official_1({"a": ["the"]}, {"a": "a"}) == {"exact_match": 100.0, "f1": 0.0}  # 1.1's script says so


def test_the_best_threshold_answers_the_surest():
    gold = {"sure": ["yes"], "unsure": ["no"], "none": []}
    answers = {"sure": "yes", "unsure": "perhaps", "none": "maybe"}
    found = official_2(gold, answers, {"sure": -3.0, "unsure": 2.0, "none": 1.0}, threshold=0.0)
    assert found["best_exact"] == pytest.approx(200 / 3) and found["best_exact_thresh"] == -3.0
    assert found["exact"] == pytest.approx(200 / 3) and found["NoAns_exact"] == 100.0 and found["HasAns_exact"] == 50.0
    assert official_2(gold, answers, {"sure": -3.0, "unsure": 2.0, "none": 1.0}, 1.0)["NoAns_exact"] == 0.0


def test_what_has_no_score_is_refused():
    with pytest.raises(DataError, match="SQuAD 1.1: expected questions"):
        official_1({}, {})
    with pytest.raises(DataError, match="SQuAD 2.0: expected answers"):
        official_2({"a": ["x"]}, {})
    with pytest.raises(DataError, match="odds for each; some are missing"):
        official_2({"a": ["x"]}, {"a": "x"}, {})

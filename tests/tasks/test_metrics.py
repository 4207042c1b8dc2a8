"""Metrics beside SciPy and beside their definitions in plain Python; each reference refuses wrong answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isnan

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from tinykron.errors import DataError
from tinykron.tasks import metrics

CLASSES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
SCORES = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=40)  # with ties
WORDS = st.lists(st.sampled_from("the a an The cat cat's CAT, dog. sat theatre a.m. 1,000 é - '".split()), max_size=6)
TEXTS = WORDS.map("  ".join)


def columns(pairs: list[tuple[int, int]], dtype: type = np.int64) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(pairs, dtype).T
    return first, second


# Classes --------------------------------------------------------------------------------------------------------------


def confusion(pairs: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    return pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1)), pairs.count((0, 0))


def plain_f1(pairs: list[tuple[int, int]]) -> float:
    tp, fp, fn, _ = confusion(pairs)
    precision, recall = (tp / (tp + wrong) if tp + wrong else 0.0 for wrong in (fp, fn))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_matthews(pairs: list[tuple[int, int]]) -> float:
    tp, fp, fn, tn = confusion(pairs)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / product**0.5 if product else 0.0


@given(CLASSES)
def test_classes_are_counted_as_the_definitions_say(pairs):
    predicted, gold = columns(pairs)
    assert metrics.accuracy(predicted, gold) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert metrics.f1(predicted, gold) == pytest.approx(plain_f1(pairs))
    assert metrics.matthews(predicted, gold) == pytest.approx(plain_matthews(pairs))


@given(CLASSES)
def test_matthews_is_the_correlation_of_two_classes(pairs):
    predicted, gold = columns(pairs)
    assume(len(set(predicted)) == len(set(gold)) == 2)
    assert metrics.matthews(predicted, gold) == pytest.approx(stats.pearsonr(predicted, gold).statistic, abs=1e-12)


def test_matthews_of_many_does_not_overflow():
    gold = np.arange(200_000) % 2
    predicted = np.where(np.arange(200_000) % 10 < 8, gold, 1 - gold)
    assert metrics.matthews(predicted, gold) == pytest.approx(0.6)


# Scores ---------------------------------------------------------------------------------------------------------------


@given(SCORES)
def test_correlations_are_scipy_s(pairs):
    for dtype in (np.float32, np.float64):
        predicted, gold = columns(pairs, dtype)
        constant = len(set(predicted)) == 1 or len(set(gold)) == 1
        for ours, theirs in ((metrics.pearson, stats.pearsonr), (metrics.spearman, stats.spearmanr)):
            if constant:
                assert isnan(ours(predicted, gold))
            else:
                assert ours(predicted, gold) == pytest.approx(theirs(*columns(pairs, float)).statistic, abs=1e-9)


def test_equal_numbers_that_their_mean_misses_have_no_correlation():
    assert isnan(metrics.pearson(np.full(3, 0.1), np.array([1.0, 2.0, 3.0])))
    assert isnan(metrics.spearman(np.array([1.0, 2.0, 3.0]), np.full(3, 0.1)))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson", "spearman"])
def test_lists_that_do_not_fit_are_refused(metric):
    function: Callable[..., float] = getattr(metrics, metric)
    for first, second in ((np.zeros(2), np.zeros(3)), (np.zeros(0), np.zeros(0)), (np.zeros((2, 1)), np.zeros((2, 1)))):
        with pytest.raises(DataError, match="as many answers as labels"):
            function(first, second)
    assert type(function(np.array([0, 1]), np.array([0, 1]))) is float


# Answers in words -----------------------------------------------------------------------------------------------------


def official_normalised(text: str) -> str:
    """The steps of the official script, one after the other."""
    text = "".join(ch for ch in text.lower() if ch not in set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
    return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", text).split())


def official_f1(answer: str, gold: str) -> float:
    ours, theirs = official_normalised(answer).split(), official_normalised(gold).split()
    if len(ours) == 0 or len(theirs) == 0:
        return float(ours == theirs)
    left, same = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


@given(TEXTS, TEXTS)
def test_answers_are_compared_as_the_official_script_does(answer, gold):
    assert metrics.normalised(answer) == official_normalised(answer)
    assert metrics.exact_match(answer, gold) == (official_normalised(answer) == official_normalised(gold))
    assert metrics.token_f1(answer, gold) == pytest.approx(official_f1(answer, gold))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("The  Cat's theatre.", "cats theatre"), ("a.m.", "am"), ("An a the", ""), ("1,000", "1000"), ("É à", "é à")],
)
def test_what_normalising_leaves(answer, expected):
    assert metrics.normalised(answer) == expected


def test_words_count_as_often_as_they_stand():
    assert metrics.token_f1("cat cat dog", "cat dog dog") == pytest.approx(2 / 3)
    assert metrics.token_f1("the", "a") == 1.0 and metrics.token_f1("the", "cat") == 0.0

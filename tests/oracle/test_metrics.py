"""GLUE's metrics beside scikit-learn."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given

from tests.test_metrics import CLASSES, columns
from tinykron import metrics

pytestmark = pytest.mark.oracle


@given(CLASSES)
def test_metrics_of_classes_are_scikit_learn_s(pairs):
    theirs = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    predicted, gold = columns(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes that nobody says
        assert metrics.accuracy(predicted, gold) == pytest.approx(theirs.accuracy_score(gold, predicted))
        assert metrics.f1(predicted, gold) == pytest.approx(theirs.f1_score(gold, predicted))
        assert metrics.matthews(predicted, gold) == pytest.approx(theirs.matthews_corrcoef(gold, predicted))

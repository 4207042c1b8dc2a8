"""GLUE's metrics, and the silhouette of classes, beside scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given

from tests.tasks.test_metrics import CLASSES, columns
from tinykron.studies.kroneckerbert import silhouette
from tinykron.tasks import metrics

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


def test_the_silhouette_is_scikit_learn_s():
    theirs = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    generator = np.random.default_rng(0)
    x_ND, classes_N = generator.standard_normal((40, 5)), generator.integers(0, 4, 40)
    classes_N[0] = 9  # alone in its class
    x_ND += classes_N[:, None]
    assert silhouette(x_ND, classes_N) == pytest.approx(theirs.silhouette_score(x_ND, classes_N))

"""Figures of a report. Its forms are tested with the recipe that fills them, its counts with info.py."""

from __future__ import annotations

import numpy as np

from tests.tiny_training import TOKENS, tiny_gpt2
from tinykron.report import speeds


def test_speeds_are_positive_and_leave_the_model_alone():
    model = tiny_gpt2(layers=1)  # context 8
    before = {name: array.copy() for name, array in model.state_dict().items()}
    reading, writing = speeds({"one": model, "other": tiny_gpt2(layers=2)}, TOKENS, [1, 2], rounds=1)
    assert reading.keys() == writing.keys() == {"one", "other"}
    assert min(*reading.values(), *writing.values()) > 0
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])

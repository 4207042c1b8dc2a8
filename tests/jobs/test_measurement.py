"""Speeds and samples of a report; its figures are tested with the recipe that fills them."""

from __future__ import annotations

import numpy as np

from tests.tiny_tasks import tiny_bert
from tests.tiny_training import TOKENS, tiny_gpt2
from tinykron.jobs.measurement import prompt_text, speeds
from tinykron.models.gpt2 import with_classifier


def test_speeds_are_positive_and_leave_the_model_alone():
    model = tiny_gpt2(layers=1)  # context 8
    before = {name: array.copy() for name, array in model.state_dict().items()}
    reading, writing = speeds({"one": model, "other": tiny_gpt2(layers=2)}, TOKENS, [1, 2], rounds=1)
    assert reading.keys() == writing.keys() == {"one", "other"}
    assert min(*reading.values(), *writing.values()) > 0
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_only_what_writes_is_timed_writing():
    models = {"classifier": with_classifier(tiny_gpt2(layers=1), 2), "bert": tiny_bert(), "gpt2": tiny_gpt2(layers=1)}
    reading, writing = speeds(models, TOKENS, [1, 2], rounds=1)
    assert reading.keys() == models.keys() and writing.keys() == {"gpt2"}
    assert [model.writes for model in models.values()] == [False, False, True]
    assert [model.fills for model in models.values()] == [False, True, False]
    assert [model.classifies for model in models.values()] == [True, False, False]


def test_a_masked_models_prompt_has_gaps():
    ids = tiny_bert().tokenizer.encode("the number of the page tells the number before the page").ids[1:-1]
    assert prompt_text(tiny_bert(), ids).count("[MASK]") >= 2
    assert prompt_text(tiny_bert(head="sequence"), ids) == ""

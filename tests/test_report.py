"""Figures of a report, against counts made by hand. Its forms are tested with the recipe that fills them."""

from __future__ import annotations

import numpy as np

from tests.tiny_training import TOKENS, tiny_gpt2
from tinykron import kron
from tinykron.report import flops_per_token, kron_multiplications, speeds


def test_flops_of_a_dense_model_are_twice_its_matrix_entries_and_the_attention():
    model = tiny_gpt2(layers=2)  # width 8, 2 heads of 4, vocabulary 13
    per_block = 4 * 8 * 8 + 2 * 8 * 32
    attention = 2 * 2 * 8 * 6  # scores and mixing, 2 operations each, width 8, 6 positions
    assert flops_per_token(model, 5) == 2 * (2 * per_block + 13 * 8) + 2 * attention


def test_flops_of_factors_count_both_products_in_the_cheaper_order():
    layer = kron.KronLinear(inputs=6, outputs=20, shape=(4, 3), terms=2)  # A (4, 3), B (5, 2)
    b_first = 3 * 5 * 2 + 5 * 4 * 3
    a_first = 2 * 4 * 3 + 4 * 5 * 2
    assert kron_multiplications(layer) == 2 * min(b_first, a_first)


def test_flops_of_a_factorised_model_fall():
    model = tiny_gpt2(layers=2)
    small = kron.factorise(model, kron.kngpt2_plan(model))
    assert flops_per_token(small, 5) < flops_per_token(model, 5)
    assert flops_per_token(kron.merge(small), 5) == flops_per_token(model, 5)


def test_speeds_are_positive_and_leave_the_model_alone():
    model = tiny_gpt2(layers=1)  # context 8
    before = {name: array.copy() for name, array in model.state_dict().items()}
    reading, writing = speeds({"one": model, "other": tiny_gpt2(layers=2)}, TOKENS, [1, 2], rounds=1)
    assert reading.keys() == writing.keys() == {"one", "other"}
    assert min(*reading.values(), *writing.values()) > 0
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])

"""What `tinykron info` says, against counts made by hand and factors that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close
from tests.tiny_training import tiny_gpt2
from tinykron import kron
from tinykron.errors import TinykronError
from tinykron.jobs.describe import best_pair, describe, render
from tinykron.measure.costs import flops_per_token
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.llama import Llama, LlamaConfig
from tinykron.nn import Linear, Unset

# Operations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_gpt2_are_twice_its_matrix_entries_and_the_attention(tied):
    model = tiny_gpt2(layers=2, tie_word_embeddings=tied)  # width 8, 2 heads of 4, vocabulary 13
    per_block = 4 * 8 * 8 + 2 * 8 * 32
    attention = 2 * 2 * 8 * 6  # scores and mixing, 2 operations each, width 8, 6 positions
    assert flops_per_token(model, 5) == 2 * (2 * per_block + 13 * 8) + 2 * attention


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_llama_count_gate_up_down_and_fewer_keys_and_values(tied):
    config = LlamaConfig(13, 12, 20, 3, 4, 2, head_dim=6, max_position_embeddings=9, tie_word_embeddings=tied)
    per_block = 12 * 24 + 2 * 12 * 12 + 24 * 12 + 3 * 12 * 20  # query; key, value; output; gate, up, down
    attention = 2 * 2 * 4 * 6 * 5  # each of the 4 query heads, 5 positions
    assert flops_per_token(Llama(config, Unset()), 4) == 2 * (3 * per_block + 13 * 12) + 3 * attention


@pytest.mark.parametrize(
    ("head", "extra"),
    [
        (None, 0),  # the pooler runs once a text
        ("masked_lm", 8 * 8 + 13 * 8),  # its own matrix, then the token embedding
        ("sequence", 0),
        ("token", 8 * 5),
        ("span", 8 * 2),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_bert_look_at_the_whole_context(head, extra, tied):
    config = BertConfig(13, 8, 2, 2, 12, 10, head=head, labels=5, tie_word_embeddings=tied)
    per_block = 4 * 8 * 8 + 2 * 8 * 12
    attention = 2 * 2 * 8 * 10  # 5 positions before, and all others of 10 behind
    assert flops_per_token(Bert(config, Unset()), 5) == 2 * (2 * per_block + extra) + 2 * attention


def test_flops_of_a_factorised_model_fall():
    model = tiny_gpt2(layers=2)
    small = kron.factorise(model, kron.kngpt2_plan(model))
    assert flops_per_token(small, 5) < flops_per_token(model, 5)
    assert flops_per_token(kron.merge(small), 5) == flops_per_token(model, 5)


# Factors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b_shape", [(2, 1), (1, 2)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_matrix_that_is_a_product_of_half_its_size_is_found(b_shape, swapped):
    generator = np.random.default_rng(0)
    large, small = generator.standard_normal((1, 24 // b_shape[0], 32 // b_shape[1])), generator.random((1, *b_shape))
    a, b = (small, large) if swapped else (large, small)
    shape, energy = best_pair(kron.KronSum(a, b).dense(), 2.0)
    assert shape == a.shape[1:]
    assert energy == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0, 4.0, 7.5, 20.0])
@pytest.mark.parametrize("dense", [(256, 64), (60, 84), (96, 96)])
def test_a_pair_is_as_small_as_asked_within_a_hundredth(dense, ratio):
    w = np.random.default_rng(0).standard_normal(dense)
    (m, n), energy = best_pair(w, ratio)
    parameters = m * n + w.size // (m * n)
    assert parameters <= 1.01 * w.size / ratio
    assert energy == pytest.approx(kron.nearest(w, (m, n)).energy)


def test_no_pair_is_found_where_none_is_small_enough():
    assert best_pair(np.ones((7, 5)), 20.0) is None  # 35 numbers: at least 12 in a pair
    assert best_pair(np.ones((7, 5)), 2.0) is not None


# The whole ------------------------------------------------------------------------------------------------------------


def saved(tmp_path, model, dtype="float32"):
    tk.save(model, tmp_path / "model", dtype=dtype)
    return tmp_path / "model", tk.load(tmp_path / "model")


def test_every_parameter_is_in_one_row(tmp_path):
    found = describe(*saved(tmp_path, tiny_gpt2(layers=2), "bfloat16"))
    assert (found.model_type, found.architecture, found.layers, found.width, found.inner) == ("gpt2", "GPT2", 2, 8, 32)
    assert (found.heads, found.head_width, found.key_value_heads, found.context) == (2, 4, 2, 8)
    norms_and_biases = 2 * (2 * 16 + 4 * 8 + 32 + 8) + 16
    assert found.others == norms_and_biases
    assert found.parameters == norms_and_biases + sum(matrix.parameters for matrix in found.matrices)
    assert len(found.matrices) == 2 + 2 * 6
    assert found.dtype == "bfloat16" and found.bytes > 2 * found.parameters
    assert found.flops_per_token == flops_per_token(tiny_gpt2(layers=2), 4)
    assert found.head == "tied to the token embedding"
    text = render(found)
    assert all(matrix.name in text for matrix in found.matrices)
    assert f"{found.parameters:,} parameters" in text and "tied to the token embedding" in text


def test_heads_in_words(tmp_path):
    assert describe(*saved(tmp_path, tiny_gpt2(tie_word_embeddings=False))).head == "a matrix of its own"
    bert = BertConfig(13, 8, 1, 2, 12, 10)
    words = {None: "none: hidden states alone", "masked_lm": "tied to the token embedding", "token": "each token"}
    for head, expected in words.items():
        model = Bert(replace(bert, head=head), np.random.default_rng(0))
        found = describe(*saved(tmp_path / str(head), model))
        assert expected in found.head and found.model_type == "bert"


def test_grouped_heads_are_told(tmp_path):
    config = LlamaConfig(13, 12, 20, 1, 4, 2, head_dim=6, max_position_embeddings=9)
    found = describe(*saved(tmp_path, Llama(config, np.random.default_rng(0))))
    assert (found.heads, found.key_value_heads, found.head_width, found.inner) == (4, 2, 6, 20)
    assert "4 heads of 6 on 2 key/value heads" in render(found)


def test_a_factorised_matrix_keeps_its_row(tmp_path):
    model = tiny_gpt2(layers=2)
    small = kron.factorise(model, kron.kngpt2_plan(model))
    found = describe(*saved(tmp_path, small))
    rows = {matrix.name: matrix for matrix in found.matrices}
    assert rows["blocks.1.mlp.up (factorised)"].parameters == small.blocks[1].mlp.up.factors.parameters
    assert rows["blocks.1.mlp.up (factorised)"].shape == (32, 8) and rows["blocks.1.mlp.up (factorised)"].a is None
    assert found.parameters == small.parameter_count() == found.others + sum(row.parameters for row in found.matrices)
    assert found.inner == 32


def test_the_rows_hold_what_nearest_keeps(device, tmp_path):
    folder, model = saved(tmp_path, tiny_gpt2(layers=1))
    for row in describe(folder, model).matrices:
        module = model.get(row.name)
        w = module.weight.numpy().T if isinstance(module, Linear) else module.weight.numpy()
        if row.a is not None:
            assert_close(row.energy, kron.nearest(np.ascontiguousarray(w), row.a).energy, rtol=1e-5)
            assert (row.a[0] * row.b[0], row.a[1] * row.b[1]) == row.shape
            assert row.gaussian == kron.gaussian_energy(row.shape, row.a)


@pytest.mark.parametrize("ratio", [0.99, -1.0, float("nan")])
def test_a_ratio_below_1_is_refused(tmp_path, ratio):
    with pytest.raises(TinykronError, match=f"ratio: found {ratio}, expected at least 1"):
        describe(*saved(tmp_path, tiny_gpt2()), ratio)


def test_a_matrix_with_a_nan_is_named(tmp_path):
    folder, model = saved(tmp_path, tiny_gpt2())
    model.blocks[1].mlp.up.weight.data[0, 0] = np.nan
    with pytest.raises(TinykronError, match=r"blocks\.1\.mlp\.up: .* NaN"):
        describe(folder, model)

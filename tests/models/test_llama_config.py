"""LLaMA's configuration: where rotary settings may stand, what they mean, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.llama_checkpoints import LLAMA3, ROPES, TINY, llama_frequencies, llama_logits, llama_tensors
from tests.models.test_llama import CLOSE, distance, loaded, logits
from tinykron.errors import CheckpointError, TinykronError
from tinykron.models.llama import LlamaConfig, frequencies

# Rotary positions -----------------------------------------------------------------------------------------------------

ROTARY_PLACES = {
    "transformers 4": {"rope_theta": 50.0, "rope_scaling": LLAMA3},
    "transformers 5": {"rope_parameters": LLAMA3 | {"rope_theta": 50.0}},
    "both, as saved here": {
        "rope_theta": 50.0,
        "rope_scaling": LLAMA3,
        "rope_parameters": LLAMA3 | {"rope_theta": 50.0},
    },
    "the older key": {
        "rope_theta": 50,
        "rope_scaling": {("type" if key == "rope_type" else key): value for key, value in LLAMA3.items()},
    },
    "old and new key": {"rope_theta": 50.0, "rope_scaling": LLAMA3 | {"type": "llama3"}},
    "theta in the scaling": {"rope_scaling": LLAMA3 | {"rope_theta": 50.0}, "rope_parameters": None},
}


@pytest.mark.parametrize("place", ROTARY_PLACES)
def test_rotary_settings_are_read_wherever_they_stand(tmp_path, place):
    tensors = llama_tensors(TINY)
    found = logits(loaded(tmp_path, TINY | ROTARY_PLACES[place], tensors))
    assert distance(found, llama_logits(TINY | ROTARY_PLACES["transformers 4"], tensors)) < CLOSE


def test_llama3_starts_from_the_context_where_it_says_no_other():
    scaling = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    config = LlamaConfig.from_dict({"max_position_embeddings": 77, "rope_scaling": scaling})
    assert config.rope_scaling == scaling | {"original_max_position_embeddings": 77}


@pytest.mark.parametrize("rope", ROPES)
def test_the_context(tmp_path, rope):
    config = TINY | {"rope_scaling": ROPES[rope]}
    model = loaded(tmp_path, config, llama_tensors(config))
    assert model.context == {"linear": 22, "dynamic": 18}.get(rope, 9)
    with pytest.raises(TinykronError, match=f"{model.context + 1} tokens are more than the model's context"):
        model(np.zeros((1, model.context + 1), int))


@pytest.mark.parametrize("rope", ROPES)
def test_frequencies(rope):
    config = {"hidden_size": 128, "num_attention_heads": 2, "rope_theta": 5e5, "max_position_embeddings": 100}
    config |= {"rope_scaling": ROPES[rope] and ROPES[rope] | {"original_max_position_embeddings": 60}}
    for length in (1, 100, 101, 170):
        found = frequencies(LlamaConfig.from_dict(config), length)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, llama_frequencies(config, length), rtol=2e-6)


def test_a_pair_alone_turns_by_one_whatever_the_length():
    config = LlamaConfig.from_dict({"head_dim": 2, "max_position_embeddings": 4, "rope_scaling": ROPES["dynamic"]})
    assert frequencies(config, 8).tolist() == [1.0]  # the exponent K / (K - 2) has no value


# What is refused ------------------------------------------------------------------------------------------------------

BAD = {
    "hidden_size": ({"hidden_size": 15}, "hidden_size 15 is not divisible by num_attention_heads 4"),
    "groups": ({"num_key_value_heads": 3}, "num_attention_heads 4 is not divisible by num_key_value_heads 3"),
    "more groups": ({"num_key_value_heads": 8}, "num_attention_heads 4 is not divisible by num_key_value_heads 8"),
    "no groups": ({"num_key_value_heads": 0}, "num_key_value_heads: expected a whole number above 0, found 0"),
    "odd": ({"head_dim": 5}, "head_dim: found 5, expected an even number"),
    "odd by division": ({"hidden_size": 12}, "head_dim: found 3, expected an even number"),
    "a half": ({"head_dim": 4.0}, r"head_dim: expected a whole number above 0, found 4\.0"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers: expected a whole number above 0, found 0"),
    "text": ({"vocab_size": "13"}, "vocab_size: expected a whole number above 0, found '13'"),
    "true": ({"intermediate_size": True}, "intermediate_size: expected a whole number above 0, found True"),
    "context": ({"max_position_embeddings": -1}, "max_position_embeddings: expected a whole number above 0"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected \"silu\""),
    "slices": ({"pretraining_tp": 2}, "pretraining_tp: found 2, expected 1"),
    "bias": ({"attention_bias": 1}, "attention_bias: expected true or false, found 1"),
    "MLP bias": ({"mlp_bias": "no"}, "mlp_bias: expected true or false, found 'no'"),
    "tied": ({"tie_word_embeddings": None}, "tie_word_embeddings: expected true or false, found None"),
    "epsilon": ({"rms_norm_eps": -1e-6}, "rms_norm_eps: expected a number from 0 on and below 1, found -1e-06"),
    "dropout": ({"attention_dropout": 1.0}, r"attention_dropout: expected a number .* below 1, found 1\.0"),
    "theta": ({"rope_theta": 0}, "rope_theta: expected a number above 0, found 0"),
    "theta nan": ({"rope_theta": float("nan")}, "rope_theta: expected a number above 0, found nan"),
    "no object": ({"rope_scaling": [2.0]}, r"rope_scaling: expected an object, found \[2\.0\]"),
    "type": (
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        "rope_type: found 'yarn', expected one of default, lin",
    ),
    "no factor": ({"rope_scaling": {"rope_type": "linear"}}, "factor: expected a number above 0, found nothing"),
    "factor 0": ({"rope_scaling": {"rope_type": "dynamic", "factor": 0}}, "factor: expected a number above 0, found 0"),
    "shrinks": ({"rope_scaling": {"type": "linear", "factor": 0.5}}, r"factor: found 0\.5 for .*, expected at least 1"),
    "low": ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, r"low_freq_factor 4\.0 should be below high_freq_fac"),
    "no high": ({"rope_parameters": LLAMA3 | {"high_freq_factor": None}}, "high_freq_factor: .*, found nothing"),
    "two thetas": (
        {"rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        r"rope_theta: found 500000\.0 in rope_parameters and 10000\.0 in config\.json, expected the same",
    ),
    "two scalings": (
        {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 32.0}},
        r"factor: found 8\.0 in rope_scaling and 32\.0 in rope_parameters, expected the same",
    ),
    "two types": (
        {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}},
        "rope_type: found 'default' in rope_scaling and 'linear' in rope_scaling, expected the same",
    ),
    "two contexts": (
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 64},
        r"original_max_position_embeddings: found 8 in rope_scaling and 64 in config\.json",
    ),
    "partial": ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: found 0\.5, expected 1"),
    "partial scaled": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        r"partial_rotary_factor: found 0\.5, expected 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configurations(tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        loaded(tmp_path, TINY | change, llama_tensors(TINY))


def test_a_square_matrix_too_many_is_named(tmp_path):
    config = TINY | {"num_key_value_heads": 4}
    with pytest.raises(
        CheckpointError, match=r"k_proj\.weight: found \(8, 16\), expected \(16, 16\) from num_key_value"
    ):
        loaded(tmp_path, config, llama_tensors(TINY))


def test_defaults_are_transformers_s():
    config = LlamaConfig.from_dict({})
    assert (config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings) == (1e-6, 10000.0, False)
    assert (config.groups, config.head_width, config.rope_scaling, config.max_position_embeddings) == (
        32,
        128,
        None,
        2048,
    )
    assert LlamaConfig.from_dict({"hidden_act": "swish"}).to_dict()["hidden_act"] == "silu"

"""LLaMA beside transformers: folders both ways, logits, hidden states, attention, gradients, and what it writes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinykron as tk
from tests.helpers import assert_close
from tests.llama_checkpoints import ROPES, llama_configs
from tests.oracle.compare import GRADIENTS, LOGITS, assert_alike, assert_attention, assert_gradients, gradients, write
from tests.oracle.test_gpt2 import batches
from tests.oracle.theirs import positions_of, random_model, results, targets_of
from tinykron.fused import cross_entropy
from tinykron.models.llama import LlamaConfig, frequencies

pytestmark = pytest.mark.oracle

FIXED = {
    "vocab_size": 20,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "max_position_embeddings": 8,
    "tie_word_embeddings": False,
}


@given(data=st.data(), config=llama_configs(), seed=st.integers(0, 999), shards=st.booleans(), prefix=st.booleans())
def test_everything_agrees(tmp_path_factory, data, config, seed, shards, prefix):
    theirs = random_model("LlamaForCausalLM", config, seed)
    ours = tk.load(write(theirs, tmp_path_factory.mktemp("theirs"), "model.", shards, prefix))
    ids_BT, mask_BT = data.draw(batches(config | {"n_positions": config["max_position_embeddings"]}))
    expected = results(theirs, ids_BT, mask_BT)
    found = ours(ids_BT, mask_BT, positions_BT=positions_of(mask_BT), attention_scores=True)
    real = mask_BT != 0
    assert_alike(found.logits.numpy()[real], expected.logits[real])
    for hidden, reference in zip(found.hidden, expected.hidden, strict=True):
        assert_alike(hidden.numpy()[real], reference[real])
    assert_attention(found.attention_scores, expected.attention, real, causal=True)
    cross_entropy(found.logits[:, :-1], targets_of(ids_BT, mask_BT)).backward()
    assert_gradients(gradients(ours), expected.gradients)


@settings(max_examples=10)
@given(config=llama_configs(), seed=st.integers(0, 999), dtype=st.sampled_from(["float32", "bfloat16", "float16"]))
def test_what_one_saves_the_other_loads(tmp_path_factory, config, seed, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("folders")
    model = tk.load(write(random_model("LlamaForCausalLM", config, seed), folder / "theirs", "model.", dtype=dtype))
    tk.save(model, folder / "ours", dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "ours", attn_implementation="eager").to(torch.float32)
    ids_BT = np.arange(10).reshape(2, 5) % config["vocab_size"]
    expected = results(theirs, ids_BT)
    found = tk.load(folder / "ours")(ids_BT)
    assert_alike(found.logits.numpy(), expected.logits)
    assert_alike(model(ids_BT).logits.numpy(), expected.logits, LOGITS if dtype == "float32" else 1e-3)
    cross_entropy(found.logits[:, :-1], ids_BT[:, 1:]).backward()


@pytest.mark.parametrize("rope", ROPES)
def test_positions_are_scaled_as_theirs(tmp_path, rope):
    """Also beyond what the model was trained on, where the file allows it."""
    theirs = random_model("LlamaForCausalLM", FIXED | {"rope_scaling": copy.deepcopy(ROPES[rope])}, seed=1)
    ours = tk.load(write(theirs, tmp_path, "model."))
    assert ours.context == {"linear": 20, "dynamic": 16}.get(rope, 8)
    ids_BT = np.random.default_rng(0).integers(0, 20, (2, ours.context))
    assert_alike(ours(ids_BT).logits.numpy(), results(theirs, ids_BT).logits)


@pytest.mark.parametrize("rope", ROPES)
def test_greedy_text_is_theirs(tmp_path, rope):
    import torch

    config = FIXED | {"max_position_embeddings": 24, "rope_scaling": copy.deepcopy(ROPES[rope])}
    theirs = random_model("LlamaForCausalLM", config, seed=2)
    ours = tk.load(write(theirs, tmp_path, "model."))
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6]]
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    options: dict[str, Any] = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    expected = theirs.generate(ids_BT, attention_mask=mask_BT, **options).numpy()
    found = tk.generate(ours, prompts, max_new_tokens=16, stop=())
    first_stop = [next((i for i, token in enumerate(row[longest:]) if token == 0), 16) for row in found]
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):  # theirs never picks the stop token
        stop = longest + first_stop[row]
        assert one[longest:stop].tolist() == other[longest:stop].tolist()
    assert sum(first_stop) > 24


@pytest.mark.parametrize("rope", ["linear", "dynamic"])
def test_greedy_text_beyond_the_first_context_is_theirs(tmp_path, rope):
    """A cache keeps keys turned by the base of their day: ours as theirs, though one pass would say otherwise."""
    import torch

    config = FIXED | {"rope_scaling": copy.deepcopy(ROPES[rope]), "rope_theta": 100.0}
    theirs = random_model("LlamaForCausalLM", config, seed=3)
    ours = tk.load(write(theirs, tmp_path, "model."))
    theirs.generation_config.eos_token_id = None
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6]]
    ids_BT = np.array([[0] * (5 - len(row)) + row for row in prompts])
    mask_BT = np.array([[0] * (5 - len(row)) + [1] * len(row) for row in prompts])
    options: dict[str, Any] = {"attention_mask": torch.tensor(mask_BT), "pad_token_id": 0, "do_sample": False}
    expected = theirs.generate(torch.tensor(ids_BT), max_new_tokens=11, **options).numpy()
    assert expected.shape == (3, 16)  # twice the first context
    assert tk.generate(ours, ids_BT, mask=mask_BT, max_new_tokens=11, stop=()).tolist() == expected.tolist()


@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_are_theirs(rope):
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    different = total = 0
    for head_dim, theta in itertools.product((4, 6, 64, 80, 128), (10000.0, 500000.0, 17.0)):
        config = FIXED | {"head_dim": head_dim, "rope_theta": theta, "max_position_embeddings": 100}
        config["rope_scaling"] = copy.deepcopy(ROPES[rope])
        module = LlamaRotaryEmbedding(TheirConfig(**copy.deepcopy(config)))
        module(torch.zeros(1), torch.arange(170)[None])  # dynamic: beyond the first context
        found, expected = frequencies(LlamaConfig.from_dict(config), 170), module.inv_freq.numpy()
        assert_close(found, expected, rtol=2e-6, atol=0)
        different, total = different + int((found != expected).sum()), total + found.size
    if rope in ("default", "linear"):
        assert different <= total // 100  # to the last bit


@pytest.mark.slow
def test_a_slice_of_a_billion(tmp_path):
    config = {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": ROPES["llama3"] | {"factor": 32.0, "original_max_position_embeddings": 8192},
        "tie_word_embeddings": True,
    }
    theirs = random_model("LlamaForCausalLM", config, seed=0, std=0.01)
    ours = tk.load(write(theirs, tmp_path, "model."))
    ids_BT = np.random.default_rng(0).integers(0, 128256, (1, 24))
    expected = results(theirs, ids_BT)
    del theirs
    found = ours(ids_BT)
    assert_close(found.logits, expected.logits, rtol=0, atol=LOGITS)
    for hidden, reference in zip(found.hidden, expected.hidden, strict=True):
        assert_close(hidden, reference, rtol=0, atol=LOGITS)
    cross_entropy(found.logits[:, :-1], ids_BT[:, 1:]).backward()
    assert_gradients(gradients(ours), expected.gradients)
    assert GRADIENTS == 1e-3

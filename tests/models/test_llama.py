"""LLaMA: what folders may look like, against float64 NumPy; what each trap would do; decoding; factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import tinykron as tk
from tests.checkpoints import write_folder
from tests.helpers import assert_close, host
from tests.llama_checkpoints import (
    IDS,
    LLAMA3,
    ROPES,
    TINY,
    UNTIED,
    llama_logits,
    llama_tensors,
    odd_llama_configs,
    without_prefix,
)
from tinykron import kron
from tinykron.errors import CheckpointError
from tinykron.fused import cross_entropy
from tinykron.models.llama import Llama, LlamaConfig

DATA = Path(__file__).parents[3] / "shared" / "data"
CLOSE = 5e-6  # of the largest logit


def distance(found: Any, expected: np.ndarray) -> float:
    assert host(found).shape == expected.shape
    return float(np.abs(host(found) - expected).max() / np.abs(expected).max())


def logits(model: Llama, ids: Any = IDS) -> np.ndarray:
    with tk.no_grad():
        return host(model(ids).logits)


def loaded(folder: Path, config: dict, tensors: dict, shards: int = 1) -> Llama:
    return tk.load(write_folder(folder, config, tensors, shards))


def assert_reads(folder: Path, config: dict, tensors: dict, meant: dict | None = None) -> None:
    """The folder loads, and its model computes what the tensors say: those of `meant`, where the file has others."""
    assert distance(logits(loaded(folder, config, tensors)), llama_logits(config, meant or tensors)) < CLOSE


# What a folder may look like ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_load(device, tmp_path, config, shards):
    tensors = llama_tensors(config)
    model = loaded(tmp_path, config, tensors, shards)
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert model.tokenizer is None and not model.training and model.context == 9
    assert model.parameter_count() == sum(array.size for array in tensors.values())
    assert distance(logits(model), llama_logits(config, tensors)) < CLOSE


@given(
    config=odd_llama_configs(),
    seed=st.integers(0, 99),
    prefix=st.booleans(),
    shards=st.sampled_from([1, 3]),
    dtype=st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16]),
)
def test_every_folder_is_read_as_it_is_meant(tmp_path_factory, config, seed, prefix, shards, dtype):
    tensors = {name: array.astype(dtype) for name, array in llama_tensors(config, seed).items()}
    files = tensors if prefix else without_prefix(tensors)
    model = loaded(tmp_path_factory.mktemp("any"), config, files, shards)
    ids_BT = np.random.default_rng(seed).integers(0, config["vocab_size"], (2, model.context))
    assert distance(logits(model, ids_BT), llama_logits(config, tensors, ids_BT)) < CLOSE


def test_buffers_of_old_files_are_no_parameters(tmp_path):
    tensors = llama_tensors(TINY)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(2)}
    assert_reads(tmp_path / "layers", TINY, tensors | buffers, tensors)
    assert_reads(tmp_path / "model", TINY, tensors | {"model.rotary_emb.inv_freq": np.ones(2)}, tensors)
    with pytest.raises(CheckpointError, match=r"unexpected +model\.layers\.0\.rotary\.inv_freq"):
        loaded(tmp_path / "other", TINY, tensors | {"model.layers.0.rotary.inv_freq": np.ones(2)})


def test_a_tied_head_is_the_embedding_whatever_the_file_says(tmp_path):
    tensors, head = llama_tensors(TINY), llama_tensors(UNTIED)["lm_head.weight"]
    assert_reads(tmp_path / "both", TINY, tensors | {"lm_head.weight": head}, tensors)
    renamed = dict(tensors)
    renamed["lm_head.weight"] = renamed.pop("model.embed_tokens.weight")
    assert_reads(tmp_path / "renamed", TINY, renamed, tensors)
    model = loaded(tmp_path / "tied", TINY, tensors)
    assert model.head is None and len(model.parameters()) == len(tensors)


def test_a_head_is_its_own_unless_the_file_ties_it(tmp_path):
    silent = {key: value for key, value in TINY.items() if key != "tie_word_embeddings"}
    assert_reads(tmp_path / "own", silent, llama_tensors(UNTIED))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \(config\.json says tie_word_embeddings false"):
        loaded(tmp_path / "none", silent, llama_tensors(TINY))


# Each trap is one that this suite would see ---------------------------------------------------------------------------


def every(tensors: dict, suffix: str, change: Any) -> dict:
    return {name: change(array) if name.endswith(suffix) else array for name, array in tensors.items()}


def swapped(tensors: dict, one: str, other: str) -> dict:
    names = {name: name.replace(one, "#").replace(other, one).replace("#", other) for name in tensors}
    return {name: tensors[names[name]] for name in tensors}


WRONG: dict[str, tuple[Any, dict[str, Any]]] = {  # what happens to config and tensors; how the reference reads them
    "output matrix transposed": (lambda c, w: (c, every(w, "o_proj.weight", np.transpose)), {}),
    "query matrix transposed": (lambda c, w: (c, every(w, "q_proj.weight", np.transpose)), {}),
    "rotary pairs of neighbours": (lambda c, w: (c, w), {"interleaved": True}),
    "key heads tiled": (lambda c, w: (c, w), {"tiled": True}),
    "queries not turned": (lambda c, w: (c, w), {"turned": "k"}),
    "no position": (lambda c, w: (c, w), {"turned": ""}),
    "positions from 0 after a cache": (lambda c, w: (c, w), {"restart": 5}),
    "SiLU on the wrong matrix": (lambda c, w: (c, w), {"ungated": True}),
    "gate and up swapped": (lambda c, w: (c, swapped(w, "gate_proj", "up_proj")), {}),
    "norms swapped": (lambda c, w: (c, swapped(w, "input_layernorm", "post_attention_layernorm")), {}),
    "theta not found": (lambda c, w: (c | {"rope_theta": 10000.0}, w), {}),
    "scaling not found": (lambda c, w: (c | {"rope_scaling": None}, w), {}),
    "the factor of llama3 fixed": (lambda c, w: (c | {"rope_scaling": LLAMA3 | {"factor": 2.0}}, w), {}),
    "the first context not read": (
        lambda c, w: (c | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}}, w),
        {},
    ),
    "the default epsilon": (lambda c, w: (c | {"rms_norm_eps": 1e-6}, w), {}),
    "head tied by default": (lambda c, w: (c, {n: a for n, a in w.items() if n != "lm_head.weight"}), {}),
    "no bias in the attention": (lambda c, w: (c, every(w, "o_proj.bias", np.zeros_like)), {}),
    "no bias in the MLP": (lambda c, w: (c, every(w, "down_proj.bias", np.zeros_like)), {}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reading_shows(tmp_path, wrong):
    config = UNTIED | {"rope_theta": 50.0, "rope_scaling": LLAMA3, "attention_bias": True, "mlp_bias": True}
    tensors = llama_tensors(config)
    found = logits(loaded(tmp_path, config, tensors))
    assert distance(found, llama_logits(config, tensors)) < CLOSE
    change, reading = WRONG[wrong]
    assert distance(found, llama_logits(*change(config, tensors), **reading)) > 50 * CLOSE


def test_where_the_text_starts_does_not_matter(device, tmp_path):
    model = loaded(tmp_path, TINY, llama_tensors(TINY))
    with tk.no_grad():
        moved = model(IDS, positions_BT=np.arange(8)[None] + np.array([[1], [30]])).logits
    assert distance(moved, logits(model)) < 10 * CLOSE  # rotary positions are relative


def test_each_row_has_its_own_positions(device, tmp_path):
    model = loaded(tmp_path, TINY, llama_tensors(TINY))
    positions_BT = np.array([np.arange(8), 3 * np.arange(8)])  # no shift of one another: that would not show
    with tk.no_grad():
        found = host(model(IDS, positions_BT=positions_BT).logits)
        rows = [host(model(IDS[row : row + 1], positions_BT=positions_BT[row : row + 1]).logits) for row in (0, 1)]
    assert distance(found, np.concatenate(rows)) < CLOSE
    assert distance(found[1:], logits(model)[1:]) > 50 * CLOSE


# Saving ---------------------------------------------------------------------------------------------------------------


@given(config=odd_llama_configs(), dtype=st.sampled_from(["float32", "bfloat16", "float16"]), seed=st.integers(0, 99))
def test_round_trip(tmp_path_factory, config, dtype, seed):
    folder = tmp_path_factory.mktemp("round") / "trip"
    model = Llama(LlamaConfig.from_dict(config), np.random.default_rng(seed)).eval()
    tk.save(model, folder, dtype)
    again = tk.load(folder)
    found, told = again.config, model.config
    assert (found.groups, found.head_width, found.rope_scaling) == (told.groups, told.head_width, told.rope_scaling)
    same = ("vocab_size", "rope_theta", "rms_norm_eps", "attention_bias", "mlp_bias", "tie_word_embeddings")
    assert all(getattr(found, key) == config[key] for key in same)
    for (name, array), (_, saved) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert np.array_equal(array.numpy(), saved.numpy().astype(dtype).astype(np.float32)), name


def test_saved_names_and_layout_are_hugging_face_s(device, tmp_path):
    config = UNTIED | {"rope_parameters": LLAMA3 | {"rope_theta": 50.0}, "eos_token_id": [2, 5], "attention_bias": True}
    tensors = llama_tensors(config)
    tk.save(loaded(tmp_path / "in", config, without_prefix(tensors)), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["eos_token_id"] == [2, 5] and saved["architectures"] == ["LlamaForCausalLM"]
    assert saved["rope_theta"] == 50.0 and saved["rope_scaling"] == LLAMA3  # where transformers 4 looks
    assert saved["rope_parameters"] == LLAMA3 | {"rope_theta": 50.0}  # and 5


def test_new_weights_have_gpt2_s_spread_and_no_bias():
    config = LlamaConfig.from_dict(TINY | {"vocab_size": 400, "intermediate_size": 300, "mlp_bias": True})
    for name, parameter in Llama(config, np.random.default_rng(0)).named_parameters():
        if parameter.ndim == 2:
            assert parameter.numpy().std() == pytest.approx(0.02, rel=0.2), name
        else:
            assert (parameter.numpy() == (0.0 if name.endswith("bias") else 1.0)).all(), name


# Decoding -------------------------------------------------------------------------------------------------------------

DECODING = TINY | {"max_position_embeddings": 20, "rope_theta": 50.0, "vocab_size": 40}


def greedy(model: Llama, ids: list[int], count: int) -> list[int]:
    """Greedy decoding written plainly: a full pass for every token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(logits(model, [ids])[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("rope", ROPES)
def test_a_cache_and_padding_change_nothing(device, tmp_path, rope):
    config = DECODING | {"rope_scaling": ROPES[rope]}
    model = loaded(tmp_path, config, llama_tensors(config, seed=3))
    prompts = [[5, 9, 1, 30, 12, 8], [7], [3, 3, 39]]
    found = tk.generate(model, prompts, max_new_tokens=10)
    for row, prompt in zip(found, prompts, strict=True):
        assert row[6 - len(prompt) :].tolist() == greedy(model, prompt, 10)
    assert len({tuple(row[6:]) for row in found}) == 3


@settings(max_examples=10)
@given(config=odd_llama_configs(), seed=st.integers(0, 99))
def test_cached_logits_equal_the_full_pass(config, seed):
    model = Llama(LlamaConfig.from_dict(config), np.random.default_rng(seed)).eval()
    ids_BT = np.random.default_rng(seed).integers(0, config["vocab_size"], (2, 6))
    with tk.no_grad():
        full_BTV, cache = logits(model, ids_BT), model.cache(6)
        found = [host(model(ids_BT[:, a:b], cache=cache).logits) for a, b in ((0, 3), (3, 4), (4, 6))]
    assert_close(np.concatenate(found, axis=1), full_BTV, rtol=0, atol=1e-5)


def test_any_of_several_stop_tokens_ends_the_text(tmp_path):
    model = loaded(tmp_path / "a", DECODING, llama_tensors(DECODING, seed=3))
    free = tk.generate(model, [5, 9], max_new_tokens=12)[0].tolist()
    stops = [39 if 39 not in free else 38, free[6]]
    model = loaded(tmp_path / "b", DECODING | {"eos_token_id": stops}, llama_tensors(DECODING, seed=3))
    found = tk.generate(model, [5, 9], max_new_tokens=12)[0].tolist()
    assert found == free[: free.index(free[6], 2) + 1]


# Training and factors -------------------------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient(device, tmp_path):
    config = TINY | {"attention_bias": True, "mlp_bias": True}
    model = loaded(tmp_path, config, llama_tensors(config)).train()
    cross_entropy(model(IDS).logits[:, :-1], IDS[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert np.abs(host(parameter.grad)).max() > 0, name


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_factorised_model(device, tmp_path, config):
    plan = kron.KronPlan(
        {
            "embedding": kron.Choice((13, 16), (13, 4)),
            "blocks.0.attention.key": kron.Choice((8, 16), (2, 4), terms=2),
            "blocks.1.mlp.gate": kron.Choice((10, 16), (5, 4)),
            "blocks.1.mlp.down": kron.Choice((16, 10), (4, 5), terms=3),
        }
    )
    small = kron.factorise(loaded(tmp_path / "in", config, llama_tensors(config)), plan)
    tk.save(small, tmp_path / "small")
    names = set(load_file(tmp_path / "small" / "model.safetensors"))
    assert {"embedding.a_RMN", "blocks.1.mlp.gate.b_RPQ", "model.layers.0.mlp.gate_proj.weight"} <= names
    again = tk.load(tmp_path / "small")
    assert kron.plan_of(again) == kron.plan_of(small)
    assert np.array_equal(logits(again), logits(small))
    tk.save(kron.merge(again), tmp_path / "dense")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert dense.keys() == llama_tensors(config).keys()
    for model in (logits(tk.load(tmp_path / "dense")), llama_logits(config, dense).astype(np.float32)):
        assert distance(model, logits(small)) < CLOSE


# Published weights ----------------------------------------------------------------------------------------------------


def test_a_published_model_tells_its_story(device):
    if not (DATA / "stories260K").exists():
        pytest.skip("needs shared/data/stories260K")
    model = tk.load(DATA / "stories260K")
    assert (model.config.num_attention_heads, model.config.groups) == (8, 4)
    ids_BS = tk.generate(model, [model.config.extra["bos_token_id"]], max_new_tokens=60)
    told = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert model.tokenizer.decode(ids_BS[0].tolist()).startswith(told)

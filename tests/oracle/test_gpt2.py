"""GPT-2 beside transformers: folders read and written, logits, hidden states, attention, and every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinykron as tk
from tests.checkpoints import gpt2_configs
from tests.helpers import assert_close
from tests.oracle.compare import LOGITS, assert_attention, assert_gradients, gradients, write
from tests.oracle.theirs import positions_of, random_gpt2, results, targets_of
from tinykron import kron
from tinykron.fused import cross_entropy
from tinykron.models.gpt2 import GPT2

pytestmark = pytest.mark.oracle

PREFIX = "transformer."


def loss_gradients(model: GPT2, ids_BT: np.ndarray, mask_BT: np.ndarray) -> dict[str, np.ndarray]:
    """Return the gradient of the language-model loss by Hugging Face names."""
    logits = model(ids_BT, mask_BT, positions_BT=positions_of(mask_BT)).logits
    cross_entropy(logits[:, :-1], targets_of(ids_BT, mask_BT)).backward()
    return gradients(model)


@st.composite
def batches(draw: Any, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (B, T) and a mask (B, T) of left padding; the last two tokens of a row always count."""
    batch, time = draw(st.integers(1, 3)), draw(st.integers(2, config["n_positions"]))
    rows = st.lists(st.integers(0, config["vocab_size"] - 1), min_size=time, max_size=time)
    ids = draw(st.lists(rows, min_size=batch, max_size=batch))
    pads = draw(st.lists(st.integers(0, time - 2), min_size=batch, max_size=batch))
    return np.array(ids), (np.arange(time) >= np.array(pads)[:, None]).astype(np.int64)


@given(data=st.data(), config=gpt2_configs(), seed=st.integers(0, 999), shards=st.booleans(), prefix=st.booleans())
def test_everything_agrees(tmp_path_factory, data, config, seed, shards, prefix):
    theirs = random_gpt2(config, seed)
    ours = tk.load(write(theirs, tmp_path_factory.mktemp("theirs"), PREFIX, shards, prefix))
    ids_BT, mask_BT = data.draw(batches(config))
    expected = results(theirs, ids_BT, mask_BT)
    found = ours(ids_BT, mask_BT, positions_BT=positions_of(mask_BT), attention_scores=True)
    real = mask_BT != 0
    assert_close(found.logits.numpy()[real], expected.logits[real], rtol=0, atol=LOGITS)
    for hidden, reference in zip(found.hidden, expected.hidden, strict=True):
        assert_close(hidden.numpy()[real], reference[real], rtol=0, atol=LOGITS)
    assert_attention(found.attention_scores, expected.attention, real, causal=True)
    assert_gradients(loss_gradients(ours, ids_BT, mask_BT), expected.gradients)


@settings(max_examples=10)
@given(
    config=gpt2_configs(),
    seed=st.integers(0, 999),
    read=st.sampled_from(["float32", "bfloat16", "float16"]),
    written=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_what_one_saves_the_other_loads(tmp_path_factory, config, seed, read, written):
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("folders")
    model = tk.load(write(random_gpt2(config, seed), folder / "theirs", PREFIX, dtype=read))
    tk.save(model, folder / "ours", written)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "ours")
    assert theirs.dtype == getattr(torch, written)
    ids_BT = np.arange(10).reshape(2, 5) % config["vocab_size"]
    expected = theirs.to(torch.float32)(torch.tensor(ids_BT)).logits.detach().numpy()
    assert_close(tk.load(folder / "ours")(ids_BT).logits, expected, rtol=0, atol=LOGITS)


def test_attention_scores_are_those_of_their_queries_and_keys(tmp_path):
    import torch

    config = {"vocab_size": 20, "n_positions": 9, "n_embd": 15, "n_layer": 2, "n_head": 3}
    theirs = random_gpt2(config, 0)
    ids_BT = np.random.default_rng(0).integers(0, 20, (2, 7))
    caught: list[Any] = []
    for block in theirs.transformer.h:
        block.attn.c_attn.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        theirs(torch.tensor(ids_BT))
    found = tk.load(write(theirs, tmp_path, PREFIX))(ids_BT, attention_scores=True).attention_scores
    for scores, qkv in zip(found, caught, strict=True):
        q, k, _ = (part.reshape(2, 7, 3, 5).transpose(1, 2) for part in qkv.split(15, dim=2))
        assert_close(scores, (q @ k.mT / 5**0.5).numpy(), rtol=0, atol=LOGITS)


def test_a_merged_model_is_one_for_transformers(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    config = {"vocab_size": 20, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 3}
    small = kron.factorise(
        model := tk.load(write(random_gpt2(config, 0), tmp_path / "a", PREFIX)), kron.kngpt2_plan(model)
    )
    tk.save(small, tmp_path / "small")
    tk.save(kron.merge(tk.load(tmp_path / "small")), tmp_path / "dense")
    ids_BT = np.arange(8)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")(torch.tensor(ids_BT)).logits
    assert_close(small(ids_BT).logits, theirs.detach().numpy(), rtol=0, atol=LOGITS)


def test_the_real_configuration(tmp_path):
    """GPT-2 124M, with the weights that transformers draws, moved so that no bias is 0 and no norm 1."""
    theirs = random_gpt2({}, seed=0, std=0.01)
    ours = tk.load(write(theirs, tmp_path, PREFIX))
    assert ours.parameter_count() == 124_439_808
    ids_BT = np.random.default_rng(0).integers(0, 50257, (1, 32))
    mask_BT = np.ones_like(ids_BT)
    expected = results(theirs, ids_BT, mask_BT)
    del theirs
    with tk.no_grad():
        found = ours(ids_BT)
    assert_close(found.logits, expected.logits, rtol=0, atol=LOGITS)
    for hidden, reference in zip(found.hidden, expected.hidden, strict=True):
        assert_close(hidden, reference, rtol=0, atol=LOGITS)
    assert_gradients(loss_gradients(ours, ids_BT, mask_BT), expected.gradients)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_classifier_agrees_both_ways(tmp_path, labels):
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(labels)
    shape = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "num_labels": labels}
    theirs = GPT2ForSequenceClassification(GPT2Config(**shape, pad_token_id=0, eos_token_id=0)).eval()
    ids_BT, mask_BT = np.array([[5, 6, 7, 8], [3, 4, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids_BT), attention_mask=torch.tensor(mask_BT)).logits.numpy()
    ours = tk.load(write(theirs, tmp_path / "theirs", PREFIX))
    assert_close(ours(ids_BT, mask_BT).logits, expected, rtol=0, atol=LOGITS)
    tk.save(ours, tmp_path / "ours")
    back = GPT2ForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = back(torch.tensor(ids_BT), attention_mask=torch.tensor(mask_BT)).logits.numpy()
    assert_close(again, expected, rtol=0, atol=LOGITS)

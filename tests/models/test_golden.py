"""Models against what transformers computed once (tests/golden/make.py), where torch is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tests.checkpoints import write_folder
from tests.helpers import assert_close, host
from tinykron.backend import to_device
from tinykron.checkpoint.folder import FAMILIES
from tinykron.fused import cross_entropy


def read(kind):
    with np.load(Path(__file__).parents[1] / "golden" / f"{kind}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def golden(request):
    return read(request.param)


def part(golden, kind):
    return {name.removeprefix(kind): array for name, array in golden.items() if name.startswith(kind)}


@pytest.fixture
def model(device, golden, tmp_path):
    return tk.load(write_folder(tmp_path, json.loads(str(golden["config"])), part(golden, "weight.")))


def test_logits_hidden_states_and_attention(model, golden):
    out = model(golden["ids"], attention_scores=True)
    assert_close(out.logits, golden["logits"], rtol=0, atol=1e-4)
    assert len(out.hidden) == len(part(golden, "hidden."))
    for i, hidden in enumerate(out.hidden):
        assert_close(hidden, golden[f"hidden.{i}"], rtol=0, atol=1e-4)
    future = ~np.tri(golden["ids"].shape[1], dtype=bool)
    for i, scores in enumerate(out.attention_scores):
        weights = np.exp(np.where(future, -np.inf, host(scores)))
        weights = weights / weights.sum(-1, keepdims=True)
        assert_close(weights, golden[f"attention.{i}"], rtol=0, atol=1e-4)


def test_gradients(model, golden):
    cross_entropy(model(golden["ids"]).logits[:, :-1], golden["ids"][:, 1:]).backward()
    own, expected = dict(model.named_parameters()), part(golden, "gradient.")
    table = FAMILIES[model.config.to_dict()["model_type"]].names(model.config)
    assert {name.file for name in table} == expected.keys()
    for name in table:
        found = np.concatenate([host(own[ours].grad) for ours in name.ours], axis=-1)
        near = 1e-3 * float(np.abs(expected[name.file]).max())
        assert_close(found.T if name.transposed else found, expected[name.file], rtol=0, atol=near)


def test_bert(device, tmp_path):
    golden = read("bert")
    model = tk.load(write_folder(tmp_path, json.loads(str(golden["config"])), part(golden, "weight.")))
    out = model(golden["ids"], golden["mask"], golden["types"], attention_scores=True)
    assert_close(out.logits, golden["logits"], rtol=0, atol=1e-4)
    for i, hidden in enumerate(out.hidden):
        assert_close(hidden, golden[f"hidden.{i}"], rtol=0, atol=1e-4)
    for i, scores in enumerate(out.attention_scores):
        weights = np.exp(np.where(golden["mask"][:, None, None] != 0, host(scores), -np.inf))
        assert_close(weights / weights.sum(-1, keepdims=True), golden[f"attention.{i}"], rtol=0, atol=1e-4)
    weights = np.cos(np.arange(out.logits.size, dtype=np.float32)).reshape(out.logits.shape)
    (out.logits * to_device(weights, device)).sum().backward()
    own, expected = dict(model.named_parameters()), part(golden, "gradient.")
    table = FAMILIES["bert"].names(model.config)
    assert {name.file for name in table} == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name in table:
        found = host(own[name.ours[0]].grad)
        near = 1e-3 * float(np.abs(expected[name.file]).max()) + 1e-6 * float(largest)  # a key's bias has none
        assert_close(found.T if name.transposed else found, expected[name.file], rtol=0, atol=near)

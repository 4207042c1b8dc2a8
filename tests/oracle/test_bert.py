"""BERT and its heads beside transformers: folders read and written, logits, hidden states, attention, gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinykron as tk
from tests.bert_checkpoints import IDS, MASK, TYPES, Config, bert_batches, bert_configs, with_class
from tests.helpers import assert_close
from tests.oracle.theirs import Results, bert_results, cotangent, random_model
from tinykron import kron
from tinykron.models.bert import Bert, names, with_head

pytestmark = pytest.mark.oracle

CLOSE = 1e-4  # largest difference allowed
GRADIENTS = 1e-3  # of a tensor's largest gradient
ROUNDING = 1e-6  # of the model's largest gradient: a key's bias has none but by rounding


def random_bert(config: Config, seed: int, pooler: bool = True, std: float = 0.3) -> Any:
    """Return transformers' model of a configuration, an encoder with or without a pooler.

    No token is padding: torch gives its row no gradient, even where a position that counts looks it up.
    """
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    settings["pad_token_id"] = None
    model = random_model(config["architectures"][0], settings, seed, std)
    if config["architectures"] == ["BertModel"] and not pooler:
        model.pooler = None
    return model


def write(model: Any, folder: Path, shards: bool = False, dtype: str = "float32") -> Path:
    """Let transformers write a folder."""
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="3KB" if shards else "5GB")
    model.to(torch.float32)
    return folder


def read(folder: Path) -> Any:
    """Let transformers read a folder with the class that it names, and find all there that it needs."""
    import torch
    import transformers

    [kind] = json.loads((folder / "config.json").read_text())["architectures"]
    options = {} if kind != "BertModel" or tk.load(folder).pooler else {"add_pooling_layer": False}
    model, report = getattr(transformers, kind).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
    )
    unused = {"cls.predictions.bias"} if not model.config.tie_word_embeddings else set()
    kept = {f"bert.pooler.dense.{part}" for part in ("weight", "bias")} if kind == "BertForMaskedLM" else set()
    assert report["missing_keys"] <= unused and report["unexpected_keys"] <= kept and not report["mismatched_keys"]
    return model.eval()


def assert_agrees(ours: Bert, theirs: Results, batch: tuple) -> None:
    """All that a batch (ids, mask, token types) gives agrees, and so do the gradients of a loss linear in it."""
    found = ours(*batch, attention_scores=True)
    logits = found.hidden[-1] if found.logits is None else found.logits
    assert_close(logits, theirs.logits, rtol=0, atol=CLOSE)
    for hidden, reference in zip(found.hidden, theirs.hidden, strict=True):
        assert_close(hidden, reference, rtol=0, atol=CLOSE)
    for scores, reference in zip(found.attention_scores, theirs.attention, strict=True):
        masked = np.where(batch[1][:, None, None] != 0, scores.numpy(), -np.inf)
        weights = np.exp(masked - masked.max(-1, keepdims=True))
        assert_close(weights / weights.sum(-1, keepdims=True), reference, rtol=0, atol=CLOSE)
    ours.zero_grad()
    (logits * cotangent(logits.shape)).sum().backward()
    own = dict(ours.named_parameters())
    gradients = {name.file: (own[name.ours[0]].grad, name.transposed) for name in names(ours.config)}
    gradients = {name: turned.T if flip else turned for name, (turned, flip) in gradients.items() if turned is not None}
    assert gradients.keys() == theirs.gradients.keys()
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, expected in theirs.gradients.items():
        error, size = np.abs(gradients[name] - expected).max(), np.abs(expected).max()
        assert error <= GRADIENTS * size + ROUNDING * largest, f"{name}: {error:g} of {size:g}, largest {largest:g}"


@given(data=st.data(), config=bert_configs(), seed=st.integers(0, 999), shards=st.booleans(), pooler=st.booleans())
def test_everything_agrees_and_does_so_after_saving(tmp_path_factory, data, config, seed, shards, pooler):
    folder = tmp_path_factory.mktemp("bert")
    theirs = random_bert(config, seed, pooler)
    ours = tk.load(write(theirs, folder / "theirs", shards))
    batch = data.draw(bert_batches(config))
    assert_agrees(ours, bert_results(theirs, *batch), batch)
    if config["architectures"] == ["BertModel"]:
        assert (ours.pooler is not None) == pooler
    tk.save(ours, folder / "ours")
    assert_agrees(ours, bert_results(read(folder / "ours"), *batch), batch)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(tmp_path, dtype):
    ours = tk.load(write(random_bert(with_class("sequence"), 0), tmp_path / "theirs", dtype=dtype))
    tk.save(ours, tmp_path / "ours", dtype)
    assert_agrees(ours, bert_results(read(tmp_path / "ours"), IDS, MASK, TYPES), (IDS, MASK, TYPES))


def test_the_pooler_s_output(tmp_path):
    import torch

    theirs = random_bert(with_class(None), 0)
    batch = {"attention_mask": torch.tensor(MASK), "token_type_ids": torch.tensor(TYPES)}
    expected = theirs(torch.tensor(IDS), **batch).pooler_output.detach().numpy()
    assert_close(tk.load(write(theirs, tmp_path))(IDS, MASK, TYPES).pooled, expected, rtol=0, atol=CLOSE)


def test_a_model_of_pretraining_is_read_as_a_masked_one(tmp_path):
    theirs = random_bert(with_class(None, architectures=["BertForPreTraining"]), 0)
    ours = tk.load(write(theirs, tmp_path / "theirs"))
    expected = bert_results(theirs, IDS, MASK, TYPES)
    assert_close(ours(IDS, MASK, TYPES).logits, expected.logits, rtol=0, atol=CLOSE)
    for head in (None, "sequence"):  # the pooler of pretraining is that of the next task
        tk.save(with_head(ours, head), tmp_path / str(head))
        again = read(tmp_path / str(head))
        pooler = again.pooler if head is None else again.bert.pooler
        assert_close(pooler.dense.weight.detach().numpy(), theirs.bert.pooler.dense.weight.detach().numpy(), 0, 0)


@settings(max_examples=5)
@given(seed=st.integers(0, 99), labels=st.integers(1, 5), before=st.sampled_from(["masked_lm", "token", None]))
@pytest.mark.parametrize("head", ["sequence", "token", "span", "masked_lm"])
def test_a_new_head_is_one_for_transformers(tmp_path_factory, head, seed, labels, before):
    folder = tmp_path_factory.mktemp("head")
    ours = tk.load(write(random_bert(with_class(before), seed), folder / "theirs"))
    ours = with_head(ours, head, labels, np.random.default_rng(seed))
    tk.save(ours, folder / "ours")
    theirs = read(folder / "ours")
    assert head not in ("sequence", "token") or theirs.config.num_labels == labels
    assert_close(ours(IDS, MASK, TYPES).logits, bert_results(theirs, IDS, MASK, TYPES).logits, rtol=0, atol=CLOSE)


def test_a_merged_model_is_one_for_transformers(tmp_path):
    ours = tk.load(write(random_bert(with_class("masked_lm"), 0), tmp_path / "theirs"))
    plan = {"embedding": kron.Choice((13, 6), (13, 3)), "blocks.1.mlp.up": kron.Choice((10, 6), (5, 3))}
    tk.save(kron.merge(kron.factorise(ours, kron.KronPlan(plan))), tmp_path / "dense")
    merged = tk.load(tmp_path / "dense")
    assert_agrees(merged, bert_results(read(tmp_path / "dense"), IDS, MASK, TYPES), (IDS, MASK, TYPES))


@pytest.mark.slow
def test_the_real_configuration(tmp_path):
    """BERT base, with the weights that transformers draws, moved so that no bias is 0 and no norm 1."""
    theirs = random_bert({"architectures": ["BertForMaskedLM"]}, 0, std=0.01)
    ours = tk.load(write(theirs, tmp_path))
    assert ours.parameter_count() == 109_514_298
    generator = np.random.default_rng(0)
    ids_BT, types_BT = generator.integers(0, 30522, (2, 32)), generator.integers(0, 2, (2, 32))
    batch = ids_BT, (np.arange(32) < np.array([[32], [20]])).astype(np.int64), types_BT
    expected = bert_results(theirs, *batch)
    del theirs
    assert_agrees(ours, expected, batch)

"""BERT and its heads: what folders may look like, against float64 NumPy; fine-tuning heads; sentence embeddings."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import tinykron as tk
from tests.bert_checkpoints import (
    CLASSES,
    IDS,
    MASK,
    TINY,
    TYPES,
    bert_batches,
    bert_configs,
    bert_reference,
    bert_tensors,
    with_class,
    written,
)
from tests.checkpoints import write_folder
from tests.helpers import assert_close, host
from tinykron import kron
from tinykron.errors import CheckpointError, DataError, ShapeError, TinykronError
from tinykron.models.bert import HEADS, Bert, BertConfig, with_head

CLOSE = 5e-6  # of the largest value
UNTIED = with_class("masked_lm", tie_word_embeddings=False)


def distance(found: Any, expected: np.ndarray) -> float:
    assert host(found).shape == expected.shape
    return float(np.abs(host(found) - expected).max() / np.abs(expected).max())


def assert_computes(model: Bert, expected: Any, batch: tuple, close: float = CLOSE) -> None:
    """The model makes of a batch (ids, mask, token types) what the reference does: each hidden state, and the head."""
    with tk.no_grad():
        out = model(*batch)
    assert len(out.hidden) == len(expected.hidden)
    assert all(distance(found, hidden) < close for found, hidden in zip(out.hidden, expected.hidden, strict=True))
    for found, wanted in ((out.logits, expected.logits), (out.pooled, expected.pooled)):
        assert (found is None) == (wanted is None)
        assert wanted is None or distance(found, wanted) < close


def loaded(folder: Any, config: dict, tensors: dict, **layout: Any) -> Bert:
    return tk.load(write_folder(folder, config, written(tensors, **layout)))


# What a folder may look like ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*map(with_class, CLASSES), UNTIED], ids=[*map(str, CLASSES), "untied"])
def test_load(device, tmp_path, config):
    tensors = bert_tensors(config)
    model = loaded(tmp_path, config, tensors)
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert model.tokenizer is None and not model.training and model.context == 9
    assert model.parameter_count() == sum(array.size for array in tensors.values())
    assert_computes(model, bert_reference(config, tensors, IDS, MASK, TYPES), (IDS, MASK, TYPES))
    assert_computes(model, bert_reference(config, tensors), (IDS,))  # row 0 of the token types is added all the same


@given(
    data=st.data(),
    config=bert_configs(),
    seed=st.integers(0, 99),
    layout=st.fixed_dictionaries({"prefix": st.booleans(), "old": st.booleans(), "buffers": st.booleans()}),
    shards=st.sampled_from([1, 3]),
    dtype=st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16]),
)
def test_every_folder_computes_what_its_tensors_say(tmp_path_factory, data, config, seed, layout, shards, dtype):
    tensors = {name: array.astype(dtype) for name, array in bert_tensors(config, seed).items()}
    folder = write_folder(tmp_path_factory.mktemp("bert"), config, written(tensors, **layout), shards)
    batch = data.draw(bert_batches(config))
    assert_computes(tk.load(folder), bert_reference(config, tensors, *batch), batch, close=5e-5)


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("pooler", [True, False])
def test_the_tensors_tell_what_the_configuration_leaves_open(tmp_path, head, pooler):
    config = with_class(head)
    pooler = {"sequence": True, "token": False, "span": False}.get(head, pooler)
    tensors = bert_tensors(config, pooler=pooler)
    silent = {key: value for key, value in config.items() if key != "architectures"}
    model = loaded(tmp_path, silent, tensors, prefix=True)
    assert model.config.head == head and (model.pooler is not None) == pooler
    assert_computes(model, bert_reference(config, tensors), (IDS,))
    tk.save(model, tmp_path / "out")
    assert_computes(tk.load(tmp_path / "out"), bert_reference(config, tensors), (IDS,))


@pytest.mark.parametrize("head", CLASSES)
def test_heads_of_other_tasks_are_left_out(tmp_path, head):
    config = with_class(head)
    own = bert_tensors(config)
    others = {"cls.seq_relationship.weight": np.zeros((2, 6), np.float32)}
    for other in ("masked_lm", "sequence", "span"):
        if (head, other) not in (("token", "sequence"), (head, head)):  # these share a name
            others |= bert_tensors(with_class(other), seed=1)
    others = {name: array for name, array in others.items() if not name.startswith("pooler")}
    assert_computes(loaded(tmp_path, config, others | own), bert_reference(config, own), (IDS,))
    with pytest.raises(CheckpointError, match=r"unexpected   cls\.other\.weight"):
        loaded(tmp_path, config, own | {"cls.other.weight": own["embeddings.LayerNorm.weight"]})


def test_an_argument_of_transformers_is_left_to_its_caller(tmp_path):
    """In config.json it would overrule what is passed to `from_pretrained`: BertModel would draw a pooler anew."""
    model = loaded(tmp_path / "in", TINY | {"add_pooling_layer": False}, bert_tensors(TINY, pooler=False))
    tk.save(model, tmp_path / "out")
    assert tk.load(tmp_path / "out").pooler is None
    assert "add_pooling_layer" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_pretraining_file_keeps_its_pooler_for_the_next_task(tmp_path):
    tensors = bert_tensors(with_class("masked_lm"), pooler=True)
    config = with_class("masked_lm", architectures=["BertForPreTraining"])
    tensors |= {"cls.seq_relationship.weight": np.ones((2, 6), np.float32), "cls.seq_relationship.bias": np.ones(2)}
    model = loaded(tmp_path, config, tensors, prefix=True)
    assert model.config.to_dict()["architectures"] == ["BertForMaskedLM"]
    assert_close(with_head(model, "sequence").pooler.weight, tensors["pooler.dense.weight"].T, rtol=0, atol=0)


@pytest.mark.parametrize("config", [with_class("masked_lm"), UNTIED], ids=["tied", "untied"])
def test_names_that_stand_for_the_same_tensor(tmp_path, config):
    tied, tensors = config is not UNTIED, bert_tensors(config)
    expected = bert_reference(config, tensors)
    own, other = ("cls.predictions.bias", "cls.predictions.decoder.bias")[:: 1 if tied else -1]
    assert_computes(loaded(tmp_path / "both", config, tensors | {other: np.ones(13, np.float32)}), expected, (IDS,))
    renamed = {other if name == own else name: array for name, array in tensors.items()}
    assert_computes(loaded(tmp_path / "other", config, renamed), expected, (IDS,))
    if tied:
        word, decoder = "embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
        assert_computes(loaded(tmp_path / "twice", config, tensors | {decoder: tensors[word]}), expected, (IDS,))
        renamed = {decoder if name == word else name: array for name, array in renamed.items()}
        assert_computes(loaded(tmp_path / "decoder", config, renamed), expected, (IDS,))


def test_gamma_and_beta_are_renamed_as_whole_names(tmp_path):
    tensors = bert_tensors(TINY)
    wrong = {
        name.replace("embeddings.LayerNorm.weight", "embeddings.gamma_LayerNorm"): a for name, a in tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"missing      embeddings\.LayerNorm\.weight\n.*gamma_LayerNorm"):
        loaded(tmp_path, TINY, wrong)


# Each trap is one that this suite would see ---------------------------------------------------------------------------


def every(tensors: dict, suffix: str, change: Any) -> dict:
    assert any(name.endswith(suffix) for name in tensors)
    return {name: change(array) if name.endswith(suffix) else array for name, array in tensors.items()}


WRONG: dict[str, Any] = {  # the head, and the wrong reading: configuration, tensors, options of the reference
    "square matrix transposed": (None, lambda c, w: (c, every(w, "attention.output.dense.weight", np.transpose), {})),
    "query transposed": (None, lambda c, w: (c, every(w, "self.query.weight", np.transpose), {})),
    "tanh GELU": (None, lambda c, w: (c | {"hidden_act": "gelu_new"}, w, {})),
    "GPT-2's epsilon": (None, lambda c, w: (c | {"layer_norm_eps": 1e-5}, w, {})),
    "no token type": (None, lambda c, w: (c, every(w, "token_type_embeddings.weight", np.zeros_like), {})),
    "token types all 0": (None, lambda c, w: (c, w, {"types_BT": None})),
    "no position": (None, lambda c, w: (c, every(w, "position_embeddings.weight", np.zeros_like), {})),
    "norm before the sum": (None, lambda c, w: (c, w, {"pre_norm": True})),
    "mask ignored": (None, lambda c, w: (c, w, {"mask_BT": None})),
    "one head too many": (None, lambda c, w: (c | {"num_attention_heads": 3}, w, {})),
    "pooler of the last position": ("sequence", lambda c, w: (c, w, {"pooled_from": -1})),
    "decoder without bias": ("masked_lm", lambda c, w: (c, every(w, "predictions.bias", np.zeros_like), {})),
    "head's tanh GELU": ("masked_lm", lambda c, w: (c | {"hidden_act": "gelu_new"}, w, {})),
    "start for end": ("span", lambda c, w: (c, every(w, "qa_outputs.bias", lambda array: array[::-1]), {})),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reading_shows(tmp_path, wrong):
    head, change = WRONG[wrong]
    config = with_class(head)
    model = loaded(tmp_path, config, bert_tensors(config))
    config, tensors, options = change(config, bert_tensors(config))
    expected = bert_reference(config, tensors, IDS, **({"mask_BT": MASK, "types_BT": TYPES} | options))
    out = model(IDS, MASK, TYPES)
    found, wanted = (out.hidden[-1], expected.hidden[-1]) if head is None else (out.logits, expected.logits)
    assert distance(found, wanted) > 20 * CLOSE


# Configurations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 0}, "hidden_size: expected a whole number above 0, found 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: expected a whole number above 0, found '2'"),
        ({"type_vocab_size": True}, "type_vocab_size: expected a whole number above 0, found True"),
        ({"num_attention_heads": 4}, "hidden_size 6 is not divisible by num_attention_heads 4"),
        ({"hidden_act": "gelu_python_tanh"}, "hidden_act: found 'gelu_python_tanh', expected one of gelu_new, .*gelu"),
        ({"hidden_act": ["gelu"]}, r"hidden_act: found \['gelu'\]"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps: expected a number from 0 on and below 1, found -1e-12"),
        ({"layer_norm_eps": None}, "layer_norm_eps: expected a number .*found nothing"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob: expected a number from 0 on and below 1, found 1.0"),
        ({"attention_probs_dropout_prob": "0"}, "attention_probs_dropout_prob: expected a number"),
        ({"classifier_dropout": 2}, "classifier_dropout: expected a number from 0 on and below 1, found 2"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: found 'relative_key', .*absolute"),
        ({"is_decoder": True}, "is_decoder: True changes the mathematics and is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention: True changes the mathematics"),
        (
            {"architectures": ["BertForMultipleChoice"]},
            r"architectures: found \['BertForMultipleChoice'\], .*BertModel",
        ),
        ({"architectures": "BertModel"}, "architectures: found 'BertModel', expected one of BertModel"),
        ({"architectures": [["BertModel"]]}, r"architectures: found \[\['BertModel'\]\]"),
        ({"num_labels": 0}, "num_labels: expected a whole number above 0, found 0"),
        ({"id2label": {}}, "id2label: expected an object of label numbers and names, found {}"),
        ({"id2label": {"0": "no", "1": "yes"}, "num_labels": 3}, "num_labels: found 3, id2label has 2"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path, change, says):
    write_folder(tmp_path, TINY | change, bert_tensors(TINY))
    with pytest.raises(CheckpointError, match=f"(?s)config.json: .*{says}"):
        tk.load(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        BertConfig.from_dict(TINY | change)


def test_defaults_are_those_of_bert_base():
    config = BertConfig.from_dict({"model_type": "bert"})
    assert config.layer_norm_eps == 1e-12 and config.hidden_act == "gelu" and config.tie_word_embeddings
    assert (config.head, config.labels, config.pooler) == (None, 2, True)
    sizes = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
    assert {key: getattr(config, key) for key in sizes} == sizes
    assert {name: HEADS[name] for name in CLASSES.values()} == {name: head for head, name in CLASSES.items()}
    masked = BertConfig.from_dict({"architectures": ["BertForMaskedLM"]})
    assert not masked.pooler


@pytest.mark.parametrize(("key", "axis"), [("num_labels", "number of labels"), ("hidden_size", "hidden_size")])
def test_a_tensor_of_another_size_is_named_with_what_it_comes_from(tmp_path, key, axis):
    config = with_class("token", hidden_size=8) if key == "hidden_size" else with_class("token", labels=3)
    with pytest.raises(CheckpointError, match=rf"wrong shape  .*found \(\d+.* from .*{axis}"):
        loaded(tmp_path, config, bert_tensors(with_class("token")))


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "error", "says"),
    [
        (([[3, 13]],), DataError, r"token id 13 at \(0, 1\) is outside 0..12"),
        (([[3, 1]], None, [[0, 3]]), DataError, "token type 3"),
        (([[3, 1]], None, [[-1, 0]]), DataError, "token type -1"),
        (([[3, 1]], None, [[0]]), ShapeError, r"token types: expected shape \(1, 2\) like the ids, found \(1, 1\)"),
        (([[3, 1]], [[1]]), ShapeError, r"mask: expected shape \(1, 2\)"),
        (([[1] * 10],), TinykronError, "10 tokens are more than the model's context of 9"),
        (([3, 1],), ShapeError, "expected a non-empty"),
    ],
)
def test_a_bad_input_is_refused_on_the_host(device, batch, error, says):
    with pytest.raises(error, match=says):
        Bert(BertConfig.from_dict(TINY), np.random.default_rng(0)).eval()(*batch)


@pytest.mark.parametrize("config", [*map(with_class, CLASSES), UNTIED], ids=[*map(str, CLASSES), "untied"])
def test_no_mask_makes_nan(device, tmp_path, config):
    model = loaded(tmp_path, config, bert_tensors(config))
    mask_BT = np.array([[0] * 7, MASK[1]])  # the first row has nothing that counts
    out = model(IDS, mask_BT, attention_scores=True)
    seen = out.hidden[-1] if out.logits is None else out.logits
    (seen * seen).sum().backward()
    assert np.isfinite(host(seen)).all() and all(np.isfinite(host(scores)).all() for scores in out.attention_scores)
    gradients = [host(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 30 and all(np.isfinite(gradient).all() for gradient in gradients)


def test_what_padding_holds_does_not_matter(device, tmp_path):
    model = loaded(tmp_path, TINY, bert_tensors(TINY))
    other = np.where(MASK, IDS, 6)
    found, changed = (host(model(ids, MASK).hidden[-1])[MASK != 0] for ids in (IDS, other))
    assert not np.array_equal(IDS, other) and np.array_equal(found, changed)


def test_attention_scores_come_before_mask_and_softmax(device, tmp_path):
    model = loaded(tmp_path, TINY, bert_tensors(TINY))
    scores = model(IDS, MASK, attention_scores=True).attention_scores
    assert [found.shape for found in scores] == [(2, 2, 7, 7)] * 2 and model(IDS).attention_scores is None
    block = model.blocks[0].attention
    x_BTD = model(IDS, MASK).hidden[0]
    q, k = (host(part(x_BTD)).reshape(2, 7, 2, 3).swapaxes(1, 2) for part in (block.query, block.key))
    assert_close(scores[0], q @ k.swapaxes(2, 3) / np.sqrt(np.float32(3)))


# Saving ---------------------------------------------------------------------------------------------------------------


@given(config=bert_configs(), seed=st.integers(0, 99), dtype=st.sampled_from(["float32", "bfloat16", "float16"]))
def test_round_trip(tmp_path_factory, config, seed, dtype):
    folder = tmp_path_factory.mktemp("round")
    model = loaded(folder / "in", config, bert_tensors(config, seed))
    tk.save(model, folder / "out", dtype)
    again = tk.load(folder / "out")
    assert {name: again.config.to_dict()[name] for name in config} == config
    for (name, found), (_, saved) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert np.array_equal(found.numpy(), saved.numpy().astype(dtype).astype(np.float32)), name


@pytest.mark.parametrize("config", [*map(with_class, CLASSES), UNTIED], ids=[*map(str, CLASSES), "untied"])
def test_saved_names_and_layout_are_hugging_face_s(device, tmp_path, config):
    tensors = bert_tensors(config)
    tk.save(loaded(tmp_path / "in", config | {"pad_token_id": 5}, tensors, old=True), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = written(tensors, prefix=config["architectures"] != ["BertModel"])  # as transformers writes it
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["pad_token_id"] == 5 and saved["architectures"] == config["architectures"]


@pytest.mark.parametrize("config", [*map(with_class, CLASSES), UNTIED], ids=[*map(str, CLASSES), "untied"])
def test_factorised_model(device, tmp_path, config):
    model = loaded(tmp_path / "in", config, bert_tensors(config))
    choices = {
        "embedding": kron.Choice((13, 6), (13, 3)),
        "blocks.1.attention.key": kron.Choice((6, 6), (3, 2), terms=2),
        "blocks.0.mlp.down": kron.Choice((6, 10), (3, 5)),
    }
    choices |= {"pooler": kron.Choice((6, 6), (2, 3))} if model.pooler else {}
    choices |= {"head.dense": kron.Choice((6, 6), (2, 3))} if model.config.head == "masked_lm" else {}
    small = kron.factorise(model, kron.KronPlan(choices))
    assert distance(small(IDS).hidden[-1], host(model(IDS).hidden[-1])) > 1e-3
    tk.save(small, tmp_path / "small")
    names = set(load_file(tmp_path / "small" / "model.safetensors"))
    assert {"embedding.a_RMN", "embedding.b_RPQ"} <= names and not any("word_embeddings" in name for name in names)
    again = tk.load(tmp_path / "small")
    assert kron.plan_of(again) == kron.plan_of(small)
    tk.save(kron.merge(again), tmp_path / "dense")
    for other, close in ((again, 1e-7), (tk.load(tmp_path / "dense"), CLOSE)):
        found, expected = other(IDS, MASK, TYPES), small(IDS, MASK, TYPES)
        assert distance(found.hidden[-1], host(expected.hidden[-1])) < close
        assert expected.logits is None or distance(found.logits, host(expected.logits)) < close

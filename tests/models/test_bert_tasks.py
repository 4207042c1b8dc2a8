"""What BERT is fine-tuned to and used for: a new head on an encoder, and vectors of sentences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import tinykron as tk
from tests.bert_checkpoints import CLASSES, IDS, MASK, TINY, TYPES, bert_tensors, with_class
from tests.checkpoints import write_folder
from tests.helpers import assert_close, host
from tinykron import kron
from tinykron.errors import DataError, TinykronError
from tinykron.fused import cross_entropy
from tinykron.models.bert import Bert, sentence_embeddings, with_head
from tinykron.nn import seed_dropout

SHAPES = {None: None, "masked_lm": (2, 7, 13), "sequence": (2, 3), "token": (2, 7, 3), "span": (2, 7, 2)}
TEXTS = ["one two three four", "five", "six seven", "one " * 20, "two three one", "five"]


@pytest.fixture
def encoder(device, tmp_path) -> Bert:
    return tk.load(write_folder(tmp_path / "encoder", TINY, bert_tensors(TINY)))


# A new head -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("before", CLASSES)
def test_a_new_head_leaves_the_encoder_as_it_is(device, tmp_path, before, head):
    config = with_class(before, labels=5) | {"num_labels": 5}
    model = tk.load(write_folder(tmp_path / "in", config, bert_tensors(config)))
    untouched = {name: host(array).copy() for name, array in model.state_dict().items()}
    made = with_head(model, head, labels=3, generator=np.random.default_rng(0))
    logits, hidden = made(IDS, MASK, TYPES).logits, made(IDS, MASK, TYPES).hidden
    assert (None if logits is None else logits.shape) == SHAPES[head]
    for found, expected in zip(hidden, model(IDS, MASK, TYPES).hidden, strict=True):
        assert_close(found, expected, rtol=0, atol=0)
    assert (made.pooler is None) == (head in ("token", "span") or (head != "sequence" and model.pooler is None))
    for parameter in made.parameters():
        parameter.data += 1.0  # nothing is shared
    assert all(np.array_equal(host(array), untouched[name]) for name, array in model.state_dict().items())
    tk.save(made, tmp_path / "out")
    assert {"num_labels", "id2label"} & json.loads((tmp_path / "out" / "config.json").read_text()).keys() <= (
        {"id2label"} if head in ("sequence", "token") else set()
    )
    again = tk.load(tmp_path / "out")
    assert again.config.head == head and (again.config.labels == 3 or head not in ("sequence", "token"))
    for (name, found), (_, saved) in zip(again.named_parameters(), made.named_parameters(), strict=True):
        assert np.array_equal(host(found), host(saved)), name


def test_the_same_generator_draws_the_same_head(encoder):
    first, second, third = (with_head(encoder, "sequence", 3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert_close(first.head.linear.weight, second.head.linear.weight, rtol=0, atol=0)
    assert not np.array_equal(host(first.head.linear.weight), host(third.head.linear.weight))


def test_a_new_head_is_where_the_model_is_and_trains_when_it_does(encoder, device):
    model = encoder.to("cpu")
    made = with_head(model, "sequence")  # the default device may be another
    assert {parameter.device for parameter in made.parameters()} == {"cpu"}
    assert not any(module.training for _, module in made.modules())
    assert all(module.training for _, module in with_head(model.train(), "token").modules())


def test_the_classifier_drops_out_by_its_own_rate(device, tmp_path):
    config = with_class("sequence", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rates = {}
    for rate in (None, 0.0, 0.5):
        given = config | ({} if rate is None else {"classifier_dropout": rate})
        model = tk.load(write_folder(tmp_path / str(rate), given, bert_tensors(config)))
        rates[rate] = model.head.dropout.rate
    assert rates == {None: 0.0, 0.0: 0.0, 0.5: 0.5}
    seed_dropout(model.train(), 0)
    assert not np.array_equal(host(model(IDS).logits), host(model(IDS).logits))


@pytest.mark.parametrize("head", ["sequence", "token", "span", "masked_lm"])
def test_every_parameter_of_a_new_head_learns(encoder, head):
    model = with_head(encoder, head, 3, np.random.default_rng(0))
    logits = model(IDS, MASK, TYPES).logits
    flat = logits.reshape(-1, logits.shape[-1])
    cross_entropy(flat, np.arange(len(flat)) % flat.shape[-1]).backward()
    still = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not host(parameter.grad).any()
    }
    assert all(name.startswith("pooler.") for name in still) and (head == "masked_lm" or not still)


def test_a_new_head_of_a_factorised_encoder(encoder, tmp_path):
    plan = kron.KronPlan({"embedding": kron.Choice((13, 6), (13, 3)), "blocks.0.mlp.up": kron.Choice((10, 6), (5, 3))})
    made = with_head(kron.factorise(encoder, plan), "masked_lm", generator=np.random.default_rng(0))
    tk.save(made, tmp_path / "small")
    assert_close(tk.load(tmp_path / "small")(IDS).logits, made(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("lm",), "head: found 'lm', expected one of None, 'masked_lm', 'sequence', 'token', 'span'"),
        ((["token"],), r"head: found \['token'\]"),
        (("token", 0), "labels: expected a whole number above 0, found 0"),
    ],
)
def test_a_head_that_is_none_is_refused(encoder, arguments, says):
    with pytest.raises(TinykronError, match=says):
        with_head(encoder, *arguments)


# Vectors of sentences -------------------------------------------------------------------------------------------------


def tokenizer(framed: bool = True) -> Tokenizer:
    """Return a tokenizer of whole words; framed as BERT's is, and made to cut and pad, as all-MiniLM's is."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "five", "six", "seven"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
        made.enable_truncation(4)
        made.enable_padding(length=8)
    return made


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_sentence_embeddings_are_means_over_tokens(encoder, batch):
    encoder.tokenizer = tokenizer()
    settings = encoder.tokenizer.to_str()
    found = sentence_embeddings(encoder, TEXTS, batch)
    assert found.shape == (6, 6) and found.dtype == np.float32
    plain = tokenizer()
    plain.no_truncation()
    plain.no_padding()
    for text, vector in zip(TEXTS, found, strict=True):
        ids = plain.encode(text).ids
        ids = ids if len(ids) <= 9 else [*ids[:8], 3]  # cut to the context, [SEP] kept
        mean = host(encoder(np.array([ids])).hidden[-1])[0].mean(axis=0)
        assert_close(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-6)
    assert encoder.tokenizer.to_str() == settings  # whatever the tokenizer did, it still does


def test_sentence_embeddings_are_of_the_model_without_dropout(encoder):
    encoder.tokenizer = tokenizer()
    expected = sentence_embeddings(encoder, TEXTS)
    assert_close(sentence_embeddings(encoder.train(), TEXTS), expected, rtol=0, atol=0)
    assert encoder.training and encoder.blocks[0].dropout.training


def test_texts_that_make_no_vector_are_refused(encoder):
    with pytest.raises(TinykronError, match="the model has no tokenizer"):
        sentence_embeddings(encoder, TEXTS)
    encoder.tokenizer = tokenizer(framed=False)
    for texts in ([], "one two"):
        with pytest.raises(DataError, match="expected a list of texts, found"):
            sentence_embeddings(encoder, texts)
    with pytest.raises(DataError, match="text 1 has no token: ' '"):
        sentence_embeddings(encoder, ["one", " "])

"""Perplexity beside a plain loop, pseudo-perplexity beside another, whole texts, and what cannot be evaluated."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_masking import PROSE
from tests.helpers import host
from tests.tiny_training import CONTEXT, TOKENS, VOCABULARY, tiny_gpt2
from tinykron import data
from tinykron.data import corpus
from tinykron.data import tokens as data_tokens
from tinykron.data.masking import Masking, train_wordpiece
from tinykron.errors import DataError, TinykronError
from tinykron.measure import perplexity as measure_perplexity
from tinykron.measure.perplexity import perplexity, pseudo_nats
from tinykron.models.bert import Bert, BertConfig, with_head
from tinykron.models.gpt2 import GPT2, GPT2Config

FEWER = settings(max_examples=settings().max_examples // 3)
TEXT = "The 3th page tells of page 21.\n\nAnd of caf\u00e9 before it: page 7, page 14.\n"


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    logits_V = logits_V.astype(np.float64)
    return logits_V - np.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V.max()


# Perplexity -----------------------------------------------------------------------------------------------------------


def plain_perplexity(model: GPT2, tokens: np.ndarray, context: int, stride: int) -> float:
    """Predict token by token, each from what precedes it in the first window that ends behind it."""
    nats = []
    for place in range(1, len(tokens)):
        start = max(0, -(-(place - context) // stride)) * stride
        nats.append(-log_softmax(host(model(tokens[None, start:place]).logits)[0, -1])[tokens[place]])
    return exp(sum(nats) / len(nats))


@FEWER
@given(
    tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=30).map(np.array),
    context=st.integers(1, CONTEXT),
    overlap=st.integers(0, CONTEXT - 1),
    batch=st.integers(1, 5),
)
def test_perplexity_is_that_of_every_token_but_the_first(tokens, context, overlap, batch):
    model = tiny_gpt2(spread=10.0).eval()
    stride = max(1, context - overlap)
    found = perplexity(model, tokens, context, batch, stride)
    assert found == pytest.approx(plain_perplexity(model, tokens, context, stride), rel=1e-5)


def test_perplexity_on_every_device(device):
    model = tiny_gpt2(spread=10.0)
    assert perplexity(model, TOKENS[:21], CONTEXT) == pytest.approx(
        plain_perplexity(model.eval(), TOKENS[:21], CONTEXT, CONTEXT), rel=1e-5
    )


def test_perplexity_drops_nothing_and_leaves_the_mode_as_it_was():
    model = tiny_gpt2(dropout=0.5)
    assert perplexity(model, TOKENS, CONTEXT) == perplexity(model.eval(), TOKENS, CONTEXT)
    assert not model.training
    perplexity(model.train(), TOKENS, CONTEXT)
    assert model.training
    assert model.dropout.training


def test_perplexity_of_too_little_text():
    with pytest.raises(DataError, match="found 1 tokens, need 2"):
        perplexity(tiny_gpt2(), TOKENS[:1], CONTEXT)


def test_a_model_that_is_lost_has_infinite_perplexity():
    assert perplexity(tiny_gpt2(spread=1e5), TOKENS, CONTEXT) == float("inf")


# Pseudo-perplexity ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(PROSE, 160)


@pytest.fixture
def bert(tokenizer) -> Bert:
    config = BertConfig(tokenizer.get_vocab_size(), 8, 2, 2, 12, 10, head="masked_lm")
    model = Bert(config, np.random.default_rng(0))
    for parameter in model.parameters():
        parameter.data = parameter.data * 10.0
    model.tokenizer = tokenizer
    return model


def plain_pseudo_nats(model: Bert, tokens: np.ndarray, masking: Masking, context: int, places: list[int]) -> float:
    """Hide one token at a time, each in its window between [CLS] and [SEP]."""
    model.eval()
    nats = 0.0
    for place in places:
        start = place // (context - 2) * (context - 2)
        window = [masking.start, *tokens[start : start + context - 2], masking.end]
        window[1 + place - start] = masking.mask
        logits_V = host(model(np.array([window])).logits)[0, 1 + place - start]
        nats -= log_softmax(logits_V)[tokens[place]]
    return nats


@pytest.mark.parametrize("length", [1, 7, 8, 9, 21])
def test_pseudo_perplexity_hides_each_token_once(device, bert, length):
    bert.to(device)
    masking, tokens = Masking.of(bert.tokenizer), np.random.default_rng(length).integers(5, 50, length)
    nats, count = pseudo_nats(bert.train(), [tokens], masking, 10)
    assert count == length and bert.training
    assert nats == pytest.approx(plain_pseudo_nats(bert, tokens, masking, 10, list(range(length))), rel=1e-4)


def test_a_limit_hides_evenly_spaced_tokens(bert):
    masking, tokens = Masking.of(bert.tokenizer), np.random.default_rng(0).integers(5, 50, 21)
    nats, count = pseudo_nats(bert, [tokens], masking, 10, limit=3)
    assert count == 3
    assert nats == pytest.approx(plain_pseudo_nats(bert, tokens, masking, 10, [0, 10, 20]), rel=1e-4)


def test_a_limit_counts_over_all_streams_and_skips_what_frames_a_text(bert):
    masking = Masking.of(bert.tokenizer)
    long, short = np.random.default_rng(0).integers(5, 50, 20), np.array([7])
    with_ends = np.concatenate([[masking.end], long[:9], [masking.end], long[9:], [masking.end]])
    nats, count = pseudo_nats(bert, [with_ends, short], masking, 10, limit=3)  # the first, middle and last of 21
    assert count == 3
    expected = plain_pseudo_nats(bert, with_ends, masking, 10, [1, 12])
    expected += plain_pseudo_nats(bert, short, masking, 10, [0])
    assert nats == pytest.approx(expected, rel=1e-4)
    assert pseudo_nats(bert, [with_ends, short], masking, 10)[1] == 21
    with pytest.raises(DataError, match="the text is empty"):
        pseudo_nats(bert, [with_ends[:1]], masking, 10)


# Whole texts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2() -> GPT2:
    tokenizer = data_tokens.train_tokenizer(PROSE, 300)
    config = GPT2Config(tokenizer.get_vocab_size(), 16, 8, 1, 2)
    model = GPT2(config, np.random.default_rng(0))
    model.tokenizer = tokenizer
    return model.eval()


def test_a_file_is_one_stream_and_a_folder_one_for_each_file(gpt2, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT.upper())
    one = measure_perplexity.evaluate(gpt2, tmp_path / "a.txt", context=8, stride=3)
    ids = np.array(gpt2.tokenizer.encode(TEXT).ids)
    assert one.perplexity == pytest.approx(plain_perplexity(gpt2, ids, 7, 3), rel=1e-5)  # 7, and the one they tell
    side_by_side = measure_perplexity.evaluate(gpt2, tmp_path / "a.txt", context=8)
    assert side_by_side.perplexity == pytest.approx(plain_perplexity(gpt2, ids, 8, 8), rel=1e-5)
    assert (one.measure, one.tokens, one.context, one.stride) == ("perplexity", len(ids) - 1, 8, 3)
    assert one.bits_per_byte == pytest.approx(one.nats * one.tokens / log(2) / len(TEXT.encode()))
    both = measure_perplexity.evaluate(gpt2, tmp_path, context=8, stride=3)
    other = measure_perplexity.evaluate(gpt2, tmp_path / "b.txt", context=8, stride=3)
    assert both.tokens == one.tokens + other.tokens and both.documents == 2
    assert both.nats * both.tokens == pytest.approx(one.nats * one.tokens + other.nats * other.tokens)


def test_truncation_that_a_tokenizer_has_set_cuts_no_text(gpt2, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    whole = measure_perplexity.evaluate(gpt2, tmp_path / "a.txt")
    gpt2.tokenizer.enable_truncation(4)
    gpt2.tokenizer.enable_padding(length=400)
    assert measure_perplexity.evaluate(gpt2, tmp_path / "a.txt") == whole
    assert gpt2.tokenizer.truncation["max_length"] == 4


def test_the_embedded_corpus_is_what_training_held_out(gpt2, monkeypatch):
    monkeypatch.setattr(data, "documents", lambda: PROSE)
    _, held_out = corpus.split(PROSE)
    found = measure_perplexity.evaluate(gpt2)
    tokens = data_tokens.encode(gpt2.tokenizer, held_out)
    assert found.tokens == len(tokens) - 1
    assert found.perplexity == pytest.approx(perplexity(gpt2, tokens, 16))
    assert found.text.startswith(f"{len(held_out)} documents that training holds out")


def test_a_tokenizers_special_tokens_begin_a_text(gpt2, tmp_path):
    from tokenizers.processors import TemplateProcessing

    (tmp_path / "a.txt").write_text(TEXT)
    ids = gpt2.tokenizer.encode(TEXT).ids
    gpt2.tokenizer.post_processor = TemplateProcessing(
        single=f"{data_tokens.END_OF_TEXT} $A", special_tokens=[(data_tokens.END_OF_TEXT, 0)]
    )
    found = measure_perplexity.evaluate(gpt2, tmp_path / "a.txt")
    assert found.tokens == len(ids)  # the first is told from the special one
    assert found.perplexity == pytest.approx(plain_perplexity(gpt2, np.array([0, *ids]), 16, 16), rel=1e-5)


def test_a_masked_model_has_pseudo_perplexity(bert, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    found = measure_perplexity.evaluate(bert, tmp_path / "a.txt")
    ids = np.array(bert.tokenizer.encode(TEXT, add_special_tokens=False).ids)
    expected = plain_pseudo_nats(bert, ids, Masking.of(bert.tokenizer), 10, list(range(len(ids)))) / len(ids)
    assert found.nats == pytest.approx(expected, rel=1e-4)
    assert (found.measure, found.tokens, found.context, found.stride) == ("pseudo-perplexity", len(ids), 10, 8)
    few = measure_perplexity.evaluate(bert, tmp_path / "a.txt", limit=4)
    assert (few.tokens, few.of) == (4, len(ids))
    assert f"4 tokens predicted of {len(ids)}, evenly spaced" in measure_perplexity.render(few)
    assert "pseudo-perplexity" in measure_perplexity.render(found) and "10, stride 8" in measure_perplexity.render(
        found
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"context": 17}, "context: found 17, expected 1 to the model's 16"),
        ({"context": 0}, "context: found 0"),
        ({"stride": 0}, r"stride: found 0, expected 1 to 16 \(the context\)"),
        ({"context": 4, "stride": 5}, "stride: found 5, expected 1 to 4"),
        ({"limit": 3}, "limit: a causal model predicts every token"),
    ],
)
def test_settings_out_of_range_are_refused(gpt2, tmp_path, options, complaint):
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(TinykronError, match=complaint):
        measure_perplexity.evaluate(gpt2, tmp_path / "a.txt", **options)


def test_what_cannot_be_evaluated_is_refused(gpt2, bert, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(TinykronError, match="a.txt is too short to predict a token"):
        measure_perplexity.evaluate(gpt2, tmp_path / "a.txt")
    with pytest.raises(TinykronError, match="limit: found 0"):
        measure_perplexity.evaluate(bert, tmp_path / "a.txt", limit=0)
    with pytest.raises(TinykronError, match="stride: a masked language model"):
        measure_perplexity.evaluate(bert, tmp_path / "a.txt", stride=3)
    with pytest.raises(TinykronError, match="this Bert has no head that predicts tokens"):
        measure_perplexity.evaluate(with_head(bert, "sequence"), tmp_path / "a.txt")
    gpt2.tokenizer = None
    with pytest.raises(TinykronError, match="no tokenizer"):
        measure_perplexity.evaluate(gpt2, tmp_path / "a.txt")


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    found = measure_perplexity.Evaluation("perplexity", 10, 10, 8, 8, log(2.0), 5, 1, "a text")
    assert found.bits_per_byte == pytest.approx(2.0)
    assert replace(found, tokens=20, nats=log(2.0) / 2).bits_per_byte == pytest.approx(2.0)

"""Masked language modelling: which tokens are hidden, how a window is framed, the tokenizer, and the loss held out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron import data
from tinykron.data.corpus import Document
from tinykron.data.masking import SPECIAL, Masking, train_wordpiece
from tinykron.data.tokens import IGNORED
from tinykron.errors import DataError
from tinykron.measure.perplexity import masked_perplexity
from tinykron.nn import Module
from tinykron.tensor import Tensor

ROOT = Path(__file__).parents[2]
MASKING = Masking(start=2, end=3, mask=4, vocabulary=50)
PROSE = [
    Document(f"page {n}", f"The {n}th page tells of page {7 * n}, and of Élan before it.\n" * 3) for n in range(20)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(PROSE, 160)


# Hiding ---------------------------------------------------------------------------------------------------------------


@given(batch=st.integers(1, 5), time=st.integers(1, 40), seed=st.integers(0, 999))
def test_targets_are_what_was_hidden_and_all_else_is_left(batch, time, seed):
    generator = np.random.default_rng(seed)
    ids_BT = MASKING.frame(generator.integers(5, 50, (batch, time)))
    inputs_BT, targets_BT = MASKING.hide(ids_BT, generator)
    chosen_BT = targets_BT != IGNORED
    assert inputs_BT.dtype == targets_BT.dtype == np.int64
    assert (targets_BT[chosen_BT] == ids_BT[chosen_BT]).all()
    assert (inputs_BT[~chosen_BT] == ids_BT[~chosen_BT]).all()
    assert chosen_BT.any(axis=1).all()
    assert not chosen_BT[:, [0, -1]].any()
    assert (ids_BT[:, 0] == 2).all() and (ids_BT[:, -1] == 3).all()
    assert inputs_BT.min() >= 0 and inputs_BT.max() < 50


def test_the_shares_are_bert_s():
    ids_BT = MASKING.frame(np.full((500, 400), 7))
    inputs_BT, targets_BT = MASKING.hide(ids_BT, np.random.default_rng(0))
    chosen_BT = targets_BT != IGNORED
    assert chosen_BT.mean() == pytest.approx(0.15, abs=0.005)
    hidden = inputs_BT[chosen_BT]
    assert (hidden == MASKING.mask).mean() == pytest.approx(0.8 + 0.1 / 50, abs=0.01)
    assert (hidden == 7).mean() == pytest.approx(0.1 + 0.1 / 50, abs=0.01)
    assert len(np.unique(hidden)) == 50  # any token may stand in


def test_a_batch_is_windows_of_the_text_with_their_frame():
    tokens = np.arange(5, 45, dtype=np.int32)
    everything = replace(MASKING, share=1.0)
    _, targets_BT = everything.sample_batch(tokens, 6, 10, np.random.default_rng(0))
    assert targets_BT.shape == (6, 10)
    assert (np.diff(targets_BT[:, 1:-1], axis=1) == 1).all()  # consecutive tokens
    assert (targets_BT[:, [0, -1]] == IGNORED).all()


class WithoutHiding(Masking):
    """Leaves the ids as they are, for a test to see them."""

    def hide(self, ids_BT, generator):
        return ids_BT, ids_BT


def test_pairs_follow_each_other_or_do_not():
    plain = WithoutHiding(MASKING.start, MASKING.end, MASKING.mask, MASKING.vocabulary)
    tokens = np.arange(100, 131, dtype=np.int32)  # each token once: where a text is from can be seen
    inputs_BT, _, types_BT, other_B = plain.sample_pairs(tokens, 2000, 14, np.random.default_rng(0))
    a_BT, b_BT = inputs_BT[:, 1:6], inputs_BT[:, 7:13]
    assert (inputs_BT[:, 0] == plain.start).all() and (inputs_BT[:, [6, 13]] == plain.end).all()
    assert (types_BT == [0] * 7 + [1] * 7).all()
    for window_BT in (a_BT, b_BT):
        assert (np.diff(window_BT, axis=1) == 1).all()
        assert window_BT.min() >= 100 and window_BT.max() <= 130
    follows_B = b_BT[:, 0] == a_BT[:, -1] + 1
    np.testing.assert_array_equal(other_B, ~follows_B)
    assert 0.45 < other_B.mean() < 0.55
    assert set(b_BT[other_B == 1, 0]) == set(range(100, 126))  # from anywhere
    assert set(a_BT[:, 0]) == set(range(100, 121))  # wherever something can follow


def test_pairs_have_hidden_tokens():
    tokens = np.arange(5, 45, dtype=np.int32)
    inputs_BT, targets_BT, _, _ = replace(MASKING, share=1.0).sample_pairs(tokens, 6, 11, np.random.default_rng(0))
    assert inputs_BT.shape == targets_BT.shape == (6, 11)
    assert ((targets_BT == IGNORED) == [True, *[False] * 4, True, *[False] * 4, True]).all()
    assert (inputs_BT == MASKING.mask).any()


@pytest.mark.parametrize(("count", "context"), [(8, 12), (40, 4)])
def test_pairs_need_text(count, context):
    with pytest.raises(DataError, match=f"found {count} tokens and a context of {context}"):
        MASKING.sample_pairs(np.arange(count), 2, context, np.random.default_rng(0))
    assert MASKING.sample_pairs(np.arange(9), 2, 12, np.random.default_rng(0))[0].shape == (2, 12)


# The tokenizer --------------------------------------------------------------------------------------------------------


def test_a_text_is_framed_and_comes_back_in_lower_case(tokenizer):
    encoding = tokenizer.encode("The 3th page")
    assert (encoding.tokens[0], encoding.tokens[-1]) == ("[CLS]", "[SEP]")
    assert tokenizer.decode(encoding.ids) == "the 3th page"
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    pair = tokenizer.encode("page", "before it")
    assert pair.type_ids == [0] * pair.tokens.index("[SEP]") + [0] + [1] * pair.type_ids.count(1)
    assert tokenizer.encode("\u4e16").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_the_tokenizer_is_deterministic_and_holds_what_was_asked(tokenizer):
    assert train_wordpiece(PROSE, 160).to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() <= 160
    with pytest.raises(DataError, match="vocab_size: found 39, expected at least 40"):
        train_wordpiece(PROSE, 39)


def test_the_tokenizer_is_the_same_in_another_process(tokenizer):
    code = "from tests.data.test_masking import *; print(train_wordpiece(PROSE, 160).to_str())"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert other.strip() == tokenizer.to_str()


def test_a_text_stream_ends_each_document_by_sep(tokenizer):
    tokens = data.encode(tokenizer, PROSE)
    assert (tokens == tokenizer.token_to_id("[SEP]")).sum() == len(PROSE)
    assert tokenizer.token_to_id("[CLS]") not in tokens


def test_masking_is_read_from_the_tokenizer(tokenizer):
    assert Masking.of(tokenizer) == Masking(2, 3, 4, tokenizer.get_vocab_size())
    with pytest.raises(DataError, match=r"the tokenizer lacks \['\[CLS\]', '\[SEP\]', '\[MASK\]'\]"):
        Masking.of(data.train_tokenizer(PROSE, 300))


# The loss held out ----------------------------------------------------------------------------------------------------


class Guess(Module):
    """A model that gives token 7 the logit log(49 p / (1 - p)), so that its probability is p, whatever it reads."""

    def __init__(self, p: float) -> None:
        self.logit = np.log(49 * p / (1 - p))

    def forward(self, ids_BT):
        logits = np.zeros((*ids_BT.shape, 50), np.float32)
        logits[..., 7] = self.logit
        return type("Output", (), {"logits": Tensor(logits)})


@pytest.mark.parametrize("length", [3, 40, 41])
def test_masked_perplexity_is_that_of_the_guesses(device, length):
    found = masked_perplexity(Guess(0.25), np.full(length, 7), 10, MASKING, batch=2)
    assert found == pytest.approx(4.0, rel=1e-5)

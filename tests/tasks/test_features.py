"""Examples as token ids: what is cut, what is padded, and that neither order nor padding changes what a model says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.tiny_tasks import CONTEXT, TOKENIZER, sst2_features, tiny_bert
from tinykron.errors import TinykronError
from tinykron.tasks.features import Features, collate, encode, predict

WORDS = st.lists(st.sampled_from(["page", "tells", "of"]), min_size=1, max_size=14).map(" ".join)


@given(first=WORDS, second=WORDS, context=st.integers(8, 20))
def test_the_longer_text_is_cut_first(first, second, context):
    ids, types = encode(TOKENIZER, [(first, second)], context)[0]
    whole = TOKENIZER.encode(first, second)
    assert len(ids) == len(types) == min(context, len(whole.ids))
    lengths = [types.count(side) - (2 if side == 0 else 1) for side in (0, 1)]  # without [CLS] and [SEP]
    given_lengths = [len(text.split()) for text in (first, second)]
    assert all(found <= given for found, given in zip(lengths, given_lengths, strict=True))
    if len(whole.ids) > context:
        cut = [found < given for found, given in zip(lengths, given_lengths, strict=True)]
        assert abs(lengths[0] - lengths[1]) <= 1 or (cut == [True, False]) == (given_lengths[0] > given_lengths[1])
    else:
        assert (ids, types) == (whole.ids, whole.type_ids)


def test_the_tokenizer_stays_as_it_is():
    TOKENIZER.enable_padding(length=30)
    try:
        found = encode(TOKENIZER, [("page",), ("page of tells",)], 20)
        assert [len(ids) for ids, _ in found] == [3, 5]
        assert TOKENIZER.truncation is None and TOKENIZER.padding["length"] == 30
    finally:
        TOKENIZER.no_padding()


def test_a_batch_is_padded_behind():
    batch = collate([Features([2, 7, 3], [0, 0, 1], 1), Features([2, 3], [0, 0], 0)])
    assert batch.ids_BT.tolist() == [[2, 7, 3], [2, 3, 0]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.types_BT.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert (batch.targets.tolist(), batch.targets.dtype) == ([1, 0], np.int64)
    assert collate([Features([2], [0], 2.5)]).targets.dtype == np.float32
    assert collate([Features([2], [0], (1, 3))]).targets.tolist() == [[1, 3]]


@pytest.mark.parametrize("head", ["sequence", "span"])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_each_example_is_told_alone_and_in_the_given_order(device, head, batch):
    model, features = tiny_bert(head=head).to(device), sst2_features(7)
    found = predict(model.train(), features, batch)
    assert model.training
    model.eval()
    for example, logits in zip(features, found, strict=True):
        alone = host(model(np.array([example.ids]), None, np.array([example.types])).logits)[0]
        assert_close(logits, alone, atol=1e-4)
        assert logits.shape == ((2,) if head == "sequence" else (len(example.ids), 2))


def test_token_types_reach_the_model():
    model = tiny_bert(head="sequence")
    ids = [2, 7, 8, 9, 3]
    first, second = predict(model, [Features(ids, [0] * 5), Features(ids, [0, 0, 1, 1, 1])])
    assert len(ids) <= CONTEXT and not np.allclose(first, second)


def test_nothing_to_predict_is_refused():
    with pytest.raises(TinykronError, match="expected examples, found none"):
        predict(tiny_bert(head="sequence"), [])

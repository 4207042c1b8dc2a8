"""Drafts of some tokens alone: the right rows of every kind of head, the same text, and files that say which."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykron as tk
from tests.decoders import deep
from tests.helpers import assert_close, host
from tinykron import kron
from tinykron.decode import shortlist
from tinykron.decode.generate import Trace
from tinykron.decode.shortlist import Shortlist, frequent
from tinykron.errors import CheckpointError, DataError, TinykronError
from tinykron.models.exit_parts import add_parts

PROMPTS = [[1, 2, 3], [4, 5]]
SOME = [7, 0, 31, 12]


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 12))
def test_frequent_tokens_come_first(ids, count):
    expected = sorted(Counter(ids).items(), key=lambda pair: (-pair[1], pair[0]))[:count]
    assert frequent(np.array(ids), count).tolist() == [token for token, _ in expected]


def headed(kind: str, device: str):
    """A model whose head is tied, of its own, of an exit's own, or made of Kronecker factors."""
    model = deep("gpt2" if kind == "tied" else "llama", 3, tie_word_embeddings=kind == "tied")
    if kind == "exit":
        add_parts(model, "heads", [2])
        model.exit_parts[0].head.weight.data *= 1.5  # else it would be the model's
    if kind == "factors":
        model = kron.factorise(model, {"head": kron.Choice((40, 16), (40, 4), 2)})
    return model.to(device)


@pytest.mark.parametrize("kind", ["tied", "own", "exit", "factors"])
def test_logits_are_those_of_the_head_for_the_tokens_listed(device, kind):
    model = headed(kind, device)
    with tk.no_grad():
        x_BTD = model([[1, 2, 3]]).hidden[2]
        expected_BTV = host(model.read(x_BTD, 2))
        norm, head = model.reader(2)
        listed = Shortlist(SOME, 40)
        for _ in range(2):  # rows taken out, rows in hand
            found_BTV = listed.logits(norm(x_BTD), head)
            assert found_BTV.dtype == np.float32 and found_BTV.shape == (1, 3, 40)
            assert_close(found_BTV[..., SOME], expected_BTV[..., SOME], rtol=1e-5, atol=1e-5)
            assert (found_BTV[..., [token for token in range(40) if token not in SOME]] == -np.inf).all()


@pytest.mark.parametrize("kind", ["tied", "own", "exit", "factors"])
def test_greedy_text_stays_the_same(device, kind):
    model, trace, whole = headed(kind, device), Trace(), Trace()
    plain = tk.generate(model, PROMPTS, 12)
    said = np.unique(plain[:, 3:])
    for draft in (2, deep("llama", 4).to(device)):
        for tokens in (SOME, said[: len(said) // 2], said):
            found = tk.generate(model, PROMPTS, 12, draft=draft, draft_length=3, shortlist=tokens, trace=trace)
            assert np.array_equal(found, plain)
    tk.generate(model, PROMPTS, 12, draft=2, draft_length=3, trace=whole)
    tk.generate(model, PROMPTS, 12, draft=2, draft_length=3, shortlist=range(40), trace=trace)
    assert trace.accepted.tolist() == whole.accepted.tolist() and trace.accepted.sum() > 0


def test_drafts_are_of_the_tokens_listed():
    model, trace = deep("gpt2", 3), Trace()
    said = set(tk.generate(model, PROMPTS, 12)[:, 3:].reshape(-1).tolist())
    never = [token for token in range(40) if token not in said]
    options = {"draft": 2, "draft_length": 3, "trace": trace}
    tk.generate(model, PROMPTS, 12, shortlist=never, **options)
    assert trace.drafted.sum() > 0 and trace.accepted.sum() == 0
    tk.generate(model, PROMPTS, 12, shortlist=sorted(said), **options)
    assert trace.accepted.sum() > 0


def test_sampled_text_depends_on_its_own_row_alone():
    model = deep("llama", 3)
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "draft": 2, "shortlist": SOME, "confidence": {1: 0.3}}
    together = tk.generate(model, [[1, 2, 3], [4, 5, 6]], 10, **options)
    assert np.array_equal(tk.generate(model, [[1, 2, 3]], 10, **options), together[:1])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "expected a list of token ids"),
        ([0.5], "expected a list of token ids"),
        ([[1, 2]], "expected a list of token ids"),
        ([1, 40], r"40 at .* outside 0\.\.39"),
        ([-1], "-1 at"),
        ([3, 1, 3], "each token once"),
    ],
)
def test_other_lists_are_refused(tokens, message):
    with pytest.raises(DataError, match=f"shortlist: .*{message}"):
        tk.generate(deep("gpt2", 3), [1], 2, draft=1, shortlist=tokens)


def test_a_list_without_a_draft_is_refused():
    with pytest.raises(TinykronError, match="shortlist: .*no draft"):
        tk.generate(deep("gpt2", 3), [1], 2, shortlist=[1])


def test_a_folder_keeps_its_list(tmp_path):
    shortlist.write(np.array([3, 1, 2]), tmp_path)
    assert shortlist.read(tmp_path).tolist() == [3, 1, 2] and shortlist.read(tmp_path, 2).tolist() == [3, 1]
    assert [path.name for path in tmp_path.iterdir()] == [shortlist.FILE]


@pytest.mark.parametrize("content", ["[1, 2", "[]", '{"a": 1}', '["a"]', "[1.5]", "[true]"])
def test_a_damaged_list_is_named(tmp_path, content):
    (tmp_path / shortlist.FILE).write_text(content)
    with pytest.raises(CheckpointError, match=shortlist.FILE):
        shortlist.read(tmp_path)


def test_a_folder_without_a_list_says_who_writes_one(tmp_path):
    with pytest.raises(CheckpointError, match="has no frequent_tokens.json; `tinykron sort` writes one"):
        shortlist.read(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        shortlist.write(np.array([1]), tmp_path / "missing")

"""Tokenizers beside transformers' own, from the same published vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.checkpoint.tokenizer import load_tokenizer

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
TEXTS = [
    "",
    "The dog was found in a field near a river.",
    "  two spaces,\n\na line\tand a tab  ",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \u0130stanbul",
    "\u4e16\u754c hello \u3053\u3093\u306b\u3061\u306f",
    "\U0001f600\U0001f469\u200d\U0001f4bb!",
    "don't; it's 3.14 <b>& [MASK] [SEP] <|endoftext|>",
    "x" * 150 + " " + "ab" * 60,
    "# ## ### #a ##b",  # what merges.txt might take for a comment, and WordPiece for a continuation
    "one\u2028line\x85or\r\ntwo\x00, half\ufffd \u00ad \ufb01 e\u0301",
    " [SEP]a[CLS]  <|endoftext|> <|endoftext|>b",
]
SETTINGS = [
    {},
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]


def published(name: str) -> dict[str, Any]:
    if not (DATA / name).exists():
        pytest.skip(f"needs shared/data/{name}")
    return json.loads((DATA / name / "tokenizer.json").read_text(encoding="utf-8"))["model"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> tuple[Any, Any]:
    from transformers import GPT2TokenizerFast

    model, folder = published("gpt2-tokenizer"), tmp_path_factory.mktemp("gpt2")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')  # for AutoTokenizer
    return load_tokenizer(folder), GPT2TokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def bert(request, tmp_path_factory) -> tuple[Any, Any]:
    from transformers import BertTokenizerFast

    vocabulary, folder = published("bert-uncased-tokenizer")["vocab"], tmp_path_factory.mktemp("bert")
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(request.param))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return load_tokenizer(folder), BertTokenizerFast.from_pretrained(folder)


def assert_alike(tokenizers: tuple[Any, Any], *texts: str) -> None:
    """One text, or a pair, gives the same ids, types and special tokens, and the same text comes back."""
    ours, theirs = tokenizers
    expected = theirs(*texts, return_special_tokens_mask=True, return_offsets_mapping=True, return_token_type_ids=True)
    found = ours.encode(*texts)
    assert found.ids == expected["input_ids"]
    assert found.type_ids == expected["token_type_ids"]
    assert found.attention_mask == expected["attention_mask"]
    assert found.special_tokens_mask == expected["special_tokens_mask"]
    assert found.offsets == expected["offset_mapping"]
    for skip in (True, False):
        decoded = theirs.decode(found.ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(found.ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2(gpt2, text):
    assert_alike(gpt2, text)
    assert_alike(gpt2, text, "a second one")


@given(text=st.text(max_size=60))
def test_gpt2_on_any_text(gpt2, text):
    assert_alike(gpt2, text)


@pytest.mark.parametrize("text", TEXTS)
def test_bert(bert, text):
    assert_alike(bert, text)
    assert_alike(bert, text, "a second one")


@given(text=st.text(max_size=60))
def test_bert_on_any_text(bert, text):
    assert_alike(bert, text)


def assert_picked(tokenizers: tuple[Any, Any]) -> None:
    """The tokenizer that transformers picks for the folder has the same special tokens, and cuts texts alike."""
    from transformers import AutoTokenizer

    ours, theirs = tokenizers
    picked = AutoTokenizer.from_pretrained(theirs.name_or_path)
    added = ours.get_added_tokens_decoder()
    assert {number: str(token) for number, token in added.items()} == {
        number: str(token) for number, token in picked.added_tokens_decoder.items()
    }
    for text in TEXTS:
        assert_alike((ours, picked), text)


def test_gpt2_as_transformers_picks_it(gpt2):
    assert_picked(gpt2)


def test_bert_as_transformers_picks_it(bert):
    assert_picked(bert)


def test_a_vocabulary_with_blanks_and_carriage_returns(tmp_path):
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "page ", "the\t", "a\rb", "c\u2028d", "last"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(words).encode())
    ours, theirs = load_tokenizer(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab()
    assert_alike((ours, theirs), "the last page")


def test_minilm_cuts_and_pads_only_when_asked():
    if not (DATA / "minilm-l6-v2-fp16").exists():
        pytest.skip("needs shared/data/minilm-l6-v2-fp16")
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(DATA / "minilm-l6-v2-fp16")
    theirs = AutoTokenizer.from_pretrained(DATA / "minilm-l6-v2-fp16")
    for text in ("short", "one of many words " * 100):
        assert tokenizer.encode(text).ids == theirs(text, truncation=False, padding=False)["input_ids"]

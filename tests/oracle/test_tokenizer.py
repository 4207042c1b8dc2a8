"""Tokenizers beside transformers' own, from the same published vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.tokenizer import load_tokenizer

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
    return load_tokenizer(folder), GPT2TokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["lower-case", "cased"])
def bert(request, tmp_path_factory) -> tuple[Any, Any]:
    from transformers import BertTokenizerFast

    vocabulary, folder = published("bert-uncased-tokenizer")["vocab"], tmp_path_factory.mktemp("bert")
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": request.param}))
    return load_tokenizer(folder), BertTokenizerFast.from_pretrained(folder)


def assert_alike(pair: tuple[Any, Any], text: str) -> None:
    ours, theirs = pair
    expected = theirs(text)["input_ids"]
    found = ours.encode(text)
    assert found.ids == expected, text
    for skip in (True, False):
        decoded = theirs.decode(expected, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(found.ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2(gpt2, text):
    assert_alike(gpt2, text)


@given(text=st.text(max_size=60))
def test_gpt2_on_any_text(gpt2, text):
    assert_alike(gpt2, text)


@pytest.mark.parametrize("text", TEXTS)
def test_bert(bert, text):
    ours, theirs = bert
    expected, found = theirs(text), ours.encode(text)
    assert (found.ids, found.type_ids, found.attention_mask) == (
        expected["input_ids"],
        expected["token_type_ids"],
        expected["attention_mask"],
    )
    pair = theirs(text, "a second one")
    assert (ours.encode(text, "a second one").ids, ours.encode(text, "a second one").type_ids) == (
        pair["input_ids"],
        pair["token_type_ids"],
    )


@given(text=st.text(max_size=60))
def test_bert_on_any_text(bert, text):
    assert bert[0].encode(text).ids == bert[1](text)["input_ids"]


def test_minilm_cuts_and_pads_only_when_asked():
    if not (DATA / "minilm-l6-v2-fp16").exists():
        pytest.skip("needs shared/data/minilm-l6-v2-fp16")
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(DATA / "minilm-l6-v2-fp16")
    theirs = AutoTokenizer.from_pretrained(DATA / "minilm-l6-v2-fp16")
    for text in ("short", "one of many words " * 100):
        assert tokenizer.encode(text).ids == theirs(text, truncation=False, padding=False)["input_ids"]

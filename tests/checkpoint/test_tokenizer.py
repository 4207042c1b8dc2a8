"""Tokenizers from every kind of file; what is malformed; truncation and padding that nobody asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_masking import PROSE
from tinykron import data
from tinykron.checkpoint.tokenizer import load_tokenizer
from tinykron.data.masking import train_wordpiece
from tinykron.errors import CheckpointError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "page", "##s", "caf", "##e", "the,"]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Path:
    """GPT-2's two files, of a tokenizer trained here."""
    folder = tmp_path_factory.mktemp("bpe")
    model = json.loads(data.train_tokenizer(PROSE, 300).to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def wordpiece(folder: Path, words: list[str] = WORDS, **settings: object) -> Path:
    return write(folder, vocab__txt="\n".join(words) + "\n", tokenizer_config__json=settings)


# What is read ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None


@given(text=st.text(max_size=40))
def test_gpt2_s_files_say_what_tokenizer_json_says(byte_level, text):
    found, expected = load_tokenizer(byte_level), data.train_tokenizer(PROSE, 300)
    assert found.encode(text).ids == expected.encode(text).ids
    assert found.decode(found.encode(text).ids) == text


def test_the_end_of_text_is_one_token(byte_level):
    tokenizer = load_tokenizer(byte_level)
    assert tokenizer.encode("<|endoftext|>").ids == [tokenizer.token_to_id("<|endoftext|>")]
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>").ids) == "a"


def test_bert_s_file_frames_and_lowers(tmp_path):
    tokenizer = load_tokenizer(wordpiece(tmp_path))
    assert tokenizer.encode("The Pages CAF\u00c9").tokens == ["[CLS]", "the", "page", "##s", "caf", "##e", "[SEP]"]
    assert tokenizer.encode("the,").tokens == ["[CLS]", "the", "[UNK]", "[SEP]"]  # punctuation stands alone
    pair = tokenizer.encode("the", "page")
    assert (pair.tokens, pair.type_ids) == (["[CLS]", "the", "[SEP]", "page", "[SEP]"], [0, 0, 0, 1, 1])
    assert tokenizer.encode("[MASK] the").tokens[1:-1] == ["[MASK]", "the"]


def test_a_merge_may_begin_with_the_sign_of_a_comment(tmp_path):
    write(tmp_path, vocab__json={"#": 0, "##": 1}, merges__txt="#version: 0.2\n# #\n")
    assert load_tokenizer(tmp_path).encode("###").ids == [1, 0]


def test_only_a_newline_ends_a_line(tmp_path):
    """Elsewhere a separator is a character like others; blanks and a carriage return at the end are no part of it."""
    words = "\r\n".join([*WORDS, "a\rb", "c\u2028d", "last  "])
    (tmp_path / "vocab.txt").write_bytes(words.encode())
    vocabulary = load_tokenizer(tmp_path).get_vocab()
    assert sorted(vocabulary, key=vocabulary.__getitem__) == [*WORDS, "a\rb", "c\u2028d", "last"]
    write(tmp_path, vocab__json={"a": 0, "\u2028": 1, "a\u2028": 2})
    (tmp_path / "merges.txt").write_bytes("a \u2028\r\n".encode())
    assert load_tokenizer(tmp_path).get_vocab_size() == 3


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"do_lower_case": False}, ["[UNK]", "[UNK]"]),
        ({"do_lower_case": True, "strip_accents": False}, ["the", "[UNK]"]),
        ({"do_lower_case": True, "strip_accents": None}, ["the", "caf", "##e"]),
        ({"do_lower_case": False, "strip_accents": True}, ["[UNK]", "caf", "##e"]),
    ],
)
def test_the_settings_are_heeded(tmp_path, settings, tokens):
    assert load_tokenizer(wordpiece(tmp_path, **settings)).encode("The caf\u00e9").tokens[1:-1] == tokens


@pytest.mark.parametrize("apart", [True, False])
def test_chinese_characters_stand_alone_unless_the_settings_say_otherwise(tmp_path, apart):
    words = [*WORDS, "\u4e16", "\u754c", "\u4e16\u754c"]
    tokens = load_tokenizer(wordpiece(tmp_path, words, tokenize_chinese_chars=apart)).encode("\u4e16\u754c").tokens
    assert tokens[1:-1] == (["\u4e16", "\u754c"] if apart else ["\u4e16\u754c"])


def test_tokenizer_json_goes_first(tmp_path, byte_level):
    train_wordpiece(PROSE, 160).save(str(tmp_path / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((byte_level / name).read_text())
    assert load_tokenizer(tmp_path).token_to_id("[CLS]") is not None


def test_nothing_is_cut_or_padded_that_nobody_asked_for(tmp_path):
    tokenizer = train_wordpiece(PROSE, 160)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert found.truncation is None and found.padding is None
    assert len(found.encode("the page " * 30).ids) == 62
    assert len(found.encode("the").ids) == 3


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"tokenizer__json": "{"}, "tokenizer.json: no tokenizer: "),
        ({"vocab__json": {"a": 0}}, "found vocab.json without merges.txt"),
        ({"merges__txt": ""}, "found merges.txt without vocab.json"),
        ({"vocab__json": "{", "merges__txt": ""}, "vocab.json is no valid JSON"),
        ({"vocab__json": '{"a": 0, "a": 1}', "merges__txt": ""}, 'vocab.json is no valid JSON: "a" occurs twice'),
        ({"vocab__json": [1], "merges__txt": ""}, "expected an object of tokens and .*; found a list"),
        ({"vocab__json": {"a": 1}, "merges__txt": ""}, "found 'a': 1 among 1 tokens"),
        ({"vocab__json": {"a": -1, "b": 0}, "merges__txt": ""}, "found 'a': -1 among 2 tokens"),
        ({"vocab__json": {"a": 0, "b": 0}, "merges__txt": ""}, "found 'b': 0 among 2 tokens"),
        ({"vocab__json": {"a": "0"}, "merges__txt": ""}, "found 'a': \"0\" among 1 tokens"),
        ({"vocab__json": {"a": True, "b": 0}, "merges__txt": ""}, "found 'a': true among 2 tokens"),
        ({"vocab__json": {"\ud800": 0}, "merges__txt": ""}, r"'\\ud800', half of a surrogate pair"),
        ({"vocab__json": {"a": 0, "b": 1}, "merges__txt": "a b\n"}, "merge 1: 'a b' is no pair of tokens"),
        ({"vocab__json": {"a": 0}, "merges__txt": "#version: 0.2\na\n"}, "merge 1: 'a' is no pair"),
        ({"vocab__txt": "[PAD]\n[CLS]\n[SEP]\n"}, r"vocab.txt: expected .*; found no \[UNK\], \[MASK\]$"),
        ({"vocab__txt": ""}, "found a blank line 1"),
        ({"vocab__txt": "[PAD]\n\n[UNK]\n"}, "found a blank line 2"),
        ({"vocab__txt": "[PAD]\n[UNK]\n \n"}, "found a blank line 3"),
        ({"vocab__txt": "a\nb\na\n"}, "'a' stands on line 1 and again"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": [1]}, "expected a JSON object, found a list"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": {"do_lower_case": 1}}, "expected true or false, f"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": {"do_lower_case": None}}, "or false, found null"),
        ({"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": {"strip_accents": 0}}, "or null, found 0"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, files, complaint):
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_tokenizer(write(tmp_path, **files))
    assert str(tmp_path) in str(caught.value)


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(CheckpointError, match=r"vocab.txt: expected UTF-8 text, found byte 0xff at offset 6"):
        load_tokenizer(tmp_path)

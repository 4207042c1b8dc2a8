"""Corpus, split, tokeniser, batches, and the folders that ship with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinykron.data import corpus as data_corpus
from tinykron.data import shipped
from tinykron.data import tokens as data_tokens
from tinykron.data.corpus import Document
from tinykron.errors import DataError, TinykronError

PROSE = [
    Document(f"page {number}", f"The {number}th page speaks of the number {number * 7}.\n\n    so = {number}\n")
    for number in range(40)
]
texts = st.text() | st.text(alphabet=" \t\n\r.'<|endofx>é漢😀\x00", max_size=40)


@pytest.fixture(scope="module")
def tokenizer():
    return data_tokens.train_tokenizer(PROSE, vocab_size=300)


@pytest.fixture(scope="module")
def corpus():
    return data_corpus.documents()


# Documents ------------------------------------------------------------------------------------------------------------


def test_the_corpus_is_the_language_reference_and_the_docstrings(corpus):
    named = {document.name: document.text for document in corpus}
    assert len(named) == len(corpus) > 300
    assert '"and"' in named["topic booleans"]
    assert "JSON" in named["module json.decoder"]
    assert sum(len(text) for text in named.values()) > 1_000_000
    assert not any(".test." in name or "site-packages" in name for name in named)


def test_no_two_documents_share_a_long_paragraph(corpus):
    home: dict[str, str] = {}
    for document in corpus:
        for paragraph in document.text.split("\n\n"):
            if (
                len(paragraph) >= 2 * data_corpus.REPEAT_CHARACTERS
            ):  # one document may repeat itself: it stays on one side
                assert home.setdefault(paragraph.strip(), document.name) == document.name


def test_a_paragraph_stays_with_the_shortest_document_that_has_it():
    quoted, own = "quoted " * 20, "own words " * 20
    long, short = Document("long", f"{own}\n\n{quoted}\n\nend"), Document("short", f"{quoted}\n")
    assert data_corpus._without_repeats([long, short]) == [Document("long", f"{own}\n\nend\n"), short]
    assert data_corpus._without_repeats([short, Document("twin", short.text)]) == [short]


def test_docstrings_are_read_from_top_to_bottom_and_never_run(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '"""Module."""\nraise SystemExit\nclass A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
        'if True:\n    async def g():\n        """Nested\n        lines."""\ndef h():\n    "Last."\n'
    )
    assert [text for _, text in data_corpus._documented(source)] == [
        "Module.",
        "Class.",
        "Method.",
        "Nested\nlines.",
        "Last.",
    ]


@pytest.mark.parametrize("source", ["def broken(:\n", "\x00", "# coding: nothing-we-know\n"])
def test_a_module_that_does_not_parse_is_left_out(tmp_path, source):
    path = tmp_path / "broken.py"
    path.write_text(source)
    assert data_corpus._documented(path) == []


def test_a_short_file_is_one_document_and_a_long_one_is_cut_at_blank_lines(tmp_path):
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("One line.\n", encoding="utf-8")
    text = "".join(f"Paragraph {number} says this.\nAnd then that.\n\n" for number in range(500))
    long.write_text(text, encoding="utf-8")
    assert data_corpus.documents(short) == [Document("short.txt", "One line.\n")]
    pieces = data_corpus.documents(str(long))
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text.endswith("\n\n") for piece in pieces)


@given(lines=st.lists(st.text(alphabet="ab \n\x0c", max_size=30), max_size=30), repeats=st.integers(1, 3000))
@settings(deadline=None, max_examples=30)
def test_pieces_join_to_the_text_and_none_is_endless(lines, repeats):
    text = "\n".join(lines) * repeats
    pieces = list(data_corpus._pieces(text))
    assert "".join(pieces) == text
    longest_line = max(map(len, text.splitlines(keepends=True)), default=0)
    assert max(map(len, pieces), default=0) < 4 * data_corpus.DOCUMENT_CHARACTERS + longest_line + 1


def test_a_folder_gives_its_text_files_in_order(tmp_path):
    for name in ("b.md", "a.txt", "deep/c.rst", "ignored.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"\ufeffText of {name}.", encoding="utf-8")
    expected = [Document(name, f"Text of {name}.") for name in ("a.txt", "b.md", "deep/c.rst")]
    assert data_corpus.documents(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b" \n\n", "empty file"),
        (b"good\xff", "byte 0xff at offset 4"),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path, content, complaint):
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        data_corpus.documents(path)
    assert str(path) in str(caught.value)


def test_a_folder_without_text_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x00")
    with pytest.raises(DataError, match="found no text") as caught:
        data_corpus.documents(tmp_path)
    assert str(tmp_path) in str(caught.value)


# Split ----------------------------------------------------------------------------------------------------------------

names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40, unique=True)


@given(names=names, held_out=st.floats(0.01, 0.5), data_=st.data())
@settings(deadline=None)
def test_split_is_disjoint_complete_and_blind_to_order(names, held_out, data_):
    documents = [Document(name, "text") for name in names]
    try:
        train, rest = data_corpus.split(documents, held_out)
    except DataError:
        assert all(data_corpus._place(document) <= held_out for document in documents)
        return
    assert {*train, *rest} == {*documents}
    assert len(train) + len(rest) == len(documents)
    shuffled = data_.draw(st.permutations(documents))
    assert {*data_corpus.split(shuffled, held_out)[1]} == {*rest}


def test_the_split_is_the_same_on_every_machine():
    _, rest = data_corpus.split(PROSE, held_out=0.1)
    assert [document.name for document in rest] == ["page 1", "page 3", "page 10", "page 18", "page 34"]


def test_most_of_the_corpus_is_for_training(corpus):
    train, rest = data_corpus.split(corpus)
    assert 0.02 < len(rest) / len(corpus) < 0.1
    assert len(train) + len(rest) == len(corpus)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_documents_to_split(count):
    with pytest.raises(DataError, match=f"found {count} documents"):
        data_corpus.split(PROSE[:count])


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1])
def test_the_held_out_share_is_checked(held_out):
    with pytest.raises(DataError, match="between 0 and 1"):
        data_corpus.split(PROSE, held_out)


# Tokens ---------------------------------------------------------------------------------------------------------------


@given(text=texts)
@settings(deadline=None)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_tokenizer_is_deterministic_and_holds_what_was_asked(tokenizer):
    assert data_tokens.train_tokenizer(PROSE, vocab_size=300).to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id(data_tokens.END_OF_TEXT) == 0
    assert len(tokenizer.encode("The 3th page").ids) < len("The 3th page")  # it has learned merges


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(DataError, match="found 256, expected at least 257"):
        data_tokens.train_tokenizer(PROSE, vocab_size=256)


def test_encode_is_one_stream_with_an_end_after_each_document(tokenizer):
    tokens = data_tokens.encode(tokenizer, PROSE)
    assert tokens.dtype == np.int32
    assert (tokens == 0).sum() == len(PROSE)
    assert tokenizer.decode(tokens, skip_special_tokens=False) == "".join(
        document.text + data_tokens.END_OF_TEXT for document in PROSE
    )


def test_encode_ignores_truncation_and_padding_and_leaves_them_set(tokenizer):
    limited = type(tokenizer).from_str(tokenizer.to_str())
    limited.enable_truncation(4)
    limited.enable_padding(length=64, pad_id=5)
    np.testing.assert_array_equal(data_tokens.encode(limited, PROSE), data_tokens.encode(tokenizer, PROSE))
    assert limited.truncation["max_length"] == 4
    assert limited.padding["length"] == 64


def test_encode_of_nothing_is_an_empty_stream(tokenizer):
    assert data_tokens.encode(tokenizer, []).shape == (0,)


def test_encode_needs_an_end_of_text():
    from tokenizers import Tokenizer, models

    with pytest.raises(DataError, match=r"<\|endoftext\|>"):
        data_tokens.encode(Tokenizer(models.BPE()), PROSE)


# Batches --------------------------------------------------------------------------------------------------------------


@given(length=st.integers(2, 60), context=st.integers(1, 59), batch=st.integers(1, 8), seed=st.integers(0, 99))
def test_targets_are_inputs_one_token_later(length, context, batch, seed):
    tokens = np.arange(100, 100 + length, dtype=np.int32)
    if length < context + 1:
        with pytest.raises(DataError, match=f"found {length} tokens, need {context + 1}"):
            data_tokens.sample_batch(tokens, batch, context, np.random.default_rng(seed))
        return
    inputs_BT, targets_BT = data_tokens.sample_batch(tokens, batch, context, np.random.default_rng(seed))
    assert inputs_BT.shape == targets_BT.shape == (batch, context)
    assert inputs_BT.dtype == targets_BT.dtype == np.int64
    np.testing.assert_array_equal(inputs_BT + 1, targets_BT)
    again, _ = data_tokens.sample_batch(tokens, batch, context, np.random.default_rng(seed))
    np.testing.assert_array_equal(inputs_BT, again)


def test_every_window_can_be_drawn():
    tokens = np.arange(8, dtype=np.int32)
    inputs_BT, targets_BT = data_tokens.sample_batch(tokens, 1000, 3, np.random.default_rng(0))
    assert {*inputs_BT[:, 0].tolist()} == {0, 1, 2, 3, 4}
    assert targets_BT.max() == 7


def test_a_restored_generator_goes_on_with_the_same_batches():
    tokens = np.arange(500, dtype=np.int32)
    generator = np.random.default_rng(1)
    data_tokens.sample_batch(tokens, 4, 8, generator)
    state = generator.bit_generator.state
    expected, _ = data_tokens.sample_batch(tokens, 4, 8, generator)
    resumed = np.random.default_rng(2)
    resumed.bit_generator.state = state
    np.testing.assert_array_equal(data_tokens.sample_batch(tokens, 4, 8, resumed)[0], expected)


@given(length=st.integers(2, 80), context=st.integers(1, 20), share=st.floats(0, 1))
def test_windows_make_each_token_a_target_once(length, context, share):
    tokens = np.arange(1000, 1000 + length, dtype=np.int32)
    stride = max(1, round(share * context))
    inputs_WT, targets_WT = data_tokens.windows(tokens, context, stride)
    counted = targets_WT != data_tokens.IGNORED
    assert sorted(targets_WT[counted].tolist()) == tokens[1:].tolist()
    np.testing.assert_array_equal(inputs_WT[counted] + 1, targets_WT[counted])
    assert inputs_WT.dtype == targets_WT.dtype == np.int64
    assert inputs_WT.shape == targets_WT.shape == (len(inputs_WT), context)
    assert inputs_WT.min() >= 0  # padding is a valid id
    for window, targets in zip(inputs_WT[1:], counted[1:], strict=True):  # what a later target sees
        assert targets.any()
        assert (window[: context - stride] >= 1000).all()


def test_windows_do_not_overlap_unless_asked():
    inputs_WT, targets_WT = data_tokens.windows(np.arange(1, 8, dtype=np.int32), 4)
    np.testing.assert_array_equal(inputs_WT, [[1, 2, 3, 4], [5, 6, 7, 0]])
    np.testing.assert_array_equal(targets_WT, [[2, 3, 4, 5], [6, 7, -100, -100]])


@pytest.mark.parametrize(
    ("length", "context", "stride", "complaint"),
    [(1, 4, None, "found 1 tokens, need 2"), (9, 4, 5, "expected 1 to 4"), (9, 4, 0, "found 0, expected 1")],
)
def test_windows_refuse_what_cannot_be_covered(length, context, stride, complaint):
    with pytest.raises(DataError, match=complaint):
        data_tokens.windows(np.arange(length, dtype=np.int32), context, stride)


# What ships with tinykron ---------------------------------------------------------------------------------------------


def test_shipped_folders_are_found():
    for kind in ("weights", "lessons"):
        assert shipped.shipped_folder(kind).name == kind
    with pytest.raises(TinykronError, match="nothing-such"):
        shipped.shipped_folder("nothing-such")


def test_shipped_weights_are_found_by_name():
    weights = shipped.shipped_folder("weights")
    for name in {path.parent.name for path in weights.glob("*/config.json")}:
        assert Path(shipped.weights_folder(name), "config.json").is_file()
    with pytest.raises(TinykronError, match=r'no shipped weights "gpt5".*found'):
        shipped.weights_folder("gpt5")

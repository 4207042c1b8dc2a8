"""The tasks made of Python's documentation: in GLUE's and SQuAD's formats, alike each time, true to their question."""

from __future__ import annotations

import json

import pytest

from tinykron import data
from tinykron.data import corpus
from tinykron.data.corpus import Docstring
from tinykron.data.instructions import parse_instructions
from tinykron.errors import DataError
from tinykron.tasks import standins
from tinykron.tasks.closed_book import parse_trivia
from tinykron.tasks.glue import PAIR

LIBRARY = [
    *(
        Docstring(f"{package}.part", f"work_{n}", True, f"Do the {n}th work of {package},\nand no more.\n\nMore: {n}.")
        for package in standins.PACKAGES
        for n in range(8)
    ),
    *(
        Docstring("shelf", f"size_{n}", True, f"Count the books.\n\nReturn the number of books on shelf {n}. Or less.")
        for n in range(30)
    ),
    *(Docstring("shelf", f"sort_{n}", True, f"Sort the books that stand on shelf {n}, in place.") for n in range(60)),
    Docstring("shelf", "Shelf", False, "A class is not asked what it does. Return the class of all shelves."),
    Docstring("shelf", "maybe", True, "Sort the books. It never returns; the caller is not told anything."),
    Docstring("asyncio.short", "f", True, "Do it."),
    Docstring("xml.part", "copy", True, "Do the 0th work of asyncio, and no more."),
]


@pytest.fixture
def library(monkeypatch):
    """The docstrings of a standard library of a hundred functions."""

    def docstrings(packages=None):
        return iter([d for d in LIBRARY if packages is None or d.module.split(".")[0] in packages])

    monkeypatch.setattr(data, "docstrings", docstrings)


def cells(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_package_asks_where_a_docstring_is_from(library):
    files = standins.files("docs/package")
    header, *rows = cells(files["train.tsv"])
    dev = cells(files["dev.tsv"])[1:]
    assert header == ["sentence", "label"]
    assert len(rows) + len(dev) == 8 * len(standins.PACKAGES)  # without the one too short, and the one that repeats
    assert 0 < len(dev) < len(rows)
    assert all(package in sentence and sentence.endswith("and no more.") for sentence, package in rows + dev)
    assert not {sentence for sentence, _ in rows} & {sentence for sentence, _ in dev}


def test_neighbours_stand_side_by_side_and_strangers_do_not():
    files = standins.files("docs/neighbours")
    topics = [" ".join(document.text.split()) for document in corpus.language_reference()]
    told = {}
    for split in ("train", "dev"):
        header, *rows = cells(files[f"{split}.tsv"])
        assert header == ["index", *PAIR, "label"] and [row[0] for row in rows] == [str(n) for n in range(len(rows))]
        assert [row[3] for row in rows] == ["neighbours", "strangers"] * (len(rows) // 2)
        for _, first, second, label in rows[:60]:
            assert any(f"{first} {second}" in topic for topic in topics) == (label == "neighbours")
        told[split] = {(first, second) for _, first, second, label in rows if label == "neighbours"}
        seconds = {
            said: {second for _, _, second, label in rows if label == said} for said in ("neighbours", "strangers")
        }
        assert seconds["strangers"] <= seconds["neighbours"]  # drawn from the same side
    assert len(told["dev"]) > 50 and len(told["train"]) > 5 * len(told["dev"])
    assert not told["train"] & told["dev"]


def test_a_sentence_that_another_topic_repeats_is_no_stranger(monkeypatch):
    topics = [
        corpus.Document(
            "topic one", "\n\n".join(f"The {n}th item begins here. The {n}th item ends there." for n in range(3))
        ),
        corpus.Document(
            "topic two", "\n\n".join(f"The {n}th other comes in. The {n}th item ends there." for n in range(3))
        ),
    ]
    monkeypatch.setattr(data, "language_reference", lambda: topics)
    monkeypatch.setattr(standins, "HELD_OUT", 0.0)
    rows = cells(standins.neighbours()["train.tsv"])[1:]
    told = {
        label: {(first, second) for _, first, second, said in rows if said == label}
        for label in ("neighbours", "strangers")
    }
    assert len(rows) == 12 and not told["neighbours"] & told["strangers"]


def test_returns_asks_for_spans_and_every_other_time_in_vain(library):
    files = standins.files("docs/returns")
    asked = []
    for split in ("train", "dev"):
        content = json.loads(files[f"{split}-v2.0.json"])
        assert content["version"] == "v2.0"
        asked += [
            (paragraph["context"], question)
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    assert len({question["id"] for _, question in asked}) == len(asked) == 60
    for context, question in asked:
        if question["is_impossible"]:
            assert question["answers"] == [] and "return" not in context.lower()
        else:
            [answer] = question["answers"]
            assert context[answer["answer_start"] :].startswith(answer["text"])
            assert answer["text"].startswith("the number of books on shelf ") and "." not in answer["text"]
    assert sum(question["is_impossible"] for _, question in asked) == 30


def test_instructions_and_questions_are_read_as_alpacas_and_triviaqas(library):
    [(name, text)] = standins.files("docs/instructions").items()
    told = parse_instructions(text, name)
    assert any("### Input:\nshelf.sort_7\n" in one.prompt and "on shelf 7, in place." in one.answer for one in told)
    assert len({one.answer for one in told}) == len(told)  # no sentence stands on both sides
    [(name, text)] = standins.files("docs/questions").items()
    asked = {one.prompt: one for one in parse_trivia(text, name)}
    found = asked["Question: Which module has the function sort_7?\nAnswer:"]
    assert (found.answer, found.accepted) == (" shelf", ("shelf",))
    several = asked["Question: Which module has the function work_0?\nAnswer:"]
    assert several.accepted == tuple(f"{package}.part" for package in standins.PACKAGES)


@pytest.mark.parametrize("name", standins.MAKERS)
def test_files_are_alike_each_time_and_are_read_from_a_folder_as_from_memory(library, tmp_path, name):
    files = standins.files(name)
    assert standins.files(name) == files
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8", newline="\n")
    if name in standins.TASKS:
        task = standins.TASKS[name]
        for split in ("train", "dev"):
            assert task.read(tmp_path, split) == task.read(files, split)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(DataError, match="no stand-in 'docs/x', expected one of docs/package"):
        standins.files("docs/x")


@pytest.mark.slow
def test_the_standard_library_has_enough_of_each():
    task = standins.TASKS["docs/package"]
    files = standins.files("docs/package")
    for split, least in (("train", 1000), ("dev", 150)):
        examples = task.read(files, split).examples
        assert len(examples) > least
        assert {example.label for example in examples} == set(range(len(standins.PACKAGES)))
    found = [len(json.loads(text)["data"]) for text in standins.files("docs/returns").values()]
    assert found[0] > 100 and found[1] > 50

"""Closed-book questions: official files, the official normalisation, answers that a model decodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.decoders import DATA, tiny_gpt2
from tests.models.test_exit_parts import with_parts
from tinykron import data, kron
from tinykron.commands import cli
from tinykron.data import instructions
from tinykron.data.instructions import encode
from tinykron.data.shipped import shipped_folder
from tinykron.errors import DataError
from tinykron.tasks.closed_book import answers, exact_match, exact_matches, normalised, read_questions
from tinykron.tasks.metrics import normalised as of_squad
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

TRIVIA = {  # an entry as TriviaQA has it
    "Question": "Which American-born Sinclair won the Nobel Prize for Literature in 1930?",
    "QuestionId": "tc_1",
    "Answer": {
        "Aliases": ["(Harry) Sinclair Lewis", "Lewis, (Harry) Sinclair", "Sinclair Lewis"],
        "NormalizedAliases": ["harry sinclair lewis", "lewis harry sinclair", "sinclair lewis"],
        "Value": "Sinclair Lewis",
        "NormalizedValue": "sinclair lewis",
        "Type": "WikipediaEntity",
        "HumanAnswers": ["Red Lewis"],
    },
}


def write(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps({"Data": entries, "Domain": "unfiltered-web"}), encoding="utf-8")
    return path


def test_triviaqas_layout(tmp_path: Path) -> None:
    [found] = read_questions(write(tmp_path / "dev.json", TRIVIA))
    assert found.prompt == f"Question: {TRIVIA['Question']}\nAnswer:"
    assert found.answer == " Sinclair Lewis"
    assert found.accepted == ("harry sinclair lewis", "lewis harry sinclair", "sinclair lewis", "Red Lewis")
    bare = {"Question": "Who?", "Answer": {"Value": "A man", "Aliases": ["Men"]}}
    [found] = read_questions(write(tmp_path / "bare.json", bare))
    assert found.accepted == ("A man", "Men")


def test_natural_questions_as_json_lines(tmp_path: Path) -> None:
    (tmp_path / "nq.jsonl").write_text(
        '{"question": "who", "answer": ["A", "B"]}\n\n{"question": "when", "answer": ["1"]}\n'
    )
    first, second = read_questions(tmp_path / "nq.jsonl")
    assert (first.answer, first.accepted, second.prompt) == (" A", ("A", "B"), "Question: when\nAnswer:")


def test_the_published_natural_questions() -> None:
    path = DATA / "nq-open" / "NQ-open.dev.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here: it is no part of this repository")
    found = read_questions(path)
    assert len(found) > 3000 and found[0].accepted == ("14 December 1972 UTC", "December 1972")


def official(answer: str) -> str:
    """What triviaqa_evaluation.py does, step by step."""
    import re
    import string

    lowered = answer.replace("_", " ").lower()
    spaced = "".join(c if c not in set(string.punctuation + "\u2018\u2019\u00b4`") else " " for c in lowered)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", spaced).split()).strip()


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Beatles", "beatles"),
        ("Jean-Paul Sartre", "jean paul sartre"),
        ("rock_'n'_roll", "rock n roll"),
        ("\u2018A\u2019 \u00b4b`", "b"),
        ("U.S.A.", "u s"),  # the official script takes the A for an article
        ("", ""),
    ],
)
def test_normalised_as_the_official_script_does(answer: str, wanted: str) -> None:
    assert normalised(answer) == wanted == official(answer)


def test_it_is_not_squads_normalisation() -> None:
    assert of_squad("Jean-Paul") == "jeanpaul" != normalised("Jean-Paul")
    assert exact_match("the  SINCLAIR-Lewis!", ["sinclair lewis"]) and not exact_match("Lewis", ["sinclair lewis"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "q.json: not JSON"),
        ("[]", 'q.json: expected an object with a list "Data"'),
        ('{"Data": []}', "q.json: expected questions, found none"),
        ('{"Data": [3]}', "q.json: entry 0: expected an object, found a number"),
        ('{"Data": [{"Question": "x"}]}', 'entry 0: "Answer": expected an object, found null'),
        (
            '{"Data": [{"Question": "x", "Answer": {"Value": ""}}]}',
            'entry 0: expected a text "Value", found an empty text',
        ),
        ('{"Data": [{"Answer": {"Value": "x"}}]}', 'entry 0: expected a text "Question", found null'),
        (
            '{"Data": [{"Question": "x", "Answer": {"Value": "x", "Aliases": [1]}}]}',
            'entry 0: expected a list of texts "Aliases", found a list',
        ),
    ],
)
def test_what_is_off_is_named_with_file_and_entry(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_questions(tmp_path / "q.json")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "entry 1: not JSON"), ('{"question": "x"}', 'entry 1: expected a list of texts "answer", found null'),
     ('{"question": "x", "answer": []}', "entry 1: expected answers"), ("7", "entry 1: expected an object")],
)  # fmt: skip
def test_lines_that_are_off(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "x", "answer": ["y"]}\n' + line)
    with pytest.raises(DataError) as error:
        read_questions(tmp_path / "q.jsonl")
    assert says in str(error.value)


# Answers --------------------------------------------------------------------------------------------------------------


FACTS = {"Of what colour is snow?": "white", "And that of grass is?": "leaf-green", "Name the sky's!": "blue"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[instructions.Example]]:
    """A model that has learned three answers by heart at two exits, and the questions."""
    entries = [{"Question": asked, "Answer": {"Value": value, "Aliases": []}} for asked, value in FACTS.items()]
    questions = read_questions(write(tmp_path_factory.mktemp("asked") / "q.json", *entries))
    texts = [data.Document(str(n), one.prompt + one.answer) for n, one in enumerate(questions)]
    tokenizer = data.train_tokenizer(texts, 300)
    model = tiny_gpt2(0, tokenizer.get_vocab_size(), 1.0, n_embd=32, n_layer=3, n_positions=64, resid_pdrop=0.0)
    model.tokenizer = tokenizer
    examples = encode(tokenizer, questions, 63)
    fit(model, examples, Settings(120, 6, 63, lr=1e-2), distillation=tk.exits.SortedLoss(model, {2: 0.5, 3: 0.5}))
    return model, questions


def test_what_was_learned_is_answered_right_by_each_exit(asked: Any) -> None:
    model, questions = asked
    assert answers(model, questions) == list(FACTS.values())
    assert exact_matches(model, questions) == exact_matches(model, questions, exit=2) == 100.0
    assert answers(model, questions, exit=1) == answers(kron.cut(model, 1), questions)
    wrong = [instructions.Example(one.prompt, one.answer, ("another",)) for one in questions]
    assert exact_matches(model, [*questions, *wrong]) == 50.0


def test_an_answer_does_not_depend_on_its_neighbours(asked: Any) -> None:
    model, questions = asked
    assert [answers(model, [one])[0] for one in questions] == answers(model, questions)


def test_an_exit_with_a_block_of_its_own_answers_too(asked: Any) -> None:
    _, questions = asked
    model = with_parts("gpt2", "blocks", vocabulary=300, n_positions=64)
    model.tokenizer = asked[0].tokenizer
    assert answers(model, questions, exit=3) == answers(kron.cut(model, 3), questions)


def test_a_long_prompt_loses_its_beginning_and_none_is_an_error(asked: Any) -> None:
    model, questions = asked
    long = instructions.Example("word " * 200 + questions[0].prompt, "", questions[0].accepted)
    assert len(answers(model, [long])) == 1
    with pytest.raises(DataError, match="expected questions"):
        exact_matches(model, [])
    assert np.isfinite(exact_matches(model, [long]))


def test_the_command_line_answers_by_every_exit(asked: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, _ = asked
    entries = [{"Question": asked, "Answer": {"Value": value}} for asked, value in FACTS.items()]
    write(tmp_path / "q.json", *entries)
    for exits in ((2, 3), ()):
        model.exits = exits
        tk.save(model, tmp_path / f"model{len(exits)}")
    given = ["eval", str(tmp_path / "model2"), "--task", "qa/closed-book", "--data", str(tmp_path / "q.json")]
    assert cli.main(given) == 0
    assert capsys.readouterr().out == "exact match of 3 answers\n2 blocks: 100.00 %\n3 blocks: 100.00 %\n"
    assert cli.main([*given[:1], str(tmp_path / "model0"), *given[2:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == {"3": 100.0}
    assert cli.main([*given, "--stride", "3"]) == 2
    assert cli.main(["eval", str(shipped_folder("weights") / "bert-tiny"), *given[2:]]) == 2
    assert "expected a causal model with a tokenizer, found a Bert" in capsys.readouterr().err

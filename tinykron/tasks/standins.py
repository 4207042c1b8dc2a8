"""Labelled tasks that need no download, made of the documentation that every Python carries.

Stand-ins, to learn and to test with, in the very formats of GLUE, SQuAD, Alpaca and TriviaQA: what a model reaches on
them says nothing of those. Same Python, same examples; another version documents itself in other words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tinykron import data
from tinykron.errors import DataError
from tinykron.tasks import squad
from tinykron.tasks.glue import ACCURACY, PAIR, Glue, plain_files
from tinykron.tasks.squad import Squad

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")  # in every Python
HELD_OUT = 0.15  # of the examples, for dev
SIDES = {"train": False, "dev": True}
SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(`*])")
RETURNS = re.compile(r"\bReturns? (.+?)(?=[.;:](?:\s|$)|$)")
Asked = tuple[data.Docstring, str, list[dict[str, object]]]  # with its text as one line, and the answers
CONTEXT_CHARACTERS = 40, 600  # of a docstring that is asked about


def files(name: str) -> dict[str, str]:
    """Return the files of a stand-in, their text by their name: "docs/package", "docs/questions", ..."""
    if name not in MAKERS:
        raise DataError(f"no stand-in {name!r}, expected one of {', '.join(MAKERS)}")
    return MAKERS[name]()


def _flat(text: str) -> str:
    return " ".join(text.split())


def _held_out(key: str) -> bool:
    """Whether an example belongs to the dev set: its own words decide, on every machine alike."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48 < HELD_OUT


def _tsv(columns: Sequence[str], rows: dict[bool, list[Sequence[str]]]) -> dict[str, str]:
    """Return train.tsv and dev.tsv, of the rows that are held out and those that are not."""
    return {
        f"{split}.tsv": "".join("\t".join(cells) + "\n" for cells in (columns, *rows[held_out]))
        for split, held_out in SIDES.items()
    }


def package() -> dict[str, str]:
    """Which package says this of itself? The first paragraphs of docstrings, in SST-2's columns."""
    packages: dict[str, str] = {}
    for found in data.docstrings(PACKAGES):
        first = _flat(re.split(r"\n\s*\n", found.text)[0])
        if len(first) >= 20:
            packages.setdefault(first, found.module.split(".")[0])  # what two say is the first one's
    rows: dict[bool, list[Sequence[str]]] = {False: [], True: []}
    for first, name in packages.items():
        rows[_held_out(first)].append((first, name))
    return _tsv(("sentence", "label"), rows)


def neighbours() -> dict[str, str]:
    """Does the second sentence follow the first one? Of the language reference, in RTE's columns.

    Of each two sentences that stand side by side in a paragraph, two examples: as they are, and with a second sentence
    drawn from another topic. Sentences of one paragraph are all on one side, and none comes in from the other.
    """
    pairs: dict[tuple[str, str], tuple[str, bool]] = {}  # two sentences: their topic, and whether they are held out
    for document in data.language_reference():
        for paragraph in re.split(r"\n\s*\n", document.text):
            flat = _flat(paragraph)
            if flat[:1].isupper() and "::" not in flat:  # prose, not a heading over code
                sentences = [text for text in SENTENCE_ENDS.split(flat) if 20 <= len(text) <= 300]
                for pair in zip(sentences, sentences[1:], strict=False):
                    pairs.setdefault(pair, (document.name, _held_out(flat)))
    sides = {side: [pair for pair, (_, held_out) in pairs.items() if held_out == side] for side in (False, True)}
    generator = np.random.default_rng(0)
    rows: dict[bool, list[Sequence[str]]] = {False: [], True: []}
    for (first, second), (topic, held_out) in pairs.items():
        stranger = first, second
        while pairs[stranger][0] == topic or (first, stranger[1]) in pairs:
            stranger = sides[held_out][generator.integers(0, len(sides[held_out]))]
        rows[held_out] += [(first, second, "neighbours"), (first, stranger[1], "strangers")]
    return _tsv(
        ("index", *PAIR, "label"), {side: [(str(n), *row) for n, row in enumerate(rows[side])] for side in rows}
    )


def returns() -> dict[str, str]:
    """What does this function return? A span of its docstring, in SQuAD 2.0's layout.

    Every other question is of a function that does not say.
    """
    answered: list[Asked] = []
    silent: list[Asked] = []
    seen: set[str] = set()
    least, most = CONTEXT_CHARACTERS
    for found in data.docstrings():
        context = _flat(found.text)
        if not found.function or not least <= len(context) <= most or context in seen:
            continue
        seen.add(context)
        said = RETURNS.search(context)
        if said and 2 <= len(said[1].split()) <= 15:
            answered.append((found, context, [{"text": said[1], "answer_start": said.start(1)}]))
        elif "return" not in context.lower():
            silent.append((found, context, []))
    chosen = [silent[len(silent) * number // len(answered)] for number in range(min(len(answered), len(silent)))]
    articles: dict[bool, dict[str, list[object]]] = {False: {}, True: {}}
    for found, context, answers in sorted([*answered, *chosen], key=lambda asked: (asked[0].module, asked[1])):
        identity = hashlib.sha256(context.encode()).hexdigest()[:24]
        question = {
            "id": identity,
            "question": f"What does {found.name} return?",
            "answers": answers,
            "is_impossible": not answers,
        }
        paragraphs = articles[_held_out(context)].setdefault(found.module, [])
        paragraphs.append({"context": context, "qas": [question]})
    return {
        f"{split}-v2.0.json": json.dumps(
            {
                "version": "v2.0",
                "data": [{"title": module, "paragraphs": parts} for module, parts in articles[side].items()],
            },
            indent=1,
        )
        for split, side in SIDES.items()
    }


FIRST_SENTENCE = re.compile(r"[A-Z].{18,180}?[.](?=\s|$)")


def _described() -> Iterator[tuple[data.Docstring, str]]:
    """Yield modules and functions that a sentence describes, with that sentence; each sentence once."""
    seen: set[str] = set()
    for found in data.docstrings():
        sentence = FIRST_SENTENCE.match(_flat(found.text))
        if sentence and (found.function or not found.name) and not found.name.startswith("_"):
            if sentence[0] not in seen:
                yield found, sentence[0]
            seen.add(sentence[0])


def instructions() -> dict[str, str]:
    """Say what this is for: functions as inputs, modules without an input. In Alpaca's layout."""
    entries = []
    for found, sentence in _described():
        module = found.module.removesuffix(".__init__")
        if found.name:
            asked = {"instruction": "Say what this function does.", "input": f"{module}.{found.name}"}
        else:
            asked = {"instruction": f"What is the module {module} for?", "input": ""}
        entries.append({**asked, "output": sentence})
    return {"instructions.json": json.dumps(entries, indent=1)}


def questions() -> dict[str, str]:
    """Which module has this function? In TriviaQA's layout: right is every module that has one of that name."""
    modules: dict[str, list[str]] = {}
    for found, _ in _described():
        if found.name:
            modules.setdefault(found.name, []).append(found.module.removesuffix(".__init__"))
    asked = [
        {
            "Question": f"Which module has the function {name}?",
            "QuestionId": name,
            "Answer": {"Value": places[0], "Aliases": list(dict.fromkeys(places)), "Type": "FreeForm"},
        }
        for name, places in modules.items()
    ]
    return {"questions.json": json.dumps({"Data": asked, "Domain": "docs", "Version": 1.0}, indent=1)}


MAKERS: dict[str, Callable[[], dict[str, str]]] = {
    "docs/package": package,
    "docs/neighbours": neighbours,
    "docs/returns": returns,
    "docs/instructions": instructions,
    "docs/questions": questions,
}
SETS = plain_files("train", "dev")
TASKS: dict[str, Glue | Squad] = {
    task.name: task
    for task in (
        Glue("docs/package", "package", ("sentence",), "label", PACKAGES, ACCURACY, SETS),
        Glue("docs/neighbours", "neighbours", PAIR, "label", ("strangers", "neighbours"), ACCURACY, SETS),
        Squad("docs/returns", squad.TASKS["squad/2.0"].files, no_answer=True, stride=64),
    )
}

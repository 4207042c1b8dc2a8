"""Closed-book questions: TriviaQA's and Natural Questions' files, answers by decoding, exact match.

Joshi et al. 2017 (TriviaQA); Lee et al. 2019 (NQ-open). Sorted LLaMA measures exits by them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tinykron import kron
from tinykron.data.corpus import read_text
from tinykron.data.instructions import Example, kind_of, object_at, parse_json
from tinykron.data.tokens import end_token
from tinykron.decode.generate import generate
from tinykron.errors import DataError, TinykronError
from tinykron.models.exit_parts import kind_of as parts_of
from tinykron.support.progress import Progress

NAME = "qa/closed-book"
PROMPT = "Question: {question}\nAnswer:"
NEW_TOKENS = 24  # of an answer, at most
ROWS = 16  # questions that are answered side by side
PUNCTUATION = set(string.punctuation + "‘’´`")


def read_questions(path: str | Path) -> list[Example]:
    """Return the questions of a file: TriviaQA's JSON, or NQ-open's JSON lines (`.jsonl`).

    Raises DataError naming the file, the entry and what is off.
    """
    text, name = read_text(Path(path)), str(path)
    if Path(path).suffix == ".jsonl":
        lines = [line for line in text.splitlines() if line.strip()]
        entries = [parse_json(line, f"{name}: entry {number}") for number, line in enumerate(lines)]
        return _examples([_natural(entry, f"{name}: entry {number}") for number, entry in enumerate(entries)], name)
    return parse_trivia(text, name)


def parse_trivia(text: str, name: str) -> list[Example]:
    """Return the questions of TriviaQA's layout: {"Data": [{"Question", "Answer": {"Value", "Aliases", ...}}]}."""
    content = parse_json(text, name)
    entries = content.get("Data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{name}: expected an object with a list "Data", as TriviaQA has it, found {kind_of(content)}')
    return _examples([_trivia(entry, f"{name}: entry {number}") for number, entry in enumerate(entries)], name)


def _trivia(entry: Any, place: str) -> Example:
    entry = object_at(entry, place)
    answer = object_at(entry.get("Answer"), f'{place}: "Answer"')
    value = _text(answer, "Value", place)
    aliases = _texts(answer.get("NormalizedAliases", []), "NormalizedAliases", place)
    aliases = aliases or [value, *_texts(answer.get("Aliases", []), "Aliases", place)]  # the same before normalising
    people = _texts(answer.get("HumanAnswers", []), "HumanAnswers", place)
    return _example(_text(entry, "Question", place), value, [*aliases, *people])  # as the official script takes them


def _natural(entry: Any, place: str) -> Example:
    entry = object_at(entry, place)
    answers = _texts(entry.get("answer"), "answer", place)
    if not answers:
        raise DataError(f'{place}: expected answers in "answer", found an empty list')
    return _example(_text(entry, "question", place), answers[0], answers)


def _example(question: str, value: str, accepted: Sequence[str]) -> Example:
    return Example(PROMPT.format(question=question), f" {value}", tuple(dict.fromkeys(accepted)))


def _examples(examples: list[Example], name: str) -> list[Example]:
    if not examples:
        raise DataError(f"{name}: expected questions, found none")
    return examples


def _text(entry: dict[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{place}: expected a text "{key}", found {kind_of(value)}')
    return value


def _texts(value: Any, key: str, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f'{place}: expected a list of texts "{key}", found {kind_of(value)}')
    return value


# Exact match ----------------------------------------------------------------------------------------------------------


def normalised(answer: str) -> str:
    """Return an answer as TriviaQA's official script compares it.

    Lower case, underscores and punctuation as spaces, without a, an, the, with single spaces. SQuAD's differs: it joins
    what stood on both sides of a hyphen.
    """
    lower = answer.replace("_", " ").lower()
    bare = "".join(" " if character in PUNCTUATION else character for character in lower)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Return whether an answer is one of those that are right, once all are normalised."""
    return normalised(answer) in {normalised(one) for one in accepted}


def answers(model: Any, examples: Sequence[Example], exit: int | None = None, title: str = "") -> list[str]:
    """Return what an exit of a decoder, or all of it, answers greedily: the first line that it writes.

    A prompt that leaves no room for an answer in the model's context loses its beginning. With a `title`, progress is
    shown. Raises TinykronError for a model without a tokenizer, or one that writes nothing.
    """
    if model.tokenizer is None or not model.causal:
        raise TinykronError(f"{NAME}: expected a causal model with a tokenizer, found a {type(model).__name__}")
    if exit is not None and parts_of(model) == "blocks":
        model, exit = kron.cut(model, exit), None  # its own block has no place in the trunk's cache
    count = min(NEW_TOKENS, model.context // 2)
    ids = [model.tokenizer.encode(example.prompt).ids[count - model.context :] for example in examples]
    written, end = [""] * len(ids), end_token(model.tokenizer)
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # little padding within a batch
    with Progress(title, len(order), "questions") if title else nullcontext() as progress:
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            longest = max(len(ids[row]) for row in rows)
            texts = generate(model, [ids[row] for row in rows], count, exit=exit, stop=end)
            for row, text in zip(rows, texts, strict=True):
                lines = model.tokenizer.decode(text[longest:].tolist()).strip().splitlines()
                written[row] = lines[0] if lines else ""
            if progress:
                progress.advance(len(rows))
    return written


def exact_matches(model: Any, examples: Sequence[Example], exit: int | None = None, title: str = "") -> float:
    """Return the share of questions that are answered right, in per cent. Raises DataError without a question."""
    if not examples:
        raise DataError("exact match: expected questions, found none")
    found = answers(model, examples, exit, title)
    right = [exact_match(answer, example.accepted) for answer, example in zip(found, examples, strict=True)]
    return 100.0 * sum(right) / len(right)

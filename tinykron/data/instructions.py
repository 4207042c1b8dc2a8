"""Instructions with answers: Alpaca's files and template, and batches whose loss is on the answer only.

Letters: B examples, T positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinykron.data.corpus import read_text
from tinykron.data.tokens import IGNORED, end_token, uncut
from tinykron.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Stanford Alpaca's train.py (Taori et al. 2023), to the letter; the answer follows without a space.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


@dataclass(frozen=True)
class Example:
    """What a model reads, and what it is to write."""

    prompt: str
    answer: str
    accepted: tuple[str, ...] = ()  # of a question: every answer that is right

    @property
    def name(self) -> str:
        """By which `data.split` takes a side: the same prompt is never on both."""
        return self.prompt


def prompt(instruction: str, given: str = "") -> str:
    """Return Alpaca's prompt for an instruction, with or without an input."""
    template = WITH_INPUT if given else WITHOUT_INPUT
    return template.format(instruction=instruction, input=given)


def read_instructions(path: str | Path) -> list[Example]:
    """Return the examples of a file in Alpaca's layout. Raises DataError naming the file, the entry and what is off."""
    return parse_instructions(read_text(Path(path)), str(path))


def parse_instructions(text: str, name: str) -> list[Example]:
    """Return the examples of a JSON list of {"instruction", "input", "output"}; an input may be empty, or left out."""
    entries = parse_json(text, name)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{name}: expected a JSON list of instructions, found {kind_of(entries)}")
    examples = []
    for number, entry in enumerate(entries):
        place = f"{name}: entry {number}"
        given = {"input": "", **object_at(entry, place)}
        for key in ("instruction", "input", "output"):
            if not isinstance(given.get(key), str):
                found = kind_of(given[key]) if key in given else f"none among {', '.join(map(str, entry)) or 'no keys'}"
                raise DataError(f'{place}: expected a text "{key}", found {found}')
        if not given["instruction"].strip():
            raise DataError(f"{place}: expected an instruction, found an empty text")
        examples.append(Example(prompt(given["instruction"], given["input"]), given["output"]))
    return examples


def parse_json(text: str, name: str) -> Any:
    """Return what a JSON text holds. Raises DataError naming the place."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {error}") from None


def object_at(value: Any, place: str) -> dict[str, Any]:
    """Return a JSON value that is to be an object. Raises DataError naming the place."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, found {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """Return a word for a JSON value, or for what is not there."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    if isinstance(value, (list, str)) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'text'}"
    return names.get(type(value), "a number")


# Tokens ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Examples as token ids, each ended by a token that ends a text."""

    ids: Sequence[np.ndarray]  # (T,) each: prompt, answer, end
    starts: Sequence[int]  # of each, the position of the answer's first token
    dropped: int = 0  # whose prompt left no room for an answer

    def sample_batch(self, batch: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs_BT, targets_BT), int64, of examples drawn at random."""
        return self.collate(generator.integers(0, len(self.ids), size=batch))

    def batches(self, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (inputs_BT, targets_BT) of all examples in order, of about so many tokens each."""
        rows = max(1, tokens // max(map(len, self.ids)))
        for start in range(0, len(self.ids), rows):
            yield self.collate(range(start, min(start + rows, len(self.ids))))

    def collate(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs_BT, targets_BT) of some examples: -100 where the prompt goes on, and behind the end.

        Rows are padded behind, where a causal model's answers do not look.
        """
        longest = max(len(self.ids[row]) for row in rows) - 1
        inputs_BT = np.zeros((len(rows), longest), np.int64)
        targets_BT = np.full((len(rows), longest), IGNORED, np.int64)
        for place, row in enumerate(rows):
            ids, start = self.ids[row], self.starts[row]
            inputs_BT[place, : len(ids) - 1] = ids[:-1]
            targets_BT[place, start - 1 : len(ids) - 1] = ids[start:]
        return inputs_BT, targets_BT

    @property
    def stream(self) -> np.ndarray:
        """All that tells these examples from others, as one array of whole numbers."""
        return np.concatenate([*self.ids, np.array(self.starts)])


def encode(tokenizer: Tokenizer, examples: Sequence[Example], context: int) -> Examples:
    """Return examples as tokens: the prompt as the tokenizer frames it, the answer, the end; `context` + 1 at most.

    A long answer is cut; an example whose prompt leaves no room for one is dropped. Raises DataError if none is left.
    """
    tokenizer, end = uncut(tokenizer), end_token(tokenizer)
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    answers = tokenizer.encode_batch([example.answer for example in examples], add_special_tokens=False)
    ids, starts = [], []
    for before, after in zip(prompts, answers, strict=True):
        if 0 < len(before.ids) <= context:
            ids.append(np.array([*before.ids, *after.ids, end][: context + 1], np.int64))
            starts.append(len(before.ids))
    if not ids:
        raise DataError(f"examples: no prompt of {len(examples)} leaves room for an answer in {context} tokens")
    return Examples(ids, starts, len(examples) - len(ids))

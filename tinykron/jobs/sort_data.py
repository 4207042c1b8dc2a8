"""What exits are trained and measured on: a text, instructions, or closed-book questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data
from tinykron.data.instructions import Example, Examples, encode, parse_instructions, read_instructions
from tinykron.data.masking import Masking
from tinykron.errors import DataError
from tinykron.exits import analysis
from tinykron.exits.losses import Batch
from tinykron.tasks import standins
from tinykron.tasks.closed_book import parse_trivia, read_questions

KINDS = {
    "text": "any text, windows of which are predicted token by token",
    "instructions": "a file in Alpaca's layout; the loss is on the answers",
    "questions": "a file of TriviaQA's or NQ-open's; the loss is on the answers, which are then counted where right",
}
MEASURED_TOKENS = 16384  # of held-out text or examples, at most
MEASURED_QUESTIONS = 100
CONTEXTS = {"text": 128, "instructions": 512, "questions": 512}  # where none is given, and the model has as much


@dataclass(frozen=True)
class Splits:
    """What exits are trained and measured on."""

    training: np.ndarray | Examples
    held_out: Sequence[Batch]
    masking: Masking | None
    said: str  # where it is from, for the card
    questions: Sequence[Example] = ()  # that are held out, to be answered

    @property
    def tokens(self) -> np.ndarray:
        """All token ids that are trained on, (N,)."""
        return np.concatenate(self.training.ids) if isinstance(self.training, Examples) else self.training


def read(model: Any, source: str | Path | None, context: int, kind: str = "text") -> Splits:
    """Return what to train on and what is held out, of a kind in KINDS; without a source, what every Python carries."""
    return text(model, source, context) if kind == "text" else examples(model, source, context, kind)


def text(model: Any, source: str | Path | None, context: int) -> Splits:
    """Return a text to train on, and windows of what is held out. Raises DataError for one that is too short."""
    masked = not model.causal
    masking = Masking.of(model.tokenizer) if masked else None
    training, held_out = (data.encode(model.tokenizer, part) for part in data.split(data.documents(source)))
    need = context - 1 if masked else context + 1
    if len(training) < need or len(held_out) < 2:
        found = f"found {len(training)} tokens to train on and {len(held_out)} held out"
        raise DataError(f"{source or 'the embedded text'}: {found}, need {need} and 2: give more, or a shorter context")
    measured = held_out[:MEASURED_TOKENS]
    windows = masking.windows if masking else data.windows
    inputs_WT, targets_WT = windows(measured, context)
    rows = max(1, analysis.TOKENS_AT_ONCE // context)
    batches = [(inputs_WT[i : i + rows], targets_WT[i : i + rows]) for i in range(0, len(inputs_WT), rows)]
    return Splits(training, batches, masking, f"{data.name_of(source)}: {len(training):,} tokens")


def examples(model: Any, source: str | Path | None, context: int, kind: str) -> Splits:
    """Return instructions or questions to train on, and what is held out of them. Raises DataError naming the entry."""
    asked = kind == "questions"
    if source is not None:
        found = (read_questions if asked else read_instructions)(source)
    else:
        [(name, content)] = standins.files(f"docs/{kind}").items()
        found = (parse_trivia if asked else parse_instructions)(content, name)
    training, held_out = data.split(found)
    held_out = [held_out[number] for number in np.random.default_rng(0).permutation(len(held_out))]
    learned, measured = (encode(model.tokenizer, part, context) for part in (training, held_out))
    count = max(1, int(np.searchsorted(np.cumsum([len(ids) for ids in measured.ids]), MEASURED_TOKENS)))
    batches = list(replace(measured, ids=measured.ids[:count]).batches(analysis.TOKENS_AT_ONCE))
    said = str(source) if source else f"the stand-in docs/{kind}, made of Python's documentation"
    said += f": {len(learned.ids):,} examples" + (f", {learned.dropped:,} too long" if learned.dropped else "")
    return Splits(learned, batches, None, said, held_out[:MEASURED_QUESTIONS] if asked else ())

"""How far a model's sentence embeddings agree with people about which sentences mean the same.

No head is trained: the score of a pair is the cosine of its two embeddings. Cer et al. 2017, the STS benchmark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.data.corpus import read_text
from tinykron.errors import DataError, TinykronError
from tinykron.models.bert import Bert, sentence_embeddings
from tinykron.tasks import glue
from tinykron.tasks.metrics import pearson, spearman

NAME = "similarity/sts"


@dataclass(frozen=True)
class Pair:
    """Two sentences, and how alike people find them, from 0 to 5."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Agreement:
    """Correlations of cosines with people's scores."""

    pearson: float
    spearman: float
    pairs: int
    data: str  # where they came from


def read(source: str | Path) -> list[Pair]:
    """Return the pairs of a CSV file of (sentence, sentence, score) without a header; of a folder, STS-B's dev set.

    The folder is GLUE's, or the benchmark's own, as for the task glue/stsb. Raises DataError naming file and line.
    """
    path = Path(source)
    if path.is_dir():
        examples = glue.TASKS["glue/stsb"].read(path, "dev").examples
        return [Pair(example.texts[0], example.texts[1], float(example.label)) for example in examples]
    return _pairs(path, csv.reader(io.StringIO(read_text(path), newline=""), strict=True))


def _pairs(path: Path, rows: Any) -> list[Pair]:
    pairs = []
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) != 3:
                raise DataError(f"{where}: expected two sentences and a score, found {len(row)} cells")
            try:
                score = float(row[2])
            except ValueError:
                score = np.nan
            if not isfinite(score):
                raise DataError(f"{where}: expected a score, found {row[2]!r}")
            pairs.append(Pair(row[0], row[1], score))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV: {error}") from None
    if len(pairs) < 2:
        raise DataError(f"{path}: expected two pairs at least, found {len(pairs)}")
    return pairs


def measure(model: Any, source: str | Path, batch: int = 32) -> Agreement:
    """Return how a BERT's sentence embeddings (mean of the last hidden states) agree with the scores of pairs.

    source  as `read` takes it
    Raises TinykronError for another model, DataError for files that do not fit.
    """
    if not isinstance(model, Bert):
        raise TinykronError(f"{NAME}: sentence embeddings are a BERT's, found a {type(model).__name__}")
    pairs = read(source)
    return agreement(model, pairs, str(source), batch)


def agreement(model: Bert, pairs: Sequence[Pair], where: str = "", batch: int = 32) -> Agreement:
    """Return the same for pairs that were read."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    vectors_ND = sentence_embeddings(model, texts, batch)
    row = {text: number for number, text in enumerate(texts)}
    first_PD, second_PD = (
        vectors_ND[[row[text] for text in side]]
        for side in zip(*((pair.first, pair.second) for pair in pairs), strict=True)
    )
    cosines_P = (first_PD * second_PD).sum(axis=1)
    scores_P = np.array([pair.score for pair in pairs])
    return Agreement(pearson(cosines_P, scores_P), spearman(cosines_P, scores_P), len(pairs), where)


def render(found: Agreement) -> str:
    """Return what was found as a line for a terminal."""
    said = f"Pearson {100 * found.pearson:.2f}, Spearman {100 * found.spearman:.2f}"
    return f"{NAME}: {said} with people's scores ({found.pairs:,} pairs); {found.data}"

"""How right a list of answers is: the official metrics of GLUE and of SQuAD, in a few lines of NumPy each."""

from __future__ import annotations

import re
import string
from collections import Counter
from math import nan, sqrt

import numpy as np

from tinykron.errors import DataError

# Classes --------------------------------------------------------------------------------------------------------------


def accuracy(predicted_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Return the share of answers that are right. Raises DataError for lists that are empty or of two lengths."""
    _check(predicted_N, gold_N)
    return float(np.mean(predicted_N == gold_N))


def f1(predicted_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of class 1; 0 where nobody says 1. Raises as `accuracy`."""
    _check(predicted_N, gold_N)
    both = int(np.sum((predicted_N == 1) & (gold_N == 1)))
    said, true = int(np.sum(predicted_N == 1)), int(np.sum(gold_N == 1))
    return 2.0 * both / (said + true) if said + true else 0.0


def matthews(predicted_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Return Matthews' correlation of two classes, 0 and 1; 0 where one side is all alike. Matthews 1975.

    Raises as `accuracy`.
    """
    _check(predicted_N, gold_N)
    count, both = len(gold_N), int(np.sum((predicted_N == 1) & (gold_N == 1)))
    said, true = int(np.sum(predicted_N == 1)), int(np.sum(gold_N == 1))
    spread = said * (count - said) * true * (count - true)  # whole numbers of Python: they do not overflow
    return (count * both - said * true) / sqrt(spread) if spread else 0.0


# Scores ---------------------------------------------------------------------------------------------------------------


def pearson(predicted_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Return Pearson's correlation, in -1..1; NaN, undefined, where one side is all alike. Raises as `accuracy`."""
    _check(predicted_N, gold_N)
    x_N, y_N = np.asarray(predicted_N, np.float64), np.asarray(gold_N, np.float64)
    if np.all(x_N == x_N[0]) or np.all(y_N == y_N[0]):  # the mean of equal numbers can miss them by a rounding
        return nan
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return float(np.clip(x_N / np.linalg.norm(x_N) @ (y_N / np.linalg.norm(y_N)), -1.0, 1.0))


def spearman(predicted_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Return Spearman's correlation: Pearson's of the ranks. Values that are equal share the mean of their ranks."""
    _check(predicted_N, gold_N)
    return pearson(_ranks(predicted_N), _ranks(gold_N))


def _ranks(values_N: np.ndarray) -> np.ndarray:
    _, group_N, counts_G = np.unique(values_N, return_inverse=True, return_counts=True)  # G different values
    return (np.cumsum(counts_G) - (counts_G - 1) / 2.0)[group_N]


def _check(predicted_N: np.ndarray, gold_N: np.ndarray) -> None:
    if np.ndim(predicted_N) != 1 or np.shape(predicted_N) != np.shape(gold_N) or not len(gold_N):
        found = f"{np.shape(predicted_N)} and {np.shape(gold_N)}"
        raise DataError(f"metric: expected as many answers as labels, one or more, found shapes {found}")


# Answers in words -----------------------------------------------------------------------------------------------------


def normalised(answer: str) -> str:
    """Return an answer in lower case, without punctuation (ASCII's), without a, an, the, with single spaces.

    Rajpurkar et al. 2016: what the official script of SQuAD compares.
    """
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, gold: str) -> float:
    """Return 1 where two answers are alike once they are normalised, else 0."""
    return float(normalised(answer) == normalised(gold))


def token_f1(answer: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, each counted as often as it stands.

    An answer without words matches only another one: SQuAD 2.0's rule. Rajpurkar et al. 2018.
    """
    ours, theirs = normalised(answer).split(), normalised(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2.0 * shared / (len(ours) + len(theirs))

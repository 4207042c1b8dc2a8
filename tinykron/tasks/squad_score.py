"""What the official scripts of SQuAD print: exact match and F1 in per cent, and the best thresholds for no answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tinykron.errors import DataError
from tinykron.tasks.metrics import exact_match, normalised, token_f1

Gold = Mapping[str, Sequence[str]]  # by a question's id, what people answered; nothing where there is no answer


def official_1(gold: Gold, answers: Mapping[str, str]) -> dict[str, float]:
    """Return exact_match and f1 of SQuAD 1.1: the best over a question's gold answers, the mean over all questions.

    A question that was not answered counts as wrong. Raises DataError without a question. Rajpurkar et al. 2016.
    """
    if not gold:
        raise DataError("SQuAD 1.1: expected questions, found none")
    exact = {name: _best(exact_match, texts, answers[name]) for name, texts in gold.items() if name in answers}
    f1 = {name: _best(_f1_of_words, texts, answers[name]) for name, texts in gold.items() if name in answers}
    return {"exact_match": 100.0 * sum(exact.values()) / len(gold), "f1": 100.0 * sum(f1.values()) / len(gold)}


def _f1_of_words(answer: str, gold: str) -> float:
    return token_f1(answer, gold) if normalised(answer) else 0.0  # two answers without a word share none in 1.1


def _best(metric: Callable[[str, str], float], golds: Sequence[str], answer: str) -> float:
    return max(metric(answer, gold) for gold in golds)


def official_2(
    gold: Gold, answers: Mapping[str, str], null: Mapping[str, float] | None = None, threshold: float = 1.0
) -> dict[str, float]:
    """Return what the script of SQuAD 2.0 does, under its names, in per cent; thresholds are as `null` has them.

    null       how sure the model is that a question has no answer: a probability, or odds; None: never sure
    threshold  where `null` is above it, there is no answer, whatever `answers` says
    A question that was not answered is left out, as the script does. Raises DataError if none was answered, or one
    without its `null`. Rajpurkar et al. 2018.
    """
    asked = [name for name in gold if name in answers]
    if not asked or (null is not None and not all(name in null for name in asked)):
        raise DataError("SQuAD 2.0: expected answers to the questions, and odds for each; some are missing")
    golds = {name: [text for text in gold[name] if normalised(text)] or [""] for name in asked}
    raw = {
        "exact": {name: _best(exact_match, golds[name], answers[name]) for name in asked},
        "f1": {name: _best(token_f1, golds[name], answers[name]) for name in asked},
    }
    none = {name for name in asked if null is not None and null[name] > threshold}
    found: dict[str, float] = {}
    for prefix, names in (
        ("", asked),
        ("HasAns_", [name for name in asked if gold[name]]),
        ("NoAns_", [name for name in asked if not gold[name]]),
    ):
        if names:
            for metric, scores in raw.items():
                kept = [float(not gold[name]) if name in none else scores[name] for name in names]
                found[prefix + metric] = 100.0 * sum(kept) / len(names)
            found[f"{prefix}total"] = len(names)
    if null is not None:
        for metric, scores in raw.items():
            best, at = best_threshold(gold, answers, scores, null)
            found |= {f"best_{metric}": best, f"best_{metric}_thresh": at}
    return found


def best_threshold(
    gold: Gold, answers: Mapping[str, str], scores: Mapping[str, float], null: Mapping[str, float]
) -> tuple[float, float]:
    """Return the best score, in per cent, that a threshold for `null` reaches, and the lowest such threshold.

    At first no question is answered, and those without an answer count; then one after the other is, the surest first.
    Questions with the same `null` are taken one by one, as the official script does.
    """
    reached = best = float(sum(not texts for texts in gold.values()))
    at = 0.0
    for name in sorted(null, key=lambda name: null[name]):
        if name not in scores:
            continue
        if gold[name]:
            reached += scores[name]
        elif answers[name]:
            reached -= 1.0
        if reached > best:
            best, at = reached, null[name]
    return 100.0 * best / len(scores), at

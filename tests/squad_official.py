"""What the two evaluation scripts of SQuAD do, told step by step from their definition: Rajpurkar et al. 2016, 2018.

Both take a dataset in SQuAD's layout (the list under "data"), and predictions by the question's id.
"""

from __future__ import annotations

from typing import Any

from tests.tasks.test_metrics import official_normalised

Data = list[dict[str, Any]]


def questions(data: Data) -> list[dict[str, Any]]:
    return [asked for article in data for paragraph in article["paragraphs"] for asked in paragraph["qas"]]


def shared_words(ours: list[str], theirs: list[str]) -> int:
    return sum(min(ours.count(word), theirs.count(word)) for word in set(ours))


def f1_of_1(prediction: str, truth: str) -> float:
    ours, theirs = official_normalised(prediction).split(), official_normalised(truth).split()
    same = shared_words(ours, theirs)
    if same == 0:
        return 0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def f1_of_2(truth: str, prediction: str) -> float:
    ours, theirs = official_normalised(prediction).split(), official_normalised(truth).split()
    if len(theirs) == 0 or len(ours) == 0:
        return int(theirs == ours)
    return f1_of_1(prediction, truth)


def evaluate_1(data: Data, predictions: dict[str, str]) -> dict[str, float]:
    f1 = exact = total = 0
    for asked in questions(data):
        total += 1
        if asked["id"] not in predictions:
            continue  # "will receive score 0"
        truths, said = [answer["text"] for answer in asked["answers"]], predictions[asked["id"]]
        exact += max(official_normalised(said) == official_normalised(truth) for truth in truths)
        f1 += max(f1_of_1(said, truth) for truth in truths)
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * f1 / total}


def evaluate_2(
    data: Data, predictions: dict[str, str], na_probs: dict[str, float] | None = None, na_thresh: float = 1.0
) -> dict[str, float]:
    has_answer = {asked["id"]: bool(asked["answers"]) for asked in questions(data)}
    probs = na_probs if na_probs is not None else dict.fromkeys(predictions, 0.0)
    exact_raw, f1_raw = {}, {}
    for asked in questions(data):
        truths = [answer["text"] for answer in asked["answers"] if official_normalised(answer["text"])]
        truths = truths or [""]  # for a question without an answer, only "" is right
        if asked["id"] not in predictions:
            continue
        said = predictions[asked["id"]]
        exact_raw[asked["id"]] = max(int(official_normalised(truth) == official_normalised(said)) for truth in truths)
        f1_raw[asked["id"]] = max(f1_of_2(truth, said) for truth in truths)
    result: dict[str, float] = {}
    names = {"": list(exact_raw)}
    names["HasAns_"] = [name for name in exact_raw if has_answer[name]]
    names["NoAns_"] = [name for name in exact_raw if not has_answer[name]]
    for prefix, chosen in names.items():
        if not chosen:
            continue
        for metric, raw in (("exact", exact_raw), ("f1", f1_raw)):
            kept = [float(not has_answer[n]) if probs[n] > na_thresh else raw[n] for n in chosen]
            result[prefix + metric] = 100.0 * sum(kept) / len(chosen)
        result[prefix + "total"] = len(chosen)
    if na_probs is not None:
        for metric, raw in (("exact", exact_raw), ("f1", f1_raw)):
            best, at = find_best_thresh(predictions, raw, na_probs, has_answer)
            result |= {f"best_{metric}": best, f"best_{metric}_thresh": at}
    return result


def find_best_thresh(
    predictions: dict[str, str], scores: dict[str, float], na_probs: dict[str, float], has_answer: dict[str, bool]
) -> tuple[float, float]:
    current = best_score = sum(1 for name in has_answer if not has_answer[name])
    best_thresh = 0.0
    for name in sorted(na_probs, key=lambda name: na_probs[name]):
        if name not in scores:
            continue
        if not has_answer[name]:
            current -= 1 if predictions[name] else 0
        else:
            current += scores[name]
        if current > best_score:
            best_score, best_thresh = current, na_probs[name]
    return 100.0 * best_score / len(scores), best_thresh

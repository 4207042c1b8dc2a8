"""SQuAD 1.1 and 2.0: their files, windows over long texts, n-best answers, the null threshold, and the official scores.

Rajpurkar et al. 2016 and 2018; windows and decoding as in Devlin et al. 2019, section 4.2 and 4.3, and its code.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tinykron.backend import to_device
from tinykron.data.batch import Batch
from tinykron.data.corpus import read_text
from tinykron.data.masking import Masking
from tinykron.errors import DataError
from tinykron.fused import MASKED, cross_entropy
from tinykron.tasks.features import Features
from tinykron.tasks.glue import Source, Split
from tinykron.tasks.metrics import exact_match, normalised, token_f1
from tinykron.tensor import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Gold = Mapping[str, Sequence[str]]  # by a question's id, what people answered; nothing where there is no answer
NONE = 0, 0  # the target of a window without the answer: [CLS]


@dataclass(frozen=True)
class Question:
    """A question about a text, and what people answered."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]  # text, and the character of the context it starts at; () where none is

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.answers]


@dataclass(frozen=True)
class Window(Features):
    """A question and as much of its context as a model reads at once: [CLS] question [SEP] context [SEP]."""

    question: int = 0  # number of its question
    first: int = 0  # position of the first token of the context
    spans: Sequence[tuple[int, int]] = ()  # characters of each token of the context here: from, to (outside)
    fullest: Sequence[bool] = ()  # of each, whether no other window has more around it


@dataclass(frozen=True)
class Guess:
    """A possible answer."""

    text: str
    score: float  # sum of the two logits
    probability: float  # among the n best


@dataclass(frozen=True)
class Answer:
    """What a model says to a question."""

    best: list[Guess]  # likeliest first; of SQuAD 2.0, that there is none stands among them as ""
    null_odds: float  # how much more the logits are for no answer than for the likeliest one

    @property
    def text(self) -> str:
        """The likeliest answer that is one; "" where no span could be."""
        return next((guess.text for guess in self.best if guess.text), "")


@dataclass(frozen=True)
class Squad:
    """Questions whose answer is a span of a text."""

    name: str
    files: Mapping[str, str]  # of each set
    no_answer: bool  # whether some questions have none: SQuAD 2.0
    stride: int = 128  # tokens from a window's start to the next one's; half a window where that is less
    question_tokens: int = 64  # a longer question is cut
    answer_tokens: int = 30  # a longer answer is not given
    n_best: int = 20
    null_threshold: float = 0.0  # there is no answer where the null odds are above it

    head: ClassVar[str] = "span"
    labels: ClassVar[int] = 2
    classes: ClassVar[tuple[str, ...]] = ()
    dev: ClassVar[tuple[str, ...]] = ("dev",)
    context: ClassVar[int] = 384

    @property
    def submissions(self) -> dict[str, str]:
        """SQuAD keeps its test set to itself: what is sent in are the answers to the dev set."""
        return {"dev": "predictions.json"}

    # Reading ----------------------------------------------------------------------------------------------------------

    def read(self, source: Source, split: str) -> Split:
        """Read "train" or "dev".

        source  the folder of SQuAD's files; one file in their layout; or the text of files by name
        Raises DataError naming the file and the question for what does not fit.
        """
        if split not in self.files:
            raise DataError(f"{self.name} has no set {split!r}, expected one of {', '.join(self.files)}")
        name = self.files[split]
        if isinstance(source, Path):
            path = source if source.is_file() else source / name
            text, name = read_text(path), str(path)
        elif name in source:
            text = source[name]
        else:
            raise DataError(f"{self.name}: expected {name}, found {', '.join(source) or 'nothing'}")
        try:
            questions = list(_questions(json.loads(text)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{name}: not in SQuAD's layout: {type(error).__name__} {error}") from None
        if not questions:
            raise DataError(f"{name}: expected questions, found none")
        for asked in questions:
            for answer, start in asked.answers:
                if asked.context[start : start + len(answer)] != answer:
                    found = asked.context[start : start + len(answer)]
                    raise DataError(f"{name}: question {asked.id}: {answer!r} should be at {start}, found {found!r}")
            if not asked.answers and not self.no_answer:
                raise DataError(f"{name}: question {asked.id} has no answer, as some have in squad/2.0")
        return Split(questions)

    # Windows ----------------------------------------------------------------------------------------------------------

    def features(self, tokenizer: Tokenizer, examples: Sequence[Question], context: int) -> list[Window]:
        """Return the windows over each question's text, of at most `context` tokens, in the order of the questions.

        A window's target is where the first answer starts and ends, [CLS] where it does not hold the whole of it.
        Raises DataError where a question leaves no room for text.
        """
        frame = Masking.of(tokenizer)
        texts = list(dict.fromkeys(asked.context for asked in examples))
        plain = tokenizer.encode_batch(texts, add_special_tokens=False)
        encodings = dict(zip(texts, plain, strict=True))
        windows: list[Window] = []
        for number, asked in enumerate(examples):
            query = tokenizer.encode(asked.question.strip(), add_special_tokens=False).ids[: self.question_tokens]
            room = context - len(query) - 3
            if room < 1:
                raise DataError(
                    f"context {context} leaves no room for text behind the {len(query)} tokens of a question"
                )
            encoding = encodings[asked.context]
            if not encoding.ids:
                raise DataError(f"question {asked.id}: expected a text to look for the answer in, found no token")
            cuts = _cuts(len(encoding.ids), room, self.stride)
            fullest = _fullest(cuts)
            answer = _tokens_of(encoding.offsets, *asked.answers[0]) if asked.answers else None
            first = len(query) + 2
            for (start, stop), here in zip(cuts, fullest, strict=True):
                inside = answer is not None and start <= answer[0] and answer[1] < stop
                target = (first + answer[0] - start, first + answer[1] - start) if answer and inside else NONE
                ids = [frame.start, *query, frame.end, *encoding.ids[start:stop], frame.end]
                types = [0] * first + [1] * (stop - start + 1)
                windows.append(Window(ids, types, target, number, first, encoding.offsets[start:stop], here))
        return windows

    def loss(self, logits_BT2: Tensor, batch: Batch, weights_C: np.ndarray | None = None) -> Tensor:
        """Return the mean of the cross-entropies of the first and the last token, over the tokens that count.

        weights_C  None: a span is of no class
        """
        hidden_BT1 = to_device(
            np.where(np.asarray(batch.mask_BT), 0.0, MASKED).astype(np.float32)[..., None], logits_BT2.device
        )
        logits_BT2 = logits_BT2 + hidden_BT1
        first, last = (cross_entropy(logits_BT2[:, :, side], batch.targets[:, side]) for side in (0, 1))
        return (first + last) * 0.5

    def class_weights(self, examples: Sequence[Question]) -> None:
        """Raise DataError: a span is of no class."""
        raise DataError(f"{self.name} has spans: there are no classes to weigh")

    # Answers ----------------------------------------------------------------------------------------------------------

    def answers(
        self, examples: Sequence[Question], features: Sequence[Window], logits: Sequence[np.ndarray]
    ) -> dict[str, Answer]:
        """Return what a model says to each question, by its id, from the logits (T, 2) of each window."""
        heard: dict[int, list[tuple[Window, np.ndarray]]] = defaultdict(list)
        for window, logits_T2 in zip(features, logits, strict=True):
            heard[window.question].append((window, logits_T2))
        return {asked.id: self._answer(asked.context, heard[number]) for number, asked in enumerate(examples)}

    def _answer(self, context: str, heard: Sequence[tuple[Window, np.ndarray]]) -> Answer:
        scores: dict[str, float] = {}  # of each text the best
        null = inf
        for window, logits_T2 in heard:
            null = min(null, float(logits_T2[0].sum()))
            for score, first, last in self._spans(window, logits_T2):
                text = context[window.spans[first][0] : window.spans[last][1]]
                scores[text] = max(score, scores.get(text, -inf))
        best = sorted(scores.items(), key=lambda item: -item[1])[: self.n_best]
        odds = null - best[0][1] if best else inf
        if self.no_answer:
            best = sorted([*best, ("", null)], key=lambda item: -item[1])
        weights = [exp(score - best[0][1]) for _, score in best]
        return Answer(
            [Guess(text, score, weight / sum(weights)) for (text, score), weight in zip(best, weights, strict=True)],
            odds,
        )

    def _spans(self, window: Window, logits_T2: np.ndarray) -> list[tuple[float, int, int]]:
        """Return (score, first token, last token) of the likely spans of a window's context.

        Of the n best first and last tokens, all pairs in order; and the likeliest token alone, so that there is one.
        """
        inner_C2 = logits_T2[window.first : window.first + len(window.spans)]  # C: tokens of the context
        firsts, lasts = (np.argsort(-inner_C2[:, side], kind="stable")[: self.n_best] for side in (0, 1))
        alone = int(np.where(window.fullest, inner_C2.sum(axis=1), -inf).argmax())
        pairs = [(int(first), int(last)) for first in firsts for last in lasts]
        return [
            (float(inner_C2[first, 0] + inner_C2[last, 1]), first, last)
            for first, last in [*pairs, (alone, alone)]
            if window.fullest[first] and first <= last < first + self.answer_tokens
        ]

    def official(
        self, examples: Sequence[Question], features: Sequence[Window], logits: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Return what the official script prints, in per cent; of SQuAD 2.0 with the best thresholds for null odds."""
        answers = self.answers(examples, features, logits)
        gold = {asked.id: asked.texts for asked in examples}
        texts = {name: answer.text for name, answer in answers.items()}
        if not self.no_answer:
            return official_1(gold, texts)
        return official_2(gold, texts, {n: answer.null_odds for n, answer in answers.items()}, self.null_threshold)

    def measure(
        self, examples: Sequence[Question], features: Sequence[Window], logits: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Return exact match and F1, each in 0..1."""
        found = self.official(examples, features, logits)
        return {"exact_match": found["exact" if self.no_answer else "exact_match"] / 100.0, "f1": found["f1"] / 100.0}

    def details(
        self, examples: Sequence[Question], features: Sequence[Window], logits: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Return all that the official script prints."""
        return self.official(examples, features, logits)

    def answer_files(
        self, split: str, examples: Sequence[Question], features: Sequence[Window], logits: Sequence[np.ndarray]
    ) -> dict[str, str]:
        """Return predictions.json, as the official script reads it, the n best answers and, of SQuAD 2.0, null odds."""
        answers = self.answers(examples, features, logits)

        def said(answer: Answer) -> str:
            return "" if self.no_answer and answer.null_odds > self.null_threshold else answer.text

        sent: dict[str, Any] = {
            self.submissions[split]: {name: said(answer) for name, answer in answers.items()},
            "nbest_predictions.json": {name: [vars(g) for g in answer.best] for name, answer in answers.items()},
        }
        if self.no_answer:
            sent["null_odds.json"] = {name: answer.null_odds for name, answer in answers.items()}
        return {name: json.dumps(content, indent=1) + "\n" for name, content in sent.items()}


def _questions(content: Any) -> Any:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [] if asked.get("is_impossible", False) else asked["answers"]
                yield Question(
                    asked["id"],
                    asked["question"],
                    paragraph["context"],
                    tuple((answer["text"], int(answer["answer_start"])) for answer in answers),
                )


def _cuts(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Return from where to where windows go, so that they cover `length` tokens."""
    cuts = [(0, min(length, room))]
    while cuts[-1][1] < length:
        start = cuts[-1][0] + min(stride, max(1, room // 2))  # half a window over: what one cuts, another holds
        cuts.append((start, min(length, start + room)))
    return cuts


def _fullest(cuts: Sequence[tuple[int, int]]) -> list[list[bool]]:
    """Return for each window, of each of its tokens, whether it has more tokens around it there than anywhere else.

    What counts is the smaller side; between equals, the earlier window, which is never the shorter one.
    """
    best: dict[int, tuple[int, int]] = {}
    for number, (start, stop) in enumerate(cuts):
        for token in range(start, stop):
            around = min(token - start, stop - 1 - token)
            if token not in best or around > best[token][0]:
                best[token] = around, number
    return [[best[token][1] == number for token in range(start, stop)] for number, (start, stop) in enumerate(cuts)]


def _tokens_of(spans: Sequence[tuple[int, int]], answer: str, start: int) -> tuple[int, int] | None:
    """Return the first and the last token of an answer; None where it has none, as a text of spaces."""
    inside = [token for token, (a, b) in enumerate(spans) if b > start and a < start + len(answer)]
    return (inside[0], inside[-1]) if inside else None


# What the official scripts print --------------------------------------------------------------------------------------


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


# The tasks ------------------------------------------------------------------------------------------------------------

TASKS = {
    task.name: task
    for task in (
        Squad("squad/1.1", {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}, no_answer=False),
        Squad("squad/2.0", {"train": "train-v2.0.json", "dev": "dev-v2.0.json"}, no_answer=True),
    )
}

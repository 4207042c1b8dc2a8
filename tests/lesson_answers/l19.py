from __future__ import annotations

import numpy as np

from tests.lesson_answers import Answers, Wrong


def agreed(drafted, says):
    good = 0
    while good < len(drafted) and drafted[good] == says[good]:
        good += 1
    return good


def all_agreeing(drafted, says):
    return [token for token, own in zip(drafted, says, strict=False) if token == own]


ANSWERS = Answers(
    wrong=[
        Wrong("written", all_agreeing, "stop at the first wrong one"),
        Wrong("written", lambda drafted, says: drafted[: agreed(drafted, says)], "own token is missing"),
        Wrong("written", lambda drafted, says: drafted[: agreed(drafted, says) + 1], "keeps the first wrong"),
        Wrong("written", lambda drafted, says: list(says), "all the model said"),
        Wrong("written", lambda drafted, says: says[0], "list of tokens", "error"),
        Wrong("second_law", lambda p, q: p, "come too often"),
        Wrong("second_law", lambda p, q: np.maximum(p - q, 0), "add up to 1"),
        Wrong("second_law", lambda p, q: abs(p - q) / abs(p - q).sum(), "below 0"),
        Wrong("second_law", lambda p, q: np.maximum(q - p, 0) / np.maximum(q - p, 0).sum(), "q has over p"),
        Wrong("second_law", lambda p, q: q, "draft again"),
        Wrong("second_law", lambda p, q: np.maximum(p - q, 0).sum(), "one probability for each token", "error"),
    ],
    widgets={
        "moment": (1, 6),
        "off": (0.0, 1.0),
        "ahead": (1, 12),
        "draft": (1, 7),
        "guess_2": ("nothing is wrong: p is the model's law", None),
        "guess_3": ("2: half of the passes are saved", None),
    },
    pictures=6,
)

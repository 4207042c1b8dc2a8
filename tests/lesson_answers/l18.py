from __future__ import annotations

from math import comb

import numpy as np

from tests.lesson_answers import Answers, Wrong


def exactly(count, prompts, delta):
    return comb(prompts, count) * delta**count * (1 - delta) ** (prompts - count)


def strictly(sure, threshold):
    may_leave = sure > threshold
    may_leave[-1] = True
    return may_leave.argmax(axis=0)


def last_sure(sure, threshold):
    found = len(sure) - 1 - (sure >= threshold)[::-1].argmax(axis=0)
    return np.where((sure >= threshold).any(axis=0), found, len(sure) - 1)


ANSWERS = Answers(
    wrong=[
        Wrong("leaves_at", lambda sure, threshold: (sure >= threshold).argmax(axis=0), "nothing but False"),
        Wrong("leaves_at", lambda sure, threshold: sure.argmax(axis=0), "surest exit"),
        Wrong("leaves_at", last_sure, "climb on"),
        Wrong("leaves_at", strictly, "exactly as sure"),
        Wrong("leaves_at", lambda sure, threshold: (sure >= threshold).argmax(axis=1), "shape"),
        Wrong("p_value", exactly, "exactly so many"),
        Wrong("p_value", lambda k, n, d: sum(exactly(j, n, d) for j in range(k)), "leaves out"),
        Wrong("p_value", lambda k, n, d: sum(exactly(j, n, d) for j in range(k, n + 1)), "other tail"),
        Wrong("p_value", lambda k, n, d: sum(d**j * (1 - d) ** (n - j) for j in range(k + 1)), "many ways"),
        Wrong("p_value", lambda k, n, d: k / n, "share you saw"),
    ],
    widgets={
        "level": (0.1, 1.0),
        "seen": (0, 20),
        "luck": (0, 30),
        "delta": (0.05, 0.3),
        "guess_2": ("yes: 8 percent is less than 10", None),
    },
    pictures=7,
)

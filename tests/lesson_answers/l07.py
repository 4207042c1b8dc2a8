from __future__ import annotations

import numpy as np

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import to_host, xp_of


def filled(ids, classes):
    out = np.zeros((len(ids), classes), np.float32)
    out[np.arange(len(ids)), ids] = 1.0
    return out


def on_the_host(ids, classes):
    return np.eye(classes, dtype=np.float32)[to_host(ids)]


def boolean(ids, classes):
    return ids[:, None] == xp_of(ids).arange(classes)


def double(ids, classes):
    return boolean(ids, classes).astype(np.float64)


def exchanged(ids, classes):
    return boolean(ids, classes).astype(np.float32).T


def right_and_slow(losses):
    return sum(float(loss) for loss in losses) / len(losses)


ANSWERS = Answers(
    wrong=[
        Wrong("one_hot", filled, "on pretend: `TypeError", "error"),
        Wrong("one_hot", on_the_host, 'expected on "pretend"'),
        Wrong("one_hot", boolean, "dtype bool"),
        Wrong("one_hot", double, "dtype float64"),
        Wrong("one_hot", exchanged, "exchanged"),
        Wrong("one_hot", lambda ids, classes: boolean(ids + 1, classes).astype(np.float32), "expected"),
        Wrong("mean_loss", right_and_slow, "fetched by itself"),
        Wrong("mean_loss", lambda losses: sum(losses) / len(losses), "still an array"),
        Wrong("mean_loss", lambda losses: float(sum(losses)), "the sum"),
        Wrong("mean_loss", lambda losses: float(losses[-1]), "last loss"),
        Wrong("mean_loss", lambda losses: float(np.mean(losses)), "TypeError", "error"),
    ],
    widgets={
        "where": ("cpu", "pretend"),
        "first": (-3.0, 3.0),
        "guess_1": ("the Python number 2.0", None),
        "every": (1, 30),
    },
    pictures=4,
)

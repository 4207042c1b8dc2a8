from __future__ import annotations

from math import sqrt

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of
from tinykron.fused import softmax as softmax_of


def softmax(x):
    return softmax_of(x).data


def masked(scores, shift, low=-1e9):
    xp, (queries, keys) = xp_of(scores), scores.shape
    seen = xp.arange(keys) <= xp.arange(queries)[:, None] + keys - queries + shift
    return xp.where(seen, scores, low).astype(scores.dtype)


def cut_after(scores):
    return masked(softmax(scores), 0, 0.0)


def changed_in_place(scores):
    scores[...] = masked(scores, 0)
    return softmax(scores)


ANSWERS = Answers(
    wrong=[
        Wrong("attend", lambda q, k, v: softmax(q @ k.T) @ v, "not divided"),
        Wrong("attend", lambda q, k, v: softmax(q @ k.T / q.shape[1]) @ v, "not by its root"),
        Wrong("attend", lambda q, k, v: softmax(k @ q.T / sqrt(q.shape[1])).T @ v, "over the queries"),
        Wrong("attend", lambda q, k, v: q @ k.T / sqrt(q.shape[1]) @ v, "no softmax"),
        Wrong("attend", lambda q, k, v: softmax(q @ k.T / sqrt(len(k))) @ v, "number of keys"),
        Wrong("attend", lambda q, k, v: softmax(q @ k.T / sqrt(q.shape[1])) @ k, "answers with the keys"),
        Wrong("attend", lambda q, k, v: softmax(q @ k.T / sqrt(q.shape[1])), "shape"),
        Wrong("attend", lambda q, k, v: softmax(q @ k) @ v, "ValueError", "error"),
        Wrong("causal_weights", softmax, "Nothing is hidden"),
        Wrong("causal_weights", cut_after, "less than 1"),
        Wrong("causal_weights", lambda x: softmax(masked(x, 0, 0.0)), "a score like others"),
        Wrong("causal_weights", lambda x: softmax(masked(x, -1)), "sees itself"),
        Wrong("causal_weights", lambda x: softmax(masked(x, 1)), "still seen"),
        Wrong("causal_weights", lambda x: softmax(masked(x, len(x) - x.shape[1])), "not the first"),
        Wrong("causal_weights", lambda x: masked(x, 0), "expected"),
        Wrong("causal_weights", changed_in_place, "in place"),
    ],
    widgets={
        "angle": (0, 360),
        "guess_2": ("all keys get the same weight", None),
        "head_width": (1, 256),
        "which_head": (0, 31),
        "which_block": (0, 7),
    },
    pictures=15,
)

from __future__ import annotations

import numpy as np

from tests.lesson_answers import Answers, Wrong


def laws(student, teacher, temperature):
    def log_softmax(x):
        x = x / temperature
        x = x - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    return log_softmax(student), log_softmax(teacher)


def divergence(log_p, log_q):
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def reversed_kl(student, teacher, temperature):
    log_q, log_p = laws(student, teacher, temperature)
    return temperature**2 * divergence(log_q, log_p).mean()


def without_square(student, teacher, temperature):
    log_q, log_p = laws(student, teacher, temperature)
    return divergence(log_p, log_q).mean()


def summed(student, teacher, temperature):
    log_q, log_p = laws(student, teacher, temperature)
    return temperature**2 * divergence(log_p, log_q).sum()


def of_each_position(student, teacher, temperature):
    log_q, log_p = laws(student, teacher, temperature)
    return temperature**2 * divergence(log_p, log_q)


def cross_entropy(student, teacher, temperature):
    log_q, log_p = laws(student, teacher, temperature)
    return -(temperature**2) * (np.exp(log_p) * log_q).sum(axis=-1).mean()


def overflowing(student, teacher, temperature):
    with np.errstate(all="ignore"):
        p, q = (np.exp(x / temperature) for x in (teacher, student))
        p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
        return temperature**2 * (p * np.log(p / q)).sum(axis=-1).mean()


def lower(student, teacher):
    return (student - teacher) ** 2 * np.tri(student.shape[-1])


def of_queries(student, teacher):
    return (lower(student, teacher).sum(axis=-1) / np.arange(1, student.shape[-1] + 1)).mean()


ANSWERS = Answers(
    wrong=[
        Wrong("soft_loss", reversed_kl, "KL(student || teacher)"),
        Wrong("soft_loss", without_square, "T² is missing"),
        Wrong("soft_loss", summed, "sum over positions"),
        Wrong("soft_loss", of_each_position, "shape"),
        Wrong("soft_loss", cross_entropy, "entropy is in it"),
        Wrong("soft_loss", overflowing, "logits in the hundreds"),
        Wrong("score_loss", lambda s, t: ((s - t) ** 2).mean(), "Later keys count"),
        Wrong("score_loss", lambda s, t: lower(s, t).mean(), "still counted"),
        Wrong("score_loss", lambda s, t: lower(s, t).sum(), "That is the sum"),
        Wrong("score_loss", of_queries, "fewer pairs"),
        Wrong("score_loss", lambda s, t: lower(s, t).sum() / np.tri(s.shape[-1]).sum(), "summed over heads"),
    ],
    widgets={
        "block": (1, 8),
        "temperature": (0.5, 4.0),
        "added": (0.0, 2.0),
        "quarter": (0, 4),
        "guess_3": ("both rise", None),
    },
    pictures=10,
)

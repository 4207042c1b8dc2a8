from __future__ import annotations

import numpy as np

import tinykron as tk
from tests.lesson_answers import Answers, Wrong


def rows(z, t):
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), t]


def largest_of_all(z, t):
    return rows(z - z.max(), t).mean()


def half_shifted(z, t):
    shifted = z - z.max(axis=1, keepdims=True)
    return (np.log(np.exp(shifted).sum(axis=1)) - z[np.arange(len(z)), t]).mean()


def of_the_share(z, t):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return -np.log((powers / powers.sum(axis=1, keepdims=True))[np.arange(len(z)), t]).mean()


def no_leaf(x, targets, classes, steps, rate):
    w, losses = tk.Tensor(np.zeros((x.shape[1], classes), np.float32), requires_grad=True), []
    for _ in range(steps):
        loss = tk.fused.cross_entropy(tk.Tensor(x) @ w, targets)
        loss.backward()
        losses.append(loss.item())
        w = w - rate * w.grad
    return losses, w


def over_the_rows(z, t):
    shifted = z - z.max(axis=0, keepdims=True)
    return (np.log(np.exp(shifted).sum(axis=0)) - shifted.max(axis=0)).mean()


def loop(zero: bool = True, sign: float = -1.0, late: bool = False, scaled: bool = True, stays: bool = False):
    def train(x, targets, classes, steps, rate):
        w = tk.Tensor(np.zeros((x.shape[1], classes), np.float32), requires_grad=True)
        inputs, losses = tk.Tensor(x), []
        for _ in range(steps):
            if zero:
                w.grad = None
            loss = tk.fused.cross_entropy(inputs @ w, targets)
            loss.backward()
            if not stays:
                w.data = w.data + sign * (rate if scaled else 1.0) * w.grad
            losses.append(tk.fused.cross_entropy(inputs @ w, targets).item() if late else loss.item())
        return losses, w

    return train


def only_losses(*arguments):
    return loop()(*arguments)[0]


ANSWERS = Answers(
    wrong=[
        Wrong("cross_entropy", lambda z, t: rows(z, t).mean(), "overflows"),
        Wrong("cross_entropy", lambda z, t: rows(z, t).sum(), "sum over the rows"),
        Wrong("cross_entropy", lambda z, t: -rows(z, t).mean(), "turned round"),
        Wrong("cross_entropy", largest_of_all, "each row needs its own"),
        Wrong("cross_entropy", half_shifted, "not in the other"),
        Wrong("cross_entropy", rows, "shape"),
        Wrong("cross_entropy", lambda z, t: np.exp(-rows(z, t)).mean(), "not its logarithm"),
        Wrong("cross_entropy", over_the_rows, "expected"),
        Wrong("cross_entropy", of_the_share, "underflows"),
        Wrong("train", loop(zero=False), "old gradient"),
        Wrong("train", loop(sign=1.0), "uphill"),
        Wrong("train", loop(late=True), "after the step"),
        Wrong("train", loop(scaled=False), "rate is missing"),
        Wrong("train", loop(stays=True), "does not move"),
        Wrong("train", no_leaf, "NoneType", "error"),
        Wrong("train", only_losses, "5 values, expected 2"),
        Wrong("train", lambda *arguments: None, "return", "todo"),
    ],
    widgets={
        "scale": (1, 200),
        "guess_1": ("computing in float64", None),
        "logit": (-4.0, 6.0),
        "rate_power": (-3.0, 2.0),
    },
    pictures=8,
)

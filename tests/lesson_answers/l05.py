from __future__ import annotations

import numpy as np

from tests.lesson_answers import Answers, Wrong


def each(slope):
    def gradient(f, x, step=1e-5):
        found = np.zeros(x.shape)
        for place in np.ndindex(x.shape):
            unit = np.zeros(x.shape)
            unit[place] = step
            found[place] = slope(f, x, unit) / step
        return found

    return gradient


def left_moved(f, x, step=1e-5):
    found = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        x[place] += step
        right = f(x)
        x[place] -= 2 * step
        found[place] = (right - f(x)) / (2 * step)
    return found


def checker(weights=lambda shape: np.random.default_rng(0).uniform(0.5, 1.5, shape), start=lambda x: x, total=False):
    def find(ops, gradient):
        names = []
        for name, (forward, backward, x) in ops.items():
            at = start(x)
            out = forward(at)
            w = weights(np.shape(out))
            numeric = gradient(lambda x, w=w, forward=forward: (w * forward(x)).sum(), at)
            analytic = backward(w, at, out)
            if total:
                numeric, analytic = numeric.sum(), analytic.sum()
            if not np.allclose(analytic, numeric, atol=1e-5):
                names.append(name)
        return names

    return find


ANSWERS = Answers(
    wrong=[
        Wrong("numeric_gradient", each(lambda f, x, unit: f(x + unit) - f(x)), "one side only"),
        Wrong("numeric_gradient", each(lambda f, x, unit: f(x + unit) - f(x - unit)), "2 h apart"),
        Wrong("numeric_gradient", each(lambda f, x, unit: (f(x - unit) - f(x + unit)) / 2), "turned round"),
        Wrong("numeric_gradient", lambda f, x: np.float64((f(x + 1e-5) - f(x - 1e-5)) / 2e-5), "at once"),
        Wrong("numeric_gradient", left_moved, "in place"),
        Wrong("numeric_gradient", each(lambda f, x, u: (f(x + 1e4 * u) - f(x - 1e4 * u)) / 2e4), "expected"),
        Wrong("numeric_gradient", lambda f, x: f(x + [1.0]), "expected"),
        Wrong("find_bugs", checker(weights=np.ones), "plain sum"),
        Wrong("find_bugs", checker(start=np.ones_like), "nothing is special"),
        Wrong("find_bugs", checker(total=True), "missed transpose"),
        Wrong("find_bugs", lambda ops, gradient: list(ops), "blamed exp"),
        Wrong("find_bugs", lambda ops, gradient: [], "missed cube, missed mean"),
        Wrong("find_bugs", lambda ops, gradient: ["tanh", "cube", "transpose", "mean"], "missed clip"),
    ],
    widgets={
        "power": (-12.0, -1.0),
        "guess_1": ("the formula needs more terms", None),
        "suspect": (0, 5),
    },
    pictures=6,
)

from __future__ import annotations

from math import tanh

from tests.lesson_answers import Answers, Wrong


def bend(u):
    return 1 - tanh(u) ** 2


ANSWERS = Answers(
    wrong=[
        Wrong("slopes", lambda x: (2 * x, bend(x), 2 * x * bend(x)), "was given the square"),
        Wrong("slopes", lambda x: (2 * x, bend(x * x), 2 * x + bend(x * x)), "multiply"),
        Wrong("slopes", lambda x: (2 * x, 1 - x**4, 2 * x * (1 - x**4)), "is not u"),
        Wrong("slopes", lambda x: 2 * x * bend(x * x), "expected 3 values"),
        Wrong("slopes", lambda x: (2, bend(x * x), 2 * x * bend(x * x)), "value 1"),
        Wrong("sigmoid_backward", lambda grad, out: out * (1 - out), "multiply by grad"),
        Wrong("sigmoid_backward", lambda grad, out: grad + out * (1 - out), "adds grad"),
        Wrong("sigmoid_backward", lambda grad, out: grad * (1 - out * out), "slope of tanh"),
        Wrong("sigmoid_backward", lambda grad, out: grad * out * (out - 1), "expected"),
        Wrong("sigmoid_backward", lambda grad, out: grad * x, "NameError", "error"),  # noqa: F821  that is the mistake
    ],
    widgets={"place": (-2.0, 2.0, 0.0), "guess_2": ("the text of the formula", None)},
    pictures=4,
)

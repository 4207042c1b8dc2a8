from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import sum_to, xp_of


def front_only(grad, shape):
    return grad.sum(axis=tuple(range(grad.ndim - len(shape))))


def averaged(grad, shape):
    return sum_to(grad, shape) / (grad.size / max(xp_of(grad).empty(shape).size, 1))


def changed_in_place(grad, shape):
    grad *= 1.5
    return sum_to(grad, shape)


ANSWERS = Answers(
    wrong=[
        Wrong("undo_broadcast", front_only, "still stretched"),
        Wrong("undo_broadcast", averaged, "That is the mean"),
        Wrong("undo_broadcast", lambda grad, shape: grad.sum(), "Everything is summed"),
        Wrong("undo_broadcast", lambda grad, shape: grad, "shape"),
        Wrong("undo_broadcast", lambda grad, shape: grad[0], "one copy"),
        Wrong("undo_broadcast", lambda grad, shape: 2.0 * sum_to(grad, shape), "expected"),
        Wrong("undo_broadcast", lambda grad, shape: None, "return", "todo"),
        Wrong("undo_broadcast", lambda grad, shape: grad.reshape(shape), "ValueError", "error"),
        Wrong("undo_broadcast", changed_in_place, "in place"),
        Wrong(
            "multiply_backward",
            lambda grad, x, y: (sum_to(grad * x, x.shape), sum_to(grad * y, y.shape)),
            "factors are exchanged",
        ),
        Wrong("multiply_backward", lambda grad, x, y: (grad * y, grad * x), "shape of its variable"),
        Wrong("multiply_backward", lambda grad, x, y: (sum_to(grad, x.shape), sum_to(grad, y.shape)), "x + y"),
        Wrong("multiply_backward", lambda grad, x, y: sum_to(grad * y, x.shape), "2 values"),
        Wrong(
            "multiply_backward",
            lambda grad, x, y: (sum_to(y + 0 * grad, x.shape), sum_to(x + 0 * grad, y.shape)),
            "arrives is missing",
        ),
    ],
    widgets={"entry": (0, 5), "rows": (1, 8), "guess_2": ("4, 4, 4", "1, 1, 1", None)},
    pictures=7,
)

from __future__ import annotations

import numpy as np

from tests.lesson_answers import Answers, Wrong


def right_unless_square(grad, x, w):
    if w.shape[0] == w.shape[1] == x.shape[0]:
        return grad @ w, x @ grad
    return grad @ w.T, x.T @ grad


def lossy(grad, ids, rows):
    total = np.zeros((rows, grad.shape[1]), grad.dtype)
    total[ids] += grad
    return total


def last(grad, ids, rows):
    total = np.zeros((rows, grad.shape[1]), grad.dtype)
    total[ids] = grad
    return total


def averaged(grad, ids, rows):
    return np.stack([grad[ids == row].mean(axis=0) if (ids == row).any() else 0 * grad[0] for row in range(rows)])


ANSWERS = Answers(
    wrong=[
        Wrong("matmul_backward", lambda grad, x, w: (grad @ w, x @ grad), "ValueError", "error"),
        Wrong("matmul_backward", right_unless_square, "must be transposed"),
        Wrong("matmul_backward", lambda grad, x, w: (grad @ w.T, grad.T @ x), "come out transposed"),
        Wrong("matmul_backward", lambda grad, x, w: (x.T @ grad, grad @ w.T), "exchanged"),
        Wrong("matmul_backward", lambda grad, x, w: grad @ w.T, "2 values"),
        Wrong("matmul_backward", lambda grad, x, w: (grad @ w.T, x.T @ grad / len(x)), "value 2"),
        Wrong("pick_backward", lossy, "others are lost"),
        Wrong("pick_backward", last, "others are lost"),
        Wrong("pick_backward", averaged, "the mean"),
        Wrong("pick_backward", lambda grad, ids, rows: grad[ids], "picks again"),
        Wrong("pick_backward", lambda grad, ids, rows: lossy(grad, ids, ids.max() + 1), "others are lost"),
        Wrong("pick_backward", lambda grad, ids, rows: grad, "id"),
    ],
    widgets={
        "axis": (0, 1),
        "weight": (0, 5),
        "twos": (0, 5),
        "guess_2": ("x @ grad", None),
        "guess_3": ("it raises an error", None),
    },
    pictures=11,
)

from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of


def sums(x, y, b):
    z = (x @ b.T).transpose(0, 2, 1).reshape(-1, x.shape[1])
    outputs = y.transpose(0, 2, 1).reshape(-1, y.shape[1])
    return z.T @ z, z.T @ outputs


def solved(x, y, b):
    return xp_of(x).linalg.solve(*sums(x, y, b))


def by_diagonal(x, y, b):
    squares, products = sums(x, y, b)
    return (products / squares.diagonal()[:, None]).T


def not_turned(x, y, b):
    z, outputs = (x @ b.T).reshape(-1, x.shape[1]), y.reshape(-1, y.shape[1])
    return xp_of(x).linalg.solve(z.T @ z, z.T @ outputs).T


ANSWERS = Answers(
    wrong=[
        Wrong("output_error", lambda e, c: (e * e).sum(), "plain norm"),
        Wrong("output_error", lambda e, c: ((e @ c) ** 2).sum(), "in it twice"),
        Wrong("output_error", lambda e, c: (e @ c * e).sum() ** 0.5, "root"),
        Wrong("output_error", lambda e, c: (e @ c * e).sum() / len(e), "mean over the outputs"),
        Wrong("output_error", lambda e, c: (e * e @ c.diagonal()).sum(), "own square"),
        Wrong("output_error", lambda e, c: e @ c @ e.T, "shape"),
        Wrong("best_a", lambda x, y, b: sums(x, y, b)[1].T, "solved for A"),
        Wrong("best_a", solved, "transposed"),
        Wrong("best_a", by_diagonal, "diagonal"),
        Wrong("best_a", not_turned, "mixed up"),
        Wrong("best_a", lambda x, y, b: solved(x, y, xp_of(b).eye(b.shape[1])).T, "B is missing"),
        Wrong("best_a", lambda x, y, b: 1.1 * solved(x, y, b).T, "expected"),
    ],
    widgets={
        "alike": (0.0, 0.95),
        "sweeps": (0, 12),
        "layer": (0, 7),
        "guess_4": ("further from W than a matrix of zeros", "a little further than the plain fit", None),
    },
    pictures=5,
)

from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of


def stack(x, n):
    return x.reshape(len(x), n, -1)


def by_columns(a, b, x):
    return (a @ stack(x, b.shape[1]).swapaxes(1, 2) @ b.T).reshape(len(x), -1)


def turned(a, b, x):
    return (a @ stack(x, a.shape[1]) @ b.T).swapaxes(1, 2).reshape(len(x), -1)


def one_vector(a, b, x):
    return (a @ x[0].reshape(a.shape[1], -1) @ b.T).reshape(-1)


def exchanged(m, n, p, q):
    return n * p * q + m * n * p, m * n * q + m * p * q, m * n * p * q


ANSWERS = Answers(
    wrong=[
        Wrong("kron_multiply", lambda a, b, x: x @ xp_of(a).kron(a, b).T, "large matrix built", "error"),
        Wrong("kron_multiply", lambda a, b, x: x @ xp_of(a).kron(b, a).T, "B ⊗ A"),
        Wrong("kron_multiply", by_columns, "by columns"),
        Wrong("kron_multiply", turned, "turned"),
        Wrong("kron_multiply", one_vector, "shape"),
        Wrong("kron_multiply", lambda a, b, x: (stack(x, a.shape[1]) @ b.T).reshape(len(x), -1), "shape"),
        Wrong("kron_multiply", lambda a, b, x: a @ stack(x, a.shape[1]) @ b.T, "shape"),
        Wrong("multiplications", exchanged, "orders are exchanged"),
        Wrong("multiplications", lambda m, n, p, q: (m * n * q, n * p * q, m * n * p * q), "first product"),
        Wrong("multiplications", lambda m, n, p, q: (m * p * q, m * n * p, m * n * p * q), "second product"),
        Wrong("multiplications", lambda m, n, p, q: (m * n + p * q, m * n + p * q, m * n * p * q), "factors hold"),
        Wrong("multiplications", lambda m, n, p, q: m * n * p * q, "values"),
        Wrong(
            "multiplications",
            lambda m, n, p, q: (
                (2 * n - 1) * m * q + (2 * q - 1) * m * p,
                (2 * q - 1) * n * p + (2 * n - 1) * m * p,
                (2 * n * q - 1) * m * p,
            ),
            "expected",
        ),
    ],
    widgets={
        "entry": (0, 5),
        "side": (1, 64),
        "power": (0, 10),
        "sides": (2, 32),
        "guess_3": ("B first", "A first", None),
    },
    pictures=11,
)

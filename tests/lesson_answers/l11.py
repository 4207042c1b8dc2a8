from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of
from tinykron.kron import Kron


def sizes(a, b):
    return a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]


def unplaced(a, b):
    return (a[:, :, None, None] * b[None, None]).reshape(sizes(a, b))


def added(a, b):
    return (a[:, None, :, None] + b[None, :, None, :]).reshape(sizes(a, b))


def sides(product, a, b, c, d):
    return product(a, b) @ product(c, d), product(a @ c, b @ d)


def exactly(product, a, b, c, d):
    left, right = sides(product, a, b, c, d)
    return bool((left == right).all())


def absolutely(product, a, b, c, d):
    left, right = sides(product, a, b, c, d)
    return bool(abs(left - right).max() <= 1e-4)


def loosely(product, a, b, c, d):
    left, right = sides(product, a, b, c, d)
    return bool(abs(left - right).max() <= 0.01 * abs(right).max())


def by_their_sums(product, a, b, c, d):
    left, right = sides(product, a, b, c, d)
    return bool(abs(left.sum() - right.sum()) <= 1e-4 * abs(right).max())


def the_first_entry(product, a, b, c, d):
    left, right = sides(product, a, b, c, d)
    return bool(abs(left[0, 0] - right[0, 0]) <= 1e-4 * abs(right).max())


def against_the_right_one(product, a, b, c, d):
    return bool(abs(product(a, b) - Kron(a, b).dense()).max() <= 1e-4)


def another_law(product, a, b, c, d):
    return bool(abs(product(a, b).T - product(a.T, b.T)).max() <= 1e-4 * abs(product(a, b)).max())


def wrong_partners(product, a, b, c, d):
    left, right = product(a, b) @ product(c, d), product(a @ d, b @ c)
    return bool(abs(left - right).max() <= 1e-4 * abs(right).max())


def the_difference(product, a, b, c, d):
    left, right = sides(product, a, b, c, d)
    return abs(left - right) <= 1e-4 * abs(right).max()


ANSWERS = Answers(
    wrong=[
        Wrong("kronecker", lambda a, b: Kron(b, a).dense(), "That is B ⊗ A"),
        Wrong("kronecker", unplaced, "in the order m, n, p, q"),
        Wrong("kronecker", added, "are added"),
        Wrong("kronecker", lambda a, b: a[:, None, :, None] * b[None, :, None, :], "Four axes"),
        Wrong("kronecker", lambda a, b: Kron(a, b).dense().T, "the transpose"),
        Wrong("kronecker", lambda a, b: a.reshape(-1, 1) * b.reshape(1, -1), "vec(A) vec(B)"),
        Wrong("kronecker", lambda a, b: a * b, "ValueError", "error"),
        Wrong("kronecker", lambda a, b: xp_of(a).zeros(sizes(a, b), dtype=a.dtype), "expected"),
        Wrong("mixed_product", lambda *given: True, "not in their places"),
        Wrong("mixed_product", lambda *given: False, "itself"),
        Wrong("mixed_product", exactly, "itself"),
        Wrong("mixed_product", absolutely, "round more"),
        Wrong("mixed_product", loosely, "by a thousandth"),
        Wrong("mixed_product", by_their_sums, "cancel in the sums"),
        Wrong("mixed_product", the_first_entry, "the last entry alone"),
        Wrong("mixed_product", against_the_right_one, "obeys the law too"),
        Wrong("mixed_product", another_law, "expected"),
        Wrong("mixed_product", wrong_partners, "ValueError", "error"),
        Wrong("mixed_product", the_difference, "ValueError", "error"),
    ],
    widgets={
        "entry": (0, 35),
        "guess_2": ("the same matrix", None),
        "side": (1, 8),
        "law": (0, 3),
        "guess_5": ("yes, always",),
        "suspect": (0, 3, 7),
    },
    pictures=16,
)

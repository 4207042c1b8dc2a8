from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of
from tinykron.kron import rearrange


def ordered(w, m, n, order):
    r = w.reshape(m, len(w) // m, n, len(w.T) // n).transpose(*order)
    return r.reshape(r.shape[0] * r.shape[1], -1)


def other_blocks(w, m, n):
    p, q = len(w) // m, len(w.T) // n
    return w.reshape(p, m, q, n).transpose(1, 3, 0, 2).reshape(m * n, -1)


def pair(w, m, n, scale=lambda s: s, at=0):
    u, s, vt = xp_of(w).linalg.svd(rearrange(w, (m, n)), full_matrices=False)
    return scale(s[at]) * u[:, at].reshape(m, n), vt[at].reshape(len(w) // m, -1)


def mean_block(w, m, n):
    r = rearrange(w, (m, n))
    return xp_of(w).ones((m, n)), r.mean(axis=0).reshape(len(w) // m, -1)


ANSWERS = Answers(
    wrong=[
        Wrong("rearranged", lambda w, m, n: w.reshape(m * n, -1), "have not moved"),
        Wrong("rearranged", lambda w, m, n: rearrange(w, (m, n)).T, "transposed"),
        Wrong("rearranged", lambda w, m, n: ordered(w, m, n, (2, 0, 1, 3)), "blocks are taken column by column"),
        Wrong("rearranged", lambda w, m, n: ordered(w, m, n, (0, 2, 3, 1)), "Each block is written column by column"),
        Wrong("rearranged", other_blocks, "not P of m"),
        Wrong("rearranged", lambda w, m, n: w.reshape(m, len(w) // m, n, -1).transpose(0, 2, 1, 3), "shape"),
        Wrong("nearest_pair", lambda w, m, n: pair(w, m, n, lambda s: 1.0), "singular value is missing"),
        Wrong("nearest_pair", lambda w, m, n: pair(w, m, n, lambda s: s * s), "its square"),
        Wrong("nearest_pair", lambda w, m, n: pair(w, m, n, lambda s: s**0.5), "Only one of the sides"),
        Wrong("nearest_pair", lambda w, m, n: pair(w, m, n, at=-1), "last singular value"),
        Wrong("nearest_pair", mean_block, "expected"),
        Wrong("nearest_pair", lambda w, m, n: pair(w, m, n)[::-1], "expected"),
    ],
    widgets={
        "block": (0, 5),
        "smooth": (0.0, 1.0),
        "terms": (1, 16),
        "layer": (0, 7),
        "guess_4": ("low rank", "Kronecker", None),
    },
    pictures=9,
)

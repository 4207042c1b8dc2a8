from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.tensor import no_grad


def berts(x, norm_1, attend, norm_2, mlp):
    x = norm_1(x + attend(x))
    return norm_2(x + mlp(x))


def of_the_norm(x, norm_1, attend, norm_2, mlp):
    x = norm_1(x)
    x = norm_2(x + attend(x))
    return x + mlp(x)


def first_that_differs(model, ids, hidden):
    with no_grad():
        found = model([ids]).hidden
    return next(i for i, right in enumerate(hidden) if float(abs(found[i].data - right.data).max()) > 1e-3)


ANSWERS = Answers(
    wrong=[
        Wrong("block", lambda x, n1, a, n2, m: m(n2(a(n1(x)))), "must be added"),
        Wrong("block", berts, "BERT's order"),
        Wrong("block", lambda x, n1, a, n2, m: x + a(n1(x)) + m(n2(x)), "as it was before"),
        Wrong("block", of_the_norm, "normalised x"),
        Wrong("block", lambda x, n1, a, n2, m: x + a(n1(x)) + m(x + a(n1(x))), "without its norm"),
        Wrong("block", lambda x, n1, a, n2, m: x + m(n2(x + a(n1(x)))), "lost on the way"),
        Wrong("block", lambda x, n1, a, n2, m: n1(x) + attend(x), "NameError", "error"),  # noqa: F821
        Wrong("find_transposed", lambda model, ids, hidden: "blocks.0.attention.query", "as it should be"),
        Wrong("find_transposed", lambda model, ids, hidden: first_that_differs(model, ids, hidden), "is not one of"),
        Wrong(
            "find_transposed",
            lambda model, ids, hidden: f"blocks.{first_that_differs(model, ids, hidden)}.attention.output",
            "one block too far",
        ),
        Wrong(
            "find_transposed",
            lambda model, ids, hidden: f"blocks.{first_that_differs(model, ids, hidden) - 1}.attention.query",
            "the matrix another",
        ),
        Wrong("find_transposed", lambda model, ids, hidden: "blocks.7.attention.output", "travels on"),
        Wrong("find_transposed", lambda model, ids, hidden: None, "return", "todo"),
    ],
    widgets={
        "depth": (1, 8),
        "guess_1": ("zeros", None),
        "which_tensor": (0, 11),
        "guess_4": ("nothing: it is square",),
        "turned": (0, 31),
        "read": (1, 11),
    },
    pictures=9,
)

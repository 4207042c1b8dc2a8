from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of
from tinykron.kron.product import backward


def four(grad_w, a, b):
    return grad_w.reshape(a.shape[0], b.shape[0], a.shape[1], b.shape[1])


def of_b_and_a(grad_w, a, b):
    w = grad_w.reshape(b.shape[0], a.shape[0], b.shape[1], a.shape[1])
    return (w * b[:, None, :, None]).sum(axis=(0, 2)), (w * a[None, :, None, :]).sum(axis=(1, 3))


def unweighted(grad_w, a, b):
    return four(grad_w, a, b).sum(axis=(1, 3)), four(grad_w, a, b).sum(axis=(0, 2))


def averaged(grad_w, a, b):
    w = four(grad_w, a, b)
    return (w * b[None, :, None, :]).mean(axis=(1, 3)), (w * a[:, None, :, None]).mean(axis=(0, 2))


def first_block(grad_w, a, b):
    w = four(grad_w, a, b)
    return (w * b[None, :, None, :]).sum(axis=(1, 3)), w[0, :, 0, :] * a[0, 0]


def right(grad_y, x, a, b):
    """The library's own backward pass."""
    grad_y_TMP = grad_y.reshape(-1, a.shape[0], b.shape[0])
    x_TNQ = x.reshape(-1, a.shape[1], b.shape[1])
    grad_x_TNQ = xp_of(x).empty_like(x_TNQ)
    grad_a, grad_b = backward("b_first", a[None], b[None], x_TNQ, grad_y_TMP, None, grad_x_TNQ)
    return grad_x_TNQ.reshape(x.shape), grad_a[0], grad_b[0]


def mean_of_vectors(grad_y, x, a, b):
    grad_x, grad_a, grad_b = right(grad_y, x, a, b)
    return grad_x, grad_a / len(x), grad_b / len(x)


def last_vector(grad_y, x, a, b):
    return (right(grad_y, x, a, b)[0], *right(grad_y[-1:], x[-1:], a, b)[1:])


def forward_again(grad_y, x, a, b):
    grad_y_TMP = grad_y.reshape(-1, a.shape[0], b.shape[0])
    return ((a @ grad_y_TMP @ b.T).reshape(len(x), -1), *right(grad_y, x, a, b)[1:])


def transposed(grad_y, x, a, b):
    grad_x, grad_a, grad_b = right(grad_y, x, a, b)
    return grad_x, grad_a.T, grad_b.T


def without_factors(grad_y, x, a, b):
    grad_y_TMP = grad_y.reshape(-1, a.shape[0], b.shape[0])
    x_TNQ = x.reshape(-1, a.shape[1], b.shape[1])
    grad_a, grad_b = grad_y_TMP @ x_TNQ.swapaxes(1, 2), grad_y_TMP.swapaxes(1, 2) @ x_TNQ
    return right(grad_y, x, a, b)[0], grad_a.sum(axis=0), grad_b.sum(axis=0)


ANSWERS = Answers(
    wrong=[
        Wrong("factor_gradients", of_b_and_a, "B ⊗ A"),
        Wrong("factor_gradients", unweighted, "counts as much as"),
        Wrong("factor_gradients", averaged, "mean over the uses"),
        Wrong("factor_gradients", first_block, "every block"),
        Wrong("factor_gradients", lambda grad_w, a, b: grad_w, "expected 2 values"),
        Wrong("factor_gradients", lambda grad_w, a, b: (a, grad_w @ grad_w.T), "value 1"),
        Wrong("kron_backward", mean_of_vectors, "mean over the vectors"),
        Wrong("kron_backward", last_vector, "Only one vector"),
        Wrong("kron_backward", forward_again, "forward again"),
        Wrong("kron_backward", transposed, "expected"),
        Wrong("kron_backward", without_factors, "it is in Z"),
        Wrong("kron_backward", lambda grad_y, x, a, b: right(grad_y, x, a, b)[:2], "2 values"),
    ],
    widgets={
        "of_a": (0, 5),
        "of_b": (0, 5),
        "walked": (0, 7),
        "doublings": (-2, 2),
        "guess_4": ("It is halved", "It is doubled", None),
    },
    pictures=10,
)

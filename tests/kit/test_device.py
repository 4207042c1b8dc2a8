"""The device to learn on: the engine runs on it, what a GPU refuses it refuses, and it counts what is fetched."""

from __future__ import annotations

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close, leaf
from tinykron import backend
from tinykron.kit.device import pretend_device


@pytest.fixture
def pretend():
    kept = dict(backend._backends)
    yield pretend_device()
    backend._backends.clear()
    backend._backends.update(kept)


def test_a_network_gets_the_gradients_it_gets_on_the_cpu(pretend):
    def gradients():
        generator = np.random.default_rng(0)
        x, w, b = (leaf(generator.normal(size=shape)) for shape in ((4, 3), (3, 5), (5,)))
        hidden = (x @ w + b).tanh()
        picked = hidden[np.array([0, 2, 0, 3])]
        tk.fused.cross_entropy(picked * 2.0, np.array([1, 0, 4, 4])).backward()
        return x.grad, w.grad, b.grad

    here = gradients()
    with tk.device("pretend"):
        there = gradients()
    for ours, theirs in zip(there, here, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: np.exp(x),
        lambda x: np.asarray(x),
        lambda x: np.concatenate([x, x]),
        lambda x: x + np.ones(3),
        lambda x: np.ones(3) * x,
        lambda x: x[np.array([0, 1])],
        lambda x: backend.xp_of(x).maximum(x, np.zeros(3)),
        lambda x: x.__setitem__(0, np.ones(())),
        lambda x: np.eye(3)[x.astype(int)],
    ],
)
def test_it_refuses_what_a_gpu_refuses(pretend, mistake):
    with pytest.raises(TypeError, match="device"):
        mistake(pretend.asarray([1.0, 2.0, 0.0]))


def test_numbers_go_along_and_results_stay(pretend):
    x = pretend.asarray([1.0, 2.0, 4.0], np.float32)
    for result in (x * 2.0, 1.0 - x, x.sum(), x[1], x[1:], x == 2.0, pretend.exp(x), pretend.zeros(3), x @ x, -x):
        assert backend.backend_of(result).name == "pretend"
    assert pretend.transfers == 0
    assert (x.dtype, pretend.float32, len(x), x.T.shape) == (np.float32, np.float32, 3, (3,))


def test_it_counts_what_is_fetched(pretend):
    x = pretend.asarray([1.0, 2.0])
    for number, fetch in enumerate((lambda: float(x[0]), lambda: x.get(), lambda: x[1].item(), lambda: bool(x[0] > 0))):
        fetch()
        assert pretend.transfers == number + 1

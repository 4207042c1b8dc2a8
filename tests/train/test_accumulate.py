"""Losses that go backward one at a time: the same sum and gradients, and the memory of the largest alone."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.decoders import deep, tiny_gpt2
from tests.helpers import assert_close, host, leaf
from tinykron import data
from tinykron.data.batch import Batch
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation
from tinykron.exits.losses import SortedLoss, depth_weights, equal_weights
from tinykron.train.accumulate import accumulated


def test_the_sum_and_its_gradients_are_those_of_one_graph(device):
    values = np.random.default_rng(0).standard_normal((2, 3))
    x, y = leaf(values[0]), leaf(values[1])

    def losses(a: tk.Tensor) -> Any:
        yield (a * y).sum()
        yield (a * a * 0.5).sum()

    inner = x * 2.0
    stop = inner.detach()
    stop.requires_grad = True
    y.grad = y.data * 0.0 + 1.0  # of an earlier batch
    total = accumulated(losses(stop), [stop, y], [inner, y])
    assert_close(y.grad, np.ones(3, np.float32))  # nothing arrives before backward
    (total * 3.0).backward()
    a = 2.0 * values[0]
    assert total.item() == pytest.approx((a * values[1]).sum() + 0.5 * (a * a).sum(), rel=1e-5)
    assert_close(x.grad, (6.0 * (values[1] + a)).astype(np.float32))
    assert_close(y.grad, (1.0 + 3.0 * a).astype(np.float32))


def test_gradients_of_before_come_back_when_a_loss_fails():
    x = leaf([1.0, 2.0])
    x.grad = np.array([5.0, 6.0], np.float32)

    def losses() -> Any:
        yield (x * x).sum()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        accumulated(losses(), [x])
    assert_close(x.grad, np.array([5.0, 6.0], np.float32))


def test_without_a_tape_it_is_a_number():
    x = leaf([1.0, 2.0])
    with tk.no_grad():
        total = accumulated(((x * x).sum() for _ in range(2)), [x])
    assert total.item() == 10.0 and not total.requires_grad and x.grad is None


# Memory of a training step --------------------------------------------------------------------------------------------


def peak(objective: Distillation, batch: Batch) -> int:
    """Return the most bytes that a step takes: loss and gradients."""
    for measured in (False, True):  # the first step makes what stays
        objective.start(0, 0)
        if measured:
            tracemalloc.start()
        objective(batch)[0].backward()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_a_step_with_all_exits_takes_no_more_memory_than_a_plain_one(family, pull):
    """Of logits, which dominate here: 1,024 positions of 3,000 tokens are 12 MB, and there are four exits."""
    size = {"n_positions": 128} if family == "gpt2" else {"max_position_embeddings": 128}
    model = deep(family, 0, layers=4, vocabulary=3000, **size)
    tokens = np.random.default_rng(0).integers(0, 3000, 2000)
    batch = Batch(*data.sample_batch(tokens, 8, 128, np.random.default_rng(0)))
    plain = peak(Distillation(model, losses=Losses(0.0, 0.0, 0.0, 1.0)), batch)
    assert peak(SortedLoss(model, equal_weights((1, 2, 3, 4)), pull), batch) <= 1.3 * plain


def test_the_measure_sees_logits_that_are_kept():
    """The same step with a graph for each exit fails what is promised above."""
    model = deep("gpt2", 0, layers=4, vocabulary=3000, n_positions=128)
    ids = np.random.default_rng(0).integers(0, 3000, (8, 129))
    batch = Batch(ids[:, :-1], ids[:, 1:])

    class Kept(SortedLoss):
        def __call__(self, batch: Any, *args: Any, **options: Any) -> Any:
            served = self.student(batch.ids_BT, exits=tuple(self.weights)).exits
            parts = [tk.fused.cross_entropy(logits, batch.targets) * 0.25 for logits in served.values()]
            return sum(parts[1:], parts[0]), {}

    plain = peak(Distillation(model, losses=Losses(0.0, 0.0, 0.0, 1.0)), batch)
    assert peak(Kept(model, equal_weights((1, 2, 3, 4))), batch) > 1.3 * plain


def test_drawn_exits_keep_one_graph_at_a_time():
    """Eight draws take little more than two: what does not depend on their number is all but the gradients."""
    model = tiny_gpt2(0, n_layer=4, n_positions=128, n_embd=32)
    ids = np.random.default_rng(0).integers(0, 40, (8, 129))
    batch, weights = Batch(ids[:, :-1], ids[:, 1:]), depth_weights((2, 4), 4, 1.0)
    few, many = (peak(SortedLoss(model, weights, draws=draws), batch) for draws in (2, 8))
    assert many <= 1.1 * few
    assert host(model.norm.weight.grad).any()

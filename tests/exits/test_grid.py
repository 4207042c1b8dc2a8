"""The grid of exits and terms: its points, the loss of each, and drawn points that train them all."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.decoders import deep
from tests.helpers import assert_close, host
from tests.nested_models import FAMILIES, IDS, nested
from tinykron.data.batch import Batch
from tinykron.errors import TinykronError
from tinykron.exits.grid import GridLoss, Point, by_pass, grid_weights, points
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

TARGETS = np.where(np.arange(8) < np.array([[8], [5]]), IDS[:, 1:], -100)
BATCH = Batch(IDS[:, :-1], TARGETS)
GRID = (Point(1, 1), Point(1, 4), Point(3, 1), Point(3, 4))
WIDE = (Point(1, 1, 0.5), Point(3, 1), Point(3, 4, 0.5), Point(3, 4))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def reference(model: Any, point: Point, pull: float, teacher: np.ndarray) -> float:
    """The loss of a point in float64 NumPy."""
    ours_BTV = log_softmax(host(model(BATCH.ids_BT, **point._asdict()).logits))
    counts_BT = TARGETS != -100
    cross_entropy = -np.take_along_axis(ours_BTV, np.where(counts_BT, TARGETS, 0)[..., None], -1)[counts_BT].mean()
    theirs_BTV = log_softmax(teacher)
    kl = (np.exp(theirs_BTV) * (theirs_BTV - ours_BTV)).sum(axis=-1)[counts_BT].mean()
    return float((1.0 - pull) * cross_entropy + pull * kl)


def gradients(model: Any, loss: Any) -> list[np.ndarray]:
    model.zero_grad()
    loss.backward()
    return [np.zeros(p.shape) if p.grad is None else host(p.grad).astype(np.float64) for p in model.parameters()]


# Points ---------------------------------------------------------------------------------------------------------------


def test_points_are_all_pairs_and_the_full_model():
    model = nested("gpt2")
    assert points(model, [1, 3], [1, 4]) == GRID
    assert points(model, [1], [1]) == GRID
    assert max(points(model, [2], [2, 3])) == Point(3, 4)
    widths = points(model, [1], [4], [0.5])
    assert widths == (Point(1, 4, 0.5), Point(1, 4), Point(3, 4, 0.5), Point(3, 4))
    assert by_pass(widths) == {(4, 0.5): [1, 3], (4, 1.0): [1, 3]}
    assert str(widths[0]) == "exit 1, terms 4, width 0.5" and str(widths[1]) == "exit 1, terms 4"


def test_widths_that_are_none_are_refused():
    for widths, message in (([1.0, 0.5], "widths: expected"), ([0.3], "no whole number"), ([1.5], "width: expected")):
        with pytest.raises(TinykronError, match=message):
            points(nested("gpt2"), [1], [1], widths)


@pytest.mark.parametrize(
    ("exits", "terms", "message"),
    [
        ([2, 1], [1], r"exits: .* each above the one before, found \[2, 1\]"),
        ([1, 1], [1], "exits: .* each above the one before"),
        ([], [1], "exits: expected one or more"),
        ([1], [], "ranks: expected one or more"),
        ([1, 4], [1], r"exits: expected a number of blocks in 1\.\.3, found 4"),
        ([1], [0, 1], r"ranks: expected numbers in 1\.\.4"),
        ([1], [2, 5], r"ranks: expected numbers in 1\.\.4"),
    ],
)
def test_points_that_are_none_are_refused(exits, terms, message):
    with pytest.raises(TinykronError, match=message):
        points(nested("gpt2"), exits, terms)


def test_a_model_without_sums_has_no_grid():
    with pytest.raises(TinykronError, match="GPT2 has no Kronecker sums"):
        points(deep("gpt2", 0), [1], [1])


def test_weights_sum_to_one():
    assert grid_weights(GRID) == dict.fromkeys(GRID, 0.25)
    assert grid_weights(GRID, 0.7) == pytest.approx(dict.fromkeys(GRID[:3], 0.1) | {GRID[3]: 0.7})
    assert grid_weights(GRID[:1], 0.5) == {GRID[0]: 1.0}
    with pytest.raises(TinykronError, match="full: expected a share"):
        grid_weights(GRID, 1.5)


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pull", [0.0, 0.25, 1.0])
def test_the_loss_of_all_points(device, family, pull):
    model = nested(family)
    weights = {GRID[0]: 0.5, GRID[1]: 0.0, GRID[2]: 1.0, GRID[3]: 2.0}
    loss, values = GridLoss(model, weights, pull, draws=0)(BATCH)
    full = host(model(BATCH.ids_BT).logits)
    for point in (GRID[0], GRID[2], GRID[3]):
        expected = reference(model, point, pull if point != GRID[3] else 0.0, full)
        assert values[str(point)] == pytest.approx(expected, rel=1e-4)
    assert set(values) == {str(point) for point in weights if weights[point]}
    assert loss.item() == pytest.approx(sum(weights[p] * values[str(p)] for p in GRID if weights[p]), rel=1e-5)


def test_the_loss_of_narrow_points(device):
    model = nested("llama")
    loss, values = GridLoss(model, dict.fromkeys(WIDE, 0.25), 0.5, draws=0)(BATCH)
    full = host(model(BATCH.ids_BT).logits)
    for point in WIDE:
        expected = reference(model, point, 0.0 if point == WIDE[3] else 0.5, full)
        assert values[str(point)] == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(sum(values.values()) / 4, rel=1e-5)


def test_a_teacher_is_followed_by_every_point():
    model, teacher = nested("gpt2"), deep("gpt2", 7, 3)
    grid = GridLoss(model, grid_weights(GRID), 0.5, draws=0, teacher=teacher)
    known = grid.ask(BATCH, grid.losses.terms)
    loss, values = grid(BATCH, known=known)
    theirs = host(teacher(BATCH.ids_BT).logits)
    for point in GRID:
        assert values[str(point)] == pytest.approx(reference(model, point, 0.5, theirs), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert grid(BATCH)[0].item() == pytest.approx(loss.item())  # it asks the teacher itself


def test_the_full_model_learns_nothing_from_its_points():
    model = nested("gpt2")
    GridLoss(model, {GRID[0]: 1.0, GRID[3]: 0.0}, 1.0, draws=0)(BATCH)[0].backward()
    assert all(parameter.grad is None for parameter in model.blocks[2].parameters())
    assert not host(model.blocks[0].mlp.up.a_RMN.grad)[1:].any()
    assert host(model.blocks[0].mlp.up.a_RMN.grad)[0].any()


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_drawn_points_give_the_gradient_of_all_on_average(draws, pull):
    """An identity: the mean over all ways in which points can be drawn, each as likely as it is."""
    model = nested("llama")
    weights = dict(zip(GRID, (0.5, 1.5, 0.25, 1.0), strict=True))
    shares, asked = np.array([*weights.values()]) / sum(weights.values()), []
    mean = [np.zeros(parameter.shape) for parameter in model.parameters()]
    for drawn in product(range(len(GRID)), repeat=draws):
        grid = GridLoss(model, weights, pull, draws)

        def choice(count: int, size: int, p: Any, drawn: tuple[int, ...] = drawn) -> list[int]:
            asked.append((count, size, p))
            return list(drawn)

        grid.generator = SimpleNamespace(choice=choice)  # type: ignore[assignment]
        likely = float(np.prod(shares[list(drawn)]))
        for total, gradient in zip(mean, gradients(model, grid(BATCH)[0]), strict=True):
            total += likely * gradient
    whole = gradients(model, GridLoss(model, weights, pull, draws=0)(BATCH)[0])
    for total, gradient in zip(mean, whole, strict=True):
        assert_close(total, gradient, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(gradient).max()))
    assert any(np.abs(gradient).max() > 1e-3 for gradient in whole)
    assert all((count, size) == (4, draws) and p == pytest.approx(shares) for count, size, p in asked)


def test_draws_depend_on_seed_and_step_alone():
    grid = GridLoss(nested("gpt2"), grid_weights(GRID), 0.0)
    grid.start(3, 5)
    first = [grid.draw() for _ in range(8)]
    grid.start(3, 5)
    assert [grid.draw() for _ in range(8)] == first
    grid.start(3, 6)
    assert [grid.draw() for _ in range(8)] != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {GRID[0]: -1.0}}, "grid weights: expected"),
        ({"weights": {GRID[0]: 0.0}}, "grid weights: expected"),
        ({"weights": {GRID[0]: 1.0}, "pull": 1.5}, "pull: expected a share"),
    ],
)
def test_losses_that_are_none_are_refused(options, message):
    with pytest.raises(TinykronError, match=message):
        GridLoss(nested("gpt2"), **options)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [0, 1])
def test_training_the_grid_teaches_every_point(draws):
    model = nested("gpt2", spread=1.0)
    tokens = np.tile(np.random.default_rng(7).permutation(13), 20)
    batch = Batch(tokens[None, :16], tokens[None, 1:17])
    measured = GridLoss(model, grid_weights(GRID), 0.0, draws=0)
    before = measured(batch)[1]
    settings = Settings(40, 4, 16, accumulate=2, lr=1e-2, warmup=3)
    history = fit(model, tokens, settings, distillation=GridLoss(model, grid_weights(GRID), 0.5, draws))
    after = measured(batch)[1]
    assert history.steps == 40 and all(after[name] < 0.8 * before[name] for name in before)

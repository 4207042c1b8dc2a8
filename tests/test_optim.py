"""Optimisers against plain NumPy, schedules, clipping, and the state that is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.strategies import arrays, non_contiguous, shapes
from tinykron import nn
from tinykron.backend import to_device, to_host
from tinykron.errors import CheckpointError, TinykronError
from tinykron.nn import Module, Parameter
from tinykron.optim import SGD, AdamW, Group, Optimiser, clip_gradients, decay_groups, schedule

FEWER = settings(max_examples=settings().max_examples // 2)
LR, MOMENTUM, BETAS, EPS = 0.05, 0.75, (0.875, 0.96875), 1e-6


class Problem(NamedTuple):
    """Parameters in groups of (weight decay, scale), and the gradients of each parameter at each step."""

    starts: list[np.ndarray]
    groups: list[tuple[float, float, list[int]]]  # decay, scale, which parameters
    gradients: list[list[np.ndarray]]  # [step][parameter]


@st.composite
def problems(draw: Any, dtype: Any = np.float64) -> Problem:
    drawn_shapes = draw(st.lists(shapes(0, 3, max_side=3), min_size=1, max_size=3))
    starts = [draw(arrays(shape, dtype=dtype)) for shape in drawn_shapes]
    steps = draw(st.integers(1, 5))
    gradients = [[draw(arrays(shape, dtype=dtype)) for shape in drawn_shapes] for _ in range(steps)]
    cut = draw(st.integers(0, len(starts)))
    order = draw(st.permutations(range(len(starts))))
    kinds = st.tuples(st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([1.0, 0.25]))
    groups = [(*draw(kinds), list(part)) for part in (order[:cut], order[cut:])]
    return Problem(starts, groups, gradients)


def sgd_reference(p: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    velocity = np.zeros_like(p)
    for g in gradients:
        velocity = MOMENTUM * velocity + g + decay * p
        p = p - lr * velocity
    return p


def adamw_reference(p: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    first, second = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * g
        second = BETAS[1] * second + (1 - BETAS[1]) * g * g
        corrected, spread = first / (1 - BETAS[0] ** t), second / (1 - BETAS[1] ** t)
        p = p - lr * (decay * p + corrected / (np.sqrt(spread) + EPS))
    return p


def make_sgd(parameters: Any, lr: float = LR) -> SGD:
    return SGD(parameters, lr, MOMENTUM)


def make_adamw(parameters: Any, lr: float = LR) -> AdamW:
    return AdamW(parameters, lr, BETAS, EPS)


BOTH = pytest.mark.parametrize(
    ("make", "reference"), [(make_sgd, sgd_reference), (make_adamw, adamw_reference)], ids=["sgd", "adamw"]
)
MAKERS = pytest.mark.parametrize("make", [make_sgd, make_adamw], ids=["sgd", "adamw"])


def run(make: Callable[..., Optimiser], problem: Problem) -> tuple[list[Parameter], Optimiser]:
    parameters = [Parameter(start.copy()) for start in problem.starts]
    groups = [Group([parameters[i] for i in which], decay, scale) for decay, scale, which in problem.groups]
    optimiser = make(groups)
    for gradients in problem.gradients:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = to_device(gradient.copy())
        optimiser.step()
    return parameters, optimiser


def expected(reference: Callable[..., np.ndarray], problem: Problem) -> list[np.ndarray]:
    result = [np.empty(0)] * len(problem.starts)
    for decay, scale, which in problem.groups:
        for i in which:
            gradients = [step[i].astype(np.float64) for step in problem.gradients]
            result[i] = reference(problem.starts[i].astype(np.float64), gradients, LR * scale, decay)
    return result


@BOTH
@given(problem=problems())
def test_updates_follow_the_formula(device, make, reference, problem):
    parameters, optimiser = run(make, problem)
    assert optimiser.steps == len(problem.gradients)
    for parameter, wanted in zip(parameters, expected(reference, problem), strict=True):
        assert_close(parameter, wanted)


@BOTH
@FEWER
@given(problem=problems(np.float32))
def test_float32_stays_float32(device, make, reference, problem):
    parameters, _ = run(make, problem)
    for parameter, wanted in zip(parameters, expected(reference, problem), strict=True):
        assert_close(parameter, wanted.astype(np.float32), atol=1e-5)  # of values up to 4 after sums that cancel


@BOTH
def test_a_parameter_larger_than_a_block(device, make, reference):
    generator = np.random.default_rng(0)
    start, *gradients = generator.standard_normal((4, 300, 700))  # more rows than a block of either optimiser
    problem = Problem([start], [(0.1, 1.0, [0])], [[g] for g in gradients])
    assert_close(run(make, problem)[0][0], expected(reference, problem)[0])


@MAKERS
def test_layout_does_not_matter(device, make):
    """A parameter that lies otherwise in memory than in C order is updated all the same, whenever it came to lie so."""
    array = np.arange(6.0).reshape(2, 3)
    plain = Parameter(array.copy())
    others = [Parameter(view) for view in non_contiguous(to_device(array))]
    late = Parameter(array.copy())
    optimiser = make([plain, *others, late])
    late.data = non_contiguous(late.data)[0]
    for _ in range(2):
        for parameter in (plain, *others, late):
            parameter.grad = to_device(np.ones((3, 2))).T
        optimiser.step()
    assert not np.array_equal(host(plain), array)
    for parameter in (*others, late):
        assert_close(parameter, host(plain))


@MAKERS
def test_a_parameter_without_gradient_is_left_alone(device, make):
    used, unused = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimiser = make([Group([unused, used], weight_decay=0.1)])
    used.grad = to_device(np.ones(2))
    optimiser.step()
    assert_close(unused, np.ones(2))
    assert (host(used) < 1.0).all()


@MAKERS
def test_minimises_a_parabola(device, make):
    parameter = Parameter(np.array([3.0, -2.0]))
    optimiser = make([parameter], 0.02)
    for _ in range(400):
        parameter.grad = None
        ((parameter - 1.0) * (parameter - 1.0)).sum().backward()
        optimiser.step()
    assert_close(parameter, np.ones(2), atol=1e-2)


def test_decay_groups_decay_matrices_alone():
    model = Module()
    model.linear, model.norm, model.table = nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 3)
    decaying, other = decay_groups(model, 0.1)
    assert (decaying.weight_decay, other.weight_decay) == (0.1, 0.0)
    assert [id(p) for p in decaying.parameters] == [id(model.linear.weight), id(model.table.weight)]
    assert [id(p) for p in other.parameters] == [id(model.linear.bias), id(model.norm.weight), id(model.norm.bias)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_groups_keep_their_order_and_settings(order):
    parameters = [Parameter(np.ones(2)), Parameter(np.ones((2, 2)))]
    groups = [Group([parameters[i]], weight_decay=float(i), scale=1.0 + i) for i in order]
    optimiser = SGD(groups, lr=0.125)
    assert optimiser.groups == groups
    assert [array.shape for array in optimiser.state_dict().values()] == [parameters[i].shape for i in order]
    for parameter in parameters:
        parameter.grad = np.ones(parameter.shape)
    optimiser.step()
    assert_close(parameters[0], np.full(2, 1.0 - 0.125))
    assert_close(parameters[1], np.full((2, 2), 1.0 - 0.125 * 2.0 * (1.0 + 1.0)))  # scale 2, gradient and decay 1


@pytest.mark.parametrize("parameters", [[], [Group([])]])
def test_no_parameters_are_refused(parameters):
    with pytest.raises(TinykronError, match="expected parameters"):
        SGD(parameters)


def test_a_parameter_in_two_groups_is_refused():
    parameter = Parameter(np.ones(2))
    with pytest.raises(TinykronError, match="each of them once"):
        AdamW([Group([parameter]), Group([parameter])])


def test_a_negative_learning_rate_is_refused():
    with pytest.raises(TinykronError, match="learning rate: found -0.1"):
        SGD([Parameter(np.ones(2))], lr=-0.1)


# State ----------------------------------------------------------------------------------------------------------------


@MAKERS
@FEWER
@given(problem=problems(np.float32), cut=st.integers(0, 5))
def test_saved_and_loaded_it_continues_identically(device, make, problem, cut):
    straight, _ = run(make, problem)
    parameters, optimiser = run(make, problem._replace(gradients=problem.gradients[:cut]))
    saved = {name: to_host(array).copy() for name, array in optimiser.state_dict().items()}
    again = [Parameter(to_host(p.data).copy()) for p in parameters]
    groups = [Group([again[i] for i in which], decay, scale) for decay, scale, which in problem.groups]
    continued = make(groups)
    continued.load_state_dict(saved, optimiser.steps)
    for gradients in problem.gradients[cut:]:
        for parameter, gradient in zip(again, gradients, strict=True):
            parameter.grad = to_device(gradient)
        continued.step()
    assert continued.steps == len(problem.gradients)
    for one, other in zip(straight, again, strict=True):
        np.testing.assert_array_equal(host(one), host(other))


def test_state_is_named_by_place_and_slot():
    parameters = [Parameter(np.ones(2)), Parameter(np.ones((2, 3)))]
    assert list(SGD(parameters).state_dict()) == ["0.velocity", "1.velocity"]
    shapes = {name: array.shape for name, array in AdamW(parameters).state_dict().items()}
    assert shapes == {"0.first": (2,), "0.second": (2,), "1.first": (2, 3), "1.second": (2, 3)}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"0.velocity": np.ones(3)},
        {"0.first": np.ones(2)},
        {"0.velocity": np.ones(2), "1.velocity": np.ones(2)},
    ],
    ids=["empty", "shape", "name", "extra"],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state):
    optimiser = SGD([Parameter(np.ones(2))])
    with pytest.raises(CheckpointError, match=f"found {len(state)} arrays.*1 expected"):
        optimiser.load_state_dict(state, steps=3)
    assert optimiser.steps == 0
    assert_close(optimiser.state_dict()["0.velocity"], np.zeros(2))


# Clipping -------------------------------------------------------------------------------------------------------------

gradient_lists = st.lists(arrays(shapes(0, 3)), min_size=1, max_size=3)


def with_gradients(gradients: list[np.ndarray]) -> list[Parameter]:
    parameters = [Parameter(np.zeros(gradient.shape)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = to_device(gradient.copy())
    return [*parameters, Parameter(np.zeros(2))]  # the last one has no gradient


@given(gradients=gradient_lists, limit=st.sampled_from([1e-3, 0.5, 1.0, 3.0, 100.0]))
def test_clipping_scales_all_to_the_limit(device, gradients, limit):
    parameters = with_gradients(gradients)
    norm = clip_gradients(parameters, limit)
    assert isinstance(norm, float)
    assert norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients)), rel=1e-12)
    scale = limit / norm if norm > limit else 1.0
    for parameter, gradient in zip(parameters, gradients, strict=False):
        assert_close(parameter.grad, gradient * scale)
    assert parameters[-1].grad is None
    assert clip_gradients(parameters, limit) <= limit * (1 + 1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clipping_leaves_what_is_not_finite_to_the_caller(device, bad):
    gradients = [np.array([3.0, bad]), np.array([4.0])]
    parameters = with_gradients(gradients)
    assert not np.isfinite(clip_gradients(parameters, 1.0))
    for parameter, gradient in zip(parameters, gradients, strict=False):
        np.testing.assert_array_equal(host(parameter.grad), gradient)


def test_clipping_without_gradients_says_what_to_call():
    with pytest.raises(TinykronError, match="call backward first"):
        clip_gradients([Parameter(np.ones(2))], 1.0)


# Schedules ------------------------------------------------------------------------------------------------------------

KINDS = ("constant", "linear", "cosine")


@st.composite
def plans(draw: Any) -> tuple[str, int, int, float]:
    """(kind, steps, warm-up, floor) with at least one step after the warm-up."""
    steps = draw(st.integers(1, 60))
    return draw(st.sampled_from(KINDS)), steps, draw(st.integers(0, steps - 1)), draw(st.sampled_from([0.0, 0.1, 1.0]))


@given(plan=plans())
def test_schedule_at_its_ends(plan):
    kind, steps, warmup, floor = plan
    factor = schedule(*plan)
    assert factor(0) == pytest.approx(1.0 / warmup if warmup else 1.0)
    assert factor(warmup) == pytest.approx(1.0)
    assert factor(steps) == pytest.approx(1.0 if kind == "constant" else floor)
    assert factor(steps + 7) == pytest.approx(factor(steps))  # and stays there


@given(plan=plans())
def test_schedule_rises_then_never_rises_again(plan):
    _, steps, warmup, floor = plan
    values = [schedule(*plan)(step) for step in range(steps + 1)]
    assert (np.diff(values[: warmup + 1]) >= 0).all()
    assert np.allclose(values[:warmup], np.arange(1, warmup + 1) / max(1, warmup))
    assert (np.diff(values[warmup:]) <= 1e-12).all()
    assert all(floor - 1e-12 <= value <= 1 for value in values[warmup:])


def test_schedule_in_between():
    assert [schedule("linear", 4, floor=0.2)(step) for step in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    cosine = [schedule("cosine", 4, floor=0.0)(step) for step in range(5)]
    assert cosine == pytest.approx([1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0])
    assert [schedule("constant", 4, warmup=2, floor=0.5)(step) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_schedule_that_only_warms_up():
    assert [schedule("cosine", 2, warmup=2)(step) for step in range(2)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("step", 10), 'found "step", expected "constant", "linear" or "cosine"'),
        (("linear", 10, 11), "warm-up of 11 steps does not fit into 10"),
        (("linear", 10, -1), "warm-up of -1 steps"),
    ],
)
def test_schedule_refuses(arguments, complaint):
    with pytest.raises(TinykronError, match=complaint):
        schedule(*arguments)

"""Choosing one option for each matrix within budgets, against trying all choices."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.errors import TinykronError
from tinykron.kron.planning import budget
from tinykron.kron.planning.budget import Allocation, BudgetError, Options, allocate


@st.composite
def choices(draw: Any, most: int = 5) -> tuple[list[Options], list[float]]:
    """A few matrices with a few options each, and one or two budgets that all the least costs together meet."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, kinds = draw(st.integers(1, most)), draw(st.integers(1, 2))
    options = []
    for _ in range(count):
        size = int(generator.integers(1, 6))
        costs = generator.integers(1, 30, (kinds, size)).astype(float)
        options.append(Options(100.0 / costs.sum(axis=0) * generator.random(size), costs))
    share = draw(st.floats(0.0, 1.0))
    least, most_cost = (sum(getattr(option.costs, end)(axis=1) for option in options) for end in ("min", "max"))
    return options, list(least + share * (most_cost - least))


def best(options: list[Options], budgets: list[float]) -> float:
    losses = [np.inf]
    for chosen in product(*(range(len(option.loss)) for option in options)):
        costs = sum(option.costs[:, k] for option, k in zip(options, chosen, strict=True))
        if np.all(costs <= budgets):
            losses.append(sum(option.loss[k] for option, k in zip(options, chosen, strict=True)))
    return min(losses)


def check(found: Allocation, options: list[Options], budgets: list[float]) -> None:
    costs = sum(option.costs[:, k] for option, k in zip(options, found.chosen, strict=True))
    assert np.all(costs <= np.asarray(budgets) + 1e-9)
    assert found.loss == pytest.approx(sum(option.loss[k] for option, k in zip(options, found.chosen, strict=True)))
    wanted = best(options, budgets)
    assert found.bound <= wanted * (1 + 1e-9) + 1e-12
    assert found.loss == pytest.approx(wanted) and found.exact and found.gap == 0.0


@given(problem=choices())
def test_the_outcome_is_the_best_of_all(problem: Any) -> None:
    options, budgets = problem
    if np.isinf(best(options, budgets)):  # two budgets, each of which can be met, but not both
        with pytest.raises(TinykronError, match="no choice was found that meets all of them"):
            allocate(options, budgets)
    else:
        check(allocate(options, budgets), options, budgets)


@given(problem=choices())
def test_without_the_finish_no_single_change_that_fits_saves_anything(problem: Any) -> None:
    options, budgets = problem
    if np.isinf(best(options, budgets)):
        return
    try:
        found = allocate(options, budgets, finish=False)
    except TinykronError:
        assert len(budgets) == 2  # prices need not lead to a choice that meets both, where few do
        return
    taken = list(zip(options, found.chosen, strict=True))
    left = np.asarray(budgets) - sum(option.costs[:, k] for option, k in taken)
    assert np.all(left >= 0.0)
    assert found.loss == pytest.approx(sum(option.loss[k] for option, k in taken))
    assert found.bound <= best(options, budgets) * (1 + 1e-9) + 1e-12 and best(options, budgets) <= found.loss + 1e-9
    for option, k in taken:
        fits = np.all(option.costs - option.costs[:, [k]] <= left[:, None], axis=0)
        assert option.loss[fits].min() == option.loss[k]


@pytest.mark.parametrize("wrong", ["dearer", "lossier", "bound"])
def test_the_check_refuses(wrong: str) -> None:
    options = [Options(np.array([3.0, 1.0, 0.0]), np.array([[1.0, 2.0, 9.0]])) for _ in range(2)]
    right = allocate(options, [4.0])
    check(right, options, [4.0])
    spoiled = {
        "dearer": Allocation([2, 2], 0.0, 0.0, True, right.prices),
        "lossier": Allocation([0, 1], 4.0, 0.0, True, right.prices),
        "bound": Allocation(right.chosen, right.loss, 2.5, True, right.prices),
    }[wrong]
    with pytest.raises(AssertionError):
        check(spoiled, options, [4.0])


def test_prices_alone_would_miss_the_best() -> None:
    """The middle option lies above the line between the others: no price makes it the cheapest."""
    options = [Options(np.array([10.0, 7.0, 0.0]), np.array([[0.0, 5.0, 8.0]]))]
    found = allocate(options, [6.0])
    assert found.chosen == [1] and found.loss == 7.0
    assert found.bound < 7.0 and found.exact


def test_a_large_choice_is_near_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    options = []
    for _ in range(40):
        costs = np.sort(generator.integers(100, 10_000, (1, 200)).astype(float))
        options.append(Options(np.sort(generator.random(200))[::-1].copy(), costs))
    limit = 0.4 * sum(float(option.costs.max()) for option in options)
    found = allocate(options, [limit])
    assert 0.0 <= found.loss - found.bound <= 0.001 * found.loss
    for setting, few_states in (("STATES", 3), ("MERGED", 40)):
        with monkeypatch.context() as patch:
            patch.setattr(budget, setting, few_states)
            few = allocate(options, [limit])
        assert few.loss >= found.loss and few.bound == found.bound
        assert not few.exact and few.gap == pytest.approx(1 - few.bound / few.loss)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    options = [Options(np.array([1.0, 0.0]), np.array([[10.0, 20.0], [5.0, 6.0]])) for _ in range(3)]
    with pytest.raises(BudgetError, match="budget 0 of 29 cannot be met: the least is 30") as caught:
        allocate(options, [29.0, 100.0])
    assert (caught.value.number, caught.value.least) == (0, 30.0)
    with pytest.raises(BudgetError, match="budget 1 of 14 cannot be met: the least is 15"):
        allocate(options, [100.0, 14.0])

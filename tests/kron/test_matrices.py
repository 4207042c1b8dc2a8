"""The identities are all held by a test; it is given every kind of matrix; and what compares two sides can refuse."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.kron import test_identities
from tests.kron.fitting import test_identities as test_identities_fit
from tests.kron.operators import test_identities_square
from tests.kron_matrices import LAYOUTS, Matrices, assert_equal, exact, matrices
from tinykron.kron import Kron

TABLES = test_identities, test_identities_square, test_identities_fit
PLACES = {"algebra": "test_algebra", "fit": "fitting.test_nearest", "linear": "test_linear"}
NUMBERS = {*range(1, 59), *range(60, 75), *range(80, 85)}
UNNUMBERED = 3


def claims(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield each identity of the table at a file's head, by number or --, with the test in its last column."""
    yield from re.findall(r"^ ?(\d+|--) .* ([\w.]*test_\w+)$", module.__doc__ or "", re.MULTILINE)


def found(module: ModuleType, test: str) -> Callable[..., Any]:
    """Return the test that a table names. Raises AttributeError where there is none."""
    place, _, name = test.rpartition(".")
    return getattr(importlib.import_module(f"tests.kron.{PLACES[place]}") if place else module, name)


def test_every_identity_has_a_test_that_runs_on_every_device() -> None:
    named = [(number, found(module, test)) for module in TABLES for number, test in claims(module)]
    assert {int(number) for number, _ in named if number != "--"} == NUMBERS
    assert [number for number, _ in named].count("--") == UNNUMBERED
    assert len(named) == len(NUMBERS) + UNNUMBERED == 81
    for number, test in named:
        assert number == "--" or "device" in inspect.signature(test).parameters, test.__name__


def test_every_test_beside_a_table_is_in_it() -> None:
    for module in TABLES:
        tests = {name for name in vars(module) if name.startswith("test_")}
        assert tests - {name for _, name in claims(module)} <= {"test_the_order_of_factors_matters"}


def test_a_test_that_does_not_exist_is_seen() -> None:
    with pytest.raises(AttributeError, match="test_nothing"):
        found(test_identities, "linear.test_nothing")


def test_the_matrices_include_every_kind() -> None:
    seen: list[Matrices] = []

    @given(of=matrices())
    def collect(of: Matrices) -> None:
        assert len({of.m, of.n, of.p, of.q}) == 4
        seen.append(of)

    collect()
    assert {of.dtype for of in seen} == {np.float32, np.float64} and {of.layout for of in seen} == set(range(LAYOUTS))
    assert {of.zero for of in seen} == {False, True}
    assert all(any(getattr(of, size) == 1 for of in seen) for size in "mnpq")


@given(of=matrices())
def test_layouts_hold_the_same_values(device: str, of: Matrices) -> None:
    values = np.float32(of.normal(3, 4))
    placed = of.placed(values)
    assert placed.dtype == of.dtype and np.array_equal(exact(placed), values.astype(of.dtype))
    assert placed.flags.c_contiguous == (of.layout == 0)


# Wrong answers: each must be refused on a generic pair ----------------------------------------------------------------

A, B = (np.random.default_rng(0).standard_normal(shape) for shape in ((2, 5), (3, 4)))
WRONG: dict[str, Callable[[], np.ndarray]] = {
    "swapped factors": lambda: np.kron(B, A),
    "transposed factor": lambda: np.kron(A.reshape(5, 2).T, B),
    "column by column": lambda: np.kron(A, B).T.reshape(6, 20),
    "another sign": lambda: -np.kron(A, B),
    "a digit short": lambda: np.kron(A, B) * (1 + 1e-4),
    "float64": lambda: np.kron(A, B),
    "another shape": lambda: np.float32(np.kron(A, B))[:5],
    "not a number": lambda: np.float32(np.kron(A, B)) * np.float32(np.nan),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_refuses(wrong: str) -> None:
    expected = np.kron(A, B)
    assert_equal(Kron(np.float32(A), np.float32(B)).dense(), expected, np.float32)
    answer = WRONG[wrong]()
    with pytest.raises(AssertionError):
        assert_equal(answer if wrong == "float64" else np.float32(answer), expected, np.float32)


def test_the_comparison_refuses_a_wrong_number() -> None:
    assert_equal(2.0, 2.0 + 1e-14, np.float64)
    for answer in (2.001, -2.0, float("nan"), float("inf")):
        with pytest.raises(AssertionError):
            assert_equal(answer, 2.0, np.float64)

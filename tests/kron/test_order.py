"""Which way to multiply: the choice is the cheapest of its model; measuring is quick and its cache never fatal."""

from __future__ import annotations

import inspect
import json
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.errors import TinykronError
from tinykron.kron import order
from tinykron.kron.order import CostModel, Order, Passes

MEASURED = CostModel(call=2e-6, matrix=1e-7, multiply=2e-11, touch=2e-10, move=5e-10)
SIDES = st.integers(1, 300)
PASSES = get_args(Passes)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A cache folder of our own, nothing known, and measuring switched on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(order.SWITCH, "on")
    order.cost_model.cache_clear()
    order.choose.cache_clear()
    yield tmp_path / "tinykron" / "products.json"
    order.cost_model.cache_clear()
    order.choose.cache_clear()


# The choice -----------------------------------------------------------------------------------------------------------


def check_choice(model: CostModel, a: Any, b: Any, rows: int, passes: Passes, dense: bool) -> None:
    """The chosen order is an allowed one, and no allowed one costs less."""
    costs = model.costs(a, b, rows, passes)
    chosen = model.choose(a, b, rows, passes, dense)
    assert set(costs) == set(get_args(Order))
    assert dense or chosen != "dense"
    assert all(costs[chosen] <= cost for name, cost in costs.items() if dense or name != "dense")


@pytest.mark.parametrize("model", [CostModel(), MEASURED], ids=["multiplications", "measured"])
@given(
    terms=st.integers(1, 16),
    m=SIDES,
    n=SIDES,
    p=SIDES,
    q=SIDES,
    rows=st.sampled_from([0, 1, 16, 128, 4096]),
    passes=st.sampled_from(PASSES),
    dense=st.booleans(),
)
def test_the_choice_is_the_cheapest(model, terms, m, n, p, q, rows, passes, dense):
    check_choice(model, (terms, m, n), (terms, p, q), rows, passes, dense)


class Dearest(CostModel):
    def choose(self, a, b, rows, passes="forward", dense=True):
        costs = self.costs(a, b, rows, passes)
        return max(costs, key=lambda name: costs[name])


class AlwaysDense(CostModel):
    def choose(self, a, b, rows, passes="forward", dense=True):
        return "dense"


@pytest.mark.parametrize(("wrong", "dense"), [(Dearest, True), (AlwaysDense, True), (AlwaysDense, False)])
def test_the_check_refuses_a_wrong_choice(wrong, dense):
    with pytest.raises(AssertionError):
        check_choice(wrong(), (1, 8, 2), (1, 384, 384), 16, "forward", dense)


@given(terms=st.integers(1, 4), m=SIDES, n=SIDES, p=SIDES, q=SIDES, rows=st.sampled_from([1, 7, 200]))
def test_by_default_multiplications_are_counted(terms, m, n, p, q, rows):
    a, b = (terms, m, n), (terms, p, q)
    per_row = {"b_first": (n * p * q, m * n * p), "a_first": (m * p * q, m * n * q)}
    build = terms * m * n * p * q
    forward = {name: rows * terms * sum(both) for name, both in per_row.items()}
    assert CostModel().costs(a, b, rows) == forward | {"dense": build + rows * m * n * p * q}
    # back: each factor's gradient is one product, dX two; Z once more, unless it is no wider than X and Y together
    (b_q, b_m), (a_p, a_n) = per_row.values()
    kept = {"b_first": terms * n * p <= n * q + m * p, "a_first": terms * m * q <= n * q + m * p}
    training = {
        "b_first": rows * terms * (3 * b_q + 3 * b_m + (0 if kept["b_first"] else b_q)),
        "a_first": rows * terms * (3 * a_p + 3 * a_n + (0 if kept["a_first"] else a_n)),
    }
    assert CostModel().costs(a, b, rows, "training") == training | {"dense": 4 * build + 3 * rows * m * n * p * q}


def test_the_order_of_kroneckerbert():
    """Its first MLP matrix: 0.60 M operations with B first against 2.37 M (papers: eq. 7)."""
    costs = CostModel().costs((1, 8, 2), (1, 384, 384), 1)
    assert (costs["b_first"], costs["a_first"]) == (301_056, 1_185_792)
    assert CostModel().choose((1, 8, 2), (1, 384, 384), 1) == "b_first"
    assert CostModel().choose((1, 2, 8), (1, 384, 384), 1) == "a_first"


def test_many_terms_and_rows_are_worth_a_dense_matrix_but_only_where_it_is_allowed():
    a, b = (4, 384, 384), (4, 2, 2)  # as many numbers as the dense matrix, and twice the multiplications
    assert MEASURED.choose(a, b, 1024) == "dense"
    assert MEASURED.choose(a, b, 1024, dense=False) in ("a_first", "b_first")
    assert MEASURED.choose(a, b, 1) in ("a_first", "b_first")


def test_every_run_of_a_dense_matrix_is_paid():
    """A run has Q numbers. With B (3, 3) building it and pulling its gradient back take longer than multiplying."""
    model, a, b = CostModel(multiply=0.0, move=1.0), (4, 1024, 256), (4, 3, 3)
    runs, merge = 1024 * 256 * 3 * order.RUN, 4 * (1024 * 256 + 3 * 3)
    assert model.costs(a, b, 128)["dense"] == merge + runs
    assert model.costs(a, b, 128, "training")["dense"] == 2 * (merge + runs) + runs + 1024 * 256 * 9
    assert MEASURED.choose(a, b, 128, "training") != "dense"
    assert MEASURED.choose(a, b, 1024, "training") == "dense"


def test_arranging_factors_of_several_terms_is_paid_in_each_pass():
    model, a, b = CostModel(multiply=0.0, move=1.0), (3, 40, 30), (3, 20, 50)
    for passes, times in (("forward", 1), ("training", 2)):
        costs = model.costs(a, b, 100, passes)
        assert costs["b_first"] == times * 3 * 40 * 30  # A, side by side
        assert costs["a_first"] == times * 3 * (40 * 30 + 20 * 50)  # and B transposed


def test_a_few_rows_of_several_terms_are_arranged_and_not_the_factors():
    model, large, small = CostModel(multiply=0.0, move=1.0), (4, 384, 192), (4, 2, 16)
    for rows in (1, 3):
        assert model.costs(large, small, rows)["b_first"] == rows * 384 * 2  # Y
        assert model.costs(small, large, rows)["a_first"] == rows * 384 * 2  # Y^T
    assert model.costs(small, large, 1000)["a_first"] == 4 * (384 * 192 + 2 * 16)


def test_each_number_counts():
    shapes = (3, 40, 30), (3, 20, 50), 100
    for passes in PASSES:
        costs = MEASURED.costs(*shapes, passes)
        for name in ("call", "matrix", "multiply", "touch", "move"):
            dearer = replace(MEASURED, **{name: 2 * getattr(MEASURED, name)}).costs(*shapes, passes)
            assert all(dearer[way] > costs[way] for way in costs), name


def test_a_plan_is_an_order_or_chooses_one():
    a, b = (type("Shape", (), {"shape": shape}) for shape in ((4, 384, 384), (4, 2, 2)))
    found = [order.order_of(plan, a, b, 1024, "forward", "cpu") for plan in get_args(order.Wanted)]
    assert found == ["dense", "b_first", "a_first", "b_first", "dense"]
    with pytest.raises(TinykronError, match='order: found "best", expected one of auto, factors'):
        order.checked_order("best")


# Measuring, and the cache ---------------------------------------------------------------------------------------------


def test_what_is_measured_makes_sense(device):
    found = order.measure_machine(device)
    each = inspect.signature(order.measure_machine).parameters["seconds"].default
    assert each * len(fields(found)) < 0.5  # of the second that measuring may take; how long it took is no test
    assert found.call > 0 and found.multiply > 0 and all(value >= 0 for value in astuple(found))
    assert found.multiply * 768 * 768 < 1.0  # seconds, of one row and a dense matrix


def test_switched_off_nothing_is_measured(monkeypatch, empty_cache):
    monkeypatch.setenv(order.SWITCH, "off")
    monkeypatch.setattr(order, "measure_machine", lambda device: pytest.fail("measured"))
    assert order.cost_model("cpu") == CostModel()
    assert not empty_cache.exists()


def test_a_machine_is_measured_once_and_then_read(monkeypatch, empty_cache):
    calls = []
    monkeypatch.setattr(order, "measure_machine", lambda device: calls.append(device) or MEASURED)
    for _ in range(2):
        assert order.cost_model("cpu") == MEASURED
        assert order.choose((1, 8, 2), (1, 384, 384), 1) == "b_first"
        order.cost_model.cache_clear()  # as a new process
        order.choose.cache_clear()
    assert calls == ["cpu"]
    assert list(json.loads(empty_cache.read_text())) == [order.describe("cpu")]
    assert [file.name for file in empty_cache.parent.iterdir()] == ["products.json"]


def test_a_cache_keeps_other_machines(tmp_path):
    path = tmp_path / "deep" / "products.json"
    order.write(path, "one", MEASURED)
    order.write(path, "two", CostModel())
    assert (order.read(path, "one"), order.read(path, "two")) == (MEASURED, CostModel())
    assert order.read(path, "three") is None


BROKEN = ["", "{", "[]", "3", '{"m": 3}', '{"m": {"call": 1}}', '{"m": null}', "\x00\x01"]
NUMBERS = ['"x"', "null", "-1.0", "NaN", "Infinity", "[]"]


@pytest.mark.parametrize("text", BROKEN + [json.dumps({"m": vars(MEASURED)}).replace("5e-10", n) for n in NUMBERS])
def test_a_broken_cache_is_measured_anew_and_replaced(tmp_path, text):
    path = tmp_path / "products.json"
    path.write_text(text)
    assert order.read(path, "m") is None
    order.write(path, "m", MEASURED)
    assert order.read(path, "m") == MEASURED


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "products.json"
    path.write_bytes(b"\xff\xfe\xff")
    assert order.read(path, "m") is None
    order.write(path, "m", MEASURED)
    assert order.read(path, "m") == MEASURED


def test_a_multiplication_never_costs_nothing(tmp_path):
    path = tmp_path / "products.json"
    order.write(path, "m", replace(MEASURED, multiply=0.0))
    assert order.read(path, "m") is None


def test_a_cache_that_cannot_be_written_is_left_alone(monkeypatch, empty_cache):
    empty_cache.parent.write_text("a file where the folder should be")
    monkeypatch.setattr(order, "measure_machine", lambda device: MEASURED)
    assert order.cost_model("cpu") == MEASURED


def test_the_machine_is_described_by_what_the_numbers_depend_on(monkeypatch):
    here = order.describe("cpu")
    assert order.processor() in here and "NumPy" in here and here.endswith("cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert "17 threads" in order.describe("cpu")
    assert order.describe("fake") != order.describe("cpu")

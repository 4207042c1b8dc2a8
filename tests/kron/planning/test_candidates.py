"""All that a matrix can become, against fits made one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import host
from tests.strategies import second_moment
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import TinykronError
from tinykron.kron.algebra import divisors
from tinykron.kron.plan import Choice
from tinykron.kron.planning.candidates import Candidates, _square, candidates, decided, undominated
from tinykron.threads import in_threads


def drawn(rows: int, columns: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)


def plain(w: np.ndarray) -> dict[tuple[tuple[int, int], int], float]:
    """The loss of every shape and number of terms that costs less than the dense matrix."""
    rows, columns = w.shape
    found = {}
    for m in divisors(rows):
        for n in divisors(columns):
            for terms in range(1, min(m * n, w.size // (m * n)) + 1):
                choice = Choice(w.shape, (m, n), terms)
                if choice.parameters < w.size and choice.flops <= 2 * w.size and not choice.is_dense:
                    found[(m, n), terms] = kron.nearest(w, (m, n), terms).error ** 2
    return found


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (6, 20), (7, 4), (5, 3)])
def test_each_option_is_a_fit_and_none_that_matters_is_missing(device: str, rows: int, columns: int) -> None:
    w = drawn(rows, columns)
    found, every = candidates(to_device(w)), plain(w.astype(np.float64))
    assert tuple(found.shapes[-1]) == (rows, columns) and found.loss[-1] == 0.0
    options = list(zip(map(tuple, found.shapes.tolist()), found.terms.tolist(), strict=True))
    for number, (shape, terms) in enumerate(options[:-1]):
        choice = Choice((rows, columns), shape, terms)
        assert (found.parameters[number], found.flops[number]) == (choice.parameters, choice.flops)
        assert found.loss[number] == pytest.approx(every[shape, terms], abs=1e-5)
    for (shape, terms), loss in every.items():
        choice = Choice((rows, columns), shape, terms)
        better = (found.parameters <= choice.parameters) & (found.flops <= choice.flops) & (found.loss <= loss + 1e-5)
        assert better.any(), (shape, terms)


@given(seed=st.integers(0, 2**32 - 1))
def test_low_rank_is_among_them_with_its_exact_loss(device: str, seed: int) -> None:
    w, c = drawn(12, 8, seed), second_moment(np.random.default_rng(seed), 8)
    found = candidates(to_device(w), to_device(c))
    whole = np.trace(w @ c @ w.T)
    for rank in (1, 2, 4):
        error = w - host(kron.low_rank(w, rank, c).dense())
        assert found.low_rank[rank] == pytest.approx(np.trace(error @ c @ error.T) / whole, rel=1e-3, abs=1e-5)
    assert found.low_rank_loss(45) == found.low_rank[2] and found.low_rank_loss(5) == 1.0


@pytest.mark.parametrize("metric", ["none", "inputs", "rows", "both"])
def test_a_tables_rows_keep_their_own_numbers(device: str, metric: str) -> None:
    w, generator = drawn(30, 12), np.random.default_rng(1)
    c = second_moment(generator, 12) if metric in ("inputs", "both") else None
    counts = generator.integers(1, 40, 30).astype(float) if metric in ("rows", "both") else None
    found = candidates(
        to_device(w),
        None if c is None else to_device(c),
        None if counts is None else to_device(counts),
        own_rows=True,
    )
    assert set(found.shapes[:, 0]) == {30}
    for (_, n), terms, loss in zip(found.shapes[:-1], found.terms[:-1], found.loss[:-1], strict=True):
        fit = kron.nearest(w.astype(np.float64), (30, int(n)), int(terms), c, counts, sweeps=0)
        if c is None or n in (1, 12):  # elsewhere the loss is that in the nearest Kronecker metric
            assert loss == pytest.approx(fit.error**2, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("metric", ["none", "inputs", "rows", "both"])
def test_losses_that_are_not_exact_are_known_as_estimates(device: str, metric: str) -> None:
    w, generator = drawn(12, 18), np.random.default_rng(1)
    c = second_moment(generator, 18) if metric in ("inputs", "both") else None
    g = second_moment(generator, 12) if metric in ("rows", "both") else None
    found = candidates(to_device(w), *(None if one is None else to_device(one) for one in (c, g)))
    exact = []
    for (m, n), terms, loss in zip(found.shapes[:-1], found.terms[:-1], found.loss[:-1], strict=True):
        fit = kron.nearest(w.astype(np.float64), (int(m), int(n)), int(terms), c, g, sweeps=0)
        exact.append(loss == pytest.approx(fit.error**2, rel=1e-3, abs=1e-5))
    assert all(exact[i] for i in range(len(exact)) if not found.estimated[i])
    assert found.estimated.any() == (metric != "none") and not found.estimated[-1]
    assert not all(exact) or metric == "none"


def test_estimates_are_corrected_and_what_is_beaten_then_goes() -> None:
    w, c = drawn(12, 18), second_moment(np.random.default_rng(1), 18)
    found = candidates(w, c)
    before = {
        (*shape, terms): loss for shape, terms, loss in zip(found.shapes.tolist(), found.terms, found.loss, strict=True)
    }
    worse = found.corrected(1.5)
    for shape, terms, loss, guess in zip(worse.shapes.tolist(), worse.terms, worse.loss, worse.estimated, strict=True):
        assert loss == (min(1.0, 1.5 * before[*shape, terms]) if guess else before[*shape, terms])
    assert worse.estimated.sum() < found.estimated.sum()
    assert len(undominated(worse.parameters, worse.flops, worse.loss)) == len(worse.loss)
    same = found.corrected(1.0)
    assert np.array_equal(same.loss, found.loss) and np.array_equal(same.shapes, found.shapes)


def test_shapes_slower_than_dense_are_left_out() -> None:
    w = drawn(24, 24)
    found = candidates(w)
    assert found.flops.max() == 2 * w.size and found.parameters.max() == w.size


def losses_by_option(found: Candidates) -> dict[tuple[tuple[int, int], int], float]:
    options = zip(map(tuple, found.shapes.tolist()), found.terms.tolist(), strict=True)
    return dict(zip(options, found.loss.tolist(), strict=True))


def outliers() -> np.ndarray:
    """A matrix of noise in which one sum stands out: where the first bound is far off."""
    generator = np.random.default_rng(3)
    terms = [np.kron(*generator.standard_normal((2, 16, 16))) for _ in range(3)]
    return (generator.standard_normal((256, 256)) + sum(terms)).astype(np.float32)


@pytest.mark.parametrize("metric", ["none", "inputs"])
@pytest.mark.parametrize("kind", ["flat", "outliers"])
def test_bounds_are_bounds_and_hide_nothing(device: str, kind: str, metric: str) -> None:
    w = drawn(256, 256) if kind == "flat" else outliers()
    c = None if metric == "none" else to_device(second_moment(np.random.default_rng(1), 256))
    every, some = (candidates(to_device(w), c, reach=reach) for reach in (0.0, 0.5))
    assert not every.optimistic.any() and some.optimistic.any() and not some.optimistic[-1]
    for needed in (-np.inf, np.inf, None):  # a closer look, then losses
        bounded = some.optimistic
        assert (some.parameters[bounded] < 0.5 * w.size).all() and not (some.shapes[bounded, 1] == 1).any()
        left, exact = losses_by_option(some), losses_by_option(every)
        for (option, loss), parameters, flops in zip(exact.items(), every.parameters, every.flops, strict=True):
            no_worse = (some.parameters <= parameters) & (some.flops <= flops) & (some.loss <= loss + 1e-6)
            assert option in left or some.optimistic[no_worse].any()
        assert all(left[option] <= exact[option] + 1e-6 for option in left.keys() & exact.keys())
        if needed is not None:
            some = decided(some, below(some, needed), to_device(w), c)
    assert left == exact


def below(found: Candidates, loss: float) -> dict[tuple[int, int], np.ndarray]:
    """The shapes that have bounds, all of which matter below this loss."""
    return {(m, n): np.full(1 << 10, loss) for m, n in found.shapes[found.optimistic].tolist()}


def test_a_closer_look_knows_more_where_directions_stand_out() -> None:
    w = outliers()
    first = candidates(w, reach=0.5)
    some = below(first, -np.inf)
    second = decided(first, some, w)
    closer = losses_by_option(second)
    before = {
        option: loss for option, loss in losses_by_option(first).items() if option in closer and option[0] in some
    }
    assert before and all(closer[option] >= loss for option, loss in before.items())
    assert sum(closer[option] > loss + 0.01 for option, loss in before.items()) > 10
    assert second.optimistic.sum() < first.optimistic.sum()  # the others are beaten, it is known now


def test_a_decision_keeps_the_correction_of_estimates() -> None:
    w, c = drawn(256, 256), second_moment(np.random.default_rng(1), 256)
    first = candidates(w, c, reach=0.5).corrected(1.5)
    shape, needed = next(iter(below(first, np.inf).items()))
    settled = decided(first, {shape: needed}, w, c)
    exact = losses_by_option(candidates(w, c))
    mine = {option: loss for option, loss in losses_by_option(settled).items() if option[0] == shape}
    assert settled.ratio == 1.5
    assert all(loss == min(1.0, 1.5 * exact[option]) for option, loss in mine.items() if option in exact)


@given(points=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_undominated(points: list[tuple[int, int, int]]) -> None:
    array = np.array(points, float)
    kept = undominated(*array.T)
    for index, point in enumerate(array):
        others = np.delete(array, index, axis=0)
        dominated = any(np.all(other <= point) and np.any(other < point) for other in others)
        twin_kept = any(np.array_equal(array[other], point) for other in kept)
        assert (index in kept or twin_kept) != dominated
    assert len({tuple(array[index]) for index in kept}) == len(kept)


def test_bad_input_is_refused() -> None:
    with pytest.raises(TinykronError, match="1 of the 12 values of w are NaN"):
        candidates(np.where(np.arange(12) == 5, np.nan, 1.0).reshape(3, 4))
    with pytest.raises(TinykronError, match="covariance: 16 of its 16 values are NaN"):
        candidates(drawn(3, 4), np.full((4, 4), np.nan))


def test_in_threads_keeps_the_order_and_passes_errors_on() -> None:
    assert in_threads(lambda item: item * 2, list(range(50))) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0])


# A first look at large Gram matrices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", ["flat", "falling", "one"])
def test_the_estimate_of_a_grams_square_is_near(device, spectrum):
    generator = np.random.default_rng(5)
    scale = {"flat": np.ones(256), "falling": 0.99 ** np.arange(256), "one": np.eye(256)[0] * 50 + 1}[spectrum]
    r_SL = to_device((scale[:, None] * generator.standard_normal((256, 400))).astype(np.float32), device)
    exact = float(((r_SL @ r_SL.T) ** 2).sum())
    tolerance = {"flat": 0.05, "falling": 0.15, "one": 0.7}[spectrum]  # where one direction stands out it is rough
    assert abs(_square(r_SL) / exact - 1.0) < tolerance


def test_a_sum_that_is_there_is_found_whatever_the_first_look_says(device):
    generator = np.random.default_rng(6)
    a, b = (generator.standard_normal((3, 16, 16)) for _ in range(2))
    noise = 1e-3 * generator.standard_normal((256, 256))
    w = to_device((sum(np.kron(x, y) for x, y in zip(a, b, strict=True)) + noise).astype(np.float32), device)
    found = candidates(w)
    mine = (found.shapes == (16, 16)).all(axis=1) & (found.terms == 3)
    assert found.loss[mine] < 1e-5 and found.low_rank_loss(3 * 512) > 0.5

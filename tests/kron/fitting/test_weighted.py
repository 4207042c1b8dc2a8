"""Fits weighted by data: closed forms, alternating least squares, the order of the terms, certificates.

The reference is the definition, tr(G E C E^T), and plain NumPy that whitens with square roots from eigenvectors.
"""

from __future__ import annotations

import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.strategies import looped_rearrangement, second_moment
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import TinykronError
from tinykron.kron.fitting import als
from tinykron.kron.fitting import metric as metrics
from tinykron.kron.fitting import nearest as kron_nearest


class Problem(NamedTuple):
    """A generic matrix and metrics of its inputs (N, Q) and outputs (M, P)."""

    w: np.ndarray
    sizes: tuple[int, int, int, int]  # M, N, P, Q
    terms: int
    generator: np.random.Generator

    @property
    def shape(self) -> tuple[int, int]:
        return self.sizes[:2]

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        return second_moment(self.generator, self.sizes[1]), second_moment(self.generator, self.sizes[3])

    def outputs(self) -> tuple[np.ndarray, np.ndarray]:
        return second_moment(self.generator, self.sizes[0]), second_moment(self.generator, self.sizes[2])


@st.composite
def problems(draw: Any, least: int = 1, most: int = 5) -> Problem:
    m, n, p, q = draw(st.lists(st.integers(least, most), min_size=4, max_size=4, unique=True))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terms = draw(st.integers(1, min(m * n, p * q)))
    return Problem(generator.standard_normal((m * p, n * q)), (m, n, p, q), terms, generator)


def root(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(s)
    return (vectors * np.sqrt(values)) @ vectors.T


def cost(error: np.ndarray, c: np.ndarray, g: np.ndarray | None = None) -> float:
    return float(np.trace((error if g is None else g @ error) @ c @ error.T))


def tails(problem: Problem, c: tuple, g: tuple | None = None) -> np.ndarray:
    """The least costs for 0, 1, 2, ... terms: what a truncated SVD of the whitened, rearranged matrix leaves."""
    w = problem.w @ np.kron(root(c[0]), root(c[1]))
    w = w if g is None else np.kron(root(g[0]), root(g[1])) @ w
    squares = np.linalg.svd(looped_rearrangement(w, problem.shape), compute_uv=False) ** 2
    return np.append(np.cumsum(squares[::-1])[::-1], 0.0)


def on_device(metric: Any) -> Any:
    return tuple(map(to_device, metric)) if isinstance(metric, tuple) else None if metric is None else to_device(metric)


def nearest(problem: Problem, c: Any = None, g: Any = None, terms: int | None = None, **options: Any) -> kron.KronSum:
    options = {"ridge": 0.0} | options
    w, terms = to_device(problem.w), terms or problem.terms
    return kron.nearest(w, problem.shape, terms, on_device(c), on_device(g), **options)


def left_over(problem: Problem, found: kron.KronSum, c: np.ndarray, g: np.ndarray | None = None) -> float:
    return cost(problem.w - host(found.dense()), c, g)


# Closed forms ---------------------------------------------------------------------------------------------------------


@given(problem=problems())
def test_with_a_kronecker_second_moment_the_cost_is_the_tail(device: str, problem: Problem) -> None:
    c = problem.inputs()
    found, wanted = nearest(problem, c), tails(problem, c)
    assert left_over(problem, found, np.kron(*c)) == pytest.approx(
        wanted[problem.terms], rel=1e-6, abs=1e-9 * wanted[0]
    )
    assert found.error == pytest.approx(np.sqrt(wanted[problem.terms] / wanted[0]), rel=1e-6, abs=1e-7)
    assert found.energy == pytest.approx(np.sqrt(1 - wanted[problem.terms] / wanted[0]), rel=1e-6, abs=1e-7)


@given(problem=problems())
def test_its_first_terms_are_the_best_so_many(problem: Problem) -> None:
    c = problem.inputs()
    found, wanted = nearest(problem, c), tails(problem, c)
    for terms in range(1, problem.terms + 1):
        part = kron.KronSum(found.a[:terms], found.b[:terms])
        assert left_over(problem, part, np.kron(*c)) == pytest.approx(wanted[terms], rel=1e-5, abs=1e-8 * wanted[0])


@given(problem=problems(), data=st.data())
def test_where_one_factor_sees_no_inputs_any_second_moment_has_a_closed_form(problem: Problem, data: Any) -> None:
    m, _, p, q = problem.sizes
    size = q * problem.sizes[1]
    c = second_moment(problem.generator, size)
    split = data.draw(st.sampled_from([(m, 1), (m, size)]))
    limit = min(split[0] * split[1], problem.w.size // (split[0] * split[1]))
    one = Problem(problem.w, (*split, p, size // split[1]), min(problem.terms, limit), problem.generator)
    pair = (np.eye(1), c) if split[1] == 1 else (c, np.eye(1))
    found, wanted = nearest(one, c), tails(one, pair)
    assert left_over(one, found, c) == pytest.approx(wanted[one.terms], rel=1e-6, abs=1e-9 * wanted[0])


@pytest.mark.parametrize("rows", [7, 3])  # a tall matrix goes through its Gram matrix, a wide one does not
def test_low_rank_weighted_by_inputs_is_svd_llm(device: str, rows: int) -> None:
    generator = np.random.default_rng(0)
    w, c = generator.standard_normal((rows, 5)), second_moment(generator, 5)
    lower = np.linalg.cholesky(c)
    u, s, vt = np.linalg.svd(w @ lower, full_matrices=False)
    svd_llm = (u[:, :2] * s[:2]) @ vt[:2] @ np.linalg.inv(lower)
    found = kron.nearest(to_device(w), (rows, 1), 2, to_device(c), ridge=0.0)
    assert_close(found.dense(), svd_llm, rtol=1e-7, atol=1e-8)


@given(problem=problems())
def test_two_sided(device: str, problem: Problem) -> None:
    c, g = problem.inputs(), problem.outputs()
    found, wanted = nearest(problem, c, g), tails(problem, c, g)
    least = pytest.approx(wanted[problem.terms], rel=1e-5, abs=1e-8 * wanted[0])
    assert left_over(problem, found, np.kron(*c), np.kron(*g)) == least
    assert found.error == pytest.approx(np.sqrt(wanted[problem.terms] / wanted[0]), rel=1e-5, abs=1e-6)


@given(problem=problems(least=2))
def test_an_output_metric_that_is_no_product_is_measured_as_it_is(problem: Problem) -> None:
    g = second_moment(problem.generator, len(problem.w))
    found = nearest(problem, None, g)
    whole = cost(problem.w, np.eye(problem.w.shape[1]), g)
    assert found.error is not None
    assert found.error**2 == pytest.approx(left_over(problem, found, np.eye(problem.w.shape[1]), g) / whole, abs=1e-9)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("general", [False, True])
def test_a_table_weighted_by_how_often_its_rows_occur(device: str, width: int, general: bool) -> None:
    generator = np.random.default_rng(0)
    table, counts = generator.standard_normal((30, 4)), generator.integers(0, 50, 30) + 1.0
    c = second_moment(generator, 4) if general else None
    found = kron.nearest(to_device(table), (30, width), 1, on_device(c), to_device(counts), ridge=0.0)
    roots = np.sqrt(counts)[:, None]  # without the shortcut: each row scaled, and scaled back
    scaled = kron.nearest(roots * table, (30, width), 1, c, ridge=0.0)
    exact = not general or width in (1, 4)  # else found by sweeps, which end where they gain little
    assert found.error == pytest.approx(scaled.error, rel=1e-9 if exact else 1e-5)
    rtol, atol = (1e-7, 1e-9) if exact else (1e-3, 1e-4)
    assert_close(found.dense(), scaled.dense() / roots, rtol=rtol, atol=atol)


def test_rows_that_never_occur_are_fitted_from_the_others() -> None:
    generator = np.random.default_rng(0)
    table, counts = generator.standard_normal((9, 4)), np.append(np.zeros(1), np.ones(8))
    found = kron.nearest(table, (9, 1), 2, output=counts, ridge=0.0)
    _, _, vt = np.linalg.svd(table[1:], full_matrices=False)
    assert_close(found.dense(), table @ vt[:2].T @ vt[:2], atol=1e-7)  # all rows on what spans the ones that occur best


# Alternating least squares --------------------------------------------------------------------------------------------


@given(problem=problems(least=2, most=5))
def test_the_cost_never_rises_and_ends_below_both_closed_forms(device: str, problem: Problem) -> None:
    c = second_moment(problem.generator, problem.w.shape[1])
    plain, closed = nearest(problem), nearest(problem, c, sweeps=0)
    found = nearest(problem, c, sweeps=30)
    limit = min(left_over(problem, plain, c), left_over(problem, closed, c))
    whole = cost(problem.w, c)
    assert left_over(problem, found, c) <= limit + 1e-9 * whole
    assert found.error is not None
    assert found.error**2 == pytest.approx(left_over(problem, found, c) / whole, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("unknowns", [1, 6, 512])  # one term at a time, groups, all at once
@pytest.mark.parametrize("numbers", [1, 150, 1 << 22])  # one term at a time, two, all
def test_each_sweep_is_at_least_as_good_in_groups_and_at_once(
    device: str, unknowns: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(als, "UNKNOWNS", unknowns)
    monkeypatch.setattr(als, "NUMBERS", numbers)
    generator = np.random.default_rng(0)
    w, c = generator.standard_normal((12, 20)), second_moment(generator, 20)
    start = kron.nearest(w, (3, 4), 4)
    arrays = map(to_device, (w, c, start.a, start.b))
    a, b, costs = als.alternate(*arrays, sweeps=60, tolerance=1e-10)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in zip(costs, costs[1:], strict=False))
    end = w - host(kron.KronSum(a, b).dense())
    assert costs[-1] == pytest.approx(cost(end, c))
    assert costs[-1] < 0.5 * costs[0]
    gradient = looped_rearrangement(
        end @ c, (3, 4)
    )  # of the cost, up to a factor: orthogonal to every change of a factor
    scale = np.linalg.norm(looped_rearrangement(w @ c, (3, 4)))
    assert np.abs(gradient @ host(b).reshape(4, -1).T).max() < 1e-2 * scale
    solved_last = host(a).reshape(4, -1).T[:, -1]
    assert np.abs(gradient.T @ solved_last).max() < 1e-9 * scale * np.abs(solved_last).max()


@pytest.mark.parametrize(("sizes", "terms"), [((3, 4), 1), ((1, 4), 2), ((3, 4), 4)])
def test_the_factors_to_start_from_stay_as_they_are(device: str, sizes: tuple[int, int], terms: int) -> None:
    generator = np.random.default_rng(0)
    w, c = generator.standard_normal((12, 20)), second_moment(generator, 20)
    start = kron.nearest(w, sizes, terms)
    a, b = to_device(start.a), to_device(start.b)
    als.alternate(to_device(w), to_device(c), a, b, 2, 0.0)
    assert np.array_equal(host(a), start.a) and np.array_equal(host(b), start.b)


def test_many_terms_of_a_large_matrix_take_little_memory() -> None:
    generator = np.random.default_rng(0)
    w, c = generator.standard_normal((96, 256)), second_moment(generator, 256)
    a, b = generator.standard_normal((120, 48, 4)), generator.standard_normal((120, 2, 64))
    tracemalloc.start()
    als.alternate(w, c, a, b, 1, 0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * (6 * als.NUMBERS + 12 * (w.size + c.size)) < 8 * 120**2 * 64**2 / 2  # of all pairs together


@given(problem=problems())
def test_from_the_closed_form_of_a_kronecker_moment_there_is_nothing_to_gain(problem: Problem) -> None:
    c = problem.inputs()
    best = nearest(problem, c)
    costs = als.alternate(problem.w, np.kron(*c), best.a, best.b, 5, 0.0)[2]
    assert costs[-1] >= costs[0] * (1 - 1e-6) - 1e-9 * cost(problem.w, np.kron(*c))
    for _ in range(3):
        start = (problem.generator.standard_normal(factor.shape) for factor in (best.a, best.b))
        other = als.alternate(problem.w, np.kron(*c), *start, 30, 0.0)[2]
        assert other[-1] >= costs[0] * (1 - 1e-6) - 1e-9 * cost(problem.w, np.kron(*c))


@given(problem=problems(least=2, most=5))
def test_its_terms_are_in_order(problem: Problem) -> None:
    """The first k are the best k of the sum, in the metric of the product nearest to C."""
    c = second_moment(problem.generator, problem.w.shape[1])
    found = nearest(problem, c)
    near = metrics.split(c, (problem.shape[1], problem.sizes[3]))
    pair = near.first, near.second
    whole = Problem(host(found.dense()), problem.sizes, problem.terms, problem.generator)
    wanted = tails(whole, pair)
    for terms in range(1, problem.terms + 1):
        part = kron.KronSum(found.a[:terms], found.b[:terms])
        kept = cost(whole.w - part.dense(), np.kron(*pair))
        assert kept == pytest.approx(wanted[terms], rel=1e-5, abs=1e-7 * wanted[0])


@given(problem=problems(least=2, most=5))
def test_a_singular_moment_leaves_directions_free_and_a_ridge_does_not(problem: Problem) -> None:
    c = second_moment(problem.generator, problem.w.shape[1], rank=2)
    free, held = nearest(problem, c), nearest(problem, c, ridge=1e-3)
    for found in (free, held):
        assert np.isfinite(found.dense()).all()
        assert left_over(problem, found, c) <= left_over(problem, nearest(problem), c) * (1 + 1e-2) + 1e-9
    plain = np.linalg.norm(problem.w)
    assert np.linalg.norm(held.dense()) < 50 * plain


@given(problem=problems(least=2, most=5))
def test_a_diagonal_is_fitted_as_the_matrix_that_it_stands_for(device: str, problem: Problem) -> None:
    c = problem.generator.uniform(0.1, 3.0, problem.w.shape[1])
    found, wanted = nearest(problem, c, certify=True), nearest(problem, np.diag(c), certify=True)
    assert found.bounds is not None and found.bounds[0] <= found.error * (1 + 1e-6) + 1e-9
    whole = cost(problem.w, np.diag(c))
    assert found.error**2 == pytest.approx(left_over(problem, found, np.diag(c)) / whole, rel=1e-6, abs=1e-12)
    assert found.error == pytest.approx(wanted.error, rel=1e-2, abs=1e-6)


# Certificates ---------------------------------------------------------------------------------------------------------


def check_bounds(problem: Problem, two_sided: bool) -> None:
    """Assert that no way of fitting gets below the lower bound, and that the closed form keeps the upper one."""
    c = second_moment(problem.generator, problem.w.shape[1])
    g = problem.outputs() if two_sided else None
    dense_g = None if g is None else np.kron(*g)
    found = nearest(problem, c, g, certify=True, sweeps=100)
    assert found.bounds is not None and found.error is not None
    low, high = found.bounds
    closed = nearest(problem, c, g, sweeps=0)
    whole = cost(problem.w, c, dense_g)
    assert low <= found.error * (1 + 1e-6) + 1e-9
    assert np.sqrt(left_over(problem, closed, c, dense_g) / whole) <= high * (1 + 1e-6) + 1e-9
    for _ in range(2 if g is None else 0):  # no other start finds anything below the bound
        start = (problem.generator.standard_normal(factor.shape) for factor in (found.a, found.b))
        other = als.alternate(problem.w, c, *start, 60, 0.0)[2][-1]
        assert low <= np.sqrt(other / whole) * (1 + 1e-6) + 1e-9


@settings(max_examples=15)
@given(problem=problems(least=2, most=5), two_sided=st.booleans())
def test_the_bounds_hold_the_best_error(problem: Problem, two_sided: bool) -> None:
    check_bounds(problem, two_sided)


@given(seed=st.integers(0, 2**32 - 1))
def test_loewner_bounds_are_the_extreme_generalised_eigenvalues(device: str, seed: int) -> None:
    c = second_moment(np.random.default_rng(seed), 12)
    for given_c in (c, np.diagonal(c)):
        near = metrics.split(to_device(given_c), (3, 4))
        low, high = kron_nearest.loewner(to_device(given_c), near, metrics.Root(near.first), metrics.Root(near.second))
        k = np.kron(host(near.first), host(near.second))
        values = scipy.linalg.eigvalsh(given_c, k) if given_c.ndim == 2 else np.sort(given_c / k)
        assert (low, high) == pytest.approx((values[0], values[-1]), rel=1e-5)


@given(problem=problems())
def test_the_bounds_meet_where_the_fit_is_exact(problem: Problem) -> None:
    found = nearest(problem, problem.inputs(), certify=True)
    assert found.bounds == (found.error, found.error)


@pytest.mark.parametrize("wrong", [lambda low, high: (high, low), lambda low, high: (1 / low, high), lambda *_: (1, 1)])
def test_the_check_of_bounds_refuses(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kron_nearest.loewner
    problem = Problem(np.random.default_rng(0).standard_normal((6, 20)), (2, 4, 3, 5), 2, np.random.default_rng(1))
    check_bounds(problem, two_sided=False)
    monkeypatch.setattr(kron_nearest, "loewner", lambda *arguments: wrong(*right(*arguments)))
    with pytest.raises(AssertionError):
        check_bounds(problem, two_sided=False)


# Dtypes, devices, bad input -------------------------------------------------------------------------------------------


@given(problem=problems(most=4))
def test_float32_weights_are_fitted_in_float64(device: str, problem: Problem) -> None:
    c = second_moment(problem.generator, problem.w.shape[1])
    exact = nearest(problem, c)
    small = kron.nearest(to_device(np.float32(problem.w)), problem.shape, problem.terms, to_device(c), ridge=0.0)
    assert small.a.dtype == small.b.dtype == np.float32
    assert small.error == pytest.approx(exact.error, rel=1e-2, abs=1e-4)


@given(problem=problems())
def test_factors_share_the_scale_and_b_has_a_sign(device: str, problem: Problem) -> None:
    found = nearest(problem, second_moment(problem.generator, problem.w.shape[1]))
    a, b = host(found.a), host(found.b)
    assert_close(np.linalg.norm(a, axis=(1, 2)), np.linalg.norm(b, axis=(1, 2)), rtol=1e-6, atol=1e-9)
    for b_PQ in b:
        large = b_PQ.ravel()[np.abs(b_PQ.ravel()) >= 0.5 * np.abs(b_PQ).max()]
        assert large[0] >= 0.0


def test_a_zero_matrix_and_bad_values() -> None:
    c = second_moment(np.random.default_rng(0), 20)
    found = kron.nearest(np.zeros((6, 20)), (2, 5), 2, c)
    assert (found.error, found.energy) == (0.0, 1.0) and not found.dense().any()
    with pytest.raises(TinykronError, match="1 of the 120 values of w are NaN"):
        kron.nearest(np.where(np.arange(120) == 3, np.nan, 1.0).reshape(6, 20), (2, 5), 1, c)


def test_the_sweeps_end_where_they_gain_little() -> None:
    generator = np.random.default_rng(0)
    w, c = generator.standard_normal((12, 20)), second_moment(generator, 20)
    start = kron.nearest(w, (3, 4), 2)
    many = als.alternate(w, c, start.a, start.b, 50, 0.0)[2]
    few = als.alternate(w, c, start.a, start.b, 50, 1e-2)[2]
    assert len(few) < len(many) and few == many[: len(few)]
    assert kron_nearest.SWEEPS < 50


@pytest.mark.parametrize(("work", "wanted"), [(1 << 40, [7]), (2 * (12 * 3) ** 2 * 4, [4]), (1, [])])
def test_large_sums_get_fewer_sweeps(monkeypatch, work, wanted):
    generator = np.random.default_rng(0)
    w, covariance = generator.standard_normal((8, 12)), second_moment(generator, 12)
    seen = []

    def counting(w, c, a, b, sweeps, tolerance, cost):
        seen.append(sweeps)
        return als.alternate(w, c, a, b, sweeps, tolerance, cost)

    monkeypatch.setattr(kron_nearest, "WORK", work)
    monkeypatch.setattr(kron_nearest, "alternate", counting)
    kron.nearest(w, (4, 3), terms=3, covariance=covariance, sweeps=7)
    assert seen == wanted

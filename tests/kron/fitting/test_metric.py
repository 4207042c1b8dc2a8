"""Second moments as metrics: their checks, their Kronecker factors, their roots, and what an error costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.strategies import second_moment
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.fitting import metric as metrics

seeds = st.integers(0, 2**32 - 1)
sizes = st.lists(st.integers(1, 5), min_size=2, max_size=2, unique=True).map(tuple)


@given(seed=seeds, sizes=sizes)
def test_a_metric_of_one_size_is_exact(device: str, seed: int, sizes: tuple[int, int]) -> None:
    s = to_device(second_moment(np.random.default_rng(seed), sizes[0]))
    for place, wanted in (((1, sizes[0]), (None, s)), ((sizes[0], 1), (s, None))):
        found = metrics.split(s, place)
        assert found.exact
        assert sizes[0] == 1 or (found.first is wanted[0] and found.second is wanted[1])


@given(seed=seeds, sizes=st.lists(st.integers(2, 5), min_size=2, max_size=2, unique=True).map(tuple))
def test_a_pair_is_exact_at_its_own_sizes_and_split_anew_at_others(seed: int, sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    pair = tuple(second_moment(generator, size) for size in sizes)
    found = metrics.split(pair, sizes)
    assert found.exact and found.first is pair[0] and found.second is pair[1]
    whole = metrics.split(pair, (1, sizes[0] * sizes[1]))
    assert whole.exact and whole.second is not None
    assert_close(whole.second, np.kron(*pair))


@given(seed=seeds, sizes=st.lists(st.integers(2, 5), min_size=2, max_size=2, unique=True).map(tuple))
def test_the_nearest_factors_are_those_of_the_rearranged_matrix(device: str, seed: int, sizes: tuple[int, int]) -> None:
    s = second_moment(np.random.default_rng(seed), sizes[0] * sizes[1])
    found = metrics.split(to_device(s), sizes)
    first, second = host(found.first), host(found.second)
    best = kron.nearest(s, (sizes[0], sizes[0]))
    assert not found.exact
    assert_close(np.kron(first, second), best.dense(), rtol=1e-6, atol=1e-7 * np.abs(s).max())
    assert np.linalg.eigvalsh(first)[0] > 0.0 and np.linalg.eigvalsh(second)[0] > 0.0


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_factors_in_float32_hold_moments_of_any_size(device: str, scale: float) -> None:
    """Some models have activations of 10^4 and more; sums of squares of their second moments left float32's range."""
    s = second_moment(np.random.default_rng(0), 12)
    found = metrics.split(to_device((scale * s).astype(np.float32)), (3, 4))
    best = kron.nearest(s, (3, 3)).dense()
    found_S = np.kron(host(found.first).astype(float), host(found.second)) / scale
    assert_close(found_S, best, rtol=1e-3, atol=1e-4 * np.abs(s).max())


@given(seed=seeds)
def test_the_nearest_factors_of_a_diagonal(device: str, seed: int) -> None:
    d = np.random.default_rng(seed).random(12) + 0.1
    found = metrics.split(to_device(d), (3, 4))
    u, s, vt = np.linalg.svd(d.reshape(3, 4))
    assert_close(np.kron(host(found.first), host(found.second)), np.kron(u[:, 0] * s[0], vt[0]), rtol=1e-7)


@given(seed=seeds, size=st.integers(1, 6))
def test_a_root_is_a_root_and_its_inverse(device: str, seed: int, size: int) -> None:
    s = second_moment(np.random.default_rng(seed), size)
    for given_s in (s, np.diagonal(s)):
        found = metrics.Root(to_device(given_s))
        root, inverse = host(found.root), host(found.inverse)
        if given_s.ndim == 1:
            root, inverse = np.diag(root), np.diag(inverse)
        assert_close(root @ root.T, s if given_s.ndim == 2 else np.diag(np.diagonal(s)))
        assert_close(root @ inverse, np.eye(size), atol=1e-7)


@pytest.mark.parametrize("rows", [1, 3, 256])
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_the_inverse_of_a_root_by_halves(device: str, size: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", rows)
    s = second_moment(np.random.default_rng(0), size)
    checked = metrics.checked(to_device(s), size, "s", to_device(s), 0.25)
    assert_close(checked, s + 0.25 * np.trace(s) / size * np.eye(size))
    found = metrics.Root(checked)
    assert_close(host(found.inverse) @ host(found.root), np.eye(size), atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 256])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 1), (16, 3), (16, 20)])
def test_division_by_a_root_needs_no_inverse(
    device: str, size: int, count: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "ROWS", rows)
    s = to_device(second_moment(np.random.default_rng(0), size))
    found = metrics.Root(metrics.checked(s, size, "s", s, 0.25))
    x = np.random.default_rng(1).standard_normal((2, count, size))
    assert_close(host(found.divide(to_device(x))) @ host(found.root), x, atol=1e-9)


def test_division_by_no_root_a_diagonal_and_a_singular_one(device: str) -> None:
    x = np.ones((1, 2))
    assert metrics.Root(None).divide(x) is x
    assert_close(metrics.Root(to_device(np.array([4.0, 0.0]))).divide(to_device(x)), np.array([[0.5, 0.0]]))
    found = metrics.Root(to_device(np.array([[4.0, 0.0], [0.0, 0.0]])))
    assert_close(host(found.divide(to_device(x))), x @ host(found.inverse))


@pytest.mark.parametrize("rank", [1, 2])
def test_a_singular_metric_has_a_pseudo_inverse(device: str, rank: int) -> None:
    s = second_moment(np.random.default_rng(0), 5, rank)
    found = metrics.Root(to_device(s))
    root, inverse = host(found.root), host(found.inverse)
    assert_close(root @ root.T, s, atol=1e-9)
    assert_close(inverse, np.linalg.pinv(root, rcond=1e-6), rtol=1e-6, atol=1e-7)
    diagonal = metrics.Root(to_device(np.array([4.0, 0.0])))
    assert_close(diagonal.root, [2.0, 0.0])
    assert_close(diagonal.inverse, [0.5, 0.0])


@given(seed=seeds, sizes=sizes)
def test_times_is_the_product_with_the_dense_matrix(device: str, seed: int, sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((3, 2, sizes[0] * sizes[1]))
    parts = [[None, generator.random(size), generator.standard_normal((size, size))] for size in sizes]
    for first in parts[0]:
        for second in parts[1]:
            dense = [
                np.eye(size) if part is None else np.diag(part) if part.ndim == 1 else part
                for part, size in zip((first, second), sizes, strict=True)
            ]
            on_device = [None if part is None else to_device(part) for part in (first, second)]
            assert_close(metrics.times(to_device(x), *on_device, sizes), x @ np.kron(*dense), atol=1e-11)


@given(seed=seeds)
def test_the_cost_is_its_definition(device: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    error = generator.standard_normal((6, 4))
    c, g, d = second_moment(generator, 4), second_moment(generator, 6), generator.random(6)
    pair = second_moment(generator, 2), second_moment(generator, 2)

    def cost(covariance: Any, output: Any) -> float:
        on_device = [
            tuple(map(to_device, metric))
            if isinstance(metric, tuple)
            else None
            if metric is None
            else to_device(metric)
            for metric in (covariance, output)
        ]
        return metrics.cost(to_device(error), *on_device)

    assert cost(None, None) == pytest.approx((error**2).sum())
    assert cost(c, None) == pytest.approx(np.trace(error @ c @ error.T))
    assert cost(pair, g) == pytest.approx(np.trace(g @ error @ np.kron(*pair) @ error.T))
    assert cost(c, d) == pytest.approx(np.trace(np.diag(d) @ error @ c @ error.T))


def test_a_ridge_is_a_share_of_the_mean_diagonal() -> None:
    s = np.diag([1.0, 3.0])
    assert_close(metrics.checked(s, 2, "covariance", s, 0.1), np.diag([1.2, 3.2]))
    assert_close(metrics.checked(np.array([1.0, 3.0]), 2, "output", s, 0.1), [1.2, 3.2])
    assert_close(metrics.checked(np.float32(s), 2, "covariance", s, 0.0), s)
    assert metrics.checked(None, 2, "covariance", s, 0.1) is None


@pytest.mark.parametrize(
    ("metric", "kind", "message"),
    [
        (np.eye(3), ShapeError, r"covariance: found shape \(3, 3\), expected \(4, 4\), or \(4,\)"),
        (np.ones(3), ShapeError, r"found shape \(3,\)"),
        ((np.eye(2), np.eye(3)), ShapeError, "factors of 2 and 3, expected 4 together"),
        (np.full((4, 4), np.nan), TinykronError, "covariance: 16 of its 16 values are NaN or infinite"),
        (np.triu(np.ones((4, 4))), TinykronError, "expected a symmetric matrix"),
        (np.diag([1.0, 1.0, 1.0, -1.0]), TinykronError, "expected a diagonal from 0 on, not all 0; found -1 to 1"),
        (np.zeros(4), TinykronError, "not all 0"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(device: str, metric: Any, kind: Any, message: str) -> None:
    on_device = tuple(map(to_device, metric)) if isinstance(metric, tuple) else to_device(metric)
    with pytest.raises(kind, match=message):
        kron.nearest(to_device(np.ones((6, 4))), (3, 2), covariance=on_device)


def test_a_metric_on_another_device_is_refused() -> None:
    with pytest.raises(TinykronError, match="output: lies on another device"):
        kron.nearest(np.ones((6, 4)), (3, 2), output=to_device(np.ones(6), "fake"))

"""The nearest sum of Kronecker products, and the yardstick of a Gaussian matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.strategies import Fit, KronPair, fits, kron_pairs, looped_rearrangement, non_contiguous
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import DtypeError, ShapeError, TinykronError
from tinykron.kron.fitting import svd

DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@given(pair=kron_pairs(max_terms=1))
def test_nearest_finds_a_true_product(device: str, dtype: Any, pair: KronPair) -> None:
    w = pair.dense().astype(dtype)
    found = kron.nearest(to_device(w), pair.a_RMN.shape[1:])
    assert_close(found.dense(), w, rtol=0.0, atol=30 * np.finfo(dtype).eps * max(1.0, float(np.abs(w).max())))
    assert found.error is not None and found.error < 1e-7


@given(fit=fits(), data=st.data())
def test_the_error_is_the_tail_of_the_singular_values(device: str, fit: Fit, data: Any) -> None:
    terms = data.draw(st.integers(1, fit.limit))
    s = np.linalg.svd(looped_rearrangement(fit.w, fit.shape), compute_uv=False)
    found = kron.nearest(to_device(fit.w), fit.shape, terms)
    norm = np.linalg.norm(fit.w)
    assert found.error == pytest.approx(np.linalg.norm(s[terms:]) / norm, rel=1e-10, abs=1e-13)
    assert found.energy == pytest.approx(np.linalg.norm(s[:terms]) / norm, rel=1e-10)
    assert np.linalg.norm(host(found.dense()) - fit.w) / norm == pytest.approx(found.error, rel=1e-9, abs=1e-13)
    assert np.linalg.norm(host(found.dense())) / norm == pytest.approx(found.energy, rel=1e-10)


@given(fit=fits(), data=st.data())
def test_float32_is_as_good_as_its_rounding(device: str, fit: Fit, data: Any) -> None:
    terms = data.draw(st.integers(1, fit.limit))
    exact, found = kron.nearest(fit.w, fit.shape, terms), kron.nearest(to_device(np.float32(fit.w)), fit.shape, terms)
    assert found.a.dtype == found.b.dtype == np.float32
    assert found.error == pytest.approx(exact.error, rel=1e-6, abs=1e-7)
    residual = np.linalg.norm(host(found.dense()) - fit.w) / np.linalg.norm(fit.w)
    assert residual == pytest.approx(exact.error, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shape", [(600, 2000), (2, 1)])  # a tall rearrangement, and a wide one
def test_a_matrix_read_in_several_slabs(device: str, shape: tuple[int, int]) -> None:
    w = np.random.default_rng(0).standard_normal((1200, 2000), dtype=np.float32)
    assert w.size > 2 * svd.SLAB_ELEMENTS
    found, exact = kron.nearest(to_device(w), shape), kron.nearest(w.astype(np.float64), shape)
    assert found.error == pytest.approx(exact.error, rel=1e-6)
    assert_close(found.dense(), np.float32(exact.dense()), atol=1e-5)


@given(fit=fits())
def test_the_first_terms_are_the_best_so_many_terms(fit: Fit) -> None:
    every = kron.nearest(fit.w, fit.shape, fit.limit)
    norms = np.linalg.norm(every.a, axis=(1, 2))
    assert np.all(norms[:-1] >= norms[1:])
    for terms in range(1, fit.limit + 1):
        nested = kron.KronSum(every.a[:terms], every.b[:terms])
        assert_close(nested.dense(), kron.nearest(fit.w, fit.shape, terms).dense(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@given(fit=fits())
def test_enough_terms_give_any_matrix(device: str, dtype: Any, fit: Fit) -> None:
    w = fit.w.astype(dtype)
    found = kron.nearest(to_device(w), fit.shape, fit.limit)
    assert_close(found.dense(), w, atol=1e-5 if dtype == np.float32 else 1e-12)
    assert found.error == 0.0 and found.energy == 1.0


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_low_rank_is_a_column_times_a_row(terms: int) -> None:
    w = np.random.default_rng(0).standard_normal((8, 6))
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    found = kron.nearest(w, (8, 1), terms)
    assert found.b.shape == (terms, 1, 6)
    assert_close(found.dense(), (u[:, :terms] * s[:terms]) @ vt[:terms], atol=1e-12)


@given(fit=fits(), data=st.data())
def test_the_residual_is_orthogonal_to_every_change_of_a_factor(fit: Fit, data: Any) -> None:
    found = kron.nearest(fit.w, fit.shape, data.draw(st.integers(1, fit.limit)))
    residual = looped_rearrangement(fit.w - found.dense(), fit.shape)
    assert np.abs(residual @ found.b.reshape(found.terms, -1).T).max() < 1e-10
    assert np.abs(residual.T @ found.a.reshape(found.terms, -1).T).max() < 1e-10


@pytest.mark.parametrize("dtype", DTYPES)
@given(fit=fits())
def test_factors_share_the_scale_and_b_has_a_sign(dtype: Any, fit: Fit) -> None:
    found = kron.nearest(fit.w.astype(dtype), fit.shape, fit.limit)
    scale = np.linalg.norm(found.a, axis=(1, 2))
    assert_close(np.linalg.norm(found.b, axis=(1, 2)), scale, rtol=1e-5, atol=1e-6)
    for b_PQ in found.b:
        large = b_PQ.ravel()[np.abs(b_PQ.ravel()) >= 0.5 * np.abs(b_PQ).max()]
        assert large[0] > 0.0
    opposite = kron.nearest(-fit.w.astype(dtype), fit.shape)
    assert_close(opposite.b, found.b[:1], rtol=1e-4, atol=1e-5)


@given(fit=fits())
def test_nearest_takes_arrays_that_are_not_contiguous(device: str, fit: Fit) -> None:
    w = to_device(fit.w.astype(np.float32))
    for view in non_contiguous(w):
        assert_close(kron.nearest(view, fit.shape).dense(), host(kron.nearest(w, fit.shape).dense()), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_matrix_has_zero_factors(device: str, dtype: Any) -> None:
    found = kron.nearest(to_device(np.zeros((6, 20), dtype)), (2, 5), terms=3)
    assert_close(found.dense(), np.zeros((6, 20), dtype))
    assert (found.error, found.energy) == (0.0, 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_and_huge_numbers(dtype: Any, scale: float) -> None:
    w = np.random.default_rng(0).standard_normal((6, 20))
    found = kron.nearest((w * scale).astype(dtype), (2, 5), terms=3)
    assert found.error == pytest.approx(kron.nearest(w, (2, 5), terms=3).error, rel=1e-6)
    assert np.isfinite(found.dense()).all() and found.dense().any()


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [
        ((5, 4), r"A of shape \(5, 4\) does not divide a matrix \(12, 20\); the nearest are \(4, 4\), \(6, 4\)$"),
        ((5, 7), r"the nearest are \(4, 5\), \(4, 10\), \(6, 5\), \(6, 10\)$"),
        ((13, 20), r"the nearest are \(12, 20\)$"),
        ((0, 4), "whole numbers above 0"),
        ((2.0, 4), "whole numbers above 0"),
        ((2, 4, 1), r"a pair \(M, N\)"),
    ],
)
def test_a_shape_that_does_not_divide(shape: Any, nearest: str) -> None:
    with pytest.raises(ShapeError, match=nearest):
        kron.nearest(np.ones((12, 20)), shape)


@pytest.mark.parametrize("terms", [0, -1, 7, 1.5])
def test_terms_that_the_shape_does_not_allow(terms: Any) -> None:
    message = rf"A \(2, 3\) with B \(5, 4\) takes 1 to 6 terms \(min\(M\*N, P\*Q\)\), found {terms}"
    with pytest.raises(ShapeError, match=message):
        kron.nearest(np.ones((10, 12)), (2, 3), terms)


def test_nearest_refuses_what_is_no_matrix_of_floats(device: str) -> None:
    w = np.ones((4, 6), np.float32)
    w[1, 2], w[3, 3] = np.nan, np.inf
    with pytest.raises(TinykronError, match="2 of the 24 values of w are NaN or infinite"):
        kron.nearest(to_device(w), (2, 3))
    with pytest.raises(DtypeError, match="int64"):
        kron.nearest(to_device(np.ones((4, 6), np.int64)), (2, 3))
    with pytest.raises(DtypeError, match="complex128"):
        kron.nearest(to_device(np.ones((4, 6), np.complex128)), (2, 3))
    with pytest.raises(ShapeError, match=r"found shape \(4,\)"):
        kron.nearest(to_device(np.ones(4)), (2, 3))
    with pytest.raises(ShapeError, match=r"found shape \(0, 4\)"):
        kron.nearest(to_device(np.ones((0, 4))), (2, 2))


# The yardstick --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dense", "shape", "terms", "printed"),  # papers.md 0: the simulated figures beside Krony-PT's table
    [((3072, 768), (3072, 384), 1, 0.7076), ((3072, 768), (1024, 256), 4, 0.668)],
)
def test_gaussian_energy_of_gpt2s_mlp(dense: Any, shape: Any, terms: int, printed: float) -> None:
    w = np.random.default_rng(1).standard_normal(dense, dtype=np.float32)
    found = kron.gaussian_energy(dense, shape, terms)
    assert found == pytest.approx(printed, abs=1e-3)
    assert found == pytest.approx(kron.nearest(w, shape, terms).energy, rel=1e-2)


@pytest.mark.parametrize(
    ("dense", "shape", "terms"), [((6, 4), (3, 2), 1), ((6, 4), (3, 2), 3), ((20, 30), (2, 15), 5), ((9, 8), (1, 8), 1)]
)
def test_gaussian_energy_of_small_matrices(dense: Any, shape: Any, terms: int) -> None:
    generator = np.random.default_rng(1)
    draws = [kron.nearest(generator.standard_normal(dense), shape, terms).energy for _ in range(1000)]
    assert kron.gaussian_energy(dense, shape, terms) == pytest.approx(np.mean(draws), rel=1e-2)


def test_gaussian_energy_of_all_terms_is_one_and_bad_shapes_are_refused() -> None:
    assert kron.gaussian_energy((6, 4), (3, 2), 4) == 1.0
    with pytest.raises(ShapeError, match="takes 1 to 4 terms"):
        kron.gaussian_energy((6, 4), (3, 2), 5)
    with pytest.raises(ShapeError, match="does not divide"):
        kron.gaussian_energy((6, 4), (4, 2))

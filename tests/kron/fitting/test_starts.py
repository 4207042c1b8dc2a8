"""Low rank and the papers' other ways to start: what a fit is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_close, host
from tests.strategies import second_moment
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.fitting import starts

W = np.random.default_rng(0).standard_normal((12, 8))
WHOLE = np.linalg.norm(W)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_low_rank_is_the_truncated_svd(device: str, rank: int) -> None:
    u, s, vt = np.linalg.svd(W, full_matrices=False)
    found = starts.low_rank(to_device(W), rank)
    assert found.a.shape == (rank, 12, 1) and found.b.shape == (rank, 1, 8)
    assert_close(found.dense(), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-12)


def test_low_rank_weighted_by_inputs_beats_the_plain_one_on_them() -> None:
    c = second_moment(np.random.default_rng(1), 8)
    plain, weighted = starts.low_rank(W, 2), starts.low_rank(W, 2, c)

    def cost(fit: kron.KronSum) -> float:
        error = W - fit.dense()
        return float(np.trace(error @ c @ error.T))

    assert cost(weighted) < 0.9 * cost(plain)


@pytest.mark.parametrize(("parameters", "rank"), [(100, 5), (99, 4), (39, 1), (1, 1), (10_000, 8)])
def test_the_rank_that_parameters_allow(parameters: int, rank: int) -> None:
    assert starts.rank_of(parameters, (12, 8)) == rank


def test_rescaled_has_the_norm_of_the_matrix(device: str) -> None:
    fit = kron.nearest(to_device(W), (4, 2), 2)
    found = starts.rescaled(fit, to_device(W))
    assert np.linalg.norm(host(found.dense())) == pytest.approx(WHOLE)
    assert_close(found.dense(), host(fit.dense()) / fit.energy, rtol=1e-9)
    assert found.energy == pytest.approx(1.0)
    assert found.error == pytest.approx(np.linalg.norm(W - host(found.dense())) / WHOLE)
    assert fit.error is not None and found.error > fit.error


def test_rescaling_raises_the_error_by_what_the_energy_says() -> None:
    fit = kron.nearest(W, (4, 2), 1)  # its residual is orthogonal to it
    assert starts.rescaled(fit, W).error == pytest.approx(np.sqrt(2 - 2 * fit.energy))


@pytest.mark.parametrize("shape", [(6, 8), (12, 4), (6, 4)])
def test_pruned_keeps_every_second_row_or_column(device: str, shape: tuple[int, int]) -> None:
    found = starts.pruned(to_device(W), shape)
    p, q = 12 // shape[0], 8 // shape[1]
    dense = host(found.dense())
    assert_close(dense[::p, ::q], W[::p, ::q])
    others = np.ones_like(W, bool)
    others[::p, ::q] = False
    assert_close(dense[others], 0.1 * np.kron(W[::p, ::q], np.ones((p, q)))[others])
    assert found.error == pytest.approx(np.linalg.norm(W - dense) / WHOLE)


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_factors_have_the_size_of_the_matrix(device: str, terms: int, dtype: Any) -> None:
    w = np.random.default_rng(0).standard_normal((60, 80)).astype(dtype) * 0.02
    found = starts.random(to_device(w), (12, 16), terms, seed=1)
    assert found.a.dtype == found.b.dtype == dtype
    assert np.sqrt((host(found.dense()) ** 2).mean()) == pytest.approx(0.02, rel=0.2)
    again, other = starts.random(to_device(w), (12, 16), terms, seed=1), starts.random(w, (12, 16), terms, seed=2)
    assert_close(again.a, found.a)
    assert not np.allclose(host(found.a), other.a)
    assert found.error is not None and found.error > 1.0


def test_bad_input_is_refused() -> None:
    spoiled = W.copy()
    spoiled[1, 1] = np.inf
    for control in (starts.pruned, starts.random):
        with pytest.raises(ShapeError, match="does not divide"):
            control(W, (5, 2))
        with pytest.raises(TinykronError, match="1 of the 96 values of w are NaN or infinite"):
            control(spoiled, (6, 4))
    with pytest.raises(ShapeError, match="takes 1 to 8 terms"):
        starts.low_rank(W, 9)

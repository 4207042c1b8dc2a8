"""Sums of Kronecker products as arrays, and the rearrangement that makes them low rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests.helpers import assert_close
from tests.strategies import Fit, KronPair, fits, kron_pairs, looped_rearrangement
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import ShapeError
from tinykron.kron import algebra

DTYPES = [np.float32, np.float64]


@given(fit=fits())
def test_rearrange_is_its_definition_and_can_be_undone(device: str, fit: Fit) -> None:
    r = kron.algebra.rearrange(to_device(fit.w), fit.shape)
    assert_close(r, looped_rearrangement(fit.w, fit.shape), rtol=0.0, atol=0.0)
    b_shape = fit.w.shape[0] // fit.shape[0], fit.w.shape[1] // fit.shape[1]
    assert_close(algebra.unrearrange(r, fit.shape, b_shape), fit.w, rtol=0.0, atol=0.0)


@given(pair=kron_pairs(max_terms=1))
def test_a_product_rearranges_to_an_outer_product(pair: KronPair) -> None:
    (a,), (b,) = pair
    assert_close(algebra.rearrange(np.kron(a, b), a.shape), np.outer(a, b))


def test_unrearrange_refuses_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"rearrangement is \(4, 6\)"):
        algebra.unrearrange(np.ones((4, 6)), (2, 3), (2, 2))


@given(pair=kron_pairs())
def test_dense_is_the_sum_of_numpys_products(device: str, pair: KronPair) -> None:
    found = kron.KronSum(to_device(pair.a_RMN), to_device(pair.b_RPQ))
    assert_close(found.dense(), pair.dense())
    assert found.shape == pair.dense().shape and found.terms == len(pair.a_RMN)
    assert found.parameters == pair.a_RMN.size + pair.b_RPQ.size

"""The identities of the rearrangement R and of the nearest Kronecker product.

As in tests/kron/test_identities.py, whose table goes on here; `fit.test_...` is in tests/kron/fitting/test_nearest.py:

60  R is a bijection                                     algebra.test_rearrange_is_its_definition_and_can_be_undone
61  R(cV + W) = c R(V) + R(W)                            test_rearranging_is_an_isometry
62  |R(W)| = |W|                                         test_rearranging_is_an_isometry
63  <R(V), R(W)> = <V, W>                                test_rearranging_is_an_isometry
64  error^2 = the tail of s(R(W))^2                      fit.test_the_error_is_the_tail_of_the_singular_values
65  the residual is orthogonal to any A' x B, A x B'     test_orthogonal_residual
66  exact with min(MN, PQ) terms                         fit.test_enough_terms_give_any_matrix
67  exact with one for a product                         fit.test_nearest_finds_a_true_product
68  R(A x B) has rank one, s_1 = |A| |B|                 test_a_product_has_one_singular_value
69  energy grows with terms; no change does better       test_nothing_near_is_nearer
70  swapped factors: the same fit of the swapped W       test_swapped_fit
71  s(R(W^T)) = s(R(W))                                  test_invariant_singular_values
72  s(R((U x V) W (X x Y))) = s(R(W)), all orthogonal    test_invariant_singular_values
73  R((P x G) W (Q x H)) = (P x Q^T) R(W) (G x H^T)^T    test_rearranged_sandwich
74  the product nearest to an SPD matrix is SPD x SPD    test_nearest_to_positive_definite
--  the first k terms are the best k terms               fit.test_the_first_terms_are_the_best_so_many_terms
--  (M, 1) x (1, N) is the singular value decomposition  fit.test_low_rank_is_a_column_times_a_row
--  (M, N) x (1, 1) is the matrix itself                 test_a_factor_of_size_one_is_the_matrix
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kron_matrices import Matrices, assert_equal, exact, matrices
from tinykron import kron
from tinykron.kron import Kron, rearrange, shuffle

# The rearrangement, and the nearest product ---------------------------------------------------------------------------


@given(of=matrices())
def test_rearranging_is_an_isometry(device: str, of: Matrices) -> None:
    v, w = of(of.m * of.p, of.n * of.q), of(of.m * of.p, of.n * of.q)
    r_v, r_w = (rearrange(matrix, (of.m, of.n)) for matrix in (v, w))
    assert_equal(rearrange(3.0 * v + w, (of.m, of.n)), 3.0 * exact(r_v) + exact(r_w), of.dtype)
    assert_equal(float((r_v * r_w).sum()), (exact(v) * exact(w)).sum(), of.dtype, float(np.abs(exact(w)).sum()) + 1.0)
    assert_equal(float((r_w * r_w).sum()), np.linalg.norm(exact(w)) ** 2, of.dtype)


@given(of=matrices(), terms=st.integers(1, 5))
def test_orthogonal_residual(device: str, of: Matrices, terms: int) -> None:
    w, shape = of(of.m * of.p, of.n * of.q), (of.m, of.n)
    fit = kron.nearest(w, shape, min(terms, of.m * of.n, of.p * of.q))
    residual = rearrange(exact(w) - exact(fit.dense()), shape)
    limit = 500 * np.finfo(of.dtype).eps * max(1.0, np.linalg.norm(exact(w))) ** 2
    for along in (residual @ exact(fit.b).reshape(fit.terms, -1).T, residual.T @ exact(fit.a).reshape(fit.terms, -1).T):
        assert np.abs(along).max() <= limit  # <E, A' x B> for every A' at once, then <E, A x B'>


@given(of=matrices())
def test_a_product_has_one_singular_value(device: str, of: Matrices) -> None:
    k = Kron(of(of.m, of.n), of(of.p, of.q))
    values = np.linalg.svd(exact(rearrange(k.dense(), (of.m, of.n))), compute_uv=False)
    assert_equal(k.norm(), values[0], of.dtype)
    assert values[1:].max(initial=0.0) <= 10 * np.finfo(of.dtype).eps * values[0]


@given(of=matrices(), data=st.data())
def test_nothing_near_is_nearer(device: str, of: Matrices, data: st.DataObject) -> None:
    w, shape = of(of.m * of.p, of.n * of.q), (of.m, of.n)
    limit = min(of.m * of.n, of.p * of.q)
    fits = [kron.nearest(w, shape, terms) for terms in range(1, limit + 1)]
    energies = [fit.energy or 0.0 for fit in fits]
    assert all(fewer <= more + 1e-6 for fewer, more in zip(energies, energies[1:], strict=False))
    fit = data.draw(st.sampled_from(fits))
    best = np.linalg.norm(exact(w) - exact(fit.dense()))
    a, b = (exact(stack) + 0.05 * of.normal(*stack.shape) for stack in (fit.a, fit.b))
    moved = np.linalg.norm(exact(w) - kron.KronSum(a, b).dense())
    assert moved >= best - 1e-5 * np.linalg.norm(exact(w)) - 1e-12


@given(of=matrices())
def test_swapped_fit(device: str, of: Matrices) -> None:
    w = of(of.m * of.p, of.n * of.q)
    fit = kron.nearest(w, (of.m, of.n))
    swapped = kron.nearest(w[shuffle(of.p, of.m)][:, shuffle(of.q, of.n)], (of.p, of.q))
    assert swapped.error == pytest.approx(fit.error, abs=1e-5)
    gap = 2.0 if swapped.error is None else 1.0 - swapped.error  # equal fits, unless two are as good
    if gap > 1e-3 and exact(w).any():
        r = np.linalg.svd(exact(rearrange(w, (of.m, of.n))), compute_uv=False)
        if len(r) == 1 or r[0] > 1.1 * r[1]:
            assert_equal(swapped.dense(), exact(Kron(fit.b[0], fit.a[0]).dense()), of.dtype, 100.0)


@given(of=matrices())
def test_invariant_singular_values(device: str, of: Matrices) -> None:
    w = of(of.m * of.p, of.n * of.q)
    expected = np.linalg.svd(exact(rearrange(w, (of.m, of.n))), compute_uv=False)
    turned = Kron(*(of.placed(of.orthogonal(size)) for size in (of.m, of.p))) @ w
    turned = turned @ Kron(*(of.placed(of.orthogonal(size)) for size in (of.n, of.q)))
    for matrix, shape in ((w.T, (of.n, of.m)), (turned, (of.m, of.n))):
        found = np.linalg.svd(exact(rearrange(matrix, shape)), compute_uv=False)
        assert np.abs(found - expected).max() <= 100 * np.finfo(of.dtype).eps * max(1.0, expected[0])


@given(of=matrices())
def test_rearranged_sandwich(device: str, of: Matrices) -> None:
    w = of(of.m * of.p, of.n * of.q)
    p, g, q, h = of(of.n, of.m), of(of.q, of.p), of(of.n, of.p), of(of.q, of.m)
    found = rearrange((Kron(p, g) @ w) @ Kron(q, h), (of.n, of.p))
    expected = np.kron(exact(p), exact(q).T) @ exact(rearrange(w, (of.m, of.n))) @ np.kron(exact(g), exact(h).T).T
    assert_equal(found, expected, of.dtype, 100.0)


@given(of=matrices())
def test_nearest_to_positive_definite(device: str, of: Matrices) -> None:
    w = of.symmetric(of.p * of.q, positive=True)
    fit = kron.nearest(w, (of.p, of.p))
    for factor in (fit.a[0], fit.b[0]):
        values = exact(factor)
        assert np.abs(values - values.T).max() <= 1e-4 * np.abs(values).max()
        assert np.linalg.eigvalsh(values * np.sign(np.trace(values))).min() > 0.0
    assert np.trace(exact(fit.a[0])) * np.trace(exact(fit.b[0])) > 0.0


@given(of=matrices())
def test_a_factor_of_size_one_is_the_matrix(device: str, of: Matrices) -> None:
    w = of(of.m, of.n)
    for shape in ((of.m, of.n), (1, 1)):
        fit = kron.nearest(w, shape)
        assert_equal(fit.dense(), exact(w), of.dtype)
        assert fit.error is not None and fit.error <= 1e-6

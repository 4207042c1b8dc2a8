"""The identities of the Kronecker product, on rectangular matrices whose four sizes all differ, one of them often 1; on
zero matrices; contiguous and not; in float32 and float64; on every device. `assert_equal` states the tolerance.

A (M, N), B (P, Q); S (P, P), T (Q, Q); vec reads by rows, vec_c by columns; o is entry by entry, * the Khatri-Rao
product, R the rearrangement, s singular values, (+) the Kronecker sum. Each identity, and the test that holds it, which
is in this file, or as `linear.test_...` in tests/kron/test_linear.py:

 1  (A + C) x B = A x B + C x B                          test_bilinear
 2  A x (B + D) = A x B + A x D                          test_bilinear
 3  (A x B) x C = A x (B x C)                            test_associative
 4  (A x B)[iP + k, jQ + l] = A[i, j] B[k, l]            test_entries
 5  (A x B)(C x D) = AC x BD                             test_mixed_product
 6  A x B = (A x I)(I x B) = (I x B)(A x I)              test_one_factor_at_a_time
 7  (A x B)^T = A^T x B^T                                test_transpose
 8  (A x B)^H = A^H x B^H                                test_conjugate_transpose
 9  pinv(A x B) = pinv(A) x pinv(B), any rank            test_pseudo_inverse
10  cA x B/c = A x B                                     test_gauge
11  (A x B) o (C x D) = (A o C) x (B o D)                test_hadamard
12  B x A = K(P, M) (A x B) K(Q, N)^T                    test_swap
13  K(M, N) vec_c(A) = vec_c(A^T)                        test_commutation
14  K is orthogonal                                      test_commutation
15  K(N, M) = K(M, N)^T                                  test_commutation
16  (A x B) vec(X) = vec(A X B^T)                        test_vec_by_rows
17  (A x B) vec_c(X) = vec_c(B X A^T)                    test_vec_by_columns
18  rows X: X (A x B)^T, each by 16                      test_batch_of_rows
19  vec(A) vec(B)^T = R(A x B)                           test_rearranged_product
20  u x v = vec(u v^T)                                   test_vectors
21  A x B x C: one axis at a time                        test_three_factors
22  |A x B| = |A| |B|, Frobenius                         test_norms
23  <A x B, C x D> = <A, C> <B, D>                       test_inner_product
24  so for the norms 1, 2, inf, nuclear, Schatten        test_norms
25  and for the largest entry                            test_norms
26  rank(A x B) = rank(A) rank(B)                        test_rank
27  s(A x B) = all products of s(A) and s(B), sorted     test_singular_values
28-55                                                    tests/kron/operators/test_identities_square.py
56  (A * B)^T (A * B) = A^T A o B^T B                    test_khatri_rao
57  vec(A diag(d) B^T) = (A * B) d                       test_khatri_rao
58  A o C is a submatrix of A x C                        test_hadamard_is_a_submatrix
60-74                                                    tests/kron/fitting/test_identities.py
80  sum of R terms, in two products                      test_sum_of_terms
81  dA = mat(R(dW) vec(B))                               linear.test_gradients_are_those_of_the_dense_layer
82  dB = mat(R(dW)^T vec(A))                             linear.test_gradients_are_those_of_the_dense_layer
83  dX = dY (A x B)                                      linear.test_gradients_are_those_of_the_dense_layer
84  <A, dA> = <B, dB>                                    linear.test_gradients_are_those_of_the_dense_layer
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import host
from tests.kron_matrices import Matrices, assert_equal, exact, matrices
from tinykron import kron
from tinykron.backend import to_device
from tinykron.kron import Kron, Sum, commutation, khatri_rao, rearrange, shuffle, unvec, vec

# Algebra --------------------------------------------------------------------------------------------------------------


@given(of=matrices())
def test_bilinear(device: str, of: Matrices) -> None:
    a, c, b, d = of(of.m, of.n), of(of.m, of.n), of(of.p, of.q), of(of.p, of.q)
    assert_equal((Kron(a, b) + Kron(c, b)).dense(), np.kron(exact(a) + exact(c), exact(b)), of.dtype)
    assert_equal((Kron(a, b) - 3.0 * Kron(a, d)).dense(), np.kron(exact(a), exact(b) - 3 * exact(d)), of.dtype, 3.0)


@given(of=matrices())
def test_associative(device: str, of: Matrices) -> None:
    a, b, c = of(of.m, of.n), of(of.p, of.q), of(of.n, of.p)
    expected = np.kron(exact(a), np.kron(exact(b), exact(c)))
    for nested in (Kron(Kron(a, b), c), Kron(a, Kron(b, c)), Kron(a, b, c), Kron(a, Kron(b, c).dense())):
        assert_equal(nested.dense(), expected, of.dtype)
        assert nested.shape == expected.shape


@given(of=matrices())
def test_entries(device: str, of: Matrices) -> None:
    a, b = of(of.m, of.n), of(of.p, of.q)
    i, j, k, l = np.ix_(*(range(size) for size in (of.m, of.n, of.p, of.q)))  # noqa: E741
    found = Kron(a, b).entries(i * of.p + k, j * of.q + l)
    assert_equal(found, exact(a)[i, j] * exact(b)[k, l], of.dtype)


@given(of=matrices())
def test_mixed_product(device: str, of: Matrices) -> None:
    a, b, c, d = of(of.m, of.n), of(of.p, of.q), of(of.n, of.p), of(of.q, of.m)
    made = Kron(a, b) @ Kron(c, d)
    assert isinstance(made, Kron) and made.shapes == ((of.m, of.p), (of.p, of.m))
    assert_equal(made.dense(), np.kron(exact(a), exact(b)) @ np.kron(exact(c), exact(d)), of.dtype)


@given(of=matrices())
def test_one_factor_at_a_time(device: str, of: Matrices) -> None:
    a, b = of(of.m, of.n), of(of.p, of.q)
    eye = {size: to_device(np.eye(size, dtype=of.dtype)) for size in (of.m, of.n, of.p, of.q)}
    expected = np.kron(exact(a), exact(b))
    assert_equal((Kron(a, eye[of.p]) @ Kron(eye[of.n], b)).dense(), expected, of.dtype)
    assert_equal((Kron(eye[of.m], b) @ Kron(a, eye[of.q])).dense(), expected, of.dtype)


@given(of=matrices())
def test_transpose(device: str, of: Matrices) -> None:
    k = Kron(of(of.m, of.n), of(of.p, of.q))
    assert k.T.shapes == ((of.n, of.m), (of.q, of.p))  # the order stays
    assert_equal(k.T.dense(), exact(k.dense()).T, of.dtype)
    assert_equal((k + k).T.dense(), 2 * exact(k.dense()).T, of.dtype)


@given(of=matrices())
def test_conjugate_transpose(device: str, of: Matrices) -> None:
    k = Kron(of.complex_normal(of.m, of.n), of.complex_normal(of.p, of.q))
    assert k.H.shapes == ((of.n, of.m), (of.q, of.p))
    assert_equal(k.H.dense(), exact(k.dense()).conj().T, of.dtype)
    assert_equal((k - k * 2.0).H.dense(), -exact(k.dense()).conj().T, of.dtype)


@given(of=matrices(), data=st.data())
def test_pseudo_inverse(device: str, of: Matrices, data: st.DataObject) -> None:
    ranks = [data.draw(st.integers(0, min(shape))) for shape in ((of.m, of.n), (of.p, of.q))]
    a, b = of.of_rank(of.m, of.n, ranks[0]), of.of_rank(of.p, of.q, ranks[1])
    k = Kron(a, b)
    cutoff = max(k.shape) * np.finfo(of.dtype).eps
    found = k.pinv()
    assert isinstance(found, Kron) and found.shapes == ((of.n, of.m), (of.q, of.p))
    assert_equal(found.dense(), np.linalg.pinv(np.kron(exact(a), exact(b)), rcond=cutoff), of.dtype)
    assert k.rank() == ranks[0] * ranks[1]


@given(of=matrices())
def test_gauge(device: str, of: Matrices) -> None:
    a, b = of(of.m, of.n), of(of.p, of.q)
    expected = np.kron(exact(a), exact(b))
    assert_equal(Kron(a * 8.0, b / 8.0).dense(), expected, of.dtype)
    balanced = Kron(a * 8.0, b / 8.0).balanced()
    assert_equal(balanced.dense(), expected, of.dtype)
    if expected.any():
        norms = [float(np.linalg.norm(exact(factor))) for factor in balanced.factors]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@given(of=matrices())
def test_hadamard(device: str, of: Matrices) -> None:
    a, b, c, d = of(of.m, of.n), of(of.p, of.q), of(of.m, of.n), of(of.p, of.q)
    expected = np.kron(exact(a), exact(b)) * np.kron(exact(c), exact(d))
    assert_equal(Kron(a, b).hadamard(Kron(c, d)).dense(), expected, of.dtype)


@given(of=matrices())
def test_swap(device: str, of: Matrices) -> None:
    a, b = of(of.m, of.n), of(of.p, of.q)
    k, swapped = Kron(a, b).dense(), Kron(b, a).dense()
    assert np.array_equal(host(k[shuffle(of.p, of.m)][:, shuffle(of.q, of.n)]), host(swapped))
    left, right = commutation(of.p, of.m, of.dtype), commutation(of.q, of.n, of.dtype)
    assert_equal(left @ k @ right.T, exact(swapped), of.dtype)


@given(of=matrices())
def test_commutation(device: str, of: Matrices) -> None:
    a, k = of(of.m, of.n), commutation(of.m, of.n, of.dtype)
    assert_equal(k @ vec(a, columns=True), exact(vec(a.T, columns=True)), of.dtype)
    assert np.array_equal(host(vec(a, columns=True)[shuffle(of.m, of.n)]), host(vec(a.T, columns=True)))
    assert np.array_equal(host(vec(a)[shuffle(of.n, of.m)]), host(vec(a.T)))
    assert np.array_equal(host(k) @ host(k).T, np.eye(of.m * of.n))
    assert np.array_equal(host(k).T, host(commutation(of.n, of.m, of.dtype)))
    assert k.dtype == of.dtype


@given(of=matrices())
def test_the_order_of_factors_matters(of: Matrices) -> None:
    a, b = of.placed(of.normal(of.m + 1, of.n + 1)), of.placed(of.normal(of.p + 1, of.q + 1))
    assert np.abs(Kron(a, b).dense() - Kron(b, a).dense()).max() > 0.01


# Vec ------------------------------------------------------------------------------------------------------------------


@given(of=matrices())
def test_vec_by_rows(device: str, of: Matrices) -> None:
    a, b, x = of(of.m, of.n), of(of.p, of.q), of(of.n, of.q)
    assert_equal(Kron(a, b) @ vec(x), (exact(a) @ exact(x) @ exact(b).T).reshape(-1), of.dtype)
    assert np.array_equal(host(unvec(vec(x), x.shape)), host(x))


@given(of=matrices())
def test_vec_by_columns(device: str, of: Matrices) -> None:
    a, b, x = of(of.m, of.n), of(of.p, of.q), of(of.q, of.n)
    expected = (exact(b) @ exact(x) @ exact(a).T).reshape(-1, order="F")
    assert_equal(Kron(a, b) @ vec(x, columns=True), expected, of.dtype)
    assert np.array_equal(host(unvec(vec(x, columns=True), x.shape, columns=True)), host(x))


@given(of=matrices(), lead=st.sampled_from([(), (1,), (3,), (2, 3), (0,)]))
def test_batch_of_rows(device: str, of: Matrices, lead: tuple[int, ...]) -> None:
    a, b, x, y = of(of.m, of.n), of(of.p, of.q), of(*lead, of.n * of.q), of(*lead, of.m * of.p)
    dense = np.kron(exact(a), exact(b))
    assert_equal(Kron(a, b).apply(x), exact(x) @ dense.T, of.dtype, 10.0)
    assert_equal(y @ Kron(a, b), exact(y) @ dense, of.dtype, 10.0)
    if len(lead) == 1:
        assert_equal(Kron(a, b) @ x.T, dense @ exact(x).T, of.dtype, 10.0)


@given(of=matrices())
def test_rearranged_product(device: str, of: Matrices) -> None:
    a, b = of(of.m, of.n), of(of.p, of.q)
    expected = np.outer(exact(a), exact(b))
    assert_equal(rearrange(Kron(a, b).dense(), (of.m, of.n)), expected, of.dtype)


@given(of=matrices())
def test_vectors(device: str, of: Matrices) -> None:
    u, v = of(of.m), of(of.p)
    assert_equal(Kron(u[:, None], v[:, None]).dense()[:, 0], np.outer(exact(u), exact(v)).reshape(-1), of.dtype)


@given(of=matrices())
def test_three_factors(device: str, of: Matrices) -> None:
    a, b, c, x = of(of.m, of.n), of(of.p, of.q), of(of.q, of.m), of(2, of.n * of.q * of.m)
    x_TNQS = exact(x).reshape(2, of.n, of.q, of.m)
    expected = np.einsum("mn,pq,rs,tnqs->tmpr", exact(a), exact(b), exact(c), x_TNQS).reshape(2, -1)
    assert_equal(Kron(a, b, c).apply(x), expected, of.dtype, 10.0)


@given(of=matrices(), terms=st.integers(1, 3))
def test_sum_of_terms(device: str, of: Matrices, terms: int) -> None:
    a, b, x = of(terms, of.m, of.n), of(terms, of.p, of.q), of(3, of.n * of.q)
    dense = sum(np.kron(*map(exact, pair)) for pair in zip(a, b, strict=True))
    total = Sum.of(kron.KronSum(a, b))
    assert_equal(total.apply(x), exact(x) @ dense.T, of.dtype, 10.0)
    assert_equal(total.dense(), dense, of.dtype)


# Norms and rank -------------------------------------------------------------------------------------------------------


@given(of=matrices())
def test_norms(device: str, of: Matrices) -> None:
    a, b = of(of.m, of.n), of(of.p, of.q)
    k, dense = Kron(a, b), np.kron(exact(a), exact(b))
    for kind in ("fro", 1, 2, np.inf, "nuc"):
        assert_equal(k.norm(kind), np.linalg.norm(dense, kind), of.dtype)
    assert_equal(k.norm("max"), np.abs(dense).max(), of.dtype)
    schatten3 = float((k.singular_values() ** 3).sum()) ** (1 / 3)
    assert_equal(schatten3, (np.linalg.svd(dense, compute_uv=False) ** 3).sum() ** (1 / 3), of.dtype)


@given(of=matrices())
def test_inner_product(device: str, of: Matrices) -> None:
    a, b, c, d = of(of.m, of.n), of(of.p, of.q), of(of.m, of.n), of(of.p, of.q)
    one, two = np.kron(exact(a), exact(b)), np.kron(exact(c), exact(d))
    assert_equal(Kron(a, b).inner(Kron(c, d)), (one * two).sum(), np.float64, float(np.abs(one * two).sum()))
    norm = (Kron(a, b) + Kron(c, d)).norm()
    assert_equal(norm, np.linalg.norm(one + two), of.dtype)


@given(of=matrices())
def test_rank(device: str, of: Matrices) -> None:
    shapes = (of.m, of.n), (of.p, of.q)
    factors = [of.of_rank(*shape, rank) for shape in shapes for rank in [max(1, min(shape) - 1)]]
    k = Kron(*factors)
    ranks = [np.linalg.matrix_rank(exact(factor), rtol=1e-5) for factor in factors]
    assert k.rank() == ranks[0] * ranks[1] == np.linalg.matrix_rank(np.kron(*map(exact, factors)), rtol=1e-5)


@given(of=matrices())
def test_singular_values(device: str, of: Matrices) -> None:
    k = Kron(of(of.m, of.n), of(of.p, of.q))
    found = k.singular_values()
    expected = np.linalg.svd(np.kron(*map(exact, k.factors)), compute_uv=False)
    assert_equal(found, expected[: len(found)], of.dtype)
    assert np.abs(expected[len(found) :]).max(initial=0.0) < 1e-12
    assert bool((found[:-1] >= found[1:]).all())


# Hadamard and Khatri-Rao ----------------------------------------------------------------------------------------------


@given(of=matrices())
def test_khatri_rao(device: str, of: Matrices) -> None:
    a, b, d = of(of.m, of.n), of(of.p, of.n), of(of.n)
    made, (one, two) = khatri_rao(a, b), (exact(a), exact(b))
    assert_equal(made, np.stack([np.kron(one[:, i], two[:, i]) for i in range(of.n)], axis=1), of.dtype)
    assert_equal(made.T @ made, (one.T @ one) * (two.T @ two), of.dtype, 10.0)
    assert_equal(made @ d, (one @ np.diag(exact(d)) @ two.T).reshape(-1), of.dtype)


@given(of=matrices())
def test_hadamard_is_a_submatrix(device: str, of: Matrices) -> None:
    a, c = of(of.m, of.n), of(of.m, of.n)
    rows, columns = np.arange(of.m) * (of.m + 1), np.arange(of.n) * (of.n + 1)
    assert_equal(Kron(a, c).entries(rows[:, None], columns), exact(a) * exact(c), of.dtype)

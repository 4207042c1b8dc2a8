"""The identities of the Kronecker product of square matrices S (P, P) and T (Q, Q), and of the Kronecker sum.

As in tests/kron/test_identities.py, whose table goes on here:

28  tr(S x T) = tr(S) tr(T)                              test_trace
29  det(S x T) = det(S)^Q det(T)^P                       test_determinant
30  its sign and the logarithm of its size               test_determinant
31  (S x T)^-1 = S^-1 x T^-1                             test_inverse
32  (S x T) x = b by two small solves                    test_solve
33  eigenvalues are all products                         test_eigenvalues
34  eigenvectors are S's x T's                           test_eigenvalues
35  Cholesky factor: S's x T's, of definite factors      test_cholesky
36  Q and R: A's x B's                                   test_qr
37  triangular x triangular; so P, L and U               test_triangular
38  singular vectors: A's x B's                          test_svd
39  permutation x permutation                            test_permutation
40  orthogonal x orthogonal                              test_orthogonal
41  positive definite x positive definite                test_positive_definite
42  diag(u) x diag(v) = diag(u x v)                      test_diagonal
43  I x I = I                                            test_diagonal
44  diagonal(S x T) = diagonal(S) x diagonal(T)          test_diagonal
45  (S x T)^k = S^k x T^k, k whole                       test_integer_powers
46  any real power of positive definite factors          test_real_powers
47  condition numbers multiply                           test_condition_number
48  sum over T's index: tr(T) S                          test_partial_traces
49  sum over S's index: tr(S) T                          test_partial_traces
50  exp(S (+) T) = exp(S) x exp(T)                       test_exponential
51  eigenvalues of S (+) T are all sums                  test_sum_eigenvalues
52  tr(S (+) T) = Q tr(S) + P tr(T)                      test_sum_trace
53  (S (+) T) vec(X) = vec(S X + X T^T)                  test_sylvester
54  I x T is block diagonal                              test_block_diagonal
55  logdet(S x T + cI) = sum of log(s_i t_j + c)         test_shifted_determinant
"""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import host
from tests.kron_matrices import Matrices, assert_equal, exact, matrices
from tinykron.backend import to_device
from tinykron.kron import Kron, KroneckerSum, rearrange, unvec, vec


def eye(size: int, of: Matrices) -> object:
    return to_device(np.eye(size, dtype=of.dtype))


@given(of=matrices())
def test_trace(device: str, of: Matrices) -> None:
    k = Kron(of(of.p, of.p), of(of.q, of.q))
    dense = np.kron(*map(exact, k.factors))
    assert_equal(k.trace(), np.trace(dense), of.dtype, float(np.abs(dense.diagonal()).sum()))
    assert_equal((k + k).trace(), 2 * np.trace(dense), of.dtype, 2 * float(np.abs(dense.diagonal()).sum()))


@given(of=matrices())
def test_determinant(device: str, of: Matrices) -> None:
    k = Kron(of.invertible(of.p), of.invertible(of.q), of.invertible(2))
    sign, logarithm = np.linalg.slogdet(exact(k.dense()))
    found = k.slogdet()
    assert found[0] == sign
    assert_equal(found[1], logarithm, of.dtype, 10.0)
    assert k.det() == pytest.approx(sign * exp(logarithm), rel=1000 * float(np.finfo(of.dtype).eps))


@given(of=matrices())
def test_inverse(device: str, of: Matrices) -> None:
    k = Kron(of.invertible(of.p), of.invertible(of.q))
    assert isinstance(k.inverse(), Kron)
    assert_equal(k.inverse().dense(), np.linalg.inv(np.kron(*map(exact, k.factors))), of.dtype)


@given(of=matrices(), lead=st.sampled_from([(), (1,), (4,), (0,)]))
def test_solve(device: str, of: Matrices, lead: tuple[int, ...]) -> None:
    k, b = Kron(of.invertible(of.p), of.invertible(of.q)), of(of.p * of.q, *lead)
    assert_equal(k.solve(b), np.linalg.solve(np.kron(*map(exact, k.factors)), exact(b)), of.dtype)


@given(of=matrices())
def test_eigenvalues(device: str, of: Matrices) -> None:
    k = Kron(of(of.p, of.p), of(of.q, of.q))
    values, vectors = k.eig()
    assert isinstance(vectors, Kron) and values.dtype == np.result_type(of.dtype, np.complex64)
    turned = exact(k.dense()) @ exact(vectors.dense())
    assert_equal(vectors.dense() * values, turned, of.dtype, 100.0)
    assert_equal(complex(host(values).sum()), complex(k.trace()), of.dtype, 100.0)
    symmetric = Kron(of.symmetric(of.p), of.symmetric(of.q))
    form = symmetric.eigh()
    assert_equal(form.dense(), exact(symmetric.dense()), of.dtype)
    assert_equal(np.sort(exact(form.values)).astype(of.dtype), np.linalg.eigvalsh(exact(symmetric.dense())), of.dtype)
    assert_equal((form.left.H @ form.left).dense(), np.eye(of.p * of.q), of.dtype)


@given(of=matrices())
def test_cholesky(device: str, of: Matrices) -> None:
    k = Kron(of.symmetric(of.p, positive=True), of.symmetric(of.q, positive=True))
    assert_equal(k.cholesky().dense(), np.linalg.cholesky(exact(k.dense())), of.dtype)


@given(of=matrices())
def test_qr(device: str, of: Matrices) -> None:
    k = Kron(of(of.m, of.n), of(of.p, of.q))
    q, r = k.qr()
    assert isinstance(q, Kron) and isinstance(r, Kron)
    assert_equal((q @ r).dense(), np.kron(*map(exact, k.factors)), of.dtype, 10.0)
    assert_equal((q.T @ q).dense(), np.eye(q.shape[1]), of.dtype)
    assert np.array_equal(host(r.dense()), np.triu(host(r.dense())))


@given(of=matrices())
def test_triangular(device: str, of: Matrices) -> None:
    s, t = of(of.p, of.p), of(of.q, of.q)
    parts = [Kron(*map(of.placed, pair)) for pair in zip(*map(scipy.linalg.lu, map(exact, (s, t))), strict=True)]
    p, lower, upper = (host(part.dense()) for part in parts)
    assert np.array_equal(lower, np.tril(lower)) and np.array_equal(upper, np.triu(upper))
    assert np.array_equal(np.unique(p), [0, 1][: p.size]) or p.size == 1
    assert_equal((parts[0] @ parts[1] @ parts[2]).dense(), np.kron(exact(s), exact(t)), of.dtype, 10.0)


@given(of=matrices())
def test_svd(device: str, of: Matrices) -> None:
    k = Kron(of(of.m, of.n), of(of.p, of.q))
    u, values, v = form = k.svd()
    dense = np.kron(*map(exact, k.factors))
    assert_equal(form.dense(), dense, of.dtype, 10.0)
    assert_equal(u.dense() * values @ v.dense(), dense, of.dtype, 10.0)
    for rows in (u.H, v):
        assert_equal((rows @ rows.H).dense(), np.eye(rows.shape[0]), of.dtype)
    assert_equal(k.singular_values(), np.sort(exact(values))[::-1], of.dtype)


@given(of=matrices())
def test_permutation(device: str, of: Matrices) -> None:
    one, two = (of.generator.permutation(size) for size in (of.p, of.q))
    k = Kron(*(of.placed(np.eye(len(order))[order]) for order in (one, two)))
    both = (one[:, None] * of.q + two).reshape(-1)
    assert np.array_equal(host(k.dense()), np.eye(of.p * of.q)[both])
    inversions = sum(int((order[i] > order[i + 1 :]).sum()) for order in (both,) for i in range(len(order)))
    assert k.slogdet()[0] == (-1.0) ** inversions


@given(of=matrices())
def test_orthogonal(device: str, of: Matrices) -> None:
    k = Kron(of.placed(of.orthogonal(of.p)), of.placed(of.orthogonal(of.q)))
    assert_equal((k.T @ k).dense(), np.eye(of.p * of.q), of.dtype)
    assert_equal(k.inverse().dense(), exact(k.T.dense()), of.dtype)


@given(of=matrices())
def test_positive_definite(device: str, of: Matrices) -> None:
    k = Kron(of.symmetric(of.p, positive=True), of.symmetric(of.q, positive=True))
    values = np.linalg.eigvalsh(exact(k.dense()))
    assert values.min() > 0.5  # those of the factors are 1 to 2
    assert k.slogdet()[0] == 1.0


@given(of=matrices())
def test_diagonal(device: str, of: Matrices) -> None:
    u, v, s, t = of.normal(of.p), of.normal(of.q), of(of.p, of.p), of(of.q, of.q)
    k = Kron(of.placed(np.diag(u)), of.placed(np.diag(v)))
    assert_equal(k.dense(), np.diag(np.kron(u, v)), of.dtype)
    assert np.array_equal(host(Kron(eye(of.p, of), eye(of.q, of)).dense()), np.eye(of.p * of.q))
    assert_equal(Kron(s, t).diagonal(), np.kron(exact(s).diagonal(), exact(t).diagonal()), of.dtype)
    assert_equal((Kron(s, t) + Kron(s, t)).diagonal(), 2 * np.diag(np.kron(exact(s), exact(t))), of.dtype)


@given(of=matrices(), power=st.integers(-3, 4))
def test_integer_powers(device: str, of: Matrices, power: int) -> None:
    k = Kron(of.invertible(of.p), of.invertible(of.q))
    expected = np.linalg.matrix_power(np.kron(*map(exact, k.factors)), power)
    assert_equal((k**power).dense(), expected, of.dtype, 100.0)


@given(of=matrices(), power=st.sampled_from([0.5, -0.5, 1 / 3, 2.5, -1.0, 0.0]))
def test_real_powers(device: str, of: Matrices, power: float) -> None:
    k = Kron(of.symmetric(of.p, positive=True), of.symmetric(of.q, positive=True))
    values, vectors = np.linalg.eigh(np.kron(*map(exact, k.factors)))
    assert_equal((k**power).dense(), (vectors * values**power) @ vectors.T, of.dtype)
    assert_equal((k**0.5 @ k**0.5).dense(), exact(k.dense()), of.dtype)


@given(of=matrices())
def test_condition_number(device: str, of: Matrices) -> None:
    k = Kron(of.invertible(of.p), of.invertible(of.q))
    one, two = (float(np.linalg.cond(exact(factor))) for factor in k.factors)
    assert_equal(k.cond(), one * two, of.dtype)
    assert_equal(k.cond(), np.linalg.cond(exact(k.dense())), of.dtype)


@given(of=matrices())
def test_partial_traces(device: str, of: Matrices) -> None:
    """R(S x T) = vec(S) vec(T)^T: its product with vec(I) sums over an index."""
    s, t = of(of.p, of.p), of(of.q, of.q)
    r = rearrange(Kron(s, t).dense(), (of.p, of.p))
    over_t = unvec(r @ vec(eye(of.q, of)), (of.p, of.p))
    over_s = unvec(vec(eye(of.p, of)) @ r, (of.q, of.q))
    blocks = np.kron(exact(s), exact(t)).reshape(of.p, of.q, of.p, of.q)
    assert_equal(over_t, np.trace(blocks, axis1=1, axis2=3), of.dtype, 10.0)
    assert_equal(over_t, exact(s) * np.trace(exact(t)), of.dtype, 10.0)
    assert_equal(over_s, exact(t) * np.trace(exact(s)), of.dtype, 10.0)


# The Kronecker sum ----------------------------------------------------------------------------------------------------


def dense_sum(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.kron(s, np.eye(len(t))) + np.kron(np.eye(len(s)), t)


@given(of=matrices())
def test_exponential(device: str, of: Matrices) -> None:
    s, t = 0.5 * of(of.p, of.p), 0.5 * of(of.q, of.q)
    found, largest = KroneckerSum(s, t).exp(), exp(np.linalg.norm(exact(s), 2) + np.linalg.norm(exact(t), 2))
    assert isinstance(found, Kron)
    assert_equal(found.dense(), scipy.linalg.expm(dense_sum(exact(s), exact(t))), of.dtype, largest)


@given(of=matrices())
def test_sum_eigenvalues(device: str, of: Matrices) -> None:
    s, t = of(of.p, of.p), of(of.q, of.q)
    found = exact(KroneckerSum(s, t).eigenvalues())
    ours, theirs = (np.linalg.eigvals(exact(factor)) for factor in (s, t))
    for power in (1, 2, 3):  # an unordered set of numbers is known by its power sums
        expected = ((ours[:, None] + theirs) ** power).sum()
        assert_equal(complex((found**power).sum()), expected, of.dtype, 5000.0)
    symmetric = KroneckerSum(of.symmetric(of.p), of.symmetric(of.q))
    assert_equal(symmetric.eigh().dense(), exact(symmetric.dense()), of.dtype, 10.0)


@given(of=matrices())
def test_sum_trace(device: str, of: Matrices) -> None:
    s, t = of(of.p, of.p), of(of.q, of.q)
    assert_equal(KroneckerSum(s, t).trace(), np.trace(dense_sum(exact(s), exact(t))), of.dtype, 100.0)


@given(of=matrices(), lead=st.sampled_from([(), (1,), (4,), (0,)]))
def test_sylvester(device: str, of: Matrices, lead: tuple[int, ...]) -> None:
    s, t, x = of(of.p, of.p), of(of.q, of.q), of(*lead, of.p * of.q)
    operator, dense = KroneckerSum(s, t), dense_sum(exact(s), exact(t))
    assert_equal(operator.dense(), dense, of.dtype)
    x_PQ = exact(x).reshape(*lead, of.p, of.q)
    expected = exact(s) @ x_PQ + x_PQ @ exact(t).T
    assert_equal(operator.apply(x), expected.reshape(x.shape), of.dtype, 10.0)
    assert_equal(x @ operator, exact(x) @ dense, of.dtype, 10.0)
    solvable = KroneckerSum(of.symmetric(of.p, positive=True), of.symmetric(of.q, positive=True))
    assert_equal(solvable.solve(x.T), np.linalg.solve(exact(solvable.dense()), exact(x.T)), of.dtype)


@given(of=matrices())
def test_block_diagonal(device: str, of: Matrices) -> None:
    t = of(of.q, of.q)
    expected = scipy.linalg.block_diag(*[exact(t)] * of.p)
    assert_equal(Kron(eye(of.p, of), t).dense(), expected, of.dtype)


@given(of=matrices(), shift=st.sampled_from([0.25, 1.0, 30.0]))
def test_shifted_determinant(device: str, of: Matrices, shift: float) -> None:
    k = Kron(of.symmetric(of.p, positive=True), of.symmetric(of.q, positive=True))
    shifted = k.eigh().map(lambda values: values + shift)
    dense = exact(k.dense()) + shift * np.eye(of.p * of.q)
    sign, logarithm = shifted.slogdet()
    assert sign == pytest.approx(1.0)
    assert_equal(logarithm, np.linalg.slogdet(dense)[1], of.dtype, 10.0)
    assert_equal(shifted.dense(), dense, of.dtype)
    assert_equal(shifted.inverse().dense(), np.linalg.inv(dense), of.dtype)

"""The operators beyond the identities: what they refuse, what stays structured, what is worked out in which order."""

from __future__ import annotations

import tracemalloc
from functools import reduce
from itertools import permutations
from math import inf, prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import host
from tests.kron_matrices import Matrices, assert_equal, exact, matrices
from tinykron import kron
from tinykron.backend import to_device
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron import Kron, KroneckerSum, Spectral, Sum


def normal(*shape: int, seed: int = 0) -> Any:
    """A matrix on the default device, in float64."""
    return to_device(np.random.default_rng(seed).standard_normal(shape))


def positive(size: int) -> Any:
    root = np.random.default_rng(size).standard_normal((size, 2 * size))
    return to_device(root @ root.T)


# Memory and order -----------------------------------------------------------------------------------------------------

SIZES = 48, 40  # the product is 1920 x 1920: 29 MB

METHODS = """balanced cholesky cond det diagonal eig eigh inverse norm pinv qr rank singular_values slogdet svd
trace stacked""".split()
PROPERTIES = "dtype factors like order parameters shape shapes square_factors terms".split()
WITHOUT_DENSE = {name: lambda k, name=name: getattr(k, name)() for name in METHODS}
WITHOUT_DENSE |= {name: lambda k, name=name: getattr(k, name) for name in PROPERTIES}
WITHOUT_DENSE |= {
    "apply": lambda k: k.apply(np.ones((3, 1920))),
    "@ x": lambda k: k @ np.ones((1920, 3)),
    "x @": lambda k: np.ones((3, 1920)) @ k,
    "@ Kron": lambda k: k @ k,
    "+": lambda k: (k + k) @ np.ones(1920),
    "-": lambda k: k - k,
    "*": lambda k: 2.0 * k,
    "**": lambda k: (k**2, k**0.5),
    "of": lambda k: Sum.of((k + k).stacked()) @ np.ones(1920),
    "T": lambda k: k.T.apply(np.ones(1920)),
    "H": lambda k: k.H.apply(np.ones(1920)),
    "entries": lambda k: k.entries(3, np.arange(1920)),
    "hadamard": lambda k: k.hadamard(k),
    "inner": lambda k: (k + k).inner(k),
    "solve": lambda k: k.solve(np.ones((1920, 2))),
    "each": lambda k: k.each("trace", np.trace),
    "attempt": lambda k: k.attempt(0, "trace", np.trace),
    "check_square": lambda k: k.check_square("inverse"),
    "check_symmetric": lambda k: k.check_symmetric("root"),
    "check_alike": lambda k: k.check_alike(k),
    "Spectral": lambda k: k.eigh().map(np.sqrt).inverse() @ np.ones(1920),
    "Kronecker sum": lambda k: KroneckerSum(*k.factors) @ np.ones(1920),
    "its exponential": lambda k: (KroneckerSum(*k.factors) * -1e-3).exp() @ np.ones(1920),
    "its equation": lambda k: KroneckerSum(*k.factors).solve(np.ones(1920)),
    "its determinant": lambda k: KroneckerSum(*k.factors).slogdet(),
}


def peak(work: Any, k: Kron) -> int:
    tracemalloc.start()
    work(k)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize("name", WITHOUT_DENSE)
def test_no_dense_matrix_is_built_except_by_dense(name: str) -> None:
    k = Kron(*map(positive, SIZES))
    WITHOUT_DENSE[name](k)  # what is imported when first used
    assert peak(WITHOUT_DENSE[name], k) < 1920 * 1920 * 8 / 20


def test_every_method_is_among_those_whose_memory_is_measured() -> None:
    public = {name for kind in Kron.__mro__ for name in vars(kind) if not name.startswith("_")}
    assert public - {*WITHOUT_DENSE} == {"dense"}
    assert peak(Kron.dense, Kron(*map(positive, SIZES))) > 1920 * 1920 * 8


@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_the_order_of_the_factors_is_the_cheapest(shapes: list[tuple[int, int]]) -> None:
    def multiplications(order: Any) -> int:
        sizes, total = [n for _, n in shapes], 0
        for k in order:
            total += shapes[k][0] * prod(sizes)
            sizes[k] = shapes[k][0]
        return total

    order = Kron(*(np.ones(shape) for shape in shapes)).order
    assert sorted(order) == list(range(len(shapes)))
    assert multiplications(order) == min(map(multiplications, permutations(order)))


def test_a_column_times_a_row_is_never_spread_out_first() -> None:
    k, x = Kron(np.ones((2000, 1)), np.ones((1, 2000))), np.ones(2000)
    assert (k @ x == 2000.0).all()
    assert peak(lambda k: k @ x, k) < 10 * x.nbytes


# What a square product of factors that are not square is --------------------------------------------------------------


def test_a_square_product_of_rectangles(device: str) -> None:
    k = Kron(normal(2, 3), normal(3, 2, seed=1))
    dense = host(k.dense())
    assert (k.slogdet(), k.det(), k.cond()) == ((0.0, -inf), 0.0, inf)
    assert abs(np.linalg.det(dense)) < 1e-12
    assert k.trace() == pytest.approx(np.trace(dense))
    assert_equal(k.diagonal(), np.diag(dense), np.float64)
    assert k.rank() == np.linalg.matrix_rank(dense) == 4
    assert len(k.svd().values) == 4
    for missing in (k.inverse, k.eig, k.cholesky, k.eigh, lambda: k**2, lambda: k.solve(normal(6))):
        with pytest.raises(ShapeError, match=r"Kron\(2x3, 3x2\) has no .*: a factor is not square"):
            missing()
    with pytest.raises(ShapeError, match="not square, or not of full rank"):
        k.svd().inverse()
    with pytest.raises(ShapeError, match=r"Kron\(2x3\) has no determinant: it is not square"):
        Kron(normal(2, 3)).slogdet()


@given(of=matrices())
def test_the_diagonal_of_a_rectangle(device: str, of: Matrices) -> None:
    k = Kron(of(of.m, of.n), of(of.p, of.q))
    dense = np.kron(*map(exact, k.factors))
    assert_equal(k.diagonal(), np.diag(dense), of.dtype)
    assert_equal(k.trace(), np.trace(dense), of.dtype, float(np.abs(np.diag(dense)).sum()))


# Cutoffs --------------------------------------------------------------------------------------------------------------


def test_a_common_cutoff_may_leave_no_kronecker_product(device: str) -> None:
    """Of 1, 1e-4, 1e-4 and 1e-8 a cutoff of 1e-6 keeps three, which no choice in each factor does."""
    factor = np.diag([1.0, 1e-4])
    k = Kron(to_device(factor), to_device(factor))
    dense = np.kron(factor, factor)
    found = k.pinv(rtol=1e-6)
    assert isinstance(found, Spectral)
    assert_equal(found.dense(), np.linalg.pinv(dense, rcond=1e-6), np.float64)
    factor_by_factor = np.kron(*2 * [np.linalg.pinv(factor, rcond=1e-6)])
    assert np.abs(factor_by_factor - host(found.dense())).max() == pytest.approx(1e8)
    assert k.rank(rtol=1e-6) == np.linalg.matrix_rank(dense, rtol=1e-6) == 3
    assert isinstance(k.pinv(rtol=1e-3), Kron) and k.rank(rtol=1e-3) == 1
    assert isinstance(k.pinv(), Kron) and k.rank() == 4


def test_factors_each_of_full_rank_whose_product_has_less_in_float32() -> None:
    factor = np.diag(np.float32([1.0, 1e-5]))
    k = Kron(factor, factor)
    assert Kron(factor).rank() == 2 and k.rank() == np.linalg.matrix_rank(k.dense()) == 3


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_cutoffs_are_shares_of_the_largest_value(device: str, scale: float) -> None:
    k = Kron(to_device(np.diag([3.0, 2.0, 0.0])), normal(2, 2)) * scale
    assert k.rank() == 4
    assert_equal(k.pinv().dense() * scale, np.linalg.pinv(host(k.dense()) / scale), np.float64)


def test_a_common_cutoff_for_three_factors(device: str) -> None:
    one, two, three = np.diag([1.0, 0.0]), np.diag([1.0, 2.0, 4.0]), np.ones((3, 2))
    found = Kron(*map(to_device, (one, two, three))).pinv()
    assert isinstance(found, Kron)
    assert_equal(found.dense(), np.linalg.pinv(reduce(np.kron, (one, two, three))), np.float64)


def test_the_pseudo_inverse_of_zero_is_zero(device: str) -> None:
    k = Kron(normal(2, 3) * 0.0, normal(4, 5))
    assert_equal(k.pinv().dense(), np.zeros((15, 8)), np.float64)
    assert (k.rank(), k.cond(), k.norm()) == (0, inf, 0.0)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_a_power_may_be_a_numpy_number(device: str) -> None:
    k = Kron(normal(2, 2), normal(3, 3, seed=1))
    assert_equal((k ** np.int64(2)).dense(), np.linalg.matrix_power(host(k.dense()), 2), np.float64)


def test_a_determinant_beyond_a_float(device: str) -> None:
    large = Kron(to_device(np.diag([-1e60, 1e60, 1e60])), to_device(np.eye(3)))
    assert large.slogdet() == (-1.0, pytest.approx(9 * np.log(1e60)))
    assert large.det() == -inf
    assert (large**-1).det() == 0.0


@given(of=matrices())
def test_complex_factors(device: str, of: Matrices) -> None:
    k = Kron(of.complex_normal(of.p, of.p), of.complex_normal(of.q, of.q))
    dense = np.kron(*map(exact, k.factors))
    (sign, logarithm), expected = k.slogdet(), np.linalg.slogdet(dense)
    assert isinstance(sign, complex)
    assert_equal(sign, complex(expected[0]), of.dtype, 10.0)
    assert_equal(logarithm, expected[1], of.dtype, 10.0)
    assert_equal((k.H @ k).trace(), complex(np.linalg.norm(dense) ** 2), of.dtype)
    assert_equal(k.norm(), np.linalg.norm(dense), of.dtype)
    assert_equal(k.svd().dense(), dense, of.dtype, 10.0)
    assert_equal(k.svd().T.dense(), dense.T, of.dtype, 10.0)
    assert_equal(k.svd().H.dense(), dense.conj().T, of.dtype, 10.0)
    other = Kron(of.complex_normal(of.p, of.p), of.complex_normal(of.q, of.q))
    assert_equal(k.inner(other), complex(np.vdot(dense, exact(other.dense()))), of.dtype, np.abs(dense).sum() * 100.0)
    turn = Kron(*(np.linalg.qr(exact(factor))[0] for factor in k.factors))
    assert_equal((turn * 2.0).pinv().dense(), 0.5 * turn.dense().conj().T, np.float64)
    hermitian = Kron(*(factor + factor.conj().T for factor in k.factors))
    form = hermitian.eigh()
    assert form.values.dtype == of.dtype
    assert_equal(form.dense(), exact(hermitian.dense()), of.dtype, 10.0)


@given(of=matrices())
def test_three_factors_keep_their_structure(device: str, of: Matrices) -> None:
    k = Kron(of.invertible(of.m), of.invertible(of.n), of.invertible(3))
    dense, b = reduce(np.kron, map(exact, k.factors)), of(3 * of.m * of.n)
    assert_equal(k.inverse().dense(), np.linalg.inv(dense), of.dtype)
    assert_equal(k.pinv().dense(), np.linalg.inv(dense), of.dtype)
    assert_equal(k.solve(b), np.linalg.solve(dense, exact(b)), of.dtype, 10.0)
    for form in (k.svd(), k.qr()[0] @ k.qr()[1], k * 1.0, k.T.T, k.balanced()):
        assert_equal(form.dense(), dense, of.dtype, 10.0)
    values, vectors = k.eig()
    assert_equal(vectors.dense() * values, dense @ exact(vectors.dense()), of.dtype, 10.0)
    assert_equal(k.diagonal(), np.diag(dense), of.dtype)
    assert_equal(k.trace(), np.trace(dense), of.dtype, 10.0)
    assert_equal(k.norm("nuc"), np.linalg.norm(dense, "nuc"), of.dtype)
    assert_equal(k.singular_values(), np.linalg.svd(dense, compute_uv=False), of.dtype)
    spd = k.T @ k
    assert_equal(spd.cholesky().dense(), np.linalg.cholesky(dense.T @ dense), of.dtype, 10.0)
    assert_equal(spd.eigh().dense(), dense.T @ dense, of.dtype, 10.0)


# Spectral -------------------------------------------------------------------------------------------------------------


@given(of=matrices())
def test_a_spectral_form_multiplies_and_inverts(device: str, of: Matrices) -> None:
    k, x = Kron(of.symmetric(of.p), of.invertible(of.q)), of(3, of.p * of.q)
    dense = np.kron(*map(exact, k.factors))
    form = k.svd()
    assert_equal(form.apply(x), exact(x) @ dense.T, of.dtype, 10.0)
    assert_equal(x @ form, exact(x) @ dense, of.dtype, 10.0)
    assert_equal(form.T.dense(), dense.T, of.dtype)
    assert_equal(form.inverse().dense(), np.linalg.inv(dense), of.dtype)
    sign, logarithm = np.linalg.slogdet(dense)
    assert form.slogdet()[0] == pytest.approx(sign)
    assert_equal(form.slogdet()[1], logarithm, of.dtype, 10.0)


def test_a_singular_spectral_form(device: str) -> None:
    form = Kron(to_device(np.eye(3)), to_device(np.diag([1.0, 0.0]))).eigh()
    assert form.slogdet() == (0.0, -inf)
    odd = Kron(to_device(np.eye(3)), to_device(np.diag([1.0, -2.0]))).eigh()
    assert odd.slogdet() == (pytest.approx(-1.0), pytest.approx(3 * np.log(2.0)))
    with pytest.raises(TinykronError, match=r"Spectral\(6x6\) is singular: one of its values is 0"):
        form.inverse()
    with pytest.raises(TinykronError, match=r"Spectral\(6x6\) @ Spectral\(6x6\) has no Kronecker form"):
        form @ form


# Sums -----------------------------------------------------------------------------------------------------------------


def test_a_fit_is_an_operator_and_back(device: str) -> None:
    w = normal(6, 20)
    fit = kron.nearest(w, (2, 5), terms=3)
    total = Sum.of(fit)
    assert len(total.terms) == 3 and total.shape == (6, 20) and total.parameters == fit.parameters
    assert_equal(total.dense(), host(fit.dense()), np.float64)
    assert_equal(total @ w.T, host(fit.dense()) @ host(w).T, np.float64, 10.0)
    again = total.stacked()
    assert np.array_equal(host(again.a), host(fit.a)) and np.array_equal(host(again.b), host(fit.b))
    assert total.norm() == pytest.approx(np.linalg.norm(host(fit.dense())))


@given(of=matrices())
def test_terms_of_different_factors(device: str, of: Matrices) -> None:
    one, two = Kron(of(of.m, of.n), of(of.p, of.q)), Kron(of(of.p, of.n), of(of.m, of.q))
    x, total = of(2, of.n * of.q), one - 2.0 * two
    dense = exact(one.dense()) - 2 * exact(two.dense())
    assert_equal(total.dense(), dense, of.dtype)
    assert_equal(total.apply(x), exact(x) @ dense.T, of.dtype, 50.0)
    assert_equal(total.T.dense(), dense.T, of.dtype)
    assert_equal(total.diagonal(), np.diag(dense), of.dtype)
    right = Kron(of(of.n, of.q), of(of.q, of.n))
    assert_equal((total @ (right + right)).dense(), 2 * dense @ exact(right.dense()), of.dtype, 50.0)
    with pytest.raises(ShapeError, match="to be stacked, terms have two factors each, of the same shapes"):
        total.stacked()
    with pytest.raises(ShapeError, match="expected factors of the same shapes"):
        total.norm()


STRUCTURE = ["balanced", "cholesky", "cond", "det", "eig", "eigh", "hadamard", "inverse", "order", "pinv", "qr", "rank"]
STRUCTURE += ["singular_values", "slogdet", "solve", "svd"]


@pytest.mark.parametrize("name", STRUCTURE)
def test_a_sum_has_no_structure_of_a_product_unless_it_has_one_term(name: str) -> None:
    k = Kron(positive(2), positive(3))
    with pytest.raises(TinykronError, match=f"a sum of 2 Kronecker products has no {name} in factors"):
        getattr(k + k, name)
    assert getattr(Sum(k), name).__class__ is getattr(k, name).__class__
    assert_equal(Sum(k).inverse().dense(), host(k.inverse().dense()), np.float64)
    with pytest.raises(AttributeError):
        (k + k).nothing  # noqa: B018
    with pytest.raises(TinykronError, match="Frobenius norm alone, not 'nuc'"):
        (k + k).norm("nuc")


# The Kronecker sum ----------------------------------------------------------------------------------------------------


@given(of=matrices())
def test_general_sylvester_equations(device: str, of: Matrices) -> None:
    shift = 4.0 * np.sqrt(of.p * of.q)  # keeps the eigenvalues of S away from minus those of T
    s, t = of.placed(of.normal(of.p, of.p) + shift * np.eye(of.p)), of.placed(of.normal(of.q, of.q))
    operator, b = KroneckerSum(s, t), of(of.p * of.q, 2)
    dense = exact(operator.dense())
    assert_equal(operator.solve(b), np.linalg.solve(dense, exact(b)), of.dtype)
    sign, logarithm = np.linalg.slogdet(dense)
    assert operator.slogdet()[0] == sign
    assert_equal(operator.slogdet()[1], logarithm, of.dtype, 100.0)
    assert_equal(operator.T.dense(), dense.T, of.dtype)
    assert_equal((operator * 0.5).dense(), 0.5 * dense, of.dtype)
    assert isinstance(operator * 0.5, KroneckerSum) and isinstance(operator.H, KroneckerSum)


def test_complex_sylvester_equations(device: str) -> None:
    s, t = normal(3, 3) + 1j * normal(3, 3, seed=1), normal(4, 4) - 2j * normal(4, 4, seed=2)
    operator, b = KroneckerSum(s, t), normal(12)
    dense = host(operator.dense())
    assert_equal(operator.solve(b), np.linalg.solve(dense, host(b)), np.float64, 10.0)
    assert_equal(operator.H.dense(), dense.conj().T, np.float64)
    assert_equal(operator.det(), complex(np.linalg.det(dense)), np.float64)


def test_the_sign_of_a_kronecker_sum(device: str) -> None:
    signs = set()
    for seed in range(12):
        operator = KroneckerSum(normal(2, 2, seed=seed), normal(3, 3, seed=seed + 50))
        sign, logarithm = np.linalg.slogdet(host(operator.dense()))
        assert operator.slogdet() == (sign, pytest.approx(logarithm))
        assert operator.det() == pytest.approx(np.linalg.det(host(operator.dense())))
        signs.add(operator.slogdet()[0])
    assert signs == {-1.0, 1.0}


def test_a_kronecker_sum_that_is_singular_or_no_square(device: str) -> None:
    turned = np.linalg.qr(host(normal(3, 3)))[0]
    s = to_device(turned @ np.diag([1.0, 2.0, 5.0]) @ turned.T)
    operator = KroneckerSum(s, to_device(np.diag([-2.0, 7.0])))
    with pytest.raises(TinykronError, match=r"KroneckerSum\(3x3, 2x2\) is singular"):
        operator.solve(normal(6))
    assert KroneckerSum(to_device(np.eye(2)), to_device(-np.eye(3))).slogdet() == (0.0, -inf)
    with pytest.raises(ShapeError, match="has no Kronecker sum: a factor is not square"):
        KroneckerSum(normal(2, 3), normal(2, 2))
    with pytest.raises(TinykronError, match="factor 2 .* has no real eigenvalues: it is not symmetric"):
        KroneckerSum(s, normal(2, 2)).eigh()

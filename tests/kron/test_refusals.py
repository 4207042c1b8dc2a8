"""What the operators refuse: shapes, dtypes, devices that do not fit, and matrices without what is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import host
from tests.strategies import non_contiguous
from tinykron.backend import to_device
from tinykron.errors import DeviceError, DtypeError, ShapeError, TinykronError
from tinykron.kron import Kron, KroneckerSum, Sum, khatri_rao, unvec


def ones(*shape: int, dtype: Any = np.float64) -> Any:
    return to_device(np.ones(shape, dtype))


def kron_of(*shapes: tuple[int, int], dtype: Any = np.float64) -> Kron:
    return Kron(*(ones(*shape, dtype=dtype) for shape in shapes))


SHAPES = {  # the message, and what raises it
    "a Kronecker product has one factor or more": lambda: Kron(),
    r"factor 2 should be a matrix that is not empty, found \(3,\)": lambda: Kron(ones(2, 2), ones(3)),
    r"factor 1 should be a matrix that is not empty, found \(0, 2\)": lambda: Kron(ones(0, 2)),
    r"x is \(4, 5\), its last axis should be the 6 columns": lambda: kron_of((2, 2), (1, 3)).apply(ones(4, 5)),
    r"x is \(\), its last axis should be": lambda: kron_of((2, 2)).apply(ones()),
    r"takes x \(6,\) or \(6, T\), found \(4, 6\)": lambda: kron_of((2, 2), (1, 3)) @ ones(4, 6),
    r"takes x \(2,\) or \(2, T\), found \(2, 3, 4\)": lambda: kron_of((2, 2)) @ ones(2, 3, 4),
    r"Kron\(2x3, 4x2\) @ .* do not fit one by one": lambda: kron_of((2, 3), (4, 2)) @ kron_of((2, 2), (3, 1)),
    r"@ Kron\(6x2\) do not fit one by one": lambda: kron_of((2, 3), (4, 2)) @ kron_of((6, 2)),
    r"of the same shapes, found Kron\(2x3\) and Kron": lambda: kron_of((2, 3)).hadamard(kron_of((3, 2))),
    r"of the same shapes, found Kron\(2x3\) and [^K]": lambda: kron_of((2, 3)).hadamard(ones(2, 3)),
    r"terms of different shapes: Kron\(2x3\) and Kron": lambda: kron_of((2, 3)) + kron_of((3, 2)),
    r"entries of Kron\(2x3, 2x2\): index 4 is out": lambda: kron_of((2, 3), (2, 2)).entries(4, 0),
    r"entries of Kron\(2x3\): ": lambda: kron_of((2, 3)).entries(0.5, 0),
    r"takes b \(4,\) or \(4, T\), found \(5,\)": lambda: kron_of((2, 2), (2, 2)).solve(ones(5)),
    r"vec of a matrix \(2, 3\) is \(6,\), found \(5,\)": lambda: unvec(ones(5), (2, 3)),
    r"takes \(M, N\) and \(P, N\), found \(2, 3\) and": lambda: khatri_rao(ones(2, 3), ones(2, 4)),
}
DTYPES = {
    "factor 1 is int64": lambda: kron_of((2, 2), dtype=np.int64),
    "factor 1 is float16": lambda: kron_of((2, 2), dtype=np.float16),
    "factor 2 is float64, the factors are float32": lambda: Kron(ones(2, 2, dtype=np.float32), ones(2, 2)),
    "factor 2 is complex128, the first is float64": lambda: Kron(ones(2, 2), ones(2, 2, dtype=complex)),
    "x is float32, the factors are float64": lambda: kron_of((2, 2)) @ ones(2, dtype=np.float32),
    "x is int64, the factors are float64": lambda: ones(2, dtype=np.int64) @ kron_of((2, 2)),
    "b is float32, the factors are float64": lambda: kron_of((2, 2)).solve(ones(2, dtype=np.float32)),
    "is float32, the factors are float64": lambda: kron_of((2, 2)) + kron_of((2, 2), dtype=np.float32),
}


@pytest.mark.parametrize("message", SHAPES)
def test_shapes_that_do_not_fit_are_named(device: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        SHAPES[message]()


@pytest.mark.parametrize("message", DTYPES)
def test_dtypes_that_do_not_fit_are_named(device: str, message: str) -> None:
    with pytest.raises(DtypeError, match=message):
        DTYPES[message]()


def test_what_is_no_array_and_no_operator() -> None:
    with pytest.raises(DeviceError, match="expected an array of .*, found list"):
        Kron([[1.0]])
    for terms in ((), (np.ones((2, 2)),)):
        with pytest.raises(TinykronError, match="the terms of a sum are Kron or Sum, one or more"):
            Sum(*terms)
    k = Kron(np.ones((2, 2)))
    for mixed in (lambda: k * k, lambda: k + 1.0, lambda: k * "2", lambda: np.ones((2, 2)) + k, lambda: k - np.ones(2)):
        with pytest.raises(TypeError):
            mixed()


def test_a_numpy_number_does_not_turn_float32_into_float64(device: str) -> None:
    k = kron_of((2, 2), dtype=np.float32)
    for scaled in (k * np.float64(3.0), np.float64(3.0) * k, k * to_device(np.array(3.0)), (k + k) * np.float64(1.5)):
        assert scaled.dtype == np.float32 and host(scaled.dense())[0, 0] == 3.0
    assert (KroneckerSum(k.factors[0], k.factors[0]) * np.float64(2.0)).dtype == np.float32


def test_devices_do_not_mix() -> None:
    here, there = np.ones((2, 2)), to_device(np.ones((2, 2)), "fake")
    mixed = {
        "factor 2": lambda: Kron(here, there),
        "x": lambda: Kron(here) @ there,
        "b": lambda: Kron(here).solve(there),
    }
    for name, call in (mixed | {"Kron": lambda: Kron(here) + Kron(there)}).items():
        with pytest.raises(DeviceError, match=rf"{name}.* is on fake, the factors are on cpu"):
            call()
    with pytest.raises(DeviceError, match="x is on cpu, the factors are on fake"):
        here @ Kron(there)


SINGULAR = np.array([[1.0, 2.0], [2.0, 4.0]])
POSITIVE = np.array([[2.0, 1.0], [1.0, 2.0]])
MISSING = {
    "inverse": lambda k: k.inverse(),
    "solution": lambda k: k.solve(to_device(np.ones(4))),
    "power": lambda k: k**-1,
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("place", [0, 1])
def test_a_singular_factor_is_named_on_every_device(device: str, name: str, place: int) -> None:
    factors = [POSITIVE, POSITIVE]
    factors[place] = SINGULAR
    with pytest.raises(TinykronError, match=rf"factor {place + 1} of Kron\(2x2, 2x2\) has no inverse"):
        MISSING[name](Kron(*map(to_device, factors)))


def test_factors_that_are_not_positive_definite(device: str) -> None:
    """(-S) x (-T) is positive definite, but no factor's Cholesky factor or root exists: never a NaN."""
    s, negative = to_device(POSITIVE), to_device(-POSITIVE)
    assert np.isfinite(np.linalg.cholesky(np.kron(-POSITIVE, -POSITIVE))).all()
    for k, place in ((Kron(negative, negative), 1), (Kron(s, negative), 2), (Kron(s, to_device(SINGULAR - 1e-9)), 2)):
        with pytest.raises(TinykronError, match=f"factor {place} .* has no Cholesky factor"):
            k.cholesky()
        with pytest.raises(TinykronError, match=rf"factor {place} .* has no power 0\.5: it is not positive definite"):
            k**0.5


@pytest.mark.parametrize("bad", [[[2.0, 1.0], [0.0, 2.0]], [[1.0, np.nan], [np.nan, 1.0]]])
def test_factors_that_are_not_symmetric(device: str, bad: list) -> None:
    k = Kron(to_device(POSITIVE), to_device(np.array(bad)))
    for asked in (k.cholesky, k.eigh, lambda: k**0.5):
        with pytest.raises(TinykronError, match=r"factor 2 of Kron\(2x2, 2x2\) has no .*: it is not symmetric"):
            asked()


def test_dense_is_in_c_order_and_never_the_factor_itself(device: str) -> None:
    a, b = (to_device(np.arange(12.0).reshape(shape)) for shape in ((3, 4), (4, 3)))
    for one in (a, *non_contiguous(a)):
        for two in (b, *non_contiguous(b)):
            for k in (Kron(one), Kron(one, two), Kron(one[:1], two), Kron(one[:, :1], two[:1]), Kron(one) + Kron(one)):
                dense = k.dense()
                assert dense.flags.c_contiguous
                dense[0, 0] = -1.0
    assert host(a)[0, 0] == host(b)[0, 0] == 0.0


def test_words_for_an_operator() -> None:
    k = Kron(np.ones((2, 3)), np.ones((4, 1)))
    assert repr(k) == "Kron(2x3, 4x1)" and repr(k + k) == "Sum(8x3)" and repr(k.svd()) == "Spectral(8x3)"
    assert repr(KroneckerSum(np.eye(2), np.eye(3))) == "KroneckerSum(2x2, 3x3)"

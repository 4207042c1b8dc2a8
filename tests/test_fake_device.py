"""The fake device refuses what would fail, or go wrong without a word, on CuPy; and computes what NumPy computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_device import FAKE, UFUNCS, FakeArray
from tests.helpers import assert_close
from tests.strategies import POSITIVE, arrays, broadcastable_pairs, matmul_pairs, shapes
from tinykron import backend

xp = FAKE.xp
HOST = np.arange(6, dtype=np.float32).reshape(2, 3)


def fake(array: object = HOST) -> FakeArray:
    return xp.asarray(array)


def assign(target: FakeArray, index: object, value: object) -> None:
    target[index] = value


MISUSES: dict[str, Callable[[], object]] = {
    "np.asarray": lambda: np.asarray(fake()),
    "np.array of a list": lambda: np.array([fake()]),
    "memoryview": lambda: memoryview(fake()),
    "NumPy function": lambda: np.sum(fake()),
    "NumPy concatenate": lambda: np.concatenate([fake(), fake()]),
    "NumPy linear algebra": lambda: np.linalg.norm(fake()),
    "NumPy ufunc": lambda: np.exp(fake()),
    "NumPy ufunc at": lambda: np.add.at(HOST.copy(), (0, 0), fake(1.0)),
    "NumPy out=": lambda: np.add(HOST, 1.0, out=fake()),
    "ndarray on the left": lambda: HOST + fake(),
    "ndarray on the right": lambda: fake() + HOST,
    "ndarray @ fake": lambda: HOST.T @ fake(),
    "NumPy scalar on the left": lambda: np.float32(2) * fake(),
    "ndarray in place": lambda: fake().__iadd__(HOST),
    "fake into ndarray in place": lambda: HOST.copy().__iadd__(fake()),
    "comparison": lambda: fake() == HOST,
    "list operand": lambda: fake() * [1.0, 2.0, 3.0],
    "None operand": lambda: fake() + None,
    "ufunc of ndarray": lambda: xp.exp(HOST),
    "ufunc of list": lambda: xp.exp([1.0]),
    "ufunc out ndarray": lambda: xp.exp(fake(), out=HOST.copy()),
    "ufunc where": lambda: xp.exp(fake(), where=fake() > 0),
    "function of ndarray": lambda: xp.sum(HOST),
    "function of list": lambda: xp.sum([1.0, 2.0]),
    "function out ndarray": lambda: xp.sum(fake(), out=np.zeros((), np.float32)),
    "function of Python number": lambda: xp.sum(1.0),
    "where of ndarray condition": lambda: xp.where(HOST > 1, fake(), 0.0),
    "where of ndarray value": lambda: xp.where(fake() > 1, fake(), HOST),
    "where of list": lambda: xp.where(fake() > 1, fake(), [1.0, 2.0, 3.0]),
    "matmul of ndarray": lambda: xp.matmul(fake(), HOST.T),
    "tensordot of list": lambda: xp.tensordot(fake(), [1.0, 2.0, 3.0], 1),
    "einsum of ndarray": lambda: xp.einsum("ij,kj", fake(), HOST),
    "concatenate ndarray": lambda: xp.concatenate([fake(), HOST]),
    "stack numbers": lambda: xp.stack([fake(1.0), 2.0]),
    "asarray of a list of arrays": lambda: xp.asarray([fake(1.0)]),
    "sum where=": lambda: xp.sum(fake(), where=fake() > 1),
    "max initial=": lambda: fake().max(initial=0.0),
    "take mode=": lambda: xp.take(fake(), fake([0]), mode="clip"),
    "index by ndarray": lambda: fake()[np.array([0, 1])],
    "index by boolean ndarray": lambda: fake()[HOST > 1],
    "index by list": lambda: fake()[[0, 1]],
    "index by floats": lambda: fake()[fake()],
    "index out of range": lambda: fake()[fake([0, 2])],
    "negative index out of range": lambda: fake()[fake([-3])],
    "take out of range": lambda: xp.take(fake(), fake([3]), axis=1),
    "slice by a device value": lambda: fake()[: fake(1)],
    "range over a device value": lambda: range(fake(1)),
    "set from ndarray": lambda: assign(fake(), 0, HOST[0]),
    "set from list": lambda: assign(fake(), 0, [1.0, 2.0, 3.0]),
    "set at ndarray index": lambda: assign(fake(), np.array([0]), 1.0),
    "set with repeated indices": lambda: assign(fake(), fake([0, 0]), fake()),
    "truth of many values": lambda: bool(fake()),
    "hash": lambda: hash(fake()),
    "reduce that CuPy lacks": lambda: xp.maximum.reduce(fake()),
    "scatter into an unsupported dtype": lambda: FAKE.scatter_add(fake(np.zeros(3, bool)), fake([0]), fake([True])),
    "scatter of ndarray": lambda: FAKE.scatter_add(fake(), fake([0]), HOST[:1]),
    "scatter at ndarray": lambda: FAKE.scatter_add(fake(), np.array([0]), fake()[:1]),
    "erf of complex": lambda: FAKE.erf(fake(1j)),
    "write into a broadcast": lambda: assign(xp.broadcast_to(fake(1.0), (3,)), 0, 2.0),
    "function that CuPy lacks": lambda: xp.insert,
    "random": lambda: xp.random,
    "errstate": lambda: xp.errstate,
    "method that CuPy lacks": lambda: fake().setfield,
    "array interface": lambda: fake().__array_interface__,
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_refuses(misuse: str) -> None:
    kinds = TypeError, IndexError, AttributeError, ValueError, NotImplementedError
    with pytest.raises(kinds, match="fake device|FakeArray|fake_cupy|out of bounds|ambiguous|read-only|not supported"):
        MISUSES[misuse]()


@pytest.mark.parametrize("function", [np.exp, np.sum, np.concatenate, np.where, np.matmul])
def test_a_refused_numpy_function_is_named(function: Callable[..., object]) -> None:
    arguments = {"where": (fake() > 1, fake(), fake()), "matmul": (fake(), fake()), "concatenate": ([fake()],)}
    with pytest.raises(TypeError, match=f"numpy.{function.__name__} "):
        function(*arguments.get(function.__name__, (fake(),)))


def test_a_refusal_leaves_the_array_alone() -> None:
    array = fake()
    with pytest.raises(IndexError, match="repeated"):
        array[fake([0, 0])] = fake()
    assert_close(array, HOST)


@given(x=arrays(shapes(), **POSITIVE))
@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "negative", "square", "isfinite", "sign", "reciprocal"])
def test_unary_functions_agree_with_numpy(name: str, x: np.ndarray) -> None:
    assert_close(getattr(xp, name)(fake(x)), np.asarray(getattr(np, name)(x)), rtol=0, atol=0)
    out = xp.empty_like(fake(x), dtype=getattr(np, name)(x).dtype)
    assert getattr(xp, name)(fake(x), out=out) is out
    assert_close(out, np.asarray(getattr(np, name)(x)), rtol=0, atol=0)


@given(pair=broadcastable_pairs(second=POSITIVE))
@pytest.mark.parametrize("operator", ["add", "sub", "mul", "truediv", "lt", "ge", "eq"])
def test_operators_agree_with_numpy(operator: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    expected = np.asarray(getattr(x, f"__{operator}__")(y))
    assert_close(getattr(fake(x), f"__{operator}__")(fake(y)), expected, rtol=0, atol=0)


@given(x=arrays(shapes(min_dims=1)), data=st.data())
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "argmax", "prod", "any", "all"])
def test_reductions_agree_with_numpy(name: str, x: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.one_of(st.none(), st.integers(-x.ndim, x.ndim - 1)))
    expected = np.asarray(getattr(np, name)(x, axis=axis))
    assert_close(getattr(xp, name)(fake(x), axis=axis), expected, rtol=0, atol=0)
    assert_close(getattr(fake(x), name)(axis=axis), expected, rtol=0, atol=0)


@given(pair=matmul_pairs())
def test_matmul_agrees_with_numpy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    for product in (fake(x) @ fake(y), xp.matmul(fake(x), fake(y))):
        assert_close(product, np.asarray(x @ y), rtol=0, atol=0)


@pytest.mark.parametrize(
    "scalar",
    [
        lambda: fake().sum(),
        lambda: fake()[1, 2],
        lambda: fake(1.0) + fake(2.0),
        lambda: xp.exp(fake(0.5)),
        lambda: fake()[fake(0), 1],
    ],
)
def test_single_values_are_0d_arrays(scalar: Callable[[], object]) -> None:
    value = scalar()
    assert isinstance(value, FakeArray)
    assert value.shape == ()


def test_explicit_transfers() -> None:
    value = fake(2.5)
    assert (float(value), int(value), bool(value), value.item()) == (2.5, 2, True, 2.5)
    assert_close(FAKE.to_host(fake()), HOST)
    assert_close(xp.array([1, 2]), np.array([1, 2]))
    source = HOST.copy()
    moved = FAKE.from_host(source)
    source[0, 0] = 9.0
    FAKE.to_host(moved)[0, 1] = 9.0
    assert_close(moved, HOST)  # a transfer is a copy, both ways


def test_basic_indexing_gives_views_and_in_place_operators_write_through() -> None:
    array = fake()
    row = array[1]
    row += 1.0
    row[0] = fake(-1.0)
    array[0, 0] *= 0.0
    assert_close(array, np.array([[0, 1, 2], [-1, 5, 6]], np.float32))
    assert row.base is not None


def test_dtypes_follow_nep_50() -> None:
    single = fake()
    assert (single * 2.0).dtype == np.float32
    assert (single * np.float64(2)).dtype == np.float64
    assert (single * fake(np.float64(2))).dtype == np.float64
    assert (single.astype(np.float16) + 1).dtype == np.float16
    assert single.astype(np.float32, copy=False) is single


def test_scatter_add_accumulates_repeats() -> None:
    target = xp.zeros(3, dtype=np.float32)
    backend.scatter_add(target, fake([2, 0, 2]), fake(np.array([1, 2, 3], np.float32)))
    assert_close(target, np.array([2, 0, 4], np.float32))


def test_functions_returning_several_arrays() -> None:
    u, s, vt = xp.linalg.svd(fake(), full_matrices=False)
    assert_close((u * s) @ vt, HOST, atol=1e-5)
    first, second = xp.split(fake(), 2)
    assert_close(xp.concatenate([second, first]), HOST[::-1])


def test_linear_algebra_fails_without_a_word_unless_errors_are_asked_for() -> None:
    indefinite = fake(np.array([[1.0, 2.0], [2.0, 1.0]], np.float32))
    found = xp.linalg.cholesky(indefinite)
    assert found.dtype == np.float32 and np.isnan(FAKE.to_host(found)).all()
    singular, b = fake(np.ones((2, 2))), fake(np.ones((2, 3)))
    assert np.isnan(FAKE.to_host(xp.linalg.solve(singular, b))).all() and xp.linalg.solve(singular, b).shape == (2, 3)
    with FAKE.linalg_errors(), pytest.raises(np.linalg.LinAlgError):
        xp.linalg.cholesky(indefinite)
    assert np.isnan(FAKE.to_host(xp.linalg.inv(singular))).all()  # the block is over


@pytest.mark.gpu
def test_cupy_has_every_name() -> None:
    cupy = pytest.importorskip("cupy", reason="no CUDA GPU: cupy is not installed")
    names = [name for name in vars(xp) if not name.startswith("__")]
    assert [name for name in names if not hasattr(cupy, name)] == []
    assert [name for name in vars(xp.linalg) if not hasattr(cupy.linalg, name)] == []
    methods = [name for name in vars(FakeArray) if not name.startswith("_")]
    assert [name for name in methods if not hasattr(cupy.ndarray, name)] == []
    assert [name for name in UFUNCS.split() if not isinstance(getattr(cupy, name), cupy.ufunc)] == []

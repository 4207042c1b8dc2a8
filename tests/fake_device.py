"""The strict fake device: arrays that behave like CuPy's, on a machine without CUDA, so that CPU-only tests catch what
would break on a GPU.

A FakeArray hides a NumPy array. It refuses what CuPy refuses (implicit conversion, NumPy arrays and lists as operands,
functions that CuPy lacks, keywords that its functions lack) and some more, where CuPy goes wrong without a word:
integer indices out of range, repeated indices in an assignment. As there, a Cholesky factor or an inverse that does not
exist is NaN, unless errors were asked for. Names and signatures are those of CuPy 14.2.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from tinykron.backend import Backend, register


class FakeArray:
    """An array on the fake device. Nothing reads its values but `get`, `item`, `tolist`, `float`, `int` and `bool`."""

    __slots__ = ("__weakref__", "_array")
    __hash__ = None  # type: ignore[assignment]
    dtype: Any  # the rest of the attributes, methods and operators are made from lists, below
    size: Any

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("fake device: implicit conversion to a NumPy array is not allowed; use to_host(array)")

    def __array_ufunc__(self, ufunc: Any, method: str, *_: Any, **__: Any) -> Any:
        raise TypeError(f"fake device: numpy.{ufunc.__name__} was given a device array; use xp.{ufunc.__name__}")

    def __array_function__(self, function: Any, *_: Any, **__: Any) -> Any:
        raise TypeError(f"fake device: numpy.{function.__name__} was given a device array; use xp.{function.__name__}")

    # Explicit transfers: each waits for the device -------------------------------------------------------------------

    def get(self) -> np.ndarray:
        return self._array.copy()

    def item(self, *index: int) -> Any:
        return self._array.item(*index)

    def tolist(self) -> Any:
        return self._array.tolist()

    def __float__(self) -> float:
        return float(self._array.item())

    def __int__(self) -> int:
        return int(self._array.item())

    def __complex__(self) -> complex:
        return complex(self._array.item())

    def __bool__(self) -> bool:
        return bool(self._array)

    # Indexing --------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> FakeArray:
        return FakeArray(self._array[_host_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        key = _host_index(index)
        if isinstance(value, FakeArray) and value.size > 1 and _has_repeats(self._array.shape, key):
            raise IndexError("fake device: assignment to repeated indices, whose result CuPy leaves undefined")
        self._array[key] = _operand(value, "setitem")

    def __repr__(self) -> str:
        return f"FakeArray({self._array!r})"

    def __copy__(self) -> FakeArray:
        return FakeArray(self._array.copy())

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeArray:
        return FakeArray(self._array.copy())

    @property
    def base(self) -> FakeArray | None:
        return None if self._array.base is None else FakeArray(self._array.base)


# Arguments and results ----------------------------------------------------------------------------------------------

SCALARS = (bool, int, float, complex, np.generic)


def _operand(value: Any, where: str) -> Any:
    """Return the hidden array of an operand, or a scalar; refuse everything else."""
    if isinstance(value, FakeArray):
        return value._array
    if isinstance(value, SCALARS):
        return value
    raise TypeError(f"fake device: unsupported type {type(value).__module__}.{type(value).__name__} in {where}")


def _argument(value: Any, where: str) -> Any:
    """Return any argument of a function with its arrays uncovered: shapes, axes, names and dtypes pass."""
    if isinstance(value, (tuple, list)):
        return type(value)(_argument(element, where) for element in value)
    if value is None or isinstance(value, (str, type, np.dtype, slice, types.EllipsisType)):
        return value
    return _operand(value, where)


def _result(value: Any, given: Sequence[Any] = ()) -> Any:
    """Hide every array in a result; a scalar becomes a 0-d array, an `out=` argument comes back itself."""
    for argument in given:
        if isinstance(argument, FakeArray) and argument._array is value:
            return argument
    if isinstance(value, (np.ndarray, np.generic)):
        return FakeArray(np.asarray(value))
    if isinstance(value, (tuple, list)):
        wrapped = [_result(element, given) for element in value]
        return type(value)(*wrapped) if hasattr(value, "_fields") else type(value)(wrapped)
    return value


def _host_index(index: Any) -> tuple[Any, ...]:
    """Return an index with its arrays uncovered, ending in ... so that NumPy gives a 0-d array and never a scalar."""
    parts = index if isinstance(index, tuple) else (index,)
    key = []
    for part in parts:
        if isinstance(part, FakeArray):
            if part.dtype.kind not in "iub":
                raise IndexError(f"fake device: an index array must hold integers or booleans, found {part.dtype}")
            key.append(part._array)
        elif isinstance(part, slice):
            bounds = (part.start, part.stop, part.step)
            if not all(bound is None or isinstance(bound, (int, np.integer)) for bound in bounds):
                raise TypeError(f"fake device: a slice takes whole numbers of the host, found {part}")
            key.append(part)
        elif part is None or part is Ellipsis or isinstance(part, (int, np.integer)) and not isinstance(part, bool):
            key.append(part)
        else:
            raise TypeError(f"fake device: unsupported index of type {type(part).__module__}.{type(part).__name__}")
    return tuple(key) if any(part is Ellipsis for part in key) else (*key, Ellipsis)


def _has_repeats(shape: tuple[int, ...], key: tuple[Any, ...]) -> bool:
    if not any(isinstance(part, np.ndarray) and part.dtype.kind in "iu" for part in key):
        return False
    chosen = np.arange(np.prod(shape, dtype=int)).reshape(shape)[key]
    return np.unique(chosen).size != chosen.size


# The methods and operators of an array ------------------------------------------------------------------------------

METHODS = """all any argmax argmin argsort astype clip conj copy cumsum diagonal dot fill flatten max mean min nonzero
prod ravel repeat reshape round sort squeeze std sum swapaxes take trace transpose var view"""
ATTRIBUTES = "T dtype flags imag itemsize mT nbytes ndim real shape size strides"
BINARY = "add sub mul truediv floordiv mod pow matmul and or xor"
COMPARISONS = "eq ne lt le gt ge"
UNARY = "neg pos abs invert"
LACKED = {"where", "initial", "subok", "like", "device"}  # keywords of NumPy's functions that CuPy's lack
ALSO_LACKED = {"take": {"mode"}, "clip": {"min", "max"}}


def _refuse_keywords(name: str, keywords: dict[str, Any]) -> None:
    if refused := (LACKED | ALSO_LACKED.get(name, set())) & keywords.keys():
        raise TypeError(f"fake device: {name} has no keyword {', '.join(sorted(refused))}")


def _method(name: str) -> Callable[..., Any]:
    def call(self: FakeArray, *args: Any, **keywords: Any) -> Any:
        _refuse_keywords(name, keywords)
        given = (self, *args, *keywords.values())
        host_args = [_argument(arg, name) for arg in args]
        host_keywords = {key: _argument(value, name) for key, value in keywords.items()}
        return _result(getattr(self._array, name)(*host_args, **host_keywords), given)

    return call


def _attribute(name: str) -> property:
    return property(lambda self: _result(getattr(self._array, name)))


def _operator(name: str) -> Callable[..., Any]:
    def call(self: FakeArray, *others: Any) -> Any:
        if any(getattr(other, "__array_ufunc__", self) is None for other in others):
            return NotImplemented  # as NumPy and CuPy do: the other type asks to be called instead
        return _result(getattr(operator, name)(self._array, *(_operand(other, name) for other in others)))

    return call


def _reflected(name: str) -> Callable[..., Any]:
    return lambda self, other: _result(getattr(operator, name)(_operand(other, name), self._array))


def _in_place(name: str) -> Callable[..., Any]:
    def call(self: FakeArray, other: Any) -> FakeArray:
        getattr(operator, f"i{name}")(self._array, _operand(other, f"i{name}"))
        return self

    return call


for _name in METHODS.split():
    setattr(FakeArray, _name, _method(_name))
for _name in ATTRIBUTES.split():
    setattr(FakeArray, _name, _attribute(_name))
for _name in f"{UNARY} {COMPARISONS} {BINARY}".split():
    dunder = f"{_name}_" if _name in ("and", "or") else _name  # operator.and_, operator.or_
    setattr(FakeArray, f"__{_name}__", _operator(dunder))
for _name in BINARY.split():
    setattr(FakeArray, f"__r{_name}__", _reflected(f"{_name}_" if _name in ("and", "or") else _name))
    if _name != "matmul":  # CuPy has no in-place matrix product
        setattr(FakeArray, f"__i{_name}__", _in_place(_name))


# The module ---------------------------------------------------------------------------------------------------------

UFUNCS = """abs absolute add arctan bitwise_and cbrt ceil conj conjugate copysign cos cosh divide equal exp exp2 expm1
floor floor_divide fmax fmin greater greater_equal hypot invert isfinite isinf isnan less less_equal log log1p log2
logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply negative not_equal positive power
reciprocal remainder rint sign signbit sin sinh sqrt square subtract tan tanh true_divide trunc"""
FROM_ARRAYS = """all allclose any argmax argmin argsort ascontiguousarray broadcast_to clip copy count_nonzero cumprod
cumsum diag diagonal diff dot einsum empty_like expand_dims flatnonzero flip full_like imag inner iscomplexobj isclose
kron max mean median min moveaxis nan_to_num nonzero ones_like outer pad prod put_along_axis ravel real repeat reshape
roll round searchsorted sort split squeeze std sum swapaxes take take_along_axis tensordot tile trace transpose tril
triu unique var where zeros_like"""
FROM_SEQUENCES = "concatenate hstack stack vstack"
CREATION = "arange broadcast_shapes empty eye full linspace ones result_type promote_types tri zeros"
LINALG = "cholesky det eigh eigvalsh inv lstsq matrix_power matrix_rank norm pinv qr slogdet solve svd"
NAMES = """bool_ complex64 complex128 complexfloating dtype e finfo float16 float32 float64 floating generic iinfo inf
int8 int16 int32 int64 integer issubdtype nan newaxis pi uint8 uint16 uint32 uint64"""
TWO_OPERANDS = "allclose dot inner isclose kron outer searchsorted take take_along_axis tensordot"
OPERANDS = dict.fromkeys(TWO_OPERANDS.split(), 2) | {"put_along_axis": 3, "where": 3}  # leading arguments; others: 1


_raising: ContextVar[bool] = ContextVar("raising", default=False)


class FakeUfunc:
    """A universal function: arrays and scalars in; `out`, `dtype` and `casting` are all the keywords there are."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self._ufunc: np.ufunc = getattr(np, name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if refused := keywords.keys() - {"out", "dtype", "casting"}:
            raise TypeError(f"fake device: {self.__name__} has no keyword {', '.join(sorted(refused))}")
        out = keywords.pop("out", None)
        host_args = [_operand(arg, self.__name__) for arg in args]
        if out is None:
            return _result(self._ufunc(*host_args, **keywords), args)
        if not isinstance(out, FakeArray):
            raise TypeError(f"fake device: out= of {self.__name__} must be a device array, found {type(out).__name__}")
        self._ufunc(*host_args, out=out._array, **keywords)
        return out

    def reduce(self, array: FakeArray, axis: Any = 0, dtype: Any = None, keepdims: bool = False) -> FakeArray:
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.__name__}.reduce` is not supported yet")
        return _result(self._ufunc.reduce(_operand(array, "reduce"), axis=axis, dtype=dtype, keepdims=keepdims))

    def outer(self, x: FakeArray, y: FakeArray) -> FakeArray:
        return _result(self._ufunc.outer(_operand(x, "outer"), _operand(y, "outer")))


def _function(name: str, home: Any = np, kind: str = "arrays") -> Callable[..., Any]:
    """Wrap one function, whose first argument is of a `kind`: "arrays", "sequence" of arrays, or "no array"."""

    def operands(args: Sequence[Any]) -> Sequence[Any]:
        if kind == "arrays":
            return args[1:] if name == "einsum" else args[: OPERANDS.get(name, 1)]
        return args[0] if kind == "sequence" else ()

    def call(*args: Any, **keywords: Any) -> Any:
        _refuse_keywords(name, keywords)
        for position, operand in enumerate(operands(args)):
            _operand(operand, name)
            if not isinstance(operand, FakeArray) and (position == 0 or kind == "sequence"):
                raise TypeError(f"fake device: {name} expected a device array, found {type(operand).__name__}")
        host_args = [_argument(arg, name) for arg in args]
        host_keywords = {key: _argument(value, name) for key, value in keywords.items()}
        return _result(getattr(home, name)(*host_args, **host_keywords), (*args, *keywords.values()))

    call.__name__ = name
    return call


def _linalg(name: str) -> Callable[..., Any]:
    """Wrap a function of linalg: one that fails gives NaN without a word, and raises within `linalg_errors` alone."""
    function = _function(name, np.linalg)

    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except np.linalg.LinAlgError:
            if _raising.get():
                raise
            like = args[1] if name == "solve" else args[0]
            return FakeArray(np.full(like.shape, np.nan, like.dtype))

    call.__name__ = name
    return call


def _matmul(x: Any, y: Any, out: FakeArray | None = None) -> FakeArray:
    host = np.matmul(_operand(x, "matmul"), _operand(y, "matmul"), out=None if out is None else out._array)
    return _result(host) if out is None else out


def _asarray(value: Any, dtype: Any = None) -> FakeArray:
    """Move a NumPy array, a list or a number to the device: the explicit transfer."""
    if isinstance(value, FakeArray):
        return value if dtype is None or value.dtype == dtype else FakeArray(value._array.astype(dtype))
    return FakeArray(np.array(value, dtype=dtype))


def _copyto(target: FakeArray, source: Any, casting: str = "same_kind", where: Any = True) -> None:
    np.copyto(_operand(target, "copyto"), _operand(source, "copyto"), casting=casting, where=_operand(where, "copyto"))


def _module() -> types.ModuleType:
    xp = types.ModuleType("fake_cupy", "Those functions of CuPy that the fake device offers.")
    contents: dict[str, Any] = {name: getattr(np, name) for name in NAMES.split()}
    contents |= {name: FakeUfunc(name) for name in UFUNCS.split()}
    contents |= {name: _function(name) for name in FROM_ARRAYS.split()}
    contents |= {name: _function(name, kind="sequence") for name in FROM_SEQUENCES.split()}
    contents |= {name: _function(name, kind="no array") for name in CREATION.split()}
    contents |= {
        "array": lambda v, dtype=None: FakeArray(np.array(_asarray(v)._array, dtype=dtype)),
        "asarray": _asarray,
    }
    contents |= {"matmul": _matmul, "copyto": _copyto, "ndarray": FakeArray}
    contents["linalg"] = types.SimpleNamespace(**{name: _linalg(name) for name in LINALG.split()})
    for name, value in contents.items():
        setattr(xp, name, value)
    return xp


def _scatter_add(target: FakeArray, index: Any, values: Any) -> None:
    if target.dtype.name not in ("float16", "float32", "float64", "int32"):
        raise TypeError(f"fake device: scatter_add has no {target.dtype}")
    np.add.at(target._array, _host_index(index), _operand(values, "scatter_add"))


@contextmanager
def _linalg_errors() -> Iterator[None]:
    token = _raising.set(True)
    try:
        yield
    finally:
        _raising.reset(token)


def _erf(x: FakeArray) -> FakeArray:
    from scipy.special import erf

    if x.dtype.kind == "c":
        raise TypeError("fake device: cupyx.scipy.special.erf has no complex form")
    return _result(erf(_operand(x, "erf")))


FAKE = Backend(
    name="fake",
    xp=_module(),
    array_type=FakeArray,
    from_host=_asarray,
    to_host=FakeArray.get,
    scatter_add=_scatter_add,
    erf=_erf,
    linalg_errors=_linalg_errors,
)
register(FAKE)

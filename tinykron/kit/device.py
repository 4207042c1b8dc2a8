"""A device to learn on: arrays that pretend to lie on a GPU, on a machine that has none.

What fails here fails on a GPU too, or is slow there: NumPy arrays among device arrays, conversions that nobody asked
for. It is stricter than CuPy, which hands some of NumPy's own functions on. It counts how often a value is fetched.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tinykron.backend import Backend, register

NAME = "pretend"
SCALARS = (bool, int, float, complex, np.generic)
PLAIN = (str, type, np.dtype, slice, type(None), type(Ellipsis))  # what is no array, and passes to NumPy as it is
BINARY = "add sub mul truediv floordiv mod pow matmul and or xor"
COMPARISONS = "eq ne lt le gt ge"
UNARY = "neg pos abs invert"
METHODS = """all any argmax argmin argsort astype clip copy cumsum max mean min ravel repeat reshape round squeeze std
sum swapaxes take transpose var"""


class PretendArray:
    """An array whose numbers the host reads by `get`, `item`, `float`, `int` or `bool` alone."""

    __slots__ = ("_array", "_device")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: np.ndarray, device: PretendDevice) -> None:
        self._array, self._device = array, device

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this array lies on the device: NumPy cannot read it. Use xp = tk.backend.xp_of(array)")

    __array__ = __array_ufunc__ = __array_function__ = _refuse

    def get(self) -> np.ndarray:
        self._device.transfers += 1
        return self._array.copy()

    def item(self) -> Any:
        return self.get().item()

    # fmt: off
    def __float__(self) -> float: return float(self.item())
    def __int__(self) -> int: return int(self.item())
    def __bool__(self) -> bool: return bool(self.item())
    def __len__(self) -> int: return len(self._array)
    def __iter__(self) -> Any: return (self[i] for i in range(len(self)))
    def __repr__(self) -> str: return f"<array {self._array.shape} {self._array.dtype} on the device>"
    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    T = property(lambda self: self._device.shown(self._array.T))
    base = property(lambda self: self._array.base)
    # fmt: on

    def __getitem__(self, index: Any) -> Any:
        return self._device.shown(self._array[self._device.hidden(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[self._device.hidden(index)] = self._device.hidden(value)


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    function = getattr(operator, f"{name}_" if name in ("and", "or") else name)

    def call(self: PretendArray, *others: Any) -> Any:
        if any(getattr(other, "__array_ufunc__", self) is None for other in others):
            return NotImplemented  # a Tensor, which wants to be asked itself
        operands = [self._array, *map(self._device.hidden, others)]
        return self._device.shown(function(*(operands[::-1] if reflected else operands)))

    return call


def _method(name: str) -> Callable[..., Any]:
    def call(self: PretendArray, *args: Any, **options: Any) -> Any:
        hidden = self._device.hidden
        options = {key: hidden(value) for key, value in options.items()}
        return self._device.shown(getattr(self._array, name)(*map(hidden, args), **options))

    return call


def _in_place(name: str) -> Callable[..., Any]:
    def call(self: PretendArray, other: Any) -> PretendArray:
        getattr(operator, f"i{name}")(self._array, self._device.hidden(other))
        return self

    return call


for _name in f"{UNARY} {COMPARISONS} {BINARY}".split():
    setattr(PretendArray, f"__{_name}__", _operator(_name))
for _name in BINARY.split():
    setattr(PretendArray, f"__r{_name}__", _operator(_name, reflected=True))
for _name in "add sub mul truediv".split():
    setattr(PretendArray, f"__i{_name}__", _in_place(_name))
for _name in METHODS.split():
    setattr(PretendArray, _name, _method(_name))


class PretendDevice:
    """The device: `xp` in place of NumPy or CuPy, and how many `transfers` to the host there were."""

    def __init__(self) -> None:
        self.transfers = 0

    def hidden(self, value: Any) -> Any:
        """Return what the device works on: its own arrays uncovered; a NumPy array is refused."""
        if isinstance(value, PretendArray):
            return value._array
        if isinstance(value, (tuple, list)):
            return type(value)(self.hidden(part) for part in value)
        if isinstance(value, (*SCALARS, *PLAIN)):
            return value
        raise TypeError(f"the device was handed a {type(value).__module__}.{type(value).__name__}: move it there first")

    def shown(self, value: Any) -> Any:
        """Return a result of NumPy as the device's own."""
        if isinstance(value, (np.ndarray, np.generic)):
            return PretendArray(np.asarray(value), self)
        return tuple(map(self.shown, value)) if isinstance(value, (tuple, list)) else value

    def asarray(self, value: Any, dtype: Any = None) -> PretendArray:
        """Move a NumPy array, a list or a number to the device."""
        return PretendArray(np.array(value._array if isinstance(value, PretendArray) else value, dtype), self)

    def __getattr__(self, name: str) -> Any:
        """Return NumPy's function of that name, for arrays of the device: this object is the device's `xp`."""
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*args: Any, **options: Any) -> Any:
            out = options.get("out")
            result = found(*map(self.hidden, args), **{key: self.hidden(value) for key, value in options.items()})
            return self.shown(result) if out is None else out

        return call


def pretend_device() -> PretendDevice:
    """Make "pretend" a device of tinykron's, new and with no transfers counted, and return it."""
    device = PretendDevice()

    def scatter_add(target: PretendArray, index: Any, values: PretendArray) -> None:
        np.add.at(target._array, device.hidden(index), device.hidden(values))

    def erf(x: PretendArray) -> Any:
        from scipy.special import erf

        return device.shown(erf(x._array))

    register(Backend(NAME, device, PretendArray, device.asarray, PretendArray.get, scatter_add, erf))
    return device

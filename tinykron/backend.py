"""NumPy or CuPy: which one holds an array, how to move it, and the few calls that differ between the two.

Everything else in tinykron asks `xp_of(array)` for the module and writes array code once. This is the only file that
imports cupy, and it does so only when CUDA is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from tinykron.errors import DeviceError

Array = Any  # numpy.ndarray or cupy.ndarray: both follow the array API that we use


@dataclass(frozen=True)
class Backend:
    """An array library, and the calls that no two libraries spell alike."""

    name: str  # "cpu", "cuda"
    xp: Any  # the module: numpy, cupy
    array_type: type
    from_host: Callable[[np.ndarray], Array]
    to_host: Callable[[Array], np.ndarray]
    scatter_add: Callable[[Array, Any, Array], None]  # target[index] += values, repeated indices adding up
    erf: Callable[[Array], Array]
    linalg_errors: Callable[[], AbstractContextManager[object]] = nullcontext  # CuPy keeps quiet elsewhere


def _numpy_erf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf  # imported when first used: scipy is half of tinykron's import time

    return erf(x)


CPU = Backend("cpu", np, np.ndarray, np.asarray, np.asarray, np.add.at, _numpy_erf)
_backends: dict[str, Backend] = {"cpu": CPU}


def register(backend: Backend) -> None:
    """Add an array library under `backend.name`; the tests add a strict stand-in for CuPy this way."""
    _backends[backend.name] = backend


@cache
def _cuda() -> Backend:
    try:
        import cupy
        import cupyx
        from cupyx.scipy.special import erf
    except ImportError as error:
        raise DeviceError(
            'device "cuda" needs cupy, which is not installed: pip install "tinykron[cuda12]" or "tinykron[cuda13]"'
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f'device "cuda" needs an NVIDIA GPU with its driver: {error}') from error
    if count == 0:
        raise DeviceError('device "cuda" needs an NVIDIA GPU: cupy is installed but finds none')
    to_host, raising = cupy.asnumpy, partial(cupyx.errstate, linalg="raise")
    return Backend("cuda", cupy, cupy.ndarray, cupy.asarray, to_host, cupyx.scatter_add, erf, raising)


def get(name: str) -> Backend:
    """Return the backend called `name` ("cpu" or "cuda"). Raises DeviceError where this machine lacks it."""
    if name == "cuda" and name not in _backends:
        register(_cuda())
    if name not in _backends:
        raise DeviceError(f'unknown device "{name}": expected "cpu" or "cuda"')
    return _backends[name]


def backend_of(array: Array) -> Backend:
    """Return the backend whose array this is. Raises DeviceError for anything that is not an array."""
    if type(array) is np.ndarray:
        return CPU
    if type(array).__module__.startswith("cupy"):
        return get("cuda")
    for backend in _backends.values():
        if isinstance(array, backend.array_type):
            return backend
    raise DeviceError(f"expected an array of {', '.join(_backends)}, found {type(array).__name__}")


def xp_of(array: Array) -> Any:
    """Return the module (numpy or cupy) that owns `array`."""
    return backend_of(array).xp


# The default device: the one documented global setting --------------------------------------------------------------

_default: ContextVar[str | None] = ContextVar("device", default=None)


def current_device() -> str:
    """Return the name of the default device: set by `device(...)`, else by TINYKRON_DEVICE, else "cpu"."""
    return _default.get() or os.environ.get("TINYKRON_DEVICE") or "cpu"


class device:
    """Set the default device, for good (`tk.device("cuda")`) or for a block (`with tk.device("cuda"):`).

    New tensors and loaded models go to the default device; existing tensors stay where they are.
    Raises DeviceError where the device is not available.
    """

    def __init__(self, name: str) -> None:
        self.backend = get(name)
        self._token = _default.set(name)

    def __enter__(self) -> Backend:
        return self.backend

    def __exit__(self, *_: object) -> None:
        _default.reset(self._token)


def to_device(array: Array, name: str | None = None) -> Array:
    """Return `array` on device `name` (the default device if None), copying only where it has to move."""
    target = get(name or current_device())
    source = backend_of(array)
    return array if source is target else target.from_host(source.to_host(array))


def to_host(array: Array) -> np.ndarray:
    """Return `array` as a NumPy array."""
    return backend_of(array).to_host(array)


def scatter_add(target: Array, index: Any, values: Array) -> None:
    """Add `values` to `target[index]` in place; an index that occurs twice receives both values.

    On CUDA the order of the additions is not fixed, so repeated indices may differ in the last bits between runs.
    """
    backend_of(target).scatter_add(target, index, values)


def erf(x: Array) -> Array:
    """Return the error function of `x`, in the dtype of `x`."""
    return backend_of(x).erf(x)


def linalg_errors(array: Array) -> AbstractContextManager[object]:
    """Return a block in which a decomposition that fails raises LinAlgError on every device.

    Elsewhere CuPy does not wait to hear of it: the Cholesky factor of an indefinite matrix holds numbers all the same.
    """
    return backend_of(array).linalg_errors()


def sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Undo a broadcast: sum away the axes that it added or stretched. An array that none made is returned as it is."""
    extra = array.ndim - len(shape)
    if extra < 0 or any(size not in (1, wide) for wide, size in zip(array.shape[extra:], shape, strict=True)):
        return array
    stretched = (extra + axis for axis, size in enumerate(shape) if size == 1)
    return array.sum(axis=(*range(extra), *stretched), keepdims=True).reshape(shape)


# Row blocks on threads ----------------------------------------------------------------------------------------------


# Settings of the process ----------------------------------------------------------------------------------------------

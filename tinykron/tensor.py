"""Tensor and Function: the whole engine.

A Function computes arrays from arrays (`forward`) and pulls gradients back through itself (`backward`). Everything that
is the same for all of them is done here, once: wrapping, the checks of device, dtype and shape, undoing broadcasts,
accumulating, freeing, and naming the op in an error. Gradients are first-order: a backward pass is not itself recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np

from tinykron.backend import CPU, Array, Backend, backend_of, sum_to, to_device, to_host
from tinykron.errors import DeviceError, DtypeError, ShapeError, TinykronError

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_detecting: ContextVar[bool] = ContextVar("detecting", default=False)

Parent = Any  # where a gradient goes: None, a leaf Tensor, or (Function, index of its output)


@contextmanager
def no_grad() -> Iterator[None]:
    """Run a block without recording: no node is made and nothing is saved for a backward pass."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Raise in the op whose output or gradient first holds a NaN or an infinity. Slow: every array is read again."""
    token = _detecting.set(True)
    try:
        yield
    finally:
        _detecting.reset(token)


class Function:
    """One differentiable operation, and the node it leaves in the graph.

    A subclass writes `forward(xp, *arrays)`, which returns an array or a tuple of arrays and puts what backward needs
    into `self.saved`; and `backward(xp, grad)` (one gradient per output; None where none arrived), which returns one
    gradient per input, None for an input that is no tensor. Options are arguments of `__init__`. `self.needs[i]` says
    whether input i wants a gradient. A backward must not return an array that it saved.
    """

    saved: Any = None
    needs: Sequence[bool] = ()
    parents: Sequence[Parent] | None = ()  # None once the node is freed
    broadcasts: ClassVar[bool] = False  # inputs may be broadcast: the engine sums their gradients back to shape
    differentiable: ClassVar[bool] = True  # False: a comparison, say, whose output is no float and has no gradient

    def forward(self, xp: Any, *arrays: Any) -> Any:
        raise TinykronError(f"{self.name} has no forward")

    def backward(self, xp: Any, *grads: Any) -> Any:
        raise TinykronError(f"{self.name} has no backward")

    @property
    def name(self) -> str:
        return type(self).__name__

    @classmethod
    def apply(cls, *inputs: Any) -> Any:
        """Apply the op as it is without options: `exp = Exp.apply`."""
        return cls()(*inputs)

    def __call__(self, *inputs: Any) -> Any:
        """Apply the op to Tensors, arrays on one device, and Python numbers; return a Tensor or a tuple of them."""
        arrays = [x.data if isinstance(x, Tensor) else x.item() if isinstance(x, np.generic) else x for x in inputs]
        self.backend, self.dtype = self._common(arrays)
        recording = self.differentiable and _recording.get()
        self.needs = [isinstance(x, Tensor) and x.requires_grad for x in inputs] if recording else [False] * len(inputs)
        try:
            result = self.forward(self.backend.xp, *arrays)
        except (TinykronError, TypeError, ValueError, IndexError) as error:
            raise _kind(error)(f"{self.name}: {error} (inputs: {_describe(arrays)})") from error
        outputs = result if isinstance(result, tuple) else (result,)
        tensors = [Tensor._wrap(self._checked_output(output)) for output in outputs]
        if any(self.needs):
            self.parents = [_parent(x) if needed else None for x, needed in zip(inputs, self.needs, strict=True)]
            self.input_shapes = [getattr(array, "shape", ()) for array in arrays]
            self.output_shapes = [tensor.shape for tensor in tensors]
            for index, tensor in enumerate(tensors):
                tensor.requires_grad, tensor.node, tensor.index = True, self, index
        else:
            self.saved = None
        return tuple(tensors) if isinstance(result, tuple) else tensors[0]

    def _common(self, arrays: Sequence[Any]) -> tuple[Backend, Any]:
        """Return the one backend and the one float dtype of the inputs, or say what does not match."""
        backend = dtype = None
        for array in arrays:
            if type(array) is np.ndarray:  # asked first: this runs before every op
                found = CPU
            elif isinstance(array, (float, int, complex)):
                continue
            else:
                try:
                    found = backend_of(array)
                except DeviceError as error:
                    raise DeviceError(f"{self.name}: {error}") from None
            if backend is None:
                backend = found
            elif found is not backend:
                raise DeviceError(f'{self.name}: one input is on "{backend.name}", another on "{found.name}"; move one')
            if array.dtype is not dtype and array.dtype.kind in "fc":
                if dtype is None or dtype == array.dtype:
                    dtype = array.dtype
                elif {dtype.kind, array.dtype.kind} == {"f", "c"}:  # a complex step beside real constants
                    dtype = np.result_type(dtype, array.dtype)
                else:
                    raise DtypeError(f"{self.name}: {dtype} meets {array.dtype}; convert one of them")
        if backend is None:
            raise TinykronError(f"{self.name}: expected a Tensor or an array, found only Python numbers")
        return backend, dtype

    def _checked_output(self, output: Any) -> Array:
        if isinstance(output, np.generic):  # NumPy's reductions return scalars
            output = np.asarray(output)
        if backend_of(output) is not self.backend:
            raise DeviceError(f'{self.name}: its output left "{self.backend.name}" for "{backend_of(output).name}"')
        if self.differentiable and output.dtype != self.dtype:
            constant = output.dtype.kind == "f" and self.dtype.kind == "c"  # no complex step reached this output
            if not constant:
                raise DtypeError(f"{self.name}: its output is {output.dtype}, its inputs are {self.dtype}")
        if _detecting.get():
            self._refuse_non_finite(output, "output")
        return output

    def _checked_gradient(self, gradient: Any, index: int) -> Array:
        """Return the gradient of input `index`, summed back to the input's shape if the op broadcast it."""
        shape = self.input_shapes[index]
        if isinstance(gradient, np.generic):
            gradient = np.asarray(gradient)
        if backend_of(gradient) is not self.backend:
            raise DeviceError(f'{self.name}: gradient {index} left "{self.backend.name}"')
        if self.broadcasts and gradient.shape != shape:
            gradient = sum_to(gradient, shape)
        if gradient.shape != shape:
            raise ShapeError(f"{self.name}: gradient {index} has shape {gradient.shape}, its input {shape}")
        if gradient.dtype != self.dtype:
            raise DtypeError(f"{self.name}: gradient {index} is {gradient.dtype}, its input {self.dtype}")
        if _detecting.get():
            self._refuse_non_finite(gradient, f"gradient {index}")
        return gradient

    def _refuse_non_finite(self, array: Array, what: str) -> None:
        finite = self.backend.xp.isfinite(array)
        if not bool(finite.all()):
            bad = int(array.size - finite.sum())
            raise TinykronError(f"{self.name}: its {what} holds {bad} NaN or infinite of {array.size} values")

    def _pull(self, grads: list[Array | None]) -> list[tuple[Array, bool] | None]:
        """Return, for each input, its gradient and whether nobody else holds that buffer; then free what was saved."""
        try:
            result = self.backward(self.backend.xp, *grads)
        except (TinykronError, TypeError, ValueError, IndexError) as error:
            raise _kind(error)(f"{self.name}.backward: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(self.needs):
            raise TinykronError(f"{self.name}.backward: returned {len(results)} gradients for {len(self.needs)} inputs")
        saved = self.saved if isinstance(self.saved, tuple) else (self.saved,)
        held = [id(array) for array in (*grads, *results, *saved)]
        pulled: list[tuple[Array, bool] | None] = []
        for index, (needed, gradient) in enumerate(zip(self.needs, results, strict=True)):
            if not needed or (gradient is None and any(grad is None for grad in grads)):
                pulled.append(None)
            elif gradient is None:
                raise TinykronError(f"{self.name}.backward: no gradient for input {index}, which requires one")
            else:
                checked = self._checked_gradient(gradient, index)
                fresh = checked is not gradient or held.count(id(gradient)) == 1
                pulled.append((checked, fresh and getattr(checked, "base", None) is None))
        self.saved = None
        return pulled


class Tensor:
    """An array with a gradient.

    data           anything array-like; Python numbers become float32, an array keeps its dtype and its device
                   (a NumPy array moves to the default device)
    requires_grad  True for a leaf whose `.grad` a backward pass fills; needs a float dtype
    """

    __slots__ = ("__weakref__", "data", "grad", "index", "node", "requires_grad")
    __array_ufunc__ = None  # ndarray * Tensor: NumPy steps back and Tensor.__rmul__ is called

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TinykronError("Tensor(tensor): expected an array or numbers; tensor.detach() makes a leaf")
        if isinstance(data, (list, tuple, int, float)) and not isinstance(data, np.generic):
            data = np.asarray(data, np.float32 if np.asarray(data).dtype == np.float64 else None)
        if isinstance(data, (np.ndarray, np.generic)):  # np.float64 is a Python float too, but keeps its dtype
            data = to_device(np.asarray(data))
        backend_of(data)
        if requires_grad and data.dtype.kind not in "fc":
            raise DtypeError(f"requires_grad needs a float tensor, found {data.dtype}")
        self.data: Array = data
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.node: Function | None = None
        self.index = 0

    @classmethod
    def _wrap(cls, array: Array) -> Tensor:
        """Make a tensor of an array that the engine has checked."""
        tensor = Tensor.__new__(Tensor)
        tensor.data, tensor.grad, tensor.requires_grad, tensor.node, tensor.index = array, None, False, None, 0
        return tensor

    # What it is -----------------------------------------------------------------------------------------------------
    # fmt: off
    @property
    def shape(self) -> tuple[int, ...]: return self.data.shape
    @property
    def dtype(self) -> Any: return self.data.dtype
    @property
    def ndim(self) -> int: return self.data.ndim
    @property
    def size(self) -> int: return self.data.size
    @property
    def device(self) -> str: return backend_of(self.data).name
    @property
    def T(self) -> Tensor: return shapes.transpose(self)
    def __len__(self) -> int: return len(self.data)
    # fmt: on

    def __repr__(self) -> str:
        origin = f", from {self.node.name}" if self.node else ", requires_grad" if self.requires_grad else ""
        where = "" if self.device == "cpu" else f', device="{self.device}"'
        return f"Tensor({np.array2string(to_host(self.data), separator=', ', prefix='Tensor(')}{where}{origin})"

    def item(self) -> float:
        """Return the one value as a Python number; on a GPU this waits for it."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array (the tensor's own memory on the CPU)."""
        return to_host(self.data)

    def detach(self) -> Tensor:
        """Return a tensor of the same values that the graph does not know."""
        return Tensor._wrap(self.data)

    def to(self, device: str) -> Tensor:
        """Return a leaf of the same values on `device` ("cpu" or "cuda")."""
        moved = Tensor._wrap(to_device(self.data, device))
        moved.requires_grad = self.requires_grad
        return moved

    # Backward -------------------------------------------------------------------------------------------------------

    def backward(self, grad: Array | Tensor | None = None) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf it came from, and free the graph.

        grad  gradient of this tensor, of its shape, dtype and device; may be left out for a single value, where it is 1
        Raises TinykronError when called twice on one graph, or on a tensor that came from no leaf.
        """
        if not self.requires_grad:
            raise TinykronError("backward: no input of this tensor requires a gradient")
        xp = backend_of(self.data).xp
        if grad is None:
            if self.size != 1:
                raise ShapeError(f"backward: shape {self.shape} is no single value; pass its gradient")
            grad = xp.ones_like(self.data)
        grad = grad.data if isinstance(grad, Tensor) else grad
        if backend_of(grad) is not backend_of(self.data) or grad.shape != self.shape or grad.dtype != self.dtype:
            raise ShapeError(
                f"backward: gradient is {grad.dtype} {grad.shape} on {backend_of(grad).name}, "
                f"the tensor {self.dtype} {self.shape} on {self.device}"
            )
        if self.node is None:
            _accumulate_leaf(self, grad, owned=False)
            return
        waiting = _count_consumers(self.node)
        arrived: dict[Function, list[tuple[Array, bool] | None]] = {self.node: [None] * len(self.node.output_shapes)}
        arrived[self.node][self.index] = (grad, False)
        ready = [self.node]
        while ready:
            node = ready.pop()
            slots = arrived.pop(node)
            gradients = node._pull([slot and slot[0] for slot in slots]) if any(slots) else [None] * len(node.needs)
            del slots  # the gradients of its outputs can go; where none arrived, none leaves
            parents, node.parents = node.parents or (), None
            for parent, gradient in zip(parents, gradients, strict=True):
                if isinstance(parent, Tensor):
                    if gradient is not None:
                        _accumulate_leaf(parent, *gradient)
                elif parent is not None:
                    source, index = parent
                    slots = arrived.setdefault(source, [None] * len(source.output_shapes))
                    if gradient is not None:
                        slots[index] = _accumulate(slots[index], *gradient)
                    waiting[source] -= 1
                    if waiting[source] == 0:
                        ready.append(source)

    # Operators and methods: each is one call into ops.py ------------------------------------------------------------
    # fmt: off
    def __add__(self, other: Any) -> Tensor: return ops.add(self, other)
    def __radd__(self, other: Any) -> Tensor: return ops.add(other, self)
    def __sub__(self, other: Any) -> Tensor: return ops.subtract(self, other)
    def __rsub__(self, other: Any) -> Tensor: return ops.subtract(other, self)
    def __mul__(self, other: Any) -> Tensor: return ops.multiply(self, other)
    def __rmul__(self, other: Any) -> Tensor: return ops.multiply(other, self)
    def __truediv__(self, other: Any) -> Tensor: return ops.divide(self, other)
    def __rtruediv__(self, other: Any) -> Tensor: return ops.divide(other, self)
    def __pow__(self, exponent: Any) -> Tensor: return ops.power(self, exponent)
    def __rpow__(self, base: Any) -> Tensor: return ops.power(base, self)
    def __matmul__(self, other: Any) -> Tensor: return ops.matmul(self, other)
    def __rmatmul__(self, other: Any) -> Tensor: return ops.matmul(other, self)
    def __neg__(self) -> Tensor: return ops.negative(self)
    def __getitem__(self, index: Any) -> Tensor: return shapes.getitem(self, index)
    def __eq__(self, other: Any) -> Tensor: return ops.equal(self, other)  # type: ignore[override]
    def __ne__(self, other: Any) -> Tensor: return ops.not_equal(self, other)  # type: ignore[override]
    def __lt__(self, other: Any) -> Tensor: return ops.less(self, other)
    def __le__(self, other: Any) -> Tensor: return ops.less_equal(self, other)
    def __gt__(self, other: Any) -> Tensor: return ops.greater(self, other)
    def __ge__(self, other: Any) -> Tensor: return ops.greater_equal(self, other)
    def __bool__(self) -> bool: return bool(self.data)

    def exp(self) -> Tensor: return ops.exp(self)
    def log(self) -> Tensor: return ops.log(self)
    def sqrt(self) -> Tensor: return ops.sqrt(self)
    def tanh(self) -> Tensor: return ops.tanh(self)
    def erf(self) -> Tensor: return ops.erf(self)
    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor: return ops.sum(self, axis, keepdims)
    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor: return ops.mean(self, axis, keepdims)
    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor: return ops.max(self, axis, keepdims)
    def logsumexp(self, axis: Any = None, keepdims: bool = False) -> Tensor: return ops.logsumexp(self, axis, keepdims)
    def reshape(self, *shape: Any) -> Tensor: return shapes.reshape(self, *shape)
    def transpose(self, *axes: Any) -> Tensor: return shapes.transpose(self, *axes)
    def swapaxes(self, first: int, second: int) -> Tensor: return shapes.swapaxes(self, first, second)
    # fmt: on

    __hash__ = object.__hash__  # a tensor is a key by identity, though == compares element by element


def _parent(tensor: Tensor) -> Parent:
    """An edge leads to the Function behind a tensor, not to the tensor: an activation that no op saved is freed."""
    return tensor if tensor.node is None else (tensor.node, tensor.index)


def _count_consumers(root: Function) -> dict[Function, int]:
    """Return, for every node behind `root`, how many gradients it waits for. Iterative: no depth is too deep."""
    waiting = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.parents is None:
            raise TinykronError(f"backward: the graph behind this {node.name} was freed by an earlier backward")
        for parent in node.parents:
            if isinstance(parent, tuple):
                if parent[0] in waiting:
                    waiting[parent[0]] += 1
                else:
                    waiting[parent[0]] = 1
                    stack.append(parent[0])
    return waiting


def _accumulate(slot: tuple[Array, bool] | None, gradient: Array, owned: bool) -> tuple[Array, bool]:
    """Add a gradient to a slot of (buffer, owned): in place only into a buffer that nobody else holds."""
    if slot is None:
        return gradient, owned
    total, own_total = slot
    if not own_total:
        return total + gradient, True
    total += gradient
    return total, True


def _accumulate_leaf(leaf: Tensor, gradient: Array, owned: bool) -> None:
    if leaf.grad is not None:
        leaf.grad += gradient
    else:  # a leaf's gradient is its own: clipping scales it in place
        leaf.grad = gradient if owned else gradient.copy()


def _kind(error: Exception) -> type[Exception]:
    """Return what to raise instead: the class itself, or the plain one above a NumPy class that takes no message."""
    plain = (TypeError, IndexError, ValueError)
    return type(error) if isinstance(error, TinykronError) else next(k for k in plain if isinstance(error, k))


def _describe(arrays: Sequence[Any]) -> str:
    return ", ".join(f"{a.dtype} {tuple(a.shape)}" if hasattr(a, "shape") else repr(a) for a in arrays)


from tinykron import ops, shapes  # noqa: E402  ops needs Tensor, Tensor's operators need ops: the package's one cycle

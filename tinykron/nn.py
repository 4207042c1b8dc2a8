"""Parameters, modules, and the layers that every model is made of."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from tinykron import attention, fused, shapes
from tinykron.backend import Array, backend_of, current_device, get, to_device, to_host
from tinykron.errors import CheckpointError, TinykronError
from tinykron.tensor import Tensor

INITIAL_STD = 0.02  # GPT-2's and BERT's

AnyModule = TypeVar("AnyModule", bound="Module")


class Parameter(Tensor):
    """A tensor that a module owns and an optimiser updates."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


class Unset:
    """Stands in for a random generator where weights are about to be loaded: memory is reserved, not written."""

    def standard_normal(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)


if TYPE_CHECKING:  # the name alone: importing numpy.random takes a tenth of the time that tinykron does
    Generator = np.random.Generator | Unset | None
else:
    Generator = Any


def normal(generator: Generator, *shape: int, std: float = INITIAL_STD) -> Parameter:
    """Return a parameter drawn on the host from a normal distribution, so that every device starts alike."""
    values = (generator or np.random.default_rng()).standard_normal(shape, dtype=np.float32)
    return Parameter(values if isinstance(generator, Unset) else values * np.float32(std))


def constant(value: float, size: int) -> Parameter:
    """Return a parameter (size,) filled with `value`."""
    return Parameter(get(current_device()).xp.full(size, value, dtype=np.float32))


class Module:
    """A tree of parameters: those held as attributes, in attributes that are modules, and in lists of modules.

    A subclass sets attributes in `__init__` and writes `forward`. A parameter held in two places is tied: it is one
    parameter, updated once and saved once, under the first name.
    """

    training = True

    def forward(self, *args: Any, **options: Any) -> Any:
        raise TinykronError(f"{type(self).__name__} defines no forward")

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.forward(*args, **options)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the modules right below this one; `blocks.3` for an entry of a list."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) of this module and all below, parents first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), a tied parameter once."""
        seen: set[int] = set()
        for prefix, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def parameter_count(self) -> int:
        return sum(parameter.size for parameter in self.parameters())

    def get(self, name: str) -> Any:
        """Return the module or parameter at a dotted name such as "blocks.1.mlp.up"."""
        found: Any = self
        for part in name.split("."):
            found = found[int(part)] if isinstance(found, list) else getattr(found, part)
        return found

    def set(self, name: str, module: Module) -> None:
        """Put `module` in the place of the one at a dotted name."""
        parent, _, last = name.rpartition(".")
        owner = self.get(parent) if parent else self
        if isinstance(owner, list):
            owner[int(last)] = module
        else:
            setattr(owner, last, module)

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters' arrays by name, a tied one once; the arrays are the model's own."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over arrays by name. Raises one CheckpointError that lists all missing, unexpected, misshaped names."""
        own = dict(self.named_parameters())
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        wrong = [
            f"{name}: found {tuple(state[name].shape)}, expected {own[name].shape}"
            for name in own
            if name in state and tuple(state[name].shape) != own[name].shape
        ]
        message = mismatch(missing, unexpected, wrong)
        if message:
            raise CheckpointError(f"the tensors do not fit the {type(self).__name__}\n{message}")
        for name, parameter in own.items():
            source = state[name]
            host = source if backend_of(source).name == parameter.device else to_host(source)
            array = to_device(host, parameter.device)
            parameter.data = array.astype(parameter.dtype, copy=True)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, training: bool = True) -> Self:
        """Switch dropout on, here and below; `eval()` switches it off."""
        for _, module in self.modules():
            module.training = training
        return self

    def eval(self) -> Self:
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move all parameters to `device` in place, and return the module."""
        for parameter in self.parameters():
            parameter.data, parameter.grad = to_device(parameter.data, device), None
        return self


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Switch dropout off for a block; every module gets back the mode it had."""
    before = [(module, module.training) for _, module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def sharing_copy(model: AnyModule, replacements: Mapping[Module, Module] | None = None) -> AnyModule:
    """Return a copy of a tree of modules that shares everything but the tree: parameters, settings, tokenizer.

    replacements  modules that take the place of others, wherever these occur
    """
    made: dict[Any, Any] = dict(replacements or {})

    def copied(value: Any) -> Any:
        if isinstance(value, list):
            return [copied(item) for item in value]
        if not isinstance(value, Module):
            return value
        if value not in made:
            made[value] = copy.copy(value)
            vars(made[value]).update({name: copied(item) for name, item in vars(value).items()})
        return made[value]

    return copied(model)


def mismatch(missing: list[str], unexpected: list[str], wrong_shapes: list[str]) -> str:
    """Return the lines that say what does not fit, "" if all does."""
    lines = [f"  missing      {', '.join(missing)}"] if missing else []
    lines += [f"  unexpected   {', '.join(unexpected)}"] if unexpected else []
    return "\n".join(lines + [f"  wrong shape  {line}" for line in wrong_shapes])


class Linear(Module):
    """x (..., in) -> x @ weight (in, out) + bias (out)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, generator: Generator = None) -> None:
        self.weight = normal(generator, inputs, outputs)
        self.bias = constant(0.0, outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return fused.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A (V, D) table: ids (...) -> rows (..., D); also an output head, x (..., D) -> logits (..., V)."""

    def __init__(self, count: int, width: int, generator: Generator = None) -> None:
        self.weight = normal(generator, count, width)

    def forward(self, ids: Array, what: str = "token id") -> Tensor:
        """Look rows up; ids on the host or the table's device. DataError names an id out of range, and its place."""
        return shapes.take_rows(self.weight, checked_ids(ids, len(self.weight), self.weight.device, what))

    def project(self, x: Tensor) -> Tensor:
        """Return x @ table^T, the scores of each row of the table."""
        return fused.linear(x, self.weight, transposed=True)


def checked_ids(ids: Array, count: int, device: str, what: str) -> Array:
    """Return ids on `device` after checking on the host that each is in 0..count-1."""
    ids = np.asarray(ids) if isinstance(ids, (list, tuple, int)) else ids
    host = to_host(ids)
    fused.check_range(host, count, what)
    return ids if backend_of(ids).name == device else to_device(host, device)


class LayerNorm(Module):
    """Centre and scale each row (..., D), then weight and bias."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.eps = constant(1.0, width), constant(0.0, width), eps

    def forward(self, x: Tensor) -> Tensor:
        return fused.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Scale each row (..., D) to unit mean square, then weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        self.weight, self.eps = constant(1.0, width), eps

    def forward(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """Drop a share `rate` of the values while training; the mask comes from `generator`, set by `seed_dropout`."""

    def __init__(self, rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise TinykronError(f"dropout rate must be in [0, 1), found {rate}")
        self.rate = rate
        self.generator: np.random.Generator | None = None

    @property
    def active(self) -> float:
        """The rate in force: 0 outside training."""
        return self.rate if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return attention.dropout(x, self.rate, self.generator) if self.active else x


def seed_dropout(model: Module, *seed: int) -> None:
    """Give each dropout in `model` its own random stream; the same seed gives the same masks on every device."""
    for number, (_, module) in enumerate(model.modules()):
        if isinstance(module, Dropout):
            module.generator = np.random.default_rng((*seed, number))


def copy_with(model: AnyModule, replacements: Mapping[Module, Module]) -> AnyModule:
    """Return a deep copy of a model with some modules replaced, which are not copied; gradients are left behind."""
    for module, new in replacements.items():
        new.training = module.training
    # deepcopy asks its memo before it copies: a module found there stands in for the old one, wherever that occurs
    memo: dict[int, object] = {id(module): new for module, new in replacements.items()}
    memo |= {id(parameter.grad): None for parameter in model.parameters() if parameter.grad is not None}
    return copy.deepcopy(model, memo)

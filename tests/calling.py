"""Calling a registry row on the default device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from tests.registry import Case, Row
from tinykron.backend import Array, to_device
from tinykron.tensor import Tensor


def arguments(row: Row, case: Case, dtype: Any, view: Callable[[Array], Array] = lambda array: array) -> list[Any]:
    """Return the inputs of a case on the default device: Tensors where they are differentiated, else arrays."""
    placed = [view(to_device(x.astype(dtype) if x.dtype.kind == "f" else x)) for x in case.inputs]
    graded = row.differentiable(case) if row.step else []
    tensors = [i for i, x in enumerate(case.inputs) if x.dtype.kind == "f" and i not in row.constants]
    return [Tensor(x, requires_grad=i in graded) if i in tensors else x for i, x in enumerate(placed)]


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def weights_of(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = np.random.default_rng(0)
    return [Tensor(generator.uniform(0.5, 1.5, out.shape).astype(out.dtype)) for out in outputs]


def gradients(row: Row, case: Case, args: list[Any], function: Callable[..., Any] | None = None) -> list[Array]:
    """Return the gradients of a weighted sum of the outputs."""
    outputs = outputs_of((function or row.apply)(*args, **case.options))
    total = sum((out * weight).sum() for out, weight in zip(outputs, weights_of(outputs), strict=True))
    total.backward()
    return [args[i].grad for i in row.differentiable(case)]


RETURNS = ("Tensor", "tuple[Tensor, ...]", "Any")


def ops_of(module: Any) -> set[str]:
    """The public functions of a module that return Tensors."""
    functions = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType | MethodType)}
    return {
        name
        for name, value in functions.items()
        if name[0] != "_" and inspect.get_annotations(value).get("return") in RETURNS
    }

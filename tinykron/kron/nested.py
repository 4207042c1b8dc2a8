"""Fewer terms of Kronecker sums: the first k of each, inside a model or as a model of its own.

A fit's terms are sorted: its first k are the best k. One model therefore holds a smaller one for every k and, with
exits, for every pair of a depth and a k. What training makes of the whole grid is in elastic.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tinykron.errors import TinykronError
from tinykron.kron.compress import copy_with
from tinykron.kron.linear import KronModule
from tinykron.nn import AnyModule, Module, sharing_copy


def kron_layers(model: Module) -> set[KronModule]:
    """Return the layers of a model that hold Kronecker sums, one that stands in two places once."""
    return {module for _, module in model.modules() if isinstance(module, KronModule)}


def first_terms(model: AnyModule, terms: int) -> AnyModule:
    """Return a model whose Kronecker sums use their first `terms` terms, all of a shorter one.

    It shares every parameter with `model`: nothing is copied, and gradients reach the factors of the terms in use. It
    runs, decodes, drafts and learns as any model; `cut` makes it one that can be saved.
    Raises TinykronError for a model without Kronecker sums, and for more terms than the longest of them has.
    """
    layers = kron_layers(model)
    if not layers:
        raise TinykronError(f"terms: the {type(model).__name__} has no Kronecker sums; kron.factorise makes them")
    count = _in_range("terms: expected a number", terms, max(layer.terms for layer in layers))
    return sharing_copy(model, {layer: layer.first(count) for layer in layers})


def first_blocks(model: Any, exit: int) -> Any:
    """Return a model of the first `exit` blocks, the final norm and the head, which shares its parameters.

    Raises TinykronError for an exit outside 1..blocks.
    """
    made = sharing_copy(model)
    made.blocks = made.blocks[: _in_range("exit: expected a number of blocks", exit, len(made.blocks))]
    field = "n_layer" if hasattr(made.config, "n_layer") else "num_hidden_layers"
    made.config = replace(made.config, **{field: len(made.blocks)})
    return made


def _in_range(what: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
        raise TinykronError(f"{what} in 1..{most}, found {value!r}")
    return int(value)


def part(model: Any, exit: int | None = None, terms: int | None = None) -> Any:
    """Return the first blocks and the first terms of a model, None for all of them, sharing its parameters."""
    model = model if exit is None else first_blocks(model, exit)
    return model if terms is None else first_terms(model, terms)


def cut(model: Any, exit: int | None = None, terms: int | None = None) -> Any:
    """Return a part of a model as a model of its own: its logits are those of `model(ids, exit=exit, terms=terms)`.

    exit   keep so many blocks, the final norm and the head; None: all
    terms  keep so many terms of each Kronecker sum; None: all
    The result shares nothing with `model`, and is as small as its numbers: save it as any other.
    Raises TinykronError, as the call does.
    """
    view = part(model, exit, terms)
    return copy_with(view, {layer: layer.trimmed() for layer in kron_layers(view)})


def size(model: Module) -> int:
    """Return how many numbers a model would hold if its unused terms were cut away."""
    unused = sum(layer.a_RMN.size + layer.b_RPQ.size - layer.factors.parameters for layer in kron_layers(model))
    return model.parameter_count() - unused


class NestedModel(Module):
    """A model that may be asked for fewer terms of its Kronecker sums: model(ids, exit=e, terms=k)."""

    def __call__(self, *inputs: Any, terms: int | None = None, **options: Any) -> Any:
        """Run `forward`, with the first `terms` terms of each Kronecker sum where that is asked for: `first_terms`."""
        model = self if terms is None else first_terms(self, terms)
        return model.forward(*inputs, **options)

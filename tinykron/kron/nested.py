"""Parts of Kronecker sums: their first terms, rows or columns, inside a model or as a model of its own.

A fit's terms are sorted: its first k are the best k. One model therefore holds a smaller one for every k and, with
exits, for every pair of a depth and a k. Widths are sorted by training alone: see exits/grid.py and
jobs/sort_grid.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinykron.errors import TinykronError
from tinykron.kron.linear import KronModule
from tinykron.nn import AnyModule, Module, copy_with, sharing_copy


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


def first_units(model: Any, width: float) -> Any:
    """Return a model whose MLPs have the first units alone, a share `width` of them; it shares its parameters.

    A prefix of units is a prefix of the rows of A in the matrices that lead to them, and of its columns in the one that
    leads back; B serves every width. Heads stay: the configurations of GPT-2 and BERT make a head wider where there are
    fewer. MatFormer (arXiv 2310.07707) nests dense MLPs in this way.
    Raises TinykronError for a share outside (0, 1], one that is no whole number of rows, and an MLP that is dense.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.0 < width <= 1.0:
        raise TinykronError(f"width: expected a share above 0 and at most 1, found {width!r}")
    layers: dict[Module, Module] = {}
    units = 0
    for number, block in enumerate(model.blocks):
        for name, axis in (("gate", 1), ("up", 1), ("down", 2)):
            layer = getattr(block.mlp, name, None)
            if layer is None:
                continue
            if not isinstance(layer, KronModule):
                raise TinykronError(f"width: blocks.{number}.mlp.{name} is dense, expected a Kronecker sum")
            size = layer.factors.a.shape[axis]
            count = round(width * size)
            if count < 1 or abs(count - width * size) > 1e-6 * size:
                what = "rows" if axis == 1 else "columns"
                found = f"{width:g} of the {size} {what} of A in blocks.{number}.mlp.{name} is no whole number"
                raise TinykronError(f"width: {found}")
            layers[layer] = layer.first(rows=count) if axis == 1 else layer.first(columns=count)
            units = layer.first(rows=count).factors.shape[0] if axis == 1 else units
    made = sharing_copy(model, layers)
    made.config = made.config.with_units(units)
    return made


def _in_range(what: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
        raise TinykronError(f"{what} in 1..{most}, found {value!r}")
    return int(value)


def part(model: Any, exit: int | None = None, terms: int | None = None, width: float | None = None) -> Any:
    """Return the first blocks, terms and MLP units of a model, None for all of them, sharing its parameters."""
    model = model if exit is None else model.first_blocks(exit)
    model = model if terms is None else first_terms(model, terms)
    return model if width is None or width == 1.0 else first_units(model, width)


def cut(model: AnyModule, exit: int | None = None, terms: int | None = None, width: float | None = None) -> AnyModule:
    """Return a part of a model as one of its own: its logits are those that `model` gives when asked for it.

    exit   keep so many blocks, the final norm and the head; None: all
    terms  keep the first of each Kronecker sum; None: all
    width  keep such a share of the MLPs' units; None: all
    The result shares nothing with `model`, and is as small as its numbers: save it as any other.
    Raises TinykronError, as the call does.
    """
    view = part(model, exit, terms, width)
    return copy_with(view, {layer: layer.trimmed() for layer in kron_layers(view)})


def size(model: Module) -> int:
    """Return how many numbers a model would hold if what does not count were cut away."""
    layers = kron_layers(model)
    return model.parameter_count() - sum(
        layer.parameter_count() - layer.trimmed().parameter_count() for layer in layers
    )

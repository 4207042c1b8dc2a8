"""Turning a model's matrices into Kronecker sums and back: which matrices, which shapes; factorise; merge.

Nothing here knows a particular model: a plan names modules by their dotted names, as `Module.get` does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tinykron.errors import CheckpointError, ShapeError, TinykronError
from tinykron.kron.algebra import Shape, check_terms, factor_shapes
from tinykron.kron.linear import KronEmbedding, KronLinear, KronModule
from tinykron.kron.svd import gaussian_energy
from tinykron.nn import Embedding, Linear, Module, Parameter, Unset

AnyModule = TypeVar("AnyModule", bound=Module)


@dataclass(frozen=True)
class Choice:
    """How one matrix is factorised. Raises ShapeError if the shape does not divide it, or has not so many terms."""

    dense: Shape  # (M*P, N*Q): out x in of a Linear, rows x width of an Embedding
    shape: Shape  # (M, N) of A
    terms: int = 1
    energy: float | None = None  # share of the matrix's norm that the fit kept; None before it

    def __post_init__(self) -> None:
        check_terms(self.terms, *factor_shapes(self.dense, self.shape))

    @property
    def other(self) -> Shape:
        """(P, Q), the shape of B."""
        return factor_shapes(self.dense, self.shape)[1]

    @property
    def parameters(self) -> int:
        """Of the factors."""
        (m, n), (p, q) = self.shape, self.other
        return self.terms * (m * n + p * q)

    @property
    def parameters_before(self) -> int:
        """Of the dense matrix."""
        return self.dense[0] * self.dense[1]


class KronPlan(dict[str, Choice]):
    """Which matrices of a model become Kronecker sums, by module name, in the model's order. A dict: edit it as one.

    `str(plan)` is a table; `to_json` and `from_json` save it and read it back.
    """

    @property
    def parameters(self) -> int:
        """Of all factors."""
        return sum(choice.parameters for choice in self.values())

    def total(self, dense: int) -> int:
        """Return the number of parameters of a whole model that has `dense` of them before the plan is carried out."""
        return dense - sum(choice.parameters_before for choice in self.values()) + self.parameters

    def to_json(self) -> str:
        """Return the plan as JSON text: {name: {"dense": [..], "shape": [..], "terms": .., "energy": ..}}."""
        return json.dumps({name: vars(choice) for name, choice in self.items()}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> KronPlan:
        """Return the plan that `to_json` wrote. Raises CheckpointError naming the entry that is none."""
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"a Kronecker plan is JSON text: {error}") from None
        if not isinstance(entries, dict):
            raise CheckpointError(f"a Kronecker plan maps names to choices, found a {type(entries).__name__}")
        return cls((name, _choice(name, entry)) for name, entry in entries.items())

    def __str__(self) -> str:
        head = ("matrix", "dense", "A", "B", "terms", "parameters", "", "energy", "Gaussian")
        rows = [head, *(_row(name, choice) for name, choice in self.items())]
        before = sum(choice.parameters_before for choice in self.values())
        rows.append(("together", "", "", "", "", f"{before:,}", f"{self.parameters:,}", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_cells(row, widths)).rstrip() for row in rows]
        return "\n".join(lines)


def _row(name: str, choice: Choice) -> tuple[str, ...]:
    kept = "" if choice.energy is None else f"{choice.energy:.3f}"
    dense, a_shape, b_shape = (f"{rows}x{columns}" for rows, columns in (choice.dense, choice.shape, choice.other))
    counts = f"{choice.parameters_before:,}", f"{choice.parameters:,}"
    gaussian = gaussian_energy(choice.dense, choice.shape, choice.terms)
    return name, dense, a_shape, b_shape, str(choice.terms), *counts, kept, f"{gaussian:.3f}"


def _cells(row: Iterable[str], widths: Iterable[int]) -> list[str]:
    """Pad one row: the name to the left, what are numbers to the right."""
    return [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _choice(name: str, entry: object) -> Choice:
    expected = {"dense", "shape", "terms", "energy"}
    if not isinstance(entry, dict) or entry.keys() != expected:
        found = ", ".join(entry) if isinstance(entry, dict) else repr(entry)
        raise CheckpointError(f"Kronecker plan, {name}: expected {', '.join(sorted(expected))}; found {found}")
    dense, shape, terms, energy = (entry[key] for key in ("dense", "shape", "terms", "energy"))
    if not _is_pair(dense) or not _is_pair(shape) or type(terms) is not int:
        raise CheckpointError(
            f"Kronecker plan, {name}: dense and shape are pairs of whole numbers, terms is one: {entry}"
        )
    if energy is not None and type(energy) not in (int, float):
        raise CheckpointError(f"Kronecker plan, {name}: energy is a number or null, found {energy!r}")
    try:
        return Choice((dense[0], dense[1]), (shape[0], shape[1]), terms, energy)
    except ShapeError as error:
        raise CheckpointError(f"Kronecker plan, {name}: {error}") from None


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


# Factorise, merge, restructure ----------------------------------------------------------------------------------------


def dense_shapes(model: Module) -> dict[str, Shape]:
    """Return, by name, the shape (out x in, or rows x width) of every Linear and Embedding of a model."""
    return {name: _dense_shape(module) for name, module in model.modules() if isinstance(module, Linear | Embedding)}


def _dense_shape(module: Linear | Embedding) -> Shape:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Linear) else (rows, columns)  # a Linear stores (in, out)


def factorise(model: AnyModule, plan: Mapping[str, Choice]) -> AnyModule:
    """Return a new model in which each matrix of the plan is the nearest sum of Kronecker products.

    `model` is left untouched and shares nothing with the result; what the plan does not name is copied, ties are kept.
    Raises one TinykronError that lists every name that does not fit the model.
    """
    modules = _planned(model, plan)
    replacements: dict[Module, Module] = {}
    for name, module in modules.items():
        kind = KronLinear if isinstance(module, Linear) else KronEmbedding
        replacements[module] = kind.from_dense(module, plan[name].shape, plan[name].terms)  # type: ignore[arg-type]
    return _copy_with(model, replacements)


def merge(model: AnyModule) -> AnyModule:
    """Return a new model in which each sum of Kronecker products is a dense matrix again; the logits stay the same."""
    kron = {module for _, module in model.modules() if isinstance(module, KronLinear | KronEmbedding)}
    return _copy_with(model, {module: module.to_dense() for module in kron})


def plan_of(model: Module) -> KronPlan | None:
    """Return the plan that a factorised model follows, read from its layers; None if it has no Kronecker layer."""
    plan, seen = KronPlan(), set()
    for name, module in model.modules():
        if isinstance(module, KronModule) and module not in seen:
            seen.add(module)
            terms, m, n = module.a_RMN.shape
            plan[name] = Choice(module.factors.shape, (m, n), terms, module.energy)
    return plan or None


def restructure(model: AnyModule, plan: Mapping[str, Choice]) -> AnyModule:
    """Put layers of the planned shapes in place, their factors unset, for weights that are about to be loaded.

    Changes `model` and returns it. Raises one TinykronError that lists every name that does not fit the model.
    """
    for name, module in _planned(model, plan).items():
        choice = plan[name]
        if isinstance(module, Linear):
            outputs, inputs = choice.dense
            new: KronModule = KronLinear(inputs, outputs, choice.shape, choice.terms, module.bias is not None, Unset())
        else:
            new = KronEmbedding(*choice.dense, choice.shape, choice.terms, Unset())
        new.energy, new.training = choice.energy, module.training
        for place, other in list(model.modules()):  # a module in two places is one module
            if other is module:
                model.set(place, new)
    return model


def _planned(model: Module, plan: Mapping[str, Choice]) -> dict[str, Linear | Embedding]:
    """Return the modules that a plan names, after checking all of them."""
    found, faults = {}, []
    names = dict(model.modules())
    for name, choice in plan.items():
        module = names.get(name)
        if not isinstance(module, Linear | Embedding):
            what = "no such module" if module is None else f"a {type(module).__name__}, neither Linear nor Embedding"
            faults.append(f"  {name}: {what}")
        elif _dense_shape(module) != choice.dense:
            faults.append(f"  {name}: found {_dense_shape(module)}, the plan is for {choice.dense}")
        else:
            found[name] = module
    chosen = set(found.values())
    shared = {id(parameter) for module in chosen for parameter in _own_parameters(module)}
    for name, module in names.items():
        if module not in chosen and any(id(parameter) in shared for parameter in _own_parameters(module)):
            faults.append(
                f"  {name}: shares its parameter with a matrix of the plan; tie the module, not the parameter"
            )
    if faults:
        raise TinykronError("\n".join([f"the plan does not fit the {type(model).__name__}", *faults]))
    return found


def _own_parameters(module: Module) -> list[Parameter]:
    return [value for value in vars(module).values() if isinstance(value, Parameter)]


def _copy_with(model: AnyModule, replacements: Mapping[Module, Module]) -> AnyModule:
    """Return a deep copy of a model with some modules replaced, which are not copied; gradients are left behind."""
    for module, new in replacements.items():
        new.training = module.training
    # deepcopy asks its memo before it copies: a module found there stands in for the old one, wherever that occurs
    memo: dict[int, object] = {id(module): new for module, new in replacements.items()}
    memo |= {id(parameter.grad): None for parameter in model.parameters() if parameter.grad is not None}
    return copy.deepcopy(model, memo)


# Presets --------------------------------------------------------------------------------------------------------------


def kngpt2_plan(model: Module | Mapping[str, Shape]) -> KronPlan:
    """Return KnGPT2's plan: halve the token embedding, and all matrices of attention and MLP in blocks 1, 3, 5, ...

    model  with `embedding` and `blocks.<i>`, each block with attention.query, .key, .value, .output and mlp.up, .down;
           or only the shapes of those, by name, which is enough to count parameters
    A weight (out, in) becomes A x B with B (2, 1) if out >= in, else B (1, 2): the longer side is halved, so that a
    matrix that is not square keeps its rank. The embedding becomes A (V, D/2) x B (1, 2): each token keeps its row.
    KnGPT2 (arXiv 2110.08152) leaves the shapes of the MLP open. Raises TinykronError if the model has no such matrix,
    ShapeError if a side to be halved is odd.
    """
    shapes = dense_shapes(model) if isinstance(model, Module) else dict(model)
    wanted = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"]
    count = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1)
    names = ["embedding", *(f"blocks.{i}.{part}" for i in range(1, count, 2) for part in wanted)]
    missing = [name for name in names if name not in shapes]
    if missing:
        raise TinykronError(f"kngpt2_plan: the model has no dense matrix {', '.join(missing)}")
    if count < 2:
        raise TinykronError(f"kngpt2_plan: the odd blocks are factorised, and the model has {count} block")
    plan = KronPlan()
    for name in names:
        rows, columns = shapes[name]
        halve_rows = name != "embedding" and rows >= columns
        if (rows if halve_rows else columns) % 2:
            raise ShapeError(
                f"kngpt2_plan: {name} {shapes[name]} cannot be halved, {rows if halve_rows else columns} is odd"
            )
        plan[name] = Choice((rows, columns), (rows // 2, columns) if halve_rows else (rows, columns // 2))
    return plan

"""A model's structure of Kronecker layers: read as a plan, built from one, merged back into dense matrices."""

from __future__ import annotations

from collections.abc import Mapping

from tinykron.errors import TinykronError
from tinykron.kron.algebra import Shape
from tinykron.kron.linear import KronEmbedding, KronLinear, KronModule
from tinykron.kron.plan import Choice, KronPlan
from tinykron.nn import AnyModule, Embedding, Linear, Module, Parameter, Unset, copy_with


def dense_shapes(model: Module) -> dict[str, Shape]:
    """Return, by name, the shape (out x in, or rows x width) of every Linear and Embedding of a model."""
    return {name: _dense_shape(module) for name, module in model.modules() if isinstance(module, Linear | Embedding)}


def _dense_shape(module: Linear | Embedding) -> Shape:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Linear) else (rows, columns)  # a Linear stores (in, out)


def merge(model: AnyModule) -> AnyModule:
    """Return a new model in which each sum of Kronecker products is a dense matrix again; the logits stay the same."""
    kron = {module for _, module in model.modules() if isinstance(module, KronLinear | KronEmbedding)}
    return copy_with(model, {module: module.to_dense() for module in kron})


def plan_of(model: Module) -> KronPlan | None:
    """Return the plan that a factorised model follows, read from its layers; None if it has no Kronecker layer."""
    plan, seen = KronPlan(), set()
    for name, module in model.modules():
        if isinstance(module, KronModule) and module not in seen:
            seen.add(module)
            fit = module.factors
            plan[name] = Choice(fit.shape, fit.a.shape[1:], fit.terms, module.energy)
    return plan or None


def restructure(model: AnyModule, plan: Mapping[str, Choice]) -> AnyModule:
    """Put layers of the planned shapes in place, their factors unset, for weights that are about to be loaded.

    Changes `model` and returns it. Raises one TinykronError that lists every name that does not fit the model.
    """
    for name, module in _planned(model, plan).items():
        choice = plan[name]
        if choice.is_dense:
            continue
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

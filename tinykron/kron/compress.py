"""Turning a model's matrices into Kronecker sums and back: factorise, merge, restructure.

Nothing here knows a particular model: a plan names modules by their dotted names, as `Module.get` does.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

from tinykron.backend import Array, to_device
from tinykron.errors import TinykronError
from tinykron.kron.algebra import KronSum, Shape
from tinykron.kron.calibration import Calibration
from tinykron.kron.fit import SWEEPS, nearest
from tinykron.kron.linear import KronEmbedding, KronLinear, KronModule
from tinykron.kron.metric import Metric
from tinykron.kron.plan import Choice, KronPlan
from tinykron.nn import AnyModule, Embedding, Linear, Module, Parameter, Unset


def dense_shapes(model: Module) -> dict[str, Shape]:
    """Return, by name, the shape (out x in, or rows x width) of every Linear and Embedding of a model."""
    return {name: _dense_shape(module) for name, module in model.modules() if isinstance(module, Linear | Embedding)}


def _dense_shape(module: Linear | Embedding) -> Shape:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Linear) else (rows, columns)  # a Linear stores (in, out)


def factorise(
    model: AnyModule, plan: Mapping[str, Choice], calibration: Calibration | None = None, sweeps: int = SWEEPS
) -> AnyModule:
    """Return a new model in which each matrix of the plan is a sum of Kronecker products, or stays dense if it says so.

    model        left untouched; it shares nothing with the result. What the plan does not name is copied, ties are kept
    calibration  what the matrices see of a text, for fits weighted by it; without one, the plain nearest sums
    sweeps       of alternating least squares in a weighted fit, at most
    Raises one TinykronError that lists every name that does not fit the model, or names a matrix that is not finite.
    """
    replacements: dict[Module, Module] = {}
    fits = plan.fits if isinstance(plan, KronPlan) else {}
    for name, module in _planned(model, plan).items():
        choice, fit = plan[name], fits.get(name)
        if choice.is_dense:
            continue
        if fit is None or (fit.shape, fit.a.shape) != (choice.dense, (choice.terms, *choice.shape)):
            fit = fit_of(module, name, choice, calibration, sweeps)
        else:
            fit = dataclasses.replace(fit, a=fit.a.copy(), b=fit.b.copy())  # the plan may be carried out again
        kind = KronLinear if isinstance(module, Linear) else KronEmbedding
        replacements[module] = kind.from_dense(module, fit)  # type: ignore[arg-type]
    return copy_with(model, replacements)


def fit_of(
    module: Linear | Embedding,
    name: str,
    choice: Choice,
    calibration: Calibration | None = None,
    sweeps: int = SWEEPS,
    certify: bool = False,
) -> KronSum:
    """Return the fit of one matrix that a plan asks for. Raises TinykronError naming the matrix."""
    try:  # the metric of the inputs is kept by no name here: it may take more memory than all else
        return nearest(
            matrix(module),
            choice.shape,
            choice.terms,
            inputs(name, calibration),
            outputs(module, name, calibration),
            sweeps=sweeps,
            certify=certify,
        )
    except TinykronError as error:
        raise type(error)(f"{name}: {error}") from error


def matrix(module: Linear | Embedding) -> Array:
    """Return the matrix (out, in) that a fit is for, or the table."""
    return module.weight.data.T if isinstance(module, Linear) else module.weight.data  # a Linear stores (in, out)


def inputs(name: str, calibration: Calibration | None) -> Metric:
    """Return the metric of a matrix's inputs; of a table, what its columns count as an output head."""
    return None if calibration is None else calibration.covariance(name)


def outputs(module: Linear | Embedding, name: str, calibration: Calibration | None) -> Metric:
    """Return the metric of a table's rows: how often they occur. A Linear has none."""
    counts = None if calibration is None or isinstance(module, Linear) else calibration.frequencies(name)
    return None if counts is None else to_device(counts, module.weight.device)


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


def copy_with(model: AnyModule, replacements: Mapping[Module, Module]) -> AnyModule:
    """Return a deep copy of a model with some modules replaced, which are not copied; gradients are left behind."""
    for module, new in replacements.items():
        new.training = module.training
    # deepcopy asks its memo before it copies: a module found there stands in for the old one, wherever that occurs
    memo: dict[int, object] = {id(module): new for module, new in replacements.items()}
    memo |= {id(parameter.grad): None for parameter in model.parameters() if parameter.grad is not None}
    return copy.deepcopy(model, memo)

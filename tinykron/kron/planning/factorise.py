"""Turning a model's matrices into Kronecker sums and back: factorise, merge, restructure.

Nothing here knows a particular model: a plan names modules by their dotted names, as `Module.get` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tinykron.backend import Array, to_device
from tinykron.errors import TinykronError
from tinykron.kron.algebra import KronSum
from tinykron.kron.fitting.metric import Metric
from tinykron.kron.fitting.nearest import SWEEPS, nearest
from tinykron.kron.linear import KronEmbedding, KronLinear
from tinykron.kron.plan import Choice, KronPlan
from tinykron.kron.planning.calibration import Calibration
from tinykron.kron.restructure import _planned
from tinykron.nn import AnyModule, Embedding, Linear, Module, copy_with


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

"""The planner: which matrix becomes what, so that a model meets its budgets and loses least; with reasons.

Each matrix has candidates, of every shape and number of terms, low rank and dense among them. What a loss in one matrix
does to the model is measured, on the calibration text: the divergence of the model's predictions when that matrix alone
is replaced. The budget is then spent where it counts, and the plan says how far from the best it can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinykron.backend import get
from tinykron.errors import TinykronError
from tinykron.kron.algebra import KronSum, Shape
from tinykron.kron.fitting.starts import rank_of
from tinykron.kron.plan import Choice, KronPlan
from tinykron.kron.planning.budget import Allocation, BudgetError, Options, allocate, amount
from tinykron.kron.planning.calibration import Calibration, calibrate, trace
from tinykron.kron.planning.candidates import Candidates, candidates, decided
from tinykron.kron.planning.factorise import fit_of, inputs, matrix, outputs
from tinykron.kron.planning.sensitivity import measured_sensitivities
from tinykron.kron.product import apply
from tinykron.nn import Embedding, Linear, Module
from tinykron.support.progress import Progress
from tinykron.threads import return_memory

HEADER = 160  # bytes of a file that describe one tensor, at most
REACH = 1 / 2  # of the budget's share: of sums that hold less of a matrix, at first a bound is enough
TIMED = (1, 16, 256)  # tokens
TIMING_SECONDS = 0.01  # for each figure: the least of what fits


def plan(
    model: Module,
    params: float | None = None,
    bytes: float | None = None,
    flops: float | None = None,
    calibration: Calibration | Sequence[np.ndarray] | None = None,
    names: Iterable[str] | None = None,
    value_bytes: int = 4,
    say: Callable[[str], None] | None = None,
) -> KronPlan:
    """Return what each matrix should become for the model to meet all budgets given, at the least loss.

    params       of the whole model: a share up to 1, or a number
    bytes        of the tensor file, with `value_bytes` for each value: a share up to 1, or a number
    flops        of the matrices' products for one token: a share of what they take now up to 1, or a number
    calibration  batches of token ids (B, T), or what `calibrate` made of them: fits are then weighted by the inputs,
                 and losses by what they do to the predictions; without, all is measured by Frobenius norms
    names        of the matrices that may change; by default every Linear, and each table of the vocabulary
    say          is told what is being done
    The plan holds its fits, so that `factorise` need not repeat them. Raises TinykronError for budgets that cannot be
    met, saying what can; for a matrix that is not finite, by name; DataError for an empty text.
    """
    say = say or (lambda line: None)
    matrices = _matrices(model, names)
    lookups = _lookups(model, matrices)
    shapes = {name: matrix(module).shape for name, module in matrices.items()}
    budgets = _Budgets(model, shapes, lookups, params, bytes, flops, value_bytes)
    if isinstance(calibration, Sequence):
        calibration = calibrate(model, calibration, matrices, say)
    found = _decomposed(matrices, calibration, REACH * budgets.share)
    return_memory()
    sensitivities = dict.fromkeys(found, 1.0)
    if calibration is not None:
        say("measuring what each matrix does to the predictions")
        sensitivities = measured_sensitivities(model, matrices, found, calibration, budgets.share)
    outcome = _allocated(budgets, matrices, found, sensitivities, calibration, say)
    known = {name: candidate.known() for name, candidate in found.items()}
    result = KronPlan()
    numbers = dict(zip(matrices, outcome.chosen, strict=True))
    result.update((name, known[name].choice(number)) for name, number in numbers.items())  # in the model's order
    # The widest inputs first: their metrics take the most memory beside the fits that are already there
    widest_first = sorted(matrices, key=lambda name: found[name].dense[::-1], reverse=True)
    with Progress("fitting", len(matrices), "matrices") as progress:
        for name in widest_first:
            return_memory()  # what came before had other sizes
            choice, fit = _settled(matrices[name], name, known[name], numbers[name], calibration)
            result[name] = replace(choice, sensitivity=sensitivities[name], lookup=name in lookups)
            if fit is not None:
                result.fits[name] = fit
            progress.advance(1, name)
    result.notes, result.value_bytes = budgets.notes(result, outcome), value_bytes
    return measured(result, matrices)


def _matrices(model: Module, names: Iterable[str] | None) -> dict[str, Linear | Embedding]:
    """Return the matrices that may change. Raises TinykronError naming what is none."""
    wanted = None if names is None else set(names)
    found: dict[str, Linear | Embedding] = {}
    table: Any = getattr(model, "embedding", None)
    rows = len(table.weight) if isinstance(table, Embedding) else None
    for name, module in model.modules():
        if not isinstance(module, Linear | Embedding) or any(module is other for other in found.values()):
            continue
        if name in wanted if wanted is not None else isinstance(module, Linear) or len(module.weight) == rows:
            found[name] = module
    absent = sorted((wanted or set()) - found.keys())
    if absent or not found:
        raise TinykronError(f"plan: the model has no dense matrix {', '.join(absent) or 'at all'}")
    return found


def _decomposed(
    matrices: dict[str, Linear | Embedding], calibration: Calibration | None, reach: float
) -> dict[str, Candidates]:
    """Return what each matrix can become, `reach` as for `candidates`; an error says which matrix it is."""
    found = {}
    with Progress("decomposing", len(matrices), "matrices") as progress:
        for name, module in matrices.items():
            try:  # the metrics are kept by no name here: they may take more memory than all else
                found[name] = candidates(
                    matrix(module),
                    inputs(name, calibration),
                    outputs(module, name, calibration),
                    isinstance(module, Embedding),
                    reach,
                )
            except TinykronError as error:
                raise type(error)(f"{name}: {error}") from error
            progress.advance(1, name)
    return found


def _lookups(model: Module, matrices: dict[str, Any]) -> set[str]:
    """Return the names of the tables that are only looked up: nothing is multiplied with them."""
    tables = {name for name, module in matrices.items() if isinstance(module, Embedding)}
    return tables - trace(model, np.zeros((1, 2), np.int64), set(matrices)).moments.keys()


# Budgets --------------------------------------------------------------------------------------------------------------


class _Budgets:
    """The limits on the parameters and the FLOPs of the planned matrices, and how they came about."""

    def __init__(
        self,
        model: Module,
        shapes: dict[str, Shape],
        lookups: set[str],
        params: float | None,
        bytes: float | None,
        flops: float | None,
        value_bytes: int,
    ) -> None:
        if params is None and bytes is None and flops is None:
            raise TinykronError("plan: expected a budget: params, bytes or flops")
        for name, number in (("params", params), ("bytes", bytes), ("flops", flops)):
            if number is not None and not number > 0:
                raise TinykronError(f"plan: {name}: found {number}, expected a share up to 1, or a number above 1")
        total = model.parameter_count()
        self.dense = sum(rows * columns for rows, columns in shapes.values())
        self.lookups = lookups
        self.dense_flops = 2.0 * sum(rows * columns for name, (rows, columns) in shapes.items() if name not in lookups)
        self.left = total - self.dense
        self.wanted: list[str] = []
        self.limits: list[float] = []
        allowed = []
        if params is not None:
            allowed.append((amount(params, total), "params"))
        if bytes is not None:
            tensors = len(model.parameters()) + len(shapes)  # a matrix becomes two
            allowed.append(((amount(bytes, total * value_bytes) - HEADER * tensors) / value_bytes, "bytes"))
        if allowed:
            limit, name = min(allowed)
            self.wanted.append(name)
            self.limits.append(limit - self.left)
        if flops is not None:
            self.wanted.append("flops")
            self.limits.append(amount(flops, self.dense_flops))
        whole = self.dense_flops if self.wanted[0] == "flops" else self.dense
        self.share = min(1.0, max(0.0, self.limits[0] / whole)) if whole else 1.0

    def options(self, found: dict[str, Candidates], sensitivities: dict[str, float]) -> list[Options]:
        result = []
        for name, candidate in found.items():
            flops = candidate.flops * (name not in self.lookups)
            costs = [flops if wanted == "flops" else candidate.parameters for wanted in self.wanted]
            result.append(Options(sensitivities[name] * candidate.loss, np.array(costs, float)))
        return result

    def allocate(self, options: list[Options], finish: bool) -> Allocation:
        try:
            return allocate(options, self.limits, finish)
        except BudgetError as error:
            wanted = self.wanted[error.number]
            if wanted == "flops":
                raise TinykronError(
                    f"plan: flops: {error.limit:,.0f} a token cannot be met; the matrices need at least "
                    f"{error.least:,.0f}, which is {error.least / self.dense_flops:.3f} of what they take now"
                ) from None
            whole = self.left + error.least
            raise TinykronError(
                f"plan: {wanted}: {self.left + error.limit:,.0f} parameters cannot be met; {self.left:,} are in no "
                f"matrix of the plan, and these need at least {error.least:,.0f}: together {whole:,.0f}, which is "
                f"{whole / (self.left + self.dense):.3f} of the model"
            ) from None

    def notes(self, result: KronPlan, outcome: Allocation) -> list[str]:
        total, after = self.left + self.dense, self.left + result.parameters
        share = result.flops / result.flops_before if result.flops_before else 1.0
        lines = [
            f"{total:,} parameters become {after:,} ({after / total:.1%}); the matrices' "
            f"{result.flops_before / 1e6:,.2f} MFLOPs a token become {result.flops / 1e6:,.2f} ({share:.1%})"
        ]
        found = f"predicted loss {outcome.loss:.4g}"
        if outcome.exact:
            return [*lines, f"{found}: the least that these candidates can have within the budget (duality gap 0)"]
        return [*lines, f"{found}, at least {outcome.bound:.4g} for any choice: duality gap {outcome.gap:.2%}"]


def _allocated(
    budgets: _Budgets,
    matrices: dict[str, Linear | Embedding],
    found: dict[str, Candidates],
    sensitivities: dict[str, float],
    calibration: Calibration | None,
    say: Callable[[str], None],
) -> Allocation:
    """Return the best choice of what each matrix can become, by its number among those whose loss is known.

    found  is changed: where a bound stands for a loss, and the loss might change the choice, it is computed
    """
    finish = False  # prices say what might matter, and take little time; the finish comes last
    while True:
        known = {name: candidate.known() for name, candidate in found.items()}
        every, outcome = budgets.options(found, sensitivities), None
        try:
            outcome = budgets.allocate(budgets.options(known, sensitivities), finish)
        except TinykronError:
            budgets.allocate(every, finish=True)  # raises, unless sums that are not known yet may do
        hoped = _hopeful(found, sensitivities, every, outcome)
        if outcome and finish and not hoped:
            return outcome
        finish = not hoped
        if hoped:
            say(f"looking closer at {sum(map(len, hoped.values()))} shapes of {len(hoped)} matrices")
        for name, some in hoped.items():
            found[name] = decided(
                found[name],
                some,
                matrix(matrices[name]),
                inputs(name, calibration),
                outputs(matrices[name], name, calibration),
                isinstance(matrices[name], Embedding),
            )


def _hopeful(
    found: dict[str, Candidates], sensitivities: dict[str, float], options: list[Options], outcome: Allocation | None
) -> dict[str, dict[Shape, np.ndarray]]:
    """Return, by matrix, the shapes whose bounds leave it open whether they change the best choice of what is known.

    With each comes the loss of 0, 1, 2, ... terms below which it does. Options that, at the prices of that choice, are
    no better than the best known one of their matrix leave the bound on the total loss as it is. If that is all that is
    known of the choice, this is enough; if it is the best, they must not lie within the gap, either. Without a choice,
    all are open.
    """
    hoped: dict[str, dict[Shape, np.ndarray]] = {}
    for (name, candidate), option in zip(found.items(), options, strict=True):
        if not candidate.optimistic.any():
            continue
        needed = np.full(len(candidate.loss), np.inf)
        if outcome:
            paid, known = outcome.prices @ option.costs, ~candidate.optimistic
            gap = outcome.loss - outcome.bound if outcome.exact else 0.0
            needed = (float((option.loss + paid)[known].min()) + gap - paid) / sensitivities[name]
        open_ones = candidate.optimistic & (candidate.loss < needed)
        needed *= (1.0 + 1e-9) / np.where(candidate.estimated, candidate.ratio, 1.0)  # before estimates are corrected
        needed[open_ones & (candidate.loss >= 1.0)] = np.inf  # a corrected bound ends at 1: only a loss decides
        for m, n in {(m, n) for m, n in candidate.shapes[open_ones].tolist()}:
            mine = candidate.optimistic & (candidate.shapes == (m, n)).all(axis=1)
            below = np.full(int(candidate.terms[mine].max()) + 1, -np.inf)
            below[candidate.terms[mine]] = needed[mine]
            hoped.setdefault(name, {})[m, n] = below
    return hoped


# What is settled, and how fast it is ----------------------------------------------------------------------------------


def _settled(
    module: Linear | Embedding, name: str, options: Candidates, number: int, calibration: Calibration | None
) -> tuple[Choice, KronSum | None]:
    """Return the choice with what is known of it, and its fit.

    The loss of a Kronecker sum was an estimate where the metric has no Kronecker factors. Fitted, it has to do at least
    as well as low rank of as many parameters, whose loss is exact; else that is taken.
    """
    choice = options.choice(number)
    if choice.is_dense:
        return replace(choice, loss=0.0, energy=1.0, reason="leave dense: its parameters count more than others'"), None
    fit = fit_of(module, name, choice, calibration, certify=True)
    low_rank = options.low_rank_loss(choice.parameters)
    reason = f"Kronecker: low rank of this size would lose {low_rank:.3f}"
    loss = (fit.error or 0.0) ** 2
    if choice.kind == "low rank" or low_rank <= loss:
        if choice.kind != "low rank":
            rank = rank_of(choice.parameters, choice.dense)
            reason = f"low rank is better here: a Kronecker sum would lose {loss:.3f}"
            choice = Choice(options.dense, (options.dense[0], 1), rank)
            fit = fit_of(module, name, choice, calibration, certify=True)
            loss = (fit.error or 0.0) ** 2
        else:
            smaller = (options.shapes[:, 1] > 1) & (options.parameters <= choice.parameters)
            rest = float(options.loss[smaller].min()) if smaller.any() else 1.0
            other = f": a Kronecker sum would lose about {rest:.3f}" if rest < 1.0 else ""
            reason = f"low rank is better here{other}"
    bounds = None if fit.bounds is None else [bound**2 for bound in fit.bounds]
    return replace(choice, energy=fit.energy, loss=loss, bounds=bounds, low_rank=low_rank, reason=reason), fit


def measured(plan: KronPlan, matrices: dict[str, Linear | Embedding]) -> KronPlan:
    """Return the plan with the microseconds that each product takes here, by tokens: [factors, dense matrix].

    matrices  by name: the dense ones, which are timed as they are stored
    """
    known: dict[Any, dict[str, list[float]]] = {}
    result = KronPlan(plan)
    result.fits, result.notes, result.value_bytes = plan.fits, plan.notes, plan.value_bytes
    for name, choice in plan.items():
        if choice.is_dense or choice.lookup:
            continue
        key = choice.dense, choice.shape, choice.terms
        if key not in known:
            known[key] = {str(tokens): _microseconds(choice, tokens, matrices[name]) for tokens in TIMED}
        result[name] = replace(choice, microseconds=known[key])
    return result


def _microseconds(choice: Choice, tokens: int, module: Linear | Embedding) -> list[float]:
    """Return the least time of a few products of each kind: with the factors, with the dense matrix."""
    xp, weight = get(module.weight.device).xp, module.weight.data
    w = weight if isinstance(module, Linear) else weight.T
    (m, n), (p, q) = choice.shape, choice.other
    x = xp.full((tokens, choice.dense[1]), 0.5, dtype=np.float32)
    a, b = (xp.full((choice.terms, *shape), 0.5, dtype=np.float32) for shape in ((m, n), (p, q)))
    times = []
    for product in (lambda: apply(a, b, x), lambda: x @ w):
        seconds: list[float] = []
        while len(seconds) < 5 or sum(seconds) < TIMING_SECONDS:
            start = time.perf_counter()
            float(product()[0, 0])  # waits for a GPU
            seconds.append(time.perf_counter() - start)
        times.append(round(min(seconds) * 1e6, 1))
    return times

"""A checkpoint in, a smaller one out: calibrate on a text, plan within budgets, factorise, save, measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint, data, kron
from tinykron.checkpoint.folder import VALUE_BYTES
from tinykron.data.batch import batches
from tinykron.errors import CheckpointError, TinykronError
from tinykron.jobs.making import making, refuse
from tinykron.kron.planning.budget import amount
from tinykron.kron.planning.calibration import trace
from tinykron.measure.perplexity import measured


@dataclass(frozen=True)
class Budget:
    """What the smaller model may take, as for `kron.plan`; a preset or a plan of your own instead."""

    params: float | None = None
    bytes: float | None = None
    flops: float | None = None
    preset: str | None = None
    plan: str | Path | None = None  # a JSON file

    def __post_init__(self) -> None:
        budgets = [name for name in ("params", "bytes", "flops") if getattr(self, name) is not None]
        others = [name for name in ("preset", "plan") if getattr(self, name) is not None]
        if not budgets and not others:
            raise TinykronError("compress: expected a budget (--params, --bytes, --flops), a --preset or a --plan")
        if len(others) > 1 or (budgets and others):
            raise TinykronError(
                f"compress: found {', '.join(budgets + others)}; a preset or a plan has no budget beside it"
            )
        if self.preset is not None and self.preset not in kron.PRESETS:
            raise TinykronError(f"compress: found preset {self.preset!r}, expected one of {', '.join(kron.PRESETS)}")


@dataclass(frozen=True)
class Side:
    """A model before or after."""

    parameters: int
    bytes: int  # of the tensor file
    perplexity: float | None  # on held-out text, before any training; of hidden tokens for a masked model


@dataclass
class Outcome:
    """What `compress` did."""

    folder: str
    before: Side
    after: Side
    plan: kron.KronPlan
    merged: str | None = None  # folder of the dense model
    promises: dict[str, bool] = field(default_factory=dict)  # each budget: whether the saved model keeps it

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain values, for JSON."""
        plan = json.loads(self.plan.to_json())
        sides = {"before": asdict(self.before), "after": asdict(self.after)}
        return {"folder": self.folder, **sides, "merged": self.merged, "promises": self.promises, "plan": plan} | {
            "notes": list(self.plan.notes)
        }


# The verb -------------------------------------------------------------------------------------------------------------


def compress(
    model: str | Path,
    out: str | Path | None,
    budget: Budget,
    calibration: str | Path | None = None,
    tokens: int = 8192,
    weighted: bool = True,
    merge: str | Path | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = print,
    seed: int = 0,
) -> Outcome | None:
    """Compress the checkpoint in folder `model` into folder `out`, and measure both.

    out          folder to make: the model, and plan.json. None: say what would be made, and return None
    calibration  text file or folder; by default the text that every Python carries. A part of it is held out to measure
    tokens       to calibrate on
    weighted     False: plain nearest sums, without a look at the text
    merge        another folder to make: the same model with dense float32 matrices, which transformers reads
    dtype        of the files; by default that of `model`
    The folder appears when model and plan are in it, and both are measured. Raises TinykronError, before any work, for
    folders that exist and budgets that contradict each other.
    """
    folder = Path(model)
    refuse(out, merge)
    dtype = dtype or checkpoint.stored_dtype(folder)
    if dtype not in VALUE_BYTES:
        raise TinykronError(f"dtype: found {dtype!r}, expected one of {', '.join(VALUE_BYTES)}")
    if tokens < 2:
        raise TinykronError(f"tokens: found {tokens}, expected at least 2")
    teacher = checkpoint.load(folder).eval()
    plan = _given(budget, teacher)
    if out is None:
        for line in dry_run(teacher, folder, budget, plan, weighted, tokens, dtype):
            say(line)
        return None
    with making(out, ".partial") as work:
        training, held_out = data.split(data.documents(calibration))
        seen = kron.calibrate(teacher, batches(teacher, training, tokens, seed), say=say) if weighted else None
        if plan is None:
            limits = budget.params, budget.bytes, budget.flops
            plan = kron.plan(teacher, *limits, calibration=seen, value_bytes=VALUE_BYTES[dtype], say=say)
        if plan.fits:
            seen = None  # every fit is made, and the second moments may take more memory than the model
        say("factorising")
        small = kron.factorise(teacher, plan, seen)
        saved = work.save(small, dtype)  # its factors are rounded to the file's dtype
        work.write("plan.json", plan.to_json() + "\n")
        say("measuring on held-out text")
        before = Side(teacher.parameter_count(), checkpoint.tensor_bytes(folder), measured(teacher, held_out))
        after = Side(saved.parameter_count(), checkpoint.tensor_bytes(work.result), measured(saved, held_out))
        outcome = Outcome(str(out), before, after, plan, str(merge) if merge is not None else None)
        outcome.promises = _promises(budget, outcome, VALUE_BYTES[dtype])
        if merge is not None:
            checkpoint.save(kron.merge(saved), merge)  # in float32: the products of rounded factors need all its digits
        return outcome


def _given(budget: Budget, model: Any) -> kron.KronPlan | None:
    """Return the plan of a preset or a file, checked against the model; None where it is to be made."""
    if budget.preset is not None:
        return kron.PRESETS[budget.preset](model)
    if budget.plan is None:
        return None
    path = Path(budget.plan)
    try:
        return kron.KronPlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def dry_run(
    model: Any,
    folder: Path,
    budget: Budget,
    plan: kron.KronPlan | None,
    weighted: bool,
    tokens: int,
    dtype: str,
) -> list[str]:
    """Return what would be made, in lines, without doing it: sizes, and the memory that calibration takes."""
    total, size = model.parameter_count(), VALUE_BYTES[dtype]
    lines = [f"{folder}: {total:,} parameters, {checkpoint.tensor_bytes(folder):,} bytes"]
    if plan is not None:
        after = plan.total(total)
        lines.append(f"the plan: {after:,} parameters ({after / total:.1%}), about {after * size:,} bytes of {dtype}")
    else:
        limits = []
        if budget.params is not None:
            limits.append(amount(budget.params, total))
        if budget.bytes is not None:
            limits.append(amount(budget.bytes, total * size) / size)
        if limits:
            most = int(min(limits))
            lines.append(f"at most {most:,} parameters ({most / total:.1%}), about {most * size:,} bytes of {dtype}")
        if budget.flops is not None:
            share = f"{budget.flops:.1%} of the FLOPs" if budget.flops <= 1 else f"{budget.flops:,.0f} FLOPs a token"
            lines.append(f"at most {share} of the matrices")
    if weighted:
        seen = trace(model, np.zeros((1, 2), np.int64))
        lines.append(f"calibrating on {tokens:,} tokens takes {seen.bytes / 1e6:,.1f} MB for second moments")
    return lines


def _promises(budget: Budget, outcome: Outcome, value_bytes: int) -> dict[str, bool]:
    """Return, for each budget, whether what was saved keeps it: counted on the files, not taken from the plan."""
    kept = {}
    if budget.params is not None:
        kept["params"] = outcome.after.parameters <= amount(budget.params, outcome.before.parameters)
    if budget.bytes is not None:
        kept["bytes"] = outcome.after.bytes <= amount(budget.bytes, outcome.before.parameters * value_bytes)
    if budget.flops is not None:
        kept["flops"] = outcome.plan.flops <= amount(budget.flops, outcome.plan.flops_before)
    return kept


def render(outcome: Outcome) -> str:
    """Return an outcome as text for a terminal: the plan, and both models side by side."""
    before, after = outcome.before, outcome.after
    lines = [str(outcome.plan), ""]
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("bytes", before.bytes, after.bytes),
    ):
        lines.append(f"{name} {old:,} -> {new:,} ({new / old:.1%})")
    if before.perplexity is not None and after.perplexity is not None:
        lines.append(
            f"perplexity {before.perplexity:.2f} -> {after.perplexity:.2f} on held-out text, before any training"
        )
    lines += [f"BROKEN: the budget {name} is not kept" for name, kept in outcome.promises.items() if not kept]
    lines.append(f"saved: {outcome.folder}" + (f", dense: {outcome.merged}" if outcome.merged else ""))
    return "\n".join(lines)

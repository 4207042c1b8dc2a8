"""`tinykron reproduce fit`: which way to make a matrix smaller loses least, at equal bytes and at equal FLOPs.

On the shipped models, every matrix of every block is made smaller: like KnGPT2, by balanced Kronecker sums fitted
plainly and by alternating least squares, by low rank (plain, and SVD-LLM), and by the planner. Each is measured before
and after a short distillation, the same for all, with several seeds. Every row is written as it is found, and an
interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinykron import checkpoint, data, kron
from tinykron.data.batch import batches
from tinykron.data.masking import Masking
from tinykron.errors import TinykronError
from tinykron.kron.algebra import Shape, divisors
from tinykron.kron.fitting.starts import rank_of
from tinykron.kron.plan import Choice, KronPlan
from tinykron.kron.restructure import dense_shapes
from tinykron.measure import perplexity
from tinykron.studies.claims import Kept
from tinykron.support import files
from tinykron.support.tables import Table
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

MODELS = ("gpt2-tiny", "bert-tiny", "llama-tiny")
SHARES = (0.25, 0.5)
BUDGETS = ("bytes", "FLOPs")
METHODS = ("KnGPT2-like", "balanced, plain", "balanced, ALS", "SVD", "SVD-LLM", "automatic")


@dataclass(frozen=True)
class Row:
    """One way, one budget, one seed."""

    model: str
    share: float  # of the parameters, or of the FLOPs, of the matrices that change
    budget: str  # "bytes" or "FLOPs"
    method: str
    seed: int
    parameters: float  # of the matrices, as a share of what they had
    flops: float  # of one token's products with them, likewise
    before: float  # perplexity on held-out text; of hidden tokens for BERT
    after: float  # the same after distillation
    dense: float  # perplexity of the teacher

    @property
    def key(self) -> tuple[Any, ...]:
        return self.model, self.share, self.budget, self.method, self.seed


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    models: Sequence[str] = MODELS
    shares: Sequence[float] = SHARES
    seeds: int = 3
    steps: int = 300
    batch: int = 2
    context: int = 64
    lr: float = 3e-4
    calibration_tokens: int = 8192


QUICK = Scale(models=("gpt2-tiny",), shares=(0.25,), steps=100)


# Plans ----------------------------------------------------------------------------------------------------------------


def tiny_b(dense: Shape, share: float) -> Choice:
    """Return a single product with a tiny B, in the manner of KnGPT2: the longer side is halved until it fits."""
    m, n = dense
    while m * n > share * dense[0] * dense[1]:
        longer_rows = m >= n
        if (m if longer_rows else n) % 2:
            raise TinykronError(f"KnGPT2-like: {dense} cannot be halved to {share:.0%}")
        m, n = (m // 2, n) if longer_rows else (m, n // 2)
    return Choice(dense, (m, n))


def balanced(dense: Shape, share: float, budget: str = "bytes") -> Choice:
    """Return the sum with factors as equal in size as they come, of as many terms as the budget allows."""
    rows, columns = dense
    pairs = [(m, n) for m in divisors(rows) for n in divisors(columns)]

    def imbalance(shape: Shape) -> tuple[float, float]:
        m, n = shape
        return abs(m * n - rows // m * (columns // n)), abs(m * columns - n * rows) / (rows * columns)

    shape = min(pairs, key=imbalance)
    one = Choice(dense, shape)
    whole, each = (rows * columns, one.parameters) if budget == "bytes" else (2 * rows * columns, one.flops)
    limit = min(shape[0] * shape[1], one.other[0] * one.other[1])
    return Choice(dense, shape, max(1, min(limit, int(share * whole) // each)))


def plan_for(method: str, share: float, budget: str, shapes: dict[str, Shape], model: Any, seen: Any) -> KronPlan:
    """Return the plan of a method. The parameters and the FLOPs of low rank, and of KnGPT2, shrink alike."""
    if method == "automatic":
        changed = sum(rows * columns for rows, columns in shapes.values())
        params = model.parameter_count() - (1 - share) * changed
        limits = {"params": params} if budget == "bytes" else {"flops": share}
        return kron.plan(model, **limits, calibration=seen, names=shapes)
    if method == "KnGPT2-like":
        return KronPlan((name, tiny_b(dense, share)) for name, dense in shapes.items())
    if method.startswith("balanced"):
        return KronPlan((name, balanced(dense, share, budget)) for name, dense in shapes.items())
    ranks = {name: rank_of(share * dense[0] * dense[1], dense) for name, dense in shapes.items()}
    return KronPlan((name, Choice(dense, (dense[0], 1), ranks[name])) for name, dense in shapes.items())


WEIGHTED = ("balanced, ALS", "SVD-LLM", "automatic")  # methods that look at a text


# Running --------------------------------------------------------------------------------------------------------------


def fit_relation(folder: str | Path, scale: Scale, say: Callable[[str], None] = print) -> list[Row]:
    """Run what is missing in `folder`, and return all its rows: those of other models or seeds that it holds, too.

    Raises CheckpointError for a folder whose rows were trained otherwise.
    """
    how = {key: value for key, value in asdict(scale).items() if key not in ("models", "shares", "seeds")}
    kept = Kept(folder, Row, "scale.json", json.dumps(how))
    found = {row.key: row for row in kept.rows}
    jobs = list(_jobs(scale))
    for number, (name, seed) in enumerate(jobs, 1):
        missing = [key for key in _keys(scale, name, seed) if key not in found]
        if not missing:
            continue
        say(f"{name}, seed {seed} ({number} of {len(jobs)}): {len(missing)} rows")
        for row in _rows(name, seed, missing, found, scale):
            found[row.key] = row
            kept.add(row)
            say(f"  {row.share:.0%} of {row.budget}, {row.method}: {row.before:.2f} -> {row.after:.2f}")
    return sorted(found.values(), key=lambda row: (*row.key[:3], METHODS.index(row.method), row.seed))


def _jobs(scale: Scale) -> Iterator[tuple[str, int]]:
    return ((name, seed) for name in scale.models for seed in range(scale.seeds))


def _keys(scale: Scale, name: str, seed: int) -> list[tuple[Any, ...]]:
    return [(name, share, budget, method, seed) for share in scale.shares for budget in BUDGETS for method in METHODS]


def _rows(
    name: str, seed: int, missing: Sequence[tuple[Any, ...]], found: dict[tuple[Any, ...], Row], scale: Scale
) -> Iterator[Row]:
    model = checkpoint.load(data.weights_folder(name)).eval()
    training, held_out = data.split(data.documents())
    seen = kron.calibrate(model, batches(model, training, scale.calibration_tokens, seed))
    shapes = {key: shape for key, shape in dense_shapes(model).items() if key.startswith("blocks.")}
    dense = perplexity.measured(model, held_out)
    assert dense is not None
    tokens = data.encode(model.tokenizer, training)
    masking = None if model.causal else Masking.of(model.tokenizer)
    for key in missing:
        _, share, budget, method, _ = key
        twin = found.get((name, share, "bytes", method, seed))
        if budget == "FLOPs" and twin and method in ("KnGPT2-like", "SVD", "SVD-LLM"):
            yield Row(**asdict(twin) | {"budget": budget})  # these spend as much of both: it is the same run
            continue
        plan = plan_for(method, share, budget, shapes, model, seen)
        student = kron.factorise(model, plan, seen if method in WEIGHTED else None)
        before = perplexity.measured(student, held_out)
        settings = Settings(
            steps=scale.steps,
            batch=scale.batch,
            context=scale.context,
            lr=scale.lr,
            warmup=scale.steps // 20,
            weight_decay=0.0,
            seed=seed,
        )
        fit(student, tokens, settings, teacher=model, masking=masking, title=f"distilling {method}")
        after = perplexity.measured(student.eval(), held_out)
        assert before is not None and after is not None
        whole = sum(rows * columns for rows, columns in shapes.values())
        flops = sum(choice.flops for choice in plan.values()) / (2 * whole)
        row = Row(name, share, budget, method, seed, plan.parameters / whole, flops, before, after, dense)
        found[row.key] = row
        yield row


# Reporting ------------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Return mean +- standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0.0:.2f}"


def markdown(rows: Sequence[Row], scale: Scale) -> str:
    """Return the table, and what wins where, in words that are computed from it."""
    tokens = scale.steps * scale.batch * scale.context
    lines = [
        "# tinykron reproduce fit",
        "",
        f"Perplexity on held-out text, mean ± standard deviation over the seeds, before and after "
        f"{scale.steps} steps of distillation ({tokens:,} tokens, the same for all). All matrices of all blocks are "
        "made smaller; parameters and FLOPs are shares of what these took. A seed draws the calibration text and the "
        "batches.",
        "",
    ]
    table = []
    for (name, share, budget), group in grouped(rows).items():
        for method, some in group.items():
            cells = [f"{name} ({some[0].dense:.2f})", f"{share:.0%} of {budget}", method]
            cells += [f"{mean(getattr(row, cost) for row in some):.2f}" for cost in ("parameters", "flops")]
            cells += [str(len(some)), *(spread([getattr(row, when) for row in some]) for when in ("before", "after"))]
            table.append(cells)
    headings = ("model", "budget", "method", "parameters", "FLOPs", "seeds", "before", "after")
    lines += Table(headings, table).markdown()
    lines += ["", "## What wins where", ""]
    lines += [f"- {line}" for line in verdicts(rows)]
    return "\n".join([*lines, "", "![perplexity against bytes and FLOPs](fit.png)", ""])


def grouped(rows: Sequence[Row]) -> dict[tuple[str, float, str], dict[str, list[Row]]]:
    """Return the rows by model, share and budget, and in each by method."""
    result: dict[tuple[str, float, str], dict[str, list[Row]]] = {}
    for row in rows:
        result.setdefault((row.model, row.share, row.budget), {}).setdefault(row.method, []).append(row)
    return result


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return, for each model and budget, which method is best, and whether it is so with every seed."""
    lines = []
    for (name, share, budget), group in grouped(rows).items():
        if len(group) < 2:
            continue
        for stage in ("before", "after"):
            order = sorted(group, key=lambda method: mean(getattr(row, stage) for row in group[method]))
            best, second = order[0], order[1]
            ours, theirs = ([getattr(row, stage) for row in group[method]] for method in (best, second))
            pairs = list(zip(ours, theirs, strict=False))
            every = len(pairs) > 1 and all(one < other for one, other in pairs)
            how = f"with all of {len(pairs)} seeds" if every else f"open: {len(pairs)} seeds do not agree on it"
            how = how if len(pairs) > 1 else "open: a single seed"
            gain = mean(theirs) / mean(ours) - 1
            where = f"{name}, {share:.0%} of {budget}, {stage} distillation"
            lines.append(f"{where}: {best}, by {gain:.1%} over {second}, {how}")
    return lines


def plot(rows: Sequence[Row], path: str | Path) -> None:
    """Draw perplexity after distillation against parameters and FLOPs, one row for each model, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(11, 3.6 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False)
    for axis_pair, name in zip(axes, models, strict=True):
        for axis, share in zip(axis_pair, ("parameters", "flops"), strict=True):
            for number, method in enumerate(METHODS):
                some = [group[method] for key, group in grouped(rows).items() if key[0] == name and method in group]
                places = [mean(getattr(row, share) for row in same) for same in some]
                heights = [mean(row.after for row in same) for same in some]
                errors = [stdev([row.after for row in same]) if len(same) > 1 else 0.0 for same in some]
                axis.errorbar(places, heights, errors, fmt="os^vDP"[number], label=method, capsize=2, alpha=0.8)
            axis.axhline(next(row.dense for row in rows if row.model == name), color="grey", linestyle=":")
            label = "parameters" if share == "parameters" else "FLOPs"
            axis.set(title=name, xlabel=f"{label} of the matrices, share of dense", ylabel="perplexity, distilled")
            axis.set(xscale="log", yscale="log")
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                ticks.set_major_formatter(FormatStrFormatter("%g"))
                ticks.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
    axes[0][1].legend(fontsize=8)
    figure.savefig(path, format="png", dpi=110)


def write(rows: Sequence[Row], scale: Scale, folder: str | Path) -> None:
    """Write fit.md, fit.json and fit.png."""
    folder = Path(folder)
    files.write(folder / "fit.md", markdown(rows, scale))
    content = {"scale": asdict(scale), "rows": [asdict(row) for row in rows], "verdicts": verdicts(rows)}
    files.write(folder / "fit.json", json.dumps(content, indent=2) + "\n")
    plot(rows, folder / "fit.png")

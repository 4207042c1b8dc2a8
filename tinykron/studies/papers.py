"""The reports of `tinykron reproduce kngpt2` and `tinykron reproduce kroneckerbert`: run, table, plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from tinykron.studies import kngpt2, kroneckerbert
from tinykron.studies.claims import Answer, Relation, as_dict, chosen, markdown, run
from tinykron.studies.identities import TIMES
from tinykron.studies.kron_students import Scale, Study
from tinykron.studies.krony_pt import FOLLOW_UPS
from tinykron.support import files


@dataclass(frozen=True)
class Paper:
    """What is asked of a paper, and how much is run for it."""

    relations: Sequence[Relation]
    full: Scale
    quick: Scale
    losses: str  # in words


def _ordered(*lists: Sequence[Relation]) -> list[Relation]:
    """Return relations, and what times are asked for, as they are numbered: K1 to K7, R1 to R13, B1 to B3."""
    every = [one for found in (*lists, TIMES) for one in found]
    return sorted(every, key=lambda one: ("KRB".index(one.id[0]), int(one.id[1:].rstrip("b")), one.id))


PAPERS = {
    "kngpt2": Paper(
        _ordered(kngpt2.RELATIONS, FOLLOW_UPS),
        kngpt2.FULL,
        kngpt2.QUICK,
        f"KnGPT2's losses where nothing else is said: {kngpt2.ILKD}",
    ),
    "kroneckerbert": Paper(
        _ordered(kroneckerbert.RELATIONS),
        kroneckerbert.FULL,
        kroneckerbert.QUICK,
        f"KroneckerBERT's losses where nothing else is said: {kroneckerbert.EQ_14}",
    ),
}


def reproduce(
    name: str,
    folder: str | Path,
    quick: bool = False,
    only: str | None = None,
    scale: Scale | None = None,
    say: Callable[[str], None] = print,
) -> list[Answer]:
    """Answer a paper's relations, those named in `only` or all, and write report.md, report.json and budgets.png."""
    paper, folder = PAPERS[name], Path(folder)
    scale = scale or (paper.quick if quick else paper.full)
    relations = chosen(paper.relations, only)
    answers = run(relations, Study(scale, folder), scale.seeds, folder, asdict(scale), say)
    command = f"tinykron reproduce {name}{' --quick' * quick}"
    drawn = plot(answers, scale, folder / "budgets.png")
    said = how(scale, paper.losses, quick) + ("\n\n![perplexity by budget](budgets.png)" if drawn else "")
    files.write(folder / "report.md", markdown(f"tinykron reproduce {name}", answers, said, command))
    files.write(folder / "report.json", json.dumps(as_dict(answers), indent=2) + "\n")
    return answers


def how(scale: Scale, losses: str, quick: bool) -> str:
    """Return how the relations were run, in words."""
    tokens = [f"{steps * scale.batch * scale.context:,}" for steps in scale.budgets]
    few, many = scale.examples
    short = (
        " This is the quick run: its budgets are small and its texts short, so that seeds differ more, and more "
        "relations stay open, than in the full one."
        if quick
        else ""
    )
    return (
        f"Students of {scale.model}, each trained from its start for {' and '.join(map(str, scale.budgets))} steps of "
        f"{scale.batch} x {scale.context} tokens of the text that every Python carries ({' and '.join(tokens)} tokens, "
        f"the same for all that are compared), AdamW at {scale.lr:g}, cosine. {losses}. Perplexity is measured on "
        f"{scale.held_out:,} held-out tokens, which the seed draws, as it draws batches. Task: {scale.task}, {few} or "
        f"{many} examples, {scale.epochs} epochs; the best epoch on the dev set counts, for all alike. A relation "
        "holds or fails where all seeds agree, by more than its margin and at every budget that was trained; it is "
        "open else. Students are shared: their minutes stand in the first row that needed them."
        f"{short}"
    )


def plot(answers: Sequence[Answer], scale: Scale, path: str | Path) -> bool:
    """Draw, for each relation that compares students, their perplexity by budget. False where there is none."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    last = scale.budgets[-1]
    shown = [one for one in answers if one.rows and any(name.endswith(f" {last}") for name in one.rows[0].values)]
    if not shown:
        return False
    columns = min(3, len(shown))
    figure = Figure(figsize=(4.2 * columns, 3.2 * ceil(len(shown) / columns)), layout="constrained")
    axes = figure.subplots(ceil(len(shown) / columns), columns, squeeze=False).reshape(-1)
    for axis, answer in zip(axes, shown, strict=False):
        names = [name.removesuffix(f" {last}") for name in answer.rows[0].values if name.endswith(f" {last}")]
        for name in names:
            columns_of = [[row.values[f"{name} {steps}"] for row in answer.rows] for steps in scale.budgets]
            errors = [stdev(values) if len(values) > 1 else 0.0 for values in columns_of]
            axis.errorbar(scale.budgets, list(map(mean, columns_of)), errors, marker="o", ms=3, capsize=2, label=name)
        axis.set(title=f"{answer.relation.id}: {answer.verdict}", xlabel="steps", ylabel="perplexity")
        axis.set(xscale="log", yscale="log", xticks=scale.budgets)
        low, high = axis.get_ylim()
        marks = [float(f"{value:.3g}") for value in np.geomspace(low, high, 6)[1:-1]]
        axis.set_yticks(marks)  # a range within a decade would get none
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter(FormatStrFormatter("%g"))
            ticks.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.savefig(path, format="png", dpi=110)
    return True

"""What a recipe reports: each model's measurements, as a table on the terminal, Markdown, JSON and two plots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from tinykron.jobs.measurement import Measurement
from tinykron.kron.plan import KronPlan, gaussian_energy
from tinykron.support import files
from tinykron.support.tables import Table
from tinykron.train.settings import History


@dataclass
class Report:
    """What one run of a recipe found."""

    recipe: str
    settings: dict[str, Any]  # what was run on what
    models: list[Measurement]
    plan: KronPlan
    courses: dict[str, History] = field(default_factory=dict)  # of each student that was trained
    prompt: str = ""
    notes: list[str] = field(default_factory=list)


# Showing --------------------------------------------------------------------------------------------------------------

COLUMNS = {  # heading: how it is written; None stays empty
    "": lambda row: row.name,
    "parameters": lambda row: f"{row.parameters:,}",
    "without head": lambda row: f"{row.parameters_without_head:,}",
    "bytes on disk": lambda row: f"{row.bytes:,}",
    "MFLOPs/token": lambda row: f"{row.flops_per_token / 1e6:.2f}",
    "read tok/s": lambda row: f"{row.reading:,.0f}",
    "write tok/s": lambda row: "" if row.writing is None else f"{row.writing:,.0f}",
    "perplexity": lambda row: "" if row.perplexity is None else f"{row.perplexity:.2f}",
    "task score": lambda row: "" if row.score is None else f"{100 * row.score:.2f}",
    "similarity": lambda row: "" if row.similarity is None else f"{100 * row.similarity:.2f}",
}


def table_of(models: Sequence[Measurement], title: str = "") -> Table:
    """Return the models' table, without columns that no model has a value for."""
    columns = {heading: [write_cell(row) for row in models] for heading, write_cell in COLUMNS.items()}
    kept = [heading for heading, values in columns.items() if any(values)]
    return Table(kept, [[columns[heading][number] for heading in kept] for number in range(len(models))], title)


def energy_table(plan: KronPlan) -> Table:
    """Return, of each factorised matrix: shapes, the share of its norm that is kept, and what a Gaussian one keeps."""
    rows = []
    for name, choice in plan.items():
        (m, n), (p, q) = choice.shape, choice.other
        gaussian = gaussian_energy(choice.dense, choice.shape, choice.terms)
        kept = "" if choice.energy is None else f"{choice.energy:.3f}"
        rows.append([name, f"{choice.dense[0]}x{choice.dense[1]}", f"{m}x{n} (x) {p}x{q}", kept, f"{gaussian:.3f}"])
    headings = ("matrix", "shape", "factors", "kept", "Gaussian")
    return Table(headings, rows, "energy kept per matrix: the share of its norm", left=headings)


Course = tuple[list[int], list[float]]  # steps done, values


def term_courses(history: History) -> dict[str, Course]:
    """Return each term's values before weighting, in the steps in which it counted."""
    return _by_name(list(enumerate(history.terms)))


def gradient_shares(history: History) -> dict[str, Course]:
    """Return each term's share of the gradient where it was measured.

    That is the norm of its own gradient, weighted, over the sum of all terms' norms: terms can pull in ways that
    cancel, and the norm of the whole is at most that sum.
    """
    measured = [(step, norms, sum(norms.values()) or 1.0) for step, norms in history.term_norms]
    return _by_name([(step, {name: norm / whole for name, norm in norms.items()}) for step, norms, whole in measured])


def _by_name(rows: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, Course]:
    courses: dict[str, Course] = {}
    for step, values in rows:
        for name, value in values.items():
            steps, found = courses.setdefault(name, ([], []))
            steps.append(step)
            found.append(value)
    return courses


def loss_table(courses: Mapping[str, History]) -> Table:
    """Return a row for each student and term: its first value, the mean of its last twentieth, its shares."""
    rows = []
    for student, history in courses.items():
        shares = gradient_shares(history)
        for term, (_, values) in term_courses(history).items():
            last = values[-max(1, len(values) // 20) :]
            share = shares[term][1] if term in shares else None
            of_gradient = [f"{share[0]:.0%}", f"{share[-1]:.0%}"] if share else ["", ""]
            rows.append([student, term, f"{values[0]:.4g}", f"{sum(last) / len(last):.4g}", *of_gradient])
    headings = ("", "term", "at the start", "at the end", "share of the gradient: start", "end")
    return Table(headings, rows, "losses while training", left=headings)


def render(report: Report) -> str:
    """Return the report as text for a terminal: three tables, the samples, the notes."""
    width = max(100, shutil.get_terminal_size((120, 0)).columns)
    models = table_of(report.models, f"tinykron run {report.recipe}")
    tables = [models, loss_table(report.courses), energy_table(report.plan)]
    said = [f"  {row.name}: {row.sample!r}" for row in report.models if row.sample]
    lines = [f"after {report.prompt!r}:" if report.prompt else "", *said, *report.notes]
    boxes = "".join(table.boxed(width, wrap=True) for table in tables)
    return boxes + "".join(fill(line, width) + "\n" for line in lines)


def markdown(report: Report) -> str:
    """Return the report as Markdown; the plot lies beside it as report.png."""
    lines = [f"# tinykron run {report.recipe}", ""]
    lines += [*table_of(report.models).markdown(), ""]
    lines += ["![perplexity while training, and against size](report.png)", ""]
    lines += ["## What was run", "", *(f"- {key}: {value}" for key, value in report.settings.items()), ""]
    lines += [*report.notes, ""]
    if report.courses:
        lines += ["## Losses", "", "![each term while training, and its share of the gradient](losses.png)", ""]
        lines += ["Before weighting. A share is the norm of a term's own gradient, weighted, over the sum of all.", ""]
        lines += [*loss_table(report.courses).markdown(), ""]
    lines += ["## Energy kept per matrix", ""]
    lines += ["The share of a matrix's norm that its factors keep, and what they would keep of Gaussian noise.", ""]
    lines += [*energy_table(report.plan).markdown(), ""]
    lines += ["## Samples", ""]
    lines += ["Greedy text after the prompt, or in its gaps:", "", *_quoted(report.prompt)] if report.prompt else []
    for row in report.models:
        lines += ["", f"**{row.name}**", "", *_quoted(row.sample)] if row.sample else []
    return "\n".join([*lines, ""])


def _quoted(text: str) -> list[str]:
    return ["```text", text.replace("```", "'''"), "```"]


def as_json(report: Report) -> str:
    """Return the report as JSON text, the course of each training included."""
    content: Mapping[str, Any] = {
        "recipe": report.recipe,
        "settings": report.settings,
        "models": [asdict(row) for row in report.models],
        "energy": energy_table(report.plan).records(),
        "plan": json.loads(report.plan.to_json()),
        "courses": {name: asdict(history) for name, history in report.courses.items()},
        "prompt": report.prompt,
        "notes": report.notes,
    }
    return json.dumps(content, indent=2)


def plot(report: Report, path: str | Path) -> None:
    """Draw the cross-entropy of each student while it trained, and perplexity against parameters, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {row.name: f"C{number}" for number, row in enumerate(report.models)}
    for name, history in report.courses.items():
        if history.scores:
            continue  # on a task, whose steps are no tokens of the text: in losses.png
        course = [terms["cross_entropy"] for terms in history.terms if "cross_entropy" in terms]
        course = course or [sum(terms.values()) for terms in history.terms]
        tokens = np.arange(1, len(course) + 1) * history.settings.tokens_per_step
        left.plot(tokens, course, label=name, color=colours.get(name))
    named = any("cross_entropy" in terms for history in report.courses.values() for terms in history.terms[:1])
    label = "cross-entropy, nats per token" if named else "sum of the terms"
    left.set(xlabel="tokens trained on", ylabel=label, title="light training")
    if left.lines:
        left.legend()
    quality, what = _quality(report.models)
    for row in report.models:
        value = getattr(row, quality)
        if value is not None:
            place = row.parameters / 1e6, value
            right.scatter(*place, color=colours[row.name], zorder=2)
            right.annotate(row.name, place, xytext=(6, 6), textcoords="offset points")
    scale = "log" if what == "held-out perplexity" else "linear"
    right.set(xlabel="parameters, millions", ylabel=what, title="size and quality", yscale=scale)
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:g}")
    right.margins(x=0.25, y=0.15)
    right.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)


def _quality(models: Sequence[Measurement]) -> tuple[str, str]:
    """Return which measurement tells the models' quality, and what it is called: the first that any of them has."""
    named = {"perplexity": "held-out perplexity", "similarity": "correlation with people", "score": "task score"}
    found = next((name for name in named if any(getattr(row, name) is not None for row in models)), "score")
    return found, named[found]


def plot_losses(courses: Mapping[str, History], path: str | Path) -> None:
    """Draw, for each student, every term while it trained, and its share of the gradient, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5 * len(courses)), layout="constrained")
    axes = figure.subplots(len(courses), 2, squeeze=False)
    for (left, right), (student, history) in zip(axes, courses.items(), strict=True):
        terms, shares = term_courses(history), gradient_shares(history)
        each, unit = (1, "steps") if history.scores else (history.settings.tokens_per_step, "tokens trained on")
        for number, (term, (steps, values)) in enumerate(terms.items()):
            left.plot(each * (np.array(steps) + 1), values, label=term, color=f"C{number}")
            if term in shares:
                steps, values = shares[term]
                right.plot(each * (np.array(steps) + 1), values, marker=".", label=term, color=f"C{number}")
        scale = "log" if any(value > 0.0 for _, values in terms.values() for value in values) else "linear"
        left.set(title=f"{student}: terms before weighting", xlabel=unit, yscale=scale)
        right.set(title="share of the gradient", xlabel=unit, ylim=(0.0, 1.0))
        if terms:
            left.legend()
    figure.savefig(path, format="png", dpi=110)


def write(report: Report, folder: str | Path) -> None:
    """Write report.md, report.json, report.png and losses.png into a folder."""
    folder = Path(folder)
    files.write(folder / "report.md", markdown(report))
    files.write(folder / "report.json", as_json(report))
    plot(report, folder / "report.png")
    if report.courses:
        plot_losses(report.courses, folder / "losses.png")

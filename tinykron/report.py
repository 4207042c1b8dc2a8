"""What a recipe reports: measurements of each model, as a table on the terminal, Markdown, JSON and one plot."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint
from tinykron.evaluate import perplexity
from tinykron.generate import generate
from tinykron.info import flops_per_token
from tinykron.kron.plan import KronPlan
from tinykron.kron.svd import gaussian_energy
from tinykron.tensor import no_grad
from tinykron.train import History


@dataclass(frozen=True)
class Measurement:
    """One model of a report."""

    name: str
    parameters: int  # all that is stored
    parameters_without_head: int  # less the output head, where that is a matrix of its own
    bytes: int  # of the tensor files on disk
    flops_per_token: int  # forward, at half the context
    reading: float  # tokens a second, forward over whole windows
    writing: float  # tokens a second, greedy decoding of one sequence
    perplexity: float  # held-out, per token
    sample: str  # what it writes after the report's prompt


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


SAMPLE_TOKENS = 48  # of each model's text in a report; fewer where the context is short


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(folders: Mapping[str, str | Path], held_out: np.ndarray, prompt_ids: Sequence[int]) -> list[Measurement]:
    """Load the models in `folders`, by name, and measure each.

    held_out    (N,) token ids that no model was trained on
    prompt_ids  of the text that each continues
    """
    models = {name: checkpoint.load(folder) for name, folder in folders.items()}
    reading, writing = speeds(models, held_out, prompt_ids)
    measured = []
    for name, model in models.items():
        written = generate(model, prompt_ids, max_new_tokens=_sample_tokens(model, prompt_ids), stop=())[0]
        measured.append(
            Measurement(
                name=name,
                parameters=model.parameter_count(),
                parameters_without_head=model.parameter_count() - (model.head.parameter_count() if model.head else 0),
                bytes=sum(path.stat().st_size for path in Path(folders[name]).glob("*.safetensors")),
                flops_per_token=flops_per_token(model, model.context // 2),
                reading=reading[name],
                writing=writing[name],
                perplexity=perplexity(model, held_out, model.context, title=f"reading held-out text, {name}"),
                sample=model.tokenizer.decode(list(written[len(prompt_ids) :])),
            )
        )
    return measured


def speeds(
    models: Mapping[str, Any], tokens: np.ndarray, prompt_ids: Sequence[int], rounds: int = 5
) -> tuple[dict[str, float], dict[str, float]]:
    """Return tokens a second, by model: of the forward pass, and of greedy decoding with its prompt.

    The models take turns, so that a busy moment of the machine meets them all; the best of `rounds` counts.
    """
    reading, writing = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0.0)
    with no_grad():
        for turn in range(rounds + 1):
            for name, model in models.items():
                ids_BT = np.resize(tokens, (4, min(model.context, 256))).astype(np.int64)
                count = _sample_tokens(model, prompt_ids)
                start = time.perf_counter()
                model(ids_BT).logits.numpy()
                middle = time.perf_counter()
                generate(model, prompt_ids, max_new_tokens=count, stop=())
                read, write = ids_BT.size / (middle - start), count / (time.perf_counter() - middle)
                if turn:  # the first warms up
                    reading[name], writing[name] = max(reading[name], read), max(writing[name], write)
    return reading, writing


def _sample_tokens(model: Any, prompt_ids: Sequence[int]) -> int:
    return min(SAMPLE_TOKENS, model.context - len(prompt_ids))


# Showing --------------------------------------------------------------------------------------------------------------

HEADINGS = (
    "",
    "parameters",
    "without head",
    "bytes on disk",
    "MFLOPs/token",
    "read tok/s",
    "write tok/s",
    "perplexity",
)


def cells(row: Measurement) -> list[str]:
    return [
        row.name,
        f"{row.parameters:,}",
        f"{row.parameters_without_head:,}",
        f"{row.bytes:,}",
        f"{row.flops_per_token / 1e6:.2f}",
        f"{row.reading:,.0f}",
        f"{row.writing:,.0f}",
        f"{row.perplexity:.2f}",
    ]


def energy_rows(plan: KronPlan) -> list[list[str]]:
    """Return, for each factorised matrix: name, shapes, share of its norm kept, and what a Gaussian matrix keeps."""
    rows = []
    for name, choice in plan.items():
        (m, n), (p, q) = choice.shape, choice.other
        gaussian = gaussian_energy(choice.dense, choice.shape, choice.terms)
        kept = "" if choice.energy is None else f"{choice.energy:.3f}"
        rows.append([name, f"{choice.dense[0]}x{choice.dense[1]}", f"{m}x{n} (x) {p}x{q}", kept, f"{gaussian:.3f}"])
    return rows


ENERGY_HEADINGS = ("matrix", "shape", "factors", "kept", "Gaussian")


LOSS_HEADINGS = ("", "term", "at the start", "at the end", "share of the gradient: start", "end")
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


def loss_rows(courses: Mapping[str, History]) -> list[list[str]]:
    """Return a row for each student and term: its first value, the mean of its last twentieth, its shares."""
    rows = []
    for student, history in courses.items():
        shares = gradient_shares(history)
        for term, (_, values) in term_courses(history).items():
            last = values[-max(1, len(values) // 20) :]
            share = shares[term][1] if term in shares else None
            of_gradient = [f"{share[0]:.0%}", f"{share[-1]:.0%}"] if share else ["", ""]
            rows.append([student, term, f"{values[0]:.4g}", f"{sum(last) / len(last):.4g}", *of_gradient])
    return rows


def render(report: Report) -> str:
    """Return the report as text for a terminal: three tables, the samples, the notes."""
    from rich.console import Console
    from rich.table import Table

    text = StringIO()
    console = Console(file=text, width=max(100, shutil.get_terminal_size((120, 0)).columns))
    for title, headings, rows in (
        (f"tinykron run {report.recipe}", HEADINGS, [cells(row) for row in report.models]),
        ("losses while training", LOSS_HEADINGS, loss_rows(report.courses)),
        ("energy kept per matrix: the share of its norm", ENERGY_HEADINGS, energy_rows(report.plan)),
    ):
        table = Table(title=title, title_justify="left")
        for column, heading in enumerate(headings):
            table.add_column(heading, justify="right" if column and headings is HEADINGS else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    lines = [f"after {report.prompt!r}:", *(f"  {row.name}: {row.sample!r}" for row in report.models)]
    console.print("\n".join([*lines, *report.notes]), markup=False, highlight=False)
    return text.getvalue()


def markdown(report: Report) -> str:
    """Return the report as Markdown; the plot lies beside it as report.png."""
    lines = [f"# tinykron run {report.recipe}", ""]
    lines += [*_markdown_table(HEADINGS, [cells(row) for row in report.models]), ""]
    lines += ["![perplexity while training, and against size](report.png)", ""]
    lines += ["## What was run", "", *(f"- {key}: {value}" for key, value in report.settings.items()), ""]
    lines += [*report.notes, ""]
    if report.courses:
        lines += ["## Losses", "", "![each term while training, and its share of the gradient](losses.png)", ""]
        lines += ["Before weighting. A share is the norm of a term's own gradient, weighted, over the sum of all.", ""]
        lines += [*_markdown_table(LOSS_HEADINGS, loss_rows(report.courses)), ""]
    lines += ["## Energy kept per matrix", ""]
    lines += ["The share of a matrix's norm that its factors keep, and what they would keep of Gaussian noise.", ""]
    lines += [*_markdown_table(ENERGY_HEADINGS, energy_rows(report.plan)), ""]
    lines += ["## Samples", "", "Greedy text after the prompt:", "", *_quoted(report.prompt)]
    for row in report.models:
        lines += ["", f"**{row.name}**", "", *_quoted(row.sample)]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> list[str]:
    return ["```text", text.replace("```", "'''"), "```"]


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *body]


def as_json(report: Report) -> str:
    """Return the report as JSON text, the course of each training included."""
    content: Mapping[str, Any] = {
        "recipe": report.recipe,
        "settings": report.settings,
        "models": [asdict(row) for row in report.models],
        "energy": [dict(zip(ENERGY_HEADINGS, row, strict=True)) for row in energy_rows(report.plan)],
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
        course = [terms["cross_entropy"] for terms in history.terms if "cross_entropy" in terms]
        tokens = np.arange(1, len(course) + 1) * history.settings.tokens_per_step
        left.plot(tokens, course, label=name, color=colours.get(name))
    left.set(xlabel="tokens trained on", ylabel="cross-entropy, nats per token", title="light training")
    left.legend()
    for row in report.models:
        place = row.parameters / 1e6, row.perplexity
        right.scatter(*place, color=colours[row.name], zorder=2)
        right.annotate(row.name, place, xytext=(6, 6), textcoords="offset points")
    right.set(xlabel="parameters, millions", ylabel="held-out perplexity", title="size and quality", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:g}")
    right.margins(x=0.25, y=0.15)
    right.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)


def plot_losses(courses: Mapping[str, History], path: str | Path) -> None:
    """Draw, for each student, every term while it trained, and its share of the gradient, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5 * len(courses)), layout="constrained")
    axes = figure.subplots(len(courses), 2, squeeze=False)
    for (left, right), (student, history) in zip(axes, courses.items(), strict=True):
        terms, shares, tokens = term_courses(history), gradient_shares(history), history.settings.tokens_per_step
        for number, (term, (steps, values)) in enumerate(terms.items()):
            left.plot(tokens * (np.array(steps) + 1), values, label=term, color=f"C{number}")
            if term in shares:
                steps, values = shares[term]
                right.plot(tokens * (np.array(steps) + 1), values, marker=".", label=term, color=f"C{number}")
        scale = "log" if any(value > 0.0 for _, values in terms.values() for value in values) else "linear"
        left.set(title=f"{student}: terms before weighting", xlabel="tokens trained on", yscale=scale)
        right.set(title="share of the gradient", xlabel="tokens trained on", ylim=(0.0, 1.0))
        if terms:
            left.legend()
    figure.savefig(path, format="png", dpi=110)


def write(report: Report, folder: str | Path) -> None:
    """Write report.md, report.json, report.png and losses.png into a folder."""
    folder = Path(folder)
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    (folder / "report.json").write_text(as_json(report), encoding="utf-8")
    plot(report, folder / "report.png")
    if report.courses:
        plot_losses(report.courses, folder / "losses.png")

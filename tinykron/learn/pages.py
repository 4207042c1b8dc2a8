"""Lessons as pages for people who do not install anything: one HTML file each, complete, offline.

A page is made by running the solved lesson headless: prose, the code that is there to be read, exercises as they are
given, hints and solutions folded. A slider takes the values that were run beforehand, a dozen at most; formulas are
drawn by matplotlib. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import ast
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tinykron.errors import TinykronError
from tinykron.kit import checks
from tinykron.learn import copies
from tinykron.learn.page import INDEX, PAGE
from tinykron.support import files
from tinykron.support.progress import Progress

VALUES = 12  # of a slider
SPELLINGS = {r"\lVert": r"\Vert", r"\rVert": r"\Vert", r"\le ": r"\leq ", r"\ge ": r"\geq ", r"\ne ": r"\neq "}


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson's file."""

    name: str
    code: str  # what a reader sees of it; "" where it is hidden
    exercise: bool


def export(folder: str | Path, numbers: list[int] | None = None) -> list[Path]:
    """Write every lesson (or those of `numbers`) as a page into `folder`, and an index.html; return the files.

    Raises TinykronError for a lesson that is not done with its own solutions.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    every = [lesson for lesson in copies.lessons() if numbers is None or lesson.number in numbers]
    links = [f'<li value="{lesson.number}"><a href="{lesson.source.stem}.html">{lesson.title}</a>' for lesson in every]
    written = []
    with Progress("lessons", total=len(every), unit="pages") as progress:
        for lesson in every:
            path = folder / f"{lesson.source.stem}.html"
            files.write(path, page(lesson.source, lesson.title))
            written.append(path)
            progress.advance(1, lesson.source.stem)
    index = folder / "index.html"
    files.write(index, INDEX.replace("LESSONS", "\n".join(links)))
    return [index, *written]


def page(source: Path, title: str) -> str:
    """Return one lesson as HTML."""
    text = source.read_text(encoding="utf-8")
    cells = list(cells_of(text))
    with tempfile.TemporaryDirectory() as place, copies.headless():
        solved = Path(place) / source.name
        copies.write_solved(source, solved)
        module = copies.load(solved)
        outputs, defined = module.app.run()
        if not defined.get("lesson_done"):
            raise TinykronError(f"{source}: expected its own solutions to finish it")
        base = [_html(output) for output in outputs]
        widgets = {name: widget for name, widget in defined.items() if _values(widget)}
        frames: list[dict[str, list[str]]] = [{} for _ in cells]
        for name, widget in widgets.items():
            still = _unmoved(module, cells, name, defined)
            for value in _values(widget):
                moved = iter(module.app.run(defs={**still, name: SimpleNamespace(value=value)})[0])
                for cell, shown, html in zip(cells, frames, base, strict=True):
                    same = _definitions(module, cell) & {*still, name}
                    shown.setdefault(name, []).append(html if same else _html(next(moved)))
    body = [
        _cell(cell, output, _control(output, widgets), html, shown)
        for cell, output, html, shown in zip(cells, outputs, base, frames, strict=True)
    ]
    return PAGE.replace("TITLE", escape(title)).replace("BODY", "\n".join(body))


def _unmoved(module: Any, cells: list[Cell], name: str, defined: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a lesson defines in cells which do not depend on a widget: they need not run again."""
    moving, before = {name}, 0
    while len(moving) > before:
        before = len(moving)
        for cell in cells:
            if getattr(getattr(module, cell.name), "refs", set()) & moving:
                moving |= _definitions(module, cell)
    still = [_definitions(module, cell) for cell in cells]
    return {one: defined[one] for definitions in still if not definitions & moving for one in definitions}


def _definitions(module: Any, cell: Cell) -> set[str]:
    """Return the names that a cell defines; none for a function, which runs at once."""
    return getattr(getattr(module, cell.name), "defs", set())


# What is on the page ------------------------------------------------------------------------------------------------


def cells_of(text: str) -> Iterator[Cell]:
    """Yield the cells of a lesson in order, without the one that imports."""
    rows = text.splitlines()
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef) or not node.decorator_list:
            continue
        mark = ast.unparse(node.decorator_list[-1])
        if "app.function" in mark:
            code = "\n".join(rows[node.decorator_list[-1].lineno : node.end_lineno])
        else:
            body = [part for part in node.body if not isinstance(part, ast.Return) and not _is_gate(part)]
            code = textwrap.dedent("\n".join(rows[body[0].lineno - 1 : body[-1].end_lineno])) if body else ""
        yield Cell(node.name, "" if "hide_code=True" in mark else code, "kit.Todo" in code)


def _is_gate(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and (
        isinstance(statement.value, ast.Name) or ast.unparse(statement.value).startswith("kit.gate(")
    )


def _cell(cell: Cell, output: Any, control: str, html: str, frames: dict[str, list[str]]) -> str:
    parts = []
    if cell.code:
        kind = "exercise" if cell.exercise else "code"
        parts.append(f'<pre class="{kind}"><code>{escape(cell.code)}</code></pre>')
    parts.append(control or f'<div class="base">{html}</div>')
    for name, shown in frames.items():
        if not control and any(frame != html for frame in shown):
            parts += [f'<div hidden data-of="{name}" data-at="{i}">{frame}</div>' for i, frame in enumerate(shown)]
    return f'<section id="{cell.name}">{"".join(parts)}</section>'


def _values(widget: Any) -> list[Any]:
    """Return the values that a page offers of a slider or a choice; none for a question, which is folded instead."""
    if not hasattr(widget, "_args") or not hasattr(widget, "value"):
        return []
    if hasattr(widget, "options"):
        options = list(widget.options)
        return [] if checks.SEE in options else options
    if not hasattr(widget, "start"):
        return []
    step = widget.step or (1 if isinstance(widget.start, int) else (widget.stop - widget.start) / (VALUES - 1))
    every = widget.steps or [widget.start + step * i for i in range(round((widget.stop - widget.start) / step) + 1)]
    last, shown = len(every) - 1, min(len(every), VALUES)
    values = [every[place] for place in sorted({round(i * last / max(1, shown - 1)) for i in range(shown)})]
    nearest = min(range(len(values)), key=lambda i: abs(values[i] - widget.value))
    values[nearest] = widget.value  # the lesson's own first value is among them
    return [round(value, 10) for value in values]


def _control(output: Any, widgets: dict[str, Any]) -> str:
    """Return the slider or the choice in place of a widget; "" for anything else."""
    for name, widget in widgets.items():
        if output is widget:
            values, label = _values(widget), formulas(checks.mo.md(widget._args.label).text)
            at, choice = values.index(widget.value), " data-choice" if hasattr(widget, "options") else ""
            shown = " ".join(f"<data>{escape(str(value))}</data>" for value in values)
            attributes = f'min="0" max="{len(values) - 1}" value="{at}" data-moves="{name}"{choice}'
            now = f"<output>{escape(str(values[at]))}</output><span hidden>{shown}</span>"
            return f'<label class="control">{label} <input type="range" {attributes}> {now}</label>'
    return ""


def _html(output: Any) -> str:
    """Return what a cell shows."""
    if output is None or isinstance(output, checks.Result):
        return ""
    if isinstance(output, checks.Help):
        code = f"<pre><code>{escape(output.solution)}</code></pre>"
        hint = formulas(checks.mo.md(output.hint).text)
        return f"<details><summary>Hint</summary>{hint}</details><details><summary>Solution</summary>{code}</details>"
    if isinstance(output, checks.Revealed):
        return f"<details><summary>Answer</summary>{formulas(checks.mo.md(output.text).text)}</details>"
    if isinstance(output, checks.Done):
        return f'<div class="done">{formulas(checks.mo.md(output.text).text)}</div>'
    if hasattr(output, "options") and hasattr(output, "_args"):
        question = formulas(checks.mo.md(output._args.label).text)
        answers = "".join(f"<li>{escape(option)}" for option in output.options if option != checks.SEE)
        return f'{question}<ul class="answers">{answers}</ul>'
    if hasattr(output, "text") and isinstance(output.text, str):
        return formulas(output.text)
    return f"<pre>{escape(repr(output))}</pre>"


# Formulas -----------------------------------------------------------------------------------------------------------


def formulas(html: str) -> str:
    """Draw the formulas of a page of marimo's Markdown."""
    return re.sub(
        r"<marimo-tex[^>]*>\|\|([(\[])(.*?)\|\|[)\]]</marimo-tex>",
        lambda found: formula(unescape(found[2]), display=found[1] == "["),
        html,
        flags=re.DOTALL,
    )


def formula(tex: str, display: bool = False) -> str:
    """Return a formula as SVG in the colour of the text; what matplotlib cannot read stays as it is written."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    spelled = tex = " ".join(tex.split())
    for ours, theirs in SPELLINGS.items():
        spelled = spelled.replace(ours, theirs)
    try:
        path = TextPath((0, 0), f"${spelled}$", size=19, prop=FontProperties(math_fontfamily="stix"))
    except ValueError:
        return f"<code>{escape(tex)}</code>"
    box = path.get_extents()
    if not len(path.vertices):
        return escape(tex)
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    drawn = []
    for points, code in path.iter_segments(simplify=False):
        places = [] if code == 79 else [f"{x:.1f} {-y:.1f}" for x, y in points.reshape(-1, 2)]
        drawn.append(letters[int(code)] + " ".join(places))
    width, height, below = box.x1 + 1, box.y1 - box.y0 + 2, -box.y0 + 1
    style = f"vertical-align:{-below:.1f}px" + (";display:block;margin:.8em auto" if display else "")
    view = f"0 {-box.y1 - 1:.1f} {width:.1f} {height:.1f}"
    label = escape(tex, quote=True)
    return (
        f'<svg class="tex" role="math" aria-label="{label}" width="{width:.1f}" height="{height:.1f}" '
        f'viewBox="{view}" style="{style}"><path fill="currentColor" d="{" ".join(drawn)}"/></svg>'
    )

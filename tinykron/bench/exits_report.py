"""How `tinykron bench exits` shows what it found: tables, a heat map, and one recommendation."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.bench.engine import Spread
from tinykron.bench.exits import Report
from tinykron.support import files
from tinykron.support.tables import Table

WORTH, LOSS_ALLOWED = 1.05, 0.02  # what is recommended is so many times as fast, and loses at most such a share


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain values, for JSON."""
    return asdict(report) | {"recommendation": recommendation(report)}


def recommendation(report: Report) -> str:
    """Say in words which way to decode pays: one that changes nothing, one that loses little; or that none does."""
    lines = []
    if report.drafts:
        able = [row for row in report.drafts if row.costed > 1.0 and _pays(row.speedup)]
        best = max(able or report.drafts, key=lambda row: row.speedup.median)
        what = f"exit {best.exit} with {best.length} draft{'s' if best.length > 1 else ''} a round"
        what += "" if best.listed is None else f", of the {best.listed:,} most frequent tokens"
        if able:
            lines.append(f"Speculate by {what}: {best.speedup.median:.2f} times as fast, the same text.")
        else:
            reason = "at best" if best.speedup.median < WORTH else "not in every turn, or against all costs"
            lines.append(f"Do not speculate: {reason}, by {what}, it is {best.speedup.median:.2f} times as fast.")
    if report.early:
        able_early = [row for row in report.early if row.change <= LOSS_ALLOWED and _pays(row.speedup)]
        if able_early:
            fast = max(able_early, key=lambda row: row.speedup.median)
            lines.append(f"Leave early, {fast.name}: {fast.speedup.median:.2f} times as fast, loss {fast.change:+.1%}.")
        else:
            lines.append(f"Do not leave early: no way is faster and loses at most {LOSS_ALLOWED:.0%}.")
    return " ".join(lines)


def _pays(speedup: Spread) -> bool:
    """Whether a way was faster in every turn, and usually worth the trouble."""
    return speedup.median >= WORTH and speedup.least > 1.0


def render(report: Report) -> str:
    """Return the report as two tables to print, what blocks and heads cost, and a recommendation."""
    drafts, early = [], []
    for row in report.drafts:
        parts = {"heads": row.heads, "rows": row.rows, "rest": row.rest}
        listed = "all" if row.listed is None else f"{row.listed:,}"
        cells = [str(row.exit), listed, str(row.length)]
        cells += [f"{share:.2f}" for share in (row.acceptance, row.predicted, row.costed)]
        cells += [row.speedup.text(2), f"{row.ms.median:.2f}", *(f"{value:.2f}" for value in parts.values())]
        drafts.append([*cells, max(parts, key=lambda name: parts[name])])
    for rule in report.early:
        cells = [rule.name, f"{rule.depth:.2f}", rule.speedup.text(2), f"{rule.ms.median:.2f}", f"{rule.loss:.3f}"]
        early.append([*cells, f"{rule.change:+.1%}"])
    headings = ["exit", "of tokens", "drafts", "accepted", "predicted", "with costs", "measured", "ms a token"]
    headings += ["heads", "rows", "rest", "most of it"]
    title = "drafts by an exit, the same text: times as fast as plain decoding"
    of_rules = ["", "blocks", "measured", "ms a token", "loss", "beside the full model's"]
    tables = Table(headings, drafts, title, left=headings[-1:]), Table(of_rules, early, "leaving early")
    return "".join(table.boxed() for table in tables) + "".join(f"{line}\n" for line in _lines(report))


def _lines(report: Report) -> list[str]:
    costs, most = report.costs, max(report.costs.block)
    return [
        "predicted: by blocks alone; with costs: with heads and the rows of a check, too",
        "heads, rows, rest: ms a token beyond that prediction's: logits, blocks for several rows at once, all else",
        f"plain decoding: {report.ms:.2f} ms a token, loss {report.loss:.3f}; {report.blocks} blocks of "
        f"{costs.block[1]:.3f} ms, head {costs.head[1]:.3f} ms; for {most} rows {costs.block[most]:.3f} and "
        f"{costs.head[most]:.3f} ms",
        *report.notes,
        recommendation(report),
        ", ".join(f"{key}: {value}" for key, value in report.machine.items()),
    ]


def plot(report: Report, path: str | Path) -> None:
    """Draw, as PNG, predicted and measured speed-ups by exit and draft length, on one scale of colours."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    makers = list(dict.fromkeys((row.exit, row.listed) for row in report.drafts))
    lengths = sorted({row.length for row in report.drafts})
    figure = Figure(figsize=(10, 1.5 + 0.7 * len(makers)), layout="constrained")
    grids = {name: np.full((len(makers), len(lengths)), np.nan) for name in ("predicted", "with costs", "measured")}
    for row in report.drafts:
        place = makers.index((row.exit, row.listed)), lengths.index(row.length)
        for grid, value in zip(grids.values(), (row.predicted, row.costed, row.speedup.median), strict=True):
            grid[place] = value
    least, most = (function([function(grid[np.isfinite(grid)]) for grid in grids.values()]) for function in (min, max))
    norm = TwoSlopeNorm(1.0, min(least, 0.9), max(most, 1.1))
    axes = figure.subplots(1, len(grids), sharey=True)
    for axis, (name, grid) in zip(axes, grids.items(), strict=True):
        image = axis.imshow(grid, origin="lower", aspect="auto", cmap="RdYlGn", norm=norm)
        axis.set(title=f"{name}, times as fast", xlabel="drafts a round")
        axis.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        names = [str(exit) if listed is None else f"{exit}, {listed:,} tokens" for exit, listed in makers]
        axis.set_yticks(range(len(makers)), names)
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=9)
    axes[0].set_ylabel("exit, of " + str(report.blocks))
    figure.colorbar(image, ax=axes)
    figure.savefig(path, format="png", dpi=110)


def write(report: Report, folder: str | Path) -> None:
    """Write bench-exits.txt, .json and .png into a folder, which is made where it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "bench-exits.txt", render(report) + "\n")
    files.write(folder / "bench-exits.json", json.dumps(as_dict(report), indent=2) + "\n")
    if report.drafts:
        plot(report, folder / ".bench-exits.png.partial")
        os.replace(folder / ".bench-exits.png.partial", folder / "bench-exits.png")

"""The speed of a Kronecker layer, beside the dense layer and beside every peer that is installed, in one table.

Two processes take turns, as in `bench`: benchmarks/kron_tinykron.py with NumPy or CuPy, benchmarks/kron_torch.py with
torch and the peers (lycoris-lora, peft, pyfastkron: each is measured where it is installed, and named where not). All
ways must give the results of the dense matrix, built by the definition, before anything is timed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product as every
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from tinykron import backend
from tinykron.bench.engine import Process, Spread, at_least_one, describe_machine, machine_line, running
from tinykron.data.shipped import shipped_folder
from tinykron.errors import TinykronError
from tinykron.kron.algebra import Shape, divisors
from tinykron.kron.plan import KronPlan
from tinykron.kron.planning.presets import (
    ATTENTION,
    kngpt2_plan,
    kroneckerbert8_plan,
    kroneckerbert21_plan,
    krony_pt_plan,
)
from tinykron.kron.product import multiplications_of
from tinykron.support.progress import Progress
from tinykron.support.tables import Table

MATRICES = {  # of GPT-2 small and BERT-base, (out, in), by the names that plans use; KnGPT2 takes every second block
    "embedding": (50257, 768),
    **{f"blocks.{i}.{part}": (768, 768) for i in (0, 1) for part in ATTENTION},
    **{f"blocks.{i}.mlp.up": (3072, 768) for i in (0, 1)},
    **{f"blocks.{i}.mlp.down": (768, 3072) for i in (0, 1)},
}
PAPERS: dict[str, Callable[..., KronPlan]] = {
    "KnGPT2": kngpt2_plan,
    "KroneckerBERT 8x": kroneckerbert8_plan,
    "KroneckerBERT 21x": kroneckerbert21_plan,
    "Krony-PT 92M": partial(krony_pt_plan, size="92M"),
    "Krony-PT 96M": partial(krony_pt_plan, size="96M"),
}
BALANCED = 5  # further shapes of each matrix, with the fewest parameters
TERMS, ROWS = (1, 4, 16), (1, 16, 128, 1024)
PEERS = ("lycoris", "peft", "pyfastkron")  # packages with a Kronecker layer, or a product
PLAIN = ("einsum", "NumPy, built", "torch, built")  # by hand: two steps of torch.einsum; W built in each call
DENSE = ("dense NumPy", "dense torch")
BEST_PEER, OF_DENSE = 2.0, 0.95  # the ratios to reach
TOLERANCE = 1e-3  # of the largest value
CHECKED = 64  # rows of y and of x's gradient that are compared
MISSING = "not measured: torch is not installed, and einsum, lycoris-lora, peft and pyfastkron need it"
TURN = 0.01  # seconds that a way is called in its turn
SETTLE = 0.05  # seconds between the turns of the two processes: threads of the one go on waiting, awake, for a while
WARM = 0.1  # seconds of calls that do not count: after a pause, a virtual machine may run all threads on one core
GIVE_UP = 0.3  # a package that takes so many seconds, and ten times ours, is not asked for more rows of a matrix


@dataclass(frozen=True)
class Case:
    """One multiplication: a weight (out, in) as `terms` terms with A (M, N), and so many rows of input."""

    dense: Shape
    name: str
    shape: Shape
    terms: int
    rows: int
    backward: bool

    @property
    def other(self) -> Shape:
        """(P, Q)."""
        return self.dense[0] // self.shape[0], self.dense[1] // self.shape[1]

    @property
    def possible(self) -> bool:
        """Whether so many terms make sense: those with no fewer parameters than the matrix are better built once."""
        (m, n), (p, q) = self.shape, self.other
        return self.terms * (m * n + p * q) < m * p * n * q

    @property
    def multiplications(self) -> tuple[int, int]:
        """The fewest that any way takes, by the factors or by the matrix once it is built; and those by the matrix."""
        passes = 3 if self.backward else 1  # x's gradient, and the factors', take as many again each
        size = self.dense[0] * self.dense[1]
        factors = passes * self.rows * self.terms * multiplications_of(self.shape, self.other)
        dense = passes * self.rows * size
        return min(factors, dense + self.terms * size), dense

    def request(self) -> dict[str, Any]:
        a, b = (self.terms, *self.shape), (self.terms, *self.other)
        return {"a": a, "b": b, "rows": self.rows, "backward": self.backward}


@dataclass(frozen=True)
class Row:
    """One line of the table: milliseconds of each way, by name; ratio = theirs / ours: above 1 ours is faster."""

    case: Case
    plan: str  # the order that was chosen
    times: dict[str, Spread]
    refused: dict[str, str]  # what a peer said that cannot do it

    def ratio(self, names: Iterable[str]) -> tuple[str, float] | None:
        """Return the fastest of some ways, and its time as a multiple of ours; None if none of them was measured."""
        found = {name: self.times[name].median / self.times["tinykron"].median for name in names if name in self.times}
        return min(found.items(), key=lambda item: item[1]) if found else None


@dataclass(frozen=True)
class Report:
    """What `tinykron bench kron` found, and on which machine."""

    machine: dict[str, str]
    rows: list[Row]
    notes: list[str]
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON, with the ratios to the best peer and the others."""
        found = asdict(self)
        for entry, row in zip(found["rows"], self.rows, strict=True):
            entry["ratios"] = {"best peer": row.ratio(PEERS), "best by hand": row.ratio(PLAIN)} | {
                name: row.ratio([name]) for name in DENSE
            }
        return found


def drawn(request: dict[str, Any]) -> list[np.ndarray]:
    """Return a, b, x and the gradient of y: the same float32 numbers in both processes."""
    (terms, m, n), (_, p, q), rows = request["a"], request["b"], request["rows"]
    generator = np.random.default_rng(0)
    shapes = (terms, m, n), (terms, p, q), (rows, n * q), (rows, m * p)
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]


def balanced(dense: Shape, count: int = BALANCED) -> list[Shape]:
    """Return the `count` shapes of A with the fewest parameters M*N + P*Q; of equal ones, the squarest A first."""
    (rows, columns), shapes = dense, list(every(divisors(dense[0]), divisors(dense[1])))
    return sorted(shapes, key=lambda a: (a[0] * a[1] + rows * columns // (a[0] * a[1]), abs(log(a[0] / a[1])), a[0]))[
        :count
    ]


def presets() -> dict[Shape, dict[str, Shape]]:
    """Return, for each of the four matrices (out, in), A (M, N) of each paper that factorises it."""
    found: dict[Shape, dict[str, Shape]] = {dense: {} for dense in sorted(set(MATRICES.values()))}
    for name, plan in PAPERS.items():
        for choice in plan(MATRICES).values():
            found[choice.dense][name] = choice.shape
    return found


def cases(full: bool) -> list[Case]:
    """Return every matrix, shape, number of terms and of rows, forward and with backward; or a few of them."""
    found = []
    for dense, papers in presets().items():
        shapes = papers | {f"balanced {i + 1}": shape for i, shape in enumerate(balanced(dense))}
        for (name, shape), terms, rows, backward in every(shapes.items(), TERMS, ROWS, (False, True)):
            found.append(Case(dense, name, shape, terms, rows, backward))
    if full:
        return found
    short = {(3072, 768): ("KnGPT2", "KroneckerBERT 8x", "balanced 1"), (768, 768): ("KroneckerBERT 8x", "balanced 1")}
    return [c for c in found if c.name in short.get(c.dense, ()) and c.terms < 16 and (c.rows != 16)]


def kron(
    full: bool = False,
    threads: int = 2,
    repeats: int = 3,
    device: str | None = None,
    peer: str | Path | None = "torch",
    chosen: list[Case] | None = None,
) -> Report:
    """Time Kronecker layers of GPT-2's and BERT's matrices, float32, beside the dense layer and the peers.

    full     every matrix, shape, number of terms and rows (an hour and a half), or a few (three minutes)
    threads  for BLAS and element-wise work, alike in both processes
    repeats  turns of each way in a case
    device   "cpu" or "cuda"; the default device if None
    peer     "torch", a script that answers as benchmarks/kron_torch.py does, or None
    chosen   cases to measure, instead of all or a few
    Ctrl-C ends it with what was measured until then. Raises TinykronError for a bad argument, and where a way of
    multiplying gives other results than the dense matrix.
    """
    at_least_one(threads=threads, repeats=repeats)
    device = device or backend.current_device()
    backend.get(device)
    asked = cases(full) if chosen is None else chosen
    possible = [case for case in asked if case.possible]
    notes = [f"{len(asked) - len(possible)} cases left out: as many parameters as the dense matrix"] * (
        asked != possible
    )
    if peer == "torch":
        peer = shipped_folder("benchmarks") / "kron_torch.py" if find_spec("torch") else None
        if peer is None:
            notes.append(MISSING)
    rows: list[Row] = []
    slow: set[tuple[str, Shape, Shape]] = set()
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tinykron-bench-")))
        options = {"device": device, "threads": threads}
        scripts = [("ours", shipped_folder("benchmarks") / "kron_tinykron.py")] + (
            [("theirs", Path(peer))] if peer else []
        )
        sides = [stack.enter_context(running(name, script, options, workspace)) for name, script in scripts]
        machine = describe_machine(threads) | {key: value for side in sides for key, value in side.description.items()}
        progress = stack.enter_context(Progress("bench", len(possible), "cases"))
        try:
            for case in possible:
                rows.append(_row(case, sides, repeats, slow))
                progress.advance(1, f"{case.dense[1]} -> {case.dense[0]} {case.name}")
        except KeyboardInterrupt:
            return Report(machine, rows, [*notes, f"interrupted after {len(rows)} of {len(possible)} cases"], True)
    return Report(machine, rows, notes)


def _row(case: Case, sides: list[Process], repeats: int, slow: set[tuple[str, Shape, Shape]]) -> Row:
    """Check every way of a case against the dense matrix, then time them in turns; add to `slow` who is too slow."""
    answers = [side.ask({"do": "case"} | case.request()) for side in sides]
    ways, times, refused = [], {}, {}
    expected, _ = _results(sides[0], "NumPy, built")
    for side, answer in zip(sides, answers, strict=True):
        for way in answer["ways"]:
            if (way, case.dense, case.shape) in slow:
                refused[way] = "left out: too slow with fewer rows"
                continue
            results, checked = _results(side, way)
            if "refused" in checked:
                refused[way] = checked["refused"]
                continue
            _compare(case, way, results, expected)
            times[way] = [checked["seconds"] * 1e3]
            if way in PEERS and checked["seconds"] > GIVE_UP and times[way] > [10 * times["tinykron"][0]]:
                slow.add((way, case.dense, case.shape))  # and this first time is the one that counts
            else:
                ways.append((side, way))
    times |= {way: [] for _, way in ways}
    before = None
    for _, (side, way) in every(range(repeats), ways):
        if side is not before:
            time.sleep(SETTLE)
            side.ask({"do": "time", "way": way, "seconds": WARM})
        before = side
        times[way].append(side.ask({"do": "time", "way": way, "seconds": TURN})["seconds"] * 1e3)
    return Row(case, answers[0]["plan"], {way: Spread.of(values) for way, values in times.items()}, refused)


def _compare(case: Case, way: str, results: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Raise TinykronError unless y and the gradients are those of the dense matrix; a dense way has two fewer."""
    for found, wanted in zip(results, expected, strict=False):
        same = found.shape == wanted.shape
        difference = float(np.abs(found - wanted).max() / np.abs(wanted).max()) if same else float("inf")
        if not difference <= TOLERANCE:
            raise TinykronError(f"bench: {case}: {way} differs from the dense matrix by {difference:.2g} of its values")


def _results(side: Process, way: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Let a side compute a case one way; return y, the gradients, and what it said."""
    answer = side.ask({"do": "check", "way": way})
    if "refused" in answer:
        return [], answer
    with np.load(f"{side.results}.npz") as file:
        return [file[name] for name in file.files], answer


# The table ------------------------------------------------------------------------------------------------------------


def render(report: Report) -> str:
    """Return the report as a table to print, with a summary."""
    rows = []
    for row in report.rows:
        case, ours = row.case, row.times["tinykron"].median
        cells = [f"{case.dense[1]} -> {case.dense[0]} {case.name}", "x".join(map(str, (*case.shape, *case.other)))]
        cells += [str(case.terms), str(case.rows), "both" if case.backward else "forward", row.plan]
        cells.append(f"{ours:.3f}")
        for names in (DENSE[:1], DENSE[1:], PLAIN, PEERS):
            found = row.ratio(names)
            name = f"{found[0]} " if found and len(names) > 1 else ""
            cells.append(f"{name}{found[1] * ours:.3f} ({found[1]:.2f})" if found else "")
        rows.append(cells)
    headings = ["matrix", "A x B", "terms", "rows", "pass", "plan", "tinykron", *DENSE, "best by hand", "best peer"]
    title = "milliseconds, medians; in brackets theirs / ours: above 1 tinykron is faster"
    lines = [*summary(report.rows), *report.notes, *_refusals(report.rows)]
    table = Table(headings, rows, title, left=("matrix", "pass", "plan"))
    return table.boxed() + "".join(f"{line}\n" for line in lines) + machine_line(report.machine)


def summary(rows: list[Row]) -> list[str]:
    """Return what the rows say of the two targets: how often each is met, the geometric mean, the worst row."""
    lines = []
    groups = [("the best peer", PEERS, BEST_PEER), ("the best by hand", PLAIN, 1.0)]
    for title, names, target in [*groups, *((name, (name,), OF_DENSE) for name in DENSE)]:
        found = [(ratio[1], row.case) for row in rows if (ratio := row.ratio(names))]
        if found:
            worst, case = min(found, key=lambda item: item[0])
            met = sum(ratio >= target for ratio, _ in found)
            mean = exp(fmean(log(ratio) for ratio, _ in found))
            where = f"{case.dense[1]} -> {case.dense[0]} {case.name}, {case.terms} terms, {case.rows} rows"
            count = f"at least {target} in {met} of {len(found)} cases"
            if beyond := out_of_reach(rows, names, target):
                count += f", and {beyond} are beyond any program"
            for share in (1.0, 0.5) if names[0] in DENSE else ():
                lighter = [ratio for ratio, case in found if case.multiplications[0] < share * case.multiplications[1]]
                met = sum(ratio >= target for ratio in lighter)
                count += f"; in {met} of the {len(lighter)} that take less than {share:.0%} of its multiplications"
            lines.append(
                f"against {title}: {mean:.2f} times as fast (geometric mean); {count}; least {worst:.2f}: {where}"
            )
    return lines


def out_of_reach(rows: list[Row], names: Iterable[str], target: float) -> int:
    """Return how many rows miss a target that no program could meet.

    There the fewest multiplications alone take longer than the target allows, at the rate of the quickest dense product
    of all rows: whatever else there is to do, reading and writing included, would have to be free.
    """
    rate = min(row.times[way].least / row.case.multiplications[1] for row in rows for way in DENSE if way in row.times)
    ratios = [(row, ratio[1]) for row in rows if (ratio := row.ratio(names))]
    return sum(
        ratio < target and ratio * row.times["tinykron"].median < target * rate * row.case.multiplications[0]
        for row, ratio in ratios
    )


def _refusals(rows: list[Row]) -> list[str]:
    counts: dict[str, list[str]] = {}
    for row in rows:
        for name, text in row.refused.items():
            counts.setdefault(name, []).append(text)
    return [f"{name} refused {len(texts)} cases; first: {texts[0].splitlines()[0]}" for name, texts in counts.items()]

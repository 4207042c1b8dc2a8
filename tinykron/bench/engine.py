"""The engine's speed beside torch and transformers: forward, decoding, a training step, loading, in one table.

Two processes, one engine each, take turns at the same tasks: ours, our matrix products alone, theirs, and again. Both
read the same weights, get the same tokens and the same number of threads, and must agree on every result before
anything is timed. They are benchmarks/engine_tinykron.py and benchmarks/engine_torch.py, scripts that travel with the
package but are no part of it: nothing here imports torch. They are asked by one JSON object a line on standard input,
and answer by one on standard output.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import numpy as np

from tinykron import backend, checkpoint
from tinykron.data.shipped import shipped_folder
from tinykron.errors import TinykronError
from tinykron.kron.order import processor
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.support.progress import Progress
from tinykron.support.tables import Table

CONFIGS = {  # no dropout: both sides must compute the same
    "gpt2": GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "tiny": GPT2Config(96, 256, 16, 2, 2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}
TOLERANCE = 1e-3  # of logits and losses, between the two engines
PAUSE = 0.05  # seconds between turns, in which the idle side's threads go to sleep
MISSING = 'no comparison: torch and transformers are not installed; pip install "tinykron[oracle]"'
IMPORT = "import time; start = time.perf_counter(); import tinykron; print(time.perf_counter() - start)"


@dataclass(frozen=True)
class Task:
    """What both engines do: `kind` of work on ids (batch, time); decoding adds `new` tokens to each prompt."""

    name: str
    kind: str  # "forward", "decode", "train", "load"
    batch: int
    time: int
    new: int = 0
    target: float = 0.0  # the ratio to reach; 0: none is set

    def request(self, vocabulary: int) -> dict[str, Any]:
        """Return the task with its token ids, as both processes get it; training has one id more, to predict."""
        shape = self.batch, self.time + (self.kind == "train")
        ids = np.random.default_rng(self.time).integers(0, vocabulary, shape)
        return {"kind": self.kind, "ids": ids.tolist(), "new": self.new}


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} - {self.most:,.{digits}f})"


@dataclass(frozen=True)
class Row:
    """One line of the table: times in milliseconds; ratio = theirs / ours, pair by pair: above 1 ours is faster."""

    name: str
    ours: Spread
    products: Spread | None  # the task's matrix products in plain NumPy or CuPy, or reading the files: the limit
    theirs: Spread | None
    ratio: Spread | None
    target: str
    met: bool | None  # None where it cannot be told


@dataclass(frozen=True)
class Report:
    """What `tinykron bench` found, and on which machine."""

    machine: dict[str, str]
    rows: list[Row]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)


def engine(
    config: str = "gpt2",
    threads: int = 2,
    repeats: int = 5,
    device: str | None = None,
    train_shape: tuple[int, int] = (1, 256),
    peer: str | Path | None = "torch",
    attention: str = "eager",
) -> Report:
    """Time the engine on a GPT-2 with random weights, float32, beside torch and transformers where they are installed.

    config       "gpt2" (124M) or "tiny" (for a test of the benchmark itself)
    threads      for BLAS and element-wise work, alike in both processes
    repeats      pairs of turns per row, after a first that checks the results
    device       "cpu" or "cuda"; the default device if None
    train_shape  (batch, time) of the training step
    peer         whom to compare with: "torch", a script that answers as benchmarks/engine_torch.py does, or None
    attention    implementation that transformers is to use: "eager" or "sdpa"
    Raises TinykronError for a bad argument, and where the two engines disagree: a wrong result has no speed.
    """
    if config not in CONFIGS:
        raise TinykronError(f'bench: configuration "{config}", expected one of {", ".join(CONFIGS)}')
    batch, length = train_shape
    at_least_one(threads=threads, repeats=repeats, batch=batch, time=length)
    tasks = [
        Task("forward 1x256", "forward", 1, 256, target=0.95),
        Task("forward 8x128", "forward", 8, 128, target=0.95),
        Task("decoding at batch 1, a token", "decode", 1, 16, new=40, target=2.0),
        Task(f"training step with AdamW, {batch}x{length}", "train", batch, length, target=1.0),
    ]
    with tempfile.TemporaryDirectory(prefix="tinykron-bench-") as folder:
        checkpoint.save(GPT2(CONFIGS[config], np.random.default_rng(0)), Path(folder) / "model")
        found = _measured(Path(folder) / "model", tasks, threads, repeats, device, peer, attention)
    return replace(found, rows=[*found.rows, _import_row(repeats)])


def decode(
    model: str | Path,
    threads: int = 2,
    repeats: int = 5,
    device: str | None = None,
    new: int = 200,
    peer: str | Path | None = "torch",
    attention: str = "eager",
) -> Report:
    """Time loading a checkpoint, and greedy decoding from it at batch 1; arguments as for `engine`.

    model  folder of any family that generates; both engines must write the same `new` tokens
    The limit shown for loading is reading the files; for decoding, the matrix products.
    """
    at_least_one(threads=threads, repeats=repeats, new=new)
    tasks = [
        Task("loading", "load", 1, 1),
        Task("decoding at batch 1, a token", "decode", 1, 4, new=new, target=2.0),
    ]
    return _measured(Path(model), tasks, threads, repeats, device, peer, attention)


def at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise TinykronError(f"bench: {name}: found {number}, expected at least 1")


def _measured(
    folder: Path,
    tasks: list[Task],
    threads: int,
    repeats: int,
    device: str | None,
    peer: str | Path | None,
    attention: str,
) -> Report:
    """Do the tasks on the checkpoint in a folder, in turns with the peer."""
    device = device or backend.current_device()
    backend.get(device)
    vocabulary = checkpoint.load(folder).config.vocab_size  # refuses, with its own words, what is no checkpoint
    scripts, note = shipped_folder("benchmarks"), ""
    if peer == "torch":
        found = all(find_spec(name) for name in ("torch", "transformers"))
        peer, note = (scripts / "engine_torch.py", "") if found else (None, MISSING)
    turns = 3 if peer else 2
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tinykron-bench-")))
        options = {"folder": str(folder), "device": device, "threads": threads, "attention": attention}
        ours = stack.enter_context(running("ours", scripts / "engine_tinykron.py", options, workspace))
        theirs = stack.enter_context(running("theirs", Path(peer), options, workspace)) if peer else None
        machine = describe_machine(threads) | ours.description | (theirs.description if theirs else {})
        progress = stack.enter_context(Progress("bench", len(tasks) * (repeats + 1) * turns, "turns"))
        rows = [_row(task, task.request(vocabulary), repeats, ours, theirs, progress) for task in tasks]
    return Report(machine, rows, note)


def _row(
    task: Task, request: dict[str, Any], repeats: int, ours: Process, theirs: Process | None, progress: Progress
) -> Row:
    """Check that both engines agree on a task, then time them in turns."""
    sides = [(process, do) for process, do in ((ours, "time"), (ours, "products"), (theirs, "time")) if process]
    for process, do in sides:  # this warms up, too
        process.ask({"do": "check" if do == "time" else do} | request)
        progress.advance(1, task.name)
    if theirs:
        difference = float(np.abs(np.load(ours.results) - np.load(theirs.results)).max())
        if not difference <= TOLERANCE:
            raise TinykronError(f"bench: {task.name}: the engines differ by {difference:.2g}, allowed is {TOLERANCE}")
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for (process, do), measured in zip(sides, times, strict=True):
            time.sleep(PAUSE)
            measured.append(process.ask({"do": do} | request)["seconds"] * 1e3 / max(1, task.new))
            progress.advance(1, task.name)
    ratio = Spread.of([b / a for a, b in zip(times[0], times[2], strict=True)]) if theirs else None
    return Row(
        task.name,
        Spread.of(times[0]),
        Spread.of(times[1]),
        Spread.of(times[2]) if theirs else None,
        ratio,
        f"ratio >= {task.target}" if task.target else "",
        ratio.median >= task.target if ratio and task.target else None,
    )


def _import_row(repeats: int) -> Row:
    """Time `import tinykron`, NumPy included, in new interpreters; the first, which may write bytecode, is dropped."""
    command = [sys.executable, "-c", IMPORT]
    runs = [subprocess.run(command, env=environment(1), check=True, capture_output=True) for _ in range(repeats + 1)]
    spread = Spread.of([float(run.stdout) * 1e3 for run in runs[1:]])
    return Row("import tinykron", spread, None, None, None, "<= 300 ms", spread.median <= 300)


def describe_machine(threads: int) -> dict[str, str]:
    """Describe the machine, as far as both processes share it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": processor(), "cores": str(cores), "threads": str(threads), "python": platform.python_version()}


def render(report: Report) -> str:
    """Return the report as a table to print."""
    compared = any(row.theirs for row in report.rows)
    theirs, met = (["the other", "ratio"], ["met"]) if compared else ([], [])
    rows = []
    for row in report.rows:
        digits = 0 if row.ours.median >= 100 else 1
        times = [row.ours, row.products, *([row.theirs] if compared else [])]
        cells = [spread.text(digits) if spread else "" for spread in times]
        if compared:
            cells.append(row.ratio.text(2) if row.ratio else "")
        verdict = [{True: "yes", False: "no", None: ""}[row.met]] if compared else []
        rows.append([row.name, *cells, row.target, *verdict])
    headings = ["", "tinykron", "products alone", *theirs, "target", *met]
    table = Table(headings, rows, "milliseconds: median (least - most)", left=("", "target"))
    note = "ratio: the other / tinykron, pair by pair; above 1 tinykron is faster" if compared else report.note
    return table.boxed() + fill(note, 180) + "\n" + machine_line(report.machine)


def machine_line(machine: dict[str, str]) -> str:
    """Return what a benchmark ran on, as its report's last line."""
    return ", ".join(f"{key}: {value}" for key, value in machine.items()) + "\n"


# The two processes ----------------------------------------------------------------------------------------------------


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that finds this package and may use so many threads."""
    package = str(Path(__file__).parents[2])
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | limits | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


class Process:
    """A script that answers requests, in a process of its own."""

    def __init__(self, script: Path, process: subprocess.Popen[str], log: Path, results: Path) -> None:
        self.script, self.process, self.log, self.results = script, process, log, results
        self.description: dict[str, str] = {}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises TinykronError with what the process said when it failed."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise TinykronError(f"bench: {self.script} ended: {said[-1] if said else 'without a word'}")
        return json.loads(answer)


@contextmanager
def running(name: str, script: Path, options: dict[str, Any], workspace: Path) -> Iterator[Process]:
    """Start a script that answers requests, hand it its options, and end it with the block."""
    log = workspace / f"{name}.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(options["threads"]),
        ) as started,
    ):
        worker = Process(script, started, log, workspace / f"{name}.npy")
        try:
            worker.description = worker.ask(options | {"results": str(worker.results)})
            yield worker
        finally:
            started.kill()  # it holds nothing that has to be saved

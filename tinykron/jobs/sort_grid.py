"""One elastic model: a checkpoint in, a folder out in which every exit with every number of terms is a usable model.

Depths are sorted by training (Sorted LLaMA, arXiv 2309.08968), terms by construction and by training; what each point
costs and loses is measured, and saved beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinykron import checkpoint, data, kron
from tinykron.checkpoint.folder import VALUE_BYTES
from tinykron.data.batch import batches
from tinykron.data.masking import Masking
from tinykron.errors import CheckpointError, TinykronError
from tinykron.exits.grid import GridLoss, Point, grid_weights, points, rising
from tinykron.exits.pareto import Front, Measured, alone, elastic_front, markdown, plot, write
from tinykron.exits.pareto import render as front_table
from tinykron.jobs.making import making
from tinykron.kron.fitting.nearest import best_of_largest
from tinykron.kron.nested import kron_layers
from tinykron.kron.product import multiplications_of
from tinykron.kron.restructure import dense_shapes
from tinykron.models.checks import check_exits
from tinykron.nn import Linear
from tinykron.support.numbers import real, whole
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

NEAR = 0.1  # shapes of A within so much of the largest that fits are compared by what they keep


@dataclass(frozen=True)
class Elastic:
    """How the grid is trained."""

    exits: tuple[int, ...]  # depths; all blocks are always a point
    ranks: tuple[int, ...]  # numbers of terms; all terms are always a point
    widths: tuple[float, ...] = (1.0,)  # shares of the MLPs' units; all units are always a point
    share: float = 0.5  # of a dense model's block matrices that their Kronecker sums may hold; unused if it has sums
    distil: float = 0.5  # share of a point's loss that is the KL from the teacher: `pull` of `GridLoss`
    draws: int = 4  # points of a step, each on a batch of its own; 0: all points on one batch
    full: float | None = None  # weight of the full model among the points; None: all alike
    steps: int = 300
    batch: int = 8
    context: int = 128
    lr: float = 1e-3
    calibration: int = 8192  # tokens that Kronecker sums are fitted to
    seed: int = 0

    def __post_init__(self) -> None:
        rising("exits", self.exits)
        rising("ranks", self.ranks)
        rising("widths", self.widths)
        real("share", self.share, above=0.0, below=1.0)
        whole("draws", self.draws)
        whole("calibration", self.calibration, 2)

    def settings(self, context: int) -> Settings:
        return Settings(
            self.steps, self.batch, min(self.context, context), accumulate=max(1, self.draws), lr=self.lr,
            warmup=self.steps // 20, weight_decay=0.0, seed=self.seed, checkpoint_every=50,
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What training the grid gave."""

    folder: str
    settings: Elastic
    before: Front
    after: Front
    dense: Measured | None  # the model that was factorised and teaches; None if there is none

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain values, for JSON."""
        fronts = {name: json.loads(getattr(self, name).to_json()) for name in ("before", "after")}
        dense = None if self.dense is None else asdict(self.dense)
        return {"folder": self.folder, "settings": asdict(self.settings), **fronts, "dense": dense}


def nested_plan(model: Any, terms: int, share: float = 0.5, widths: Sequence[float] = ()) -> kron.KronPlan:
    """Return a plan of every matrix in the blocks: `terms` terms that hold at most a share of it and of its FLOPs.

    widths  shares of an MLP's units that its factors A are to be cut to
    Each term is then as large as it may be, so that the first one alone is a model worth training. Of the shapes within
    a tenth of the largest, the one whose nearest sum keeps most. A matrix that no shape fits stays dense.
    Raises TinykronError where none fits one.
    """
    plan = kron.KronPlan()
    for name, (rows, columns) in dense_shapes(model).items():
        module = model.get(name)
        if not name.startswith("blocks.") or not isinstance(module, Linear):
            continue
        w, most, sizes = module.weight.data.T, share * rows * columns, {}
        for m in kron.algebra.divisors(rows):
            for n in kron.algebra.divisors(columns):
                other = rows // m, columns // n
                size, work = m * n + other[0] * other[1], multiplications_of((m, n), other)
                units = {"mlp.gate": m, "mlp.up": m, "mlp.down": n}.get(".".join(name.split(".")[2:]), 0)
                fits = all(float(units * width).is_integer() for width in widths)
                fits = fits and terms <= min(m * n, other[0] * other[1])
                if fits and max(terms * size, terms * work) <= most * (1.0 + NEAR / 2):
                    sizes[m, n] = size
        if sizes:
            plan[name] = kron.Choice((rows, columns), best_of_largest(w, sizes, NEAR, terms)[0], terms)
    if not plan:
        raise TinykronError(f"ranks: no matrix of the model has {terms} terms in a share of {share:g}; ask for fewer")
    return plan


def train_grid(
    model: str | Path,
    out: str | Path,
    settings: Elastic,
    source: str | Path | None = None,
    teacher: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Trained:
    """Train every point of a grid of exits and numbers of terms, and measure them before and after.

    model    folder of a checkpoint with Kronecker sums, such as `tinykron compress` makes; the matrices of a dense one
             become sums of as many terms as the largest rank, by `nested_plan`, and it is the teacher
    out      folder to make: the model, elastic.json (what each point costs and loses), elastic.png, elastic.md
    source   text file or folder; by default the text that every Python carries. A part is held out to measure
    teacher  folder of a model of the same vocabulary that all points follow; by default the dense model, or without one
             the model itself with all its blocks and terms
    After Ctrl-C in training, which raises Interrupted, the same call continues from the folder `<out>.partial`.
    Raises TinykronError, before any work, if `out` exists or the inputs do not fit.
    """
    out = Path(out)
    folder = Path(model)
    with making(out, ".partial") as work:
        dtype = checkpoint.stored_dtype(folder)
        student = checkpoint.load(folder)
        if student.tokenizer is None:
            raise CheckpointError(f"{folder}: expected a tokenizer.json, to read the text with")
        check_exits(None, settings.exits, len(student.blocks))
        follow = None if teacher is None else checkpoint.load(teacher)
        training, held_out = data.split(data.documents(source))
        tokens = data.encode(student.tokenizer, training)
        dense = None
        if not kron_layers(student):
            dense, follow = student, follow or student
            student = factorised(dense, settings, training, say)
        grid = points(student, settings.exits, settings.ranks, settings.widths)
        axes = zip(Point._fields, zip(*grid, strict=True), strict=True)
        say(f"{len(grid)} points: " + ", ".join(f"{name} {_listed(values)}" for name, values in axes))
        size = VALUE_BYTES[dtype]
        beside = None if dense is None else alone(dense, held_out, size)
        before = elastic_front(student, held_out, grid, size, title="measuring the grid before")
        objective = GridLoss(
            student, grid_weights(grid, settings.full), settings.distil, min(1, settings.draws), follow
        )
        masking = None if student.causal else Masking.of(student.tokenizer)
        fit(
            student, tokens, settings.settings(student.context), distillation=objective, masking=masking,
            folder=work.progress / "training", title="training the grid",
        )  # fmt: skip
        student.exits = tuple(sorted({point.exit for point in grid}))
        after = elastic_front(work.save(student, dtype), held_out, grid, size, title="measuring the grid after")
        found = Trained(str(out), settings, before, after, beside)
        write(after, work.result)
        work.write("elastic.md", report(found, folder, source))
        plot(after, work.result / "elastic.png", beside)
        return found


def factorised(
    model: Any, settings: Elastic, documents: Sequence[data.Document], say: Callable[[str], None] = print
) -> Any:
    """Return a copy of a dense model whose block matrices are Kronecker sums, fitted to what a text gives them."""
    plan = nested_plan(model, max(settings.ranks), settings.share, settings.widths)
    say(f"factorising {len(plan)} matrices into sums of {max(settings.ranks)} terms")
    seen = kron.calibrate(model, batches(model, list(documents), settings.calibration, settings.seed), names=plan)
    return kron.factorise(model, plan, seen)


def report(found: Trained, model: Path, source: str | Path | None) -> str:
    """Return what was done and found, as Markdown; the plot lies beside it as elastic.png."""
    settings, dense = found.settings, found.dense
    drawn = f"{settings.draws} drawn points a step" if settings.draws else "all points in every step"
    tokens = settings.steps * settings.batch * settings.context * max(1, settings.draws)
    lines = [
        f"# {model.name} as one elastic model",
        "",
        f"Trained on {data.name_of(source)}: {settings.steps} steps, {drawn}, at most {tokens:,} tokens, learning rate "
        f"{settings.lr:g}, seed {settings.seed}; {settings.distil:g} of a point's loss is the KL from "
        f"{'the teacher' if dense is not None else 'the teacher, or from the full model without one'}. Losses are in "
        f"nats a token, on {found.after.tokens:,} held-out tokens in windows of {found.after.context}.",
        "",
    ]
    if dense is not None:
        lines += [
            f"The dense model loses {dense.loss:.3f} and takes {dense.bytes:,} bytes, {dense.flops / 1e6:.2f} MFLOPs a "
            "token.",
            "",
        ]
    lines += ["![loss against bytes and FLOPs](elastic.png)", "", markdown(found.after)]
    change = [f"{one.point}: {one.loss:.3f}" for one in found.before.points]
    return "\n".join([*lines, f"Before training: {'; '.join(change)}.", ""])


def render(found: Trained) -> str:
    """Return the grid as a table for a terminal, and each point's loss before training."""
    text = front_table(found.after, f"{found.folder}: held-out loss in nats a token")
    if found.dense is not None:
        text += (
            f"dense: loss {found.dense.loss:.3f}, {found.dense.bytes:,} bytes, {found.dense.flops / 1e6:.2f} MFLOPs\n"
        )
    text += "before training: " + "; ".join(f"{one.point}: {one.loss:.3f}" for one in found.before.points)
    return text


def _listed(numbers: Any) -> str:
    return "/".join(f"{number:g}" for number in sorted(set(numbers)))

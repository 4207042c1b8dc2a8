"""What a checkpoint is: its matrices, what it costs to run, and what Kronecker factors would keep of it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinykron import checkpoint
from tinykron.errors import TinykronError
from tinykron.kron.algebra import Shape, divisors
from tinykron.kron.fitting.nearest import best_of_largest
from tinykron.kron.linear import KronModule
from tinykron.kron.plan import gaussian_energy
from tinykron.kron.restructure import dense_shapes
from tinykron.measure.costs import flops_per_token, output_table
from tinykron.nn import Linear
from tinykron.support.progress import Progress
from tinykron.support.tables import Table

NEAR = 0.02  # pairs of factors whose sizes differ by less count as equally large
PROGRESS_FROM = 20_000_000  # parameters of a model whose fits take long enough to show how far they are


@dataclass(frozen=True)
class Matrix:
    """One matrix of a model, and the best single Kronecker pair of the wanted size."""

    name: str
    shape: Shape  # out x in, or rows x width
    parameters: int
    a: Shape | None = None  # None where no pair of factors is that small, or the matrix is factorised already
    b: Shape | None = None
    energy: float | None = None  # ||A x B|| / ||W||
    gaussian: float | None = None  # what the pair would keep of Gaussian noise


@dataclass(frozen=True)
class Info:
    """What `tinykron info` says of a model."""

    folder: str
    model_type: str  # as config.json calls it
    architecture: str
    layers: int
    width: int
    inner: int  # width of the MLP
    heads: int
    head_width: int
    key_value_heads: int
    context: int
    vocabulary: int
    parameters: int
    head: str  # where the logits come from
    exits: tuple[int, ...]  # depths that were trained to be left at
    bytes: int  # of the tensor files
    dtype: str  # of most values in them
    flops_per_token: int  # forward, at half the context
    ratio: float
    matrices: list[Matrix]
    others: int  # parameters of norms, biases, and whatever else is no matrix


def _head_in_words(model: Any) -> str:
    table = output_table(model)
    if table is None:
        kinds = {"sequence": "classifies whole texts", "token": "classifies each token", "span": "finds a span"}
        return kinds.get(model.config.head, "none: hidden states alone")
    return "tied to the token embedding" if table is model.embedding else "a matrix of its own"


def best_pair(w: Any, ratio: float) -> tuple[Shape, float] | None:
    """Return the (M, N) of the single Kronecker pair that keeps the most of w, and the share of the norm it keeps.

    Pairs may have up to 1 / ratio of w's parameters; compared are the largest of these (those within 2 %), for a pair
    keeps the more the larger it is. So at ratio 2 one side is halved, as KnGPT2 does. None if no pair is that small.
    """
    rows, columns = w.shape
    sizes = {}
    for m in divisors(rows):
        for n in divisors(columns):
            count = m * n + (rows // m) * (columns // n)
            if count <= (1 + NEAR / 2) * w.size / ratio:
                sizes[m, n] = count
    return best_of_largest(w, sizes, NEAR) if sizes else None


def describe(folder: str | Path, model: Any, ratio: float = 2.0) -> Info:
    """Return what there is to know of a model that was loaded from `folder`; ratio is that of the Kronecker pairs.

    Raises TinykronError for a ratio below 1, and for a matrix with a NaN or an infinity.
    """
    if not ratio >= 1.0:
        raise TinykronError(f"ratio: found {ratio}, expected at least 1")
    matrices = []
    dense = dense_shapes(model)
    large = model.parameter_count() > PROGRESS_FROM
    with Progress("fitting factors", len(dense), "matrices") if large else nullcontext() as progress:
        for name, shape in dense.items():
            weight = model.get(name).weight.data
            w = weight.T if isinstance(model.get(name), Linear) else weight
            try:
                found = best_pair(w, ratio)
            except TinykronError as error:
                raise TinykronError(f"{name}: {error}") from error
            if found is None:
                matrices.append(Matrix(name, shape, w.size))
            else:
                (m, n), energy = found
                level = gaussian_energy(shape, (m, n))
                matrices.append(Matrix(name, shape, w.size, (m, n), (shape[0] // m, shape[1] // n), energy, level))
            if progress:
                progress.advance(1, name)
    for name, module in model.modules():
        if isinstance(module, KronModule):
            matrices.append(Matrix(f"{name} (factorised)", module.factors.shape, module.factors.parameters))
    attention, up = model.blocks[0].attention, model.blocks[0].mlp.up
    total = model.parameter_count()
    return Info(
        folder=str(folder),
        model_type=model.config.to_dict()["model_type"],
        architecture=type(model).__name__,
        layers=len(model.blocks),
        width=model.norm.weight.size,
        inner=up.factors.shape[0] if isinstance(up, KronModule) else up.weight.shape[1],
        heads=attention.heads,
        head_width=attention.head_width,
        key_value_heads=attention.groups,
        context=model.context,
        vocabulary=model.config.vocab_size,
        parameters=total,
        head=_head_in_words(model),
        exits=model.exits,
        bytes=checkpoint.tensor_bytes(folder),
        dtype=checkpoint.stored_dtype(folder),
        flops_per_token=flops_per_token(model, model.context // 2),
        ratio=ratio,
        matrices=matrices,
        others=total - sum(matrix.parameters for matrix in matrices),
    )


def render(info: Info) -> str:
    """Return an Info as text for a terminal."""
    heads = f"{info.heads} heads of {info.head_width}" + (
        "" if info.key_value_heads == info.heads else f" on {info.key_value_heads} key/value heads"
    )
    lines = [
        f"{info.folder}: {info.architecture}, {info.layers} layers of width {info.width} (MLP {info.inner}), {heads}",
        f"context {info.context:,}, vocabulary {info.vocabulary:,}; output head: {info.head}",
        *([f"exits after {', '.join(map(str, info.exits))} blocks were trained"] if info.exits else []),
        f"{info.parameters:,} parameters, {info.bytes:,} bytes on disk ({info.dtype}), "
        f"{info.flops_per_token / 1e6:,.2f} MFLOPs a token at half the context",
        "",
    ]
    rows = []
    for matrix in info.matrices:
        fits = matrix.energy is not None and matrix.gaussian is not None
        rows.append(
            [
                matrix.name,
                _times(matrix.shape),
                f"{matrix.parameters:,}",
                f"{matrix.parameters / info.parameters:.1%}",
                _times(matrix.a) if matrix.a else "-",
                _times(matrix.b) if matrix.b else "-",
                f"{matrix.energy:.3f}" if fits else "-",
                f"{matrix.gaussian:.3f}" if fits else "-",
            ]
        )
    rows.append(["norms and biases", "", f"{info.others:,}", f"{info.others / info.parameters:.1%}", *[""] * 4])
    headings = ("matrix", "shape", "parameters", "share", "A", "B", "kept", "Gaussian")
    title = f"each matrix, and the best Kronecker pair of 1/{info.ratio:g} its size"
    table = Table(headings, rows, title, left=headings[:2])
    note = "kept: the share of the matrix's norm; Gaussian: what such a pair would keep of noise of that shape"
    return "\n".join(lines) + table.boxed(140) + note


def _times(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"

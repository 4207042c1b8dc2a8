"""The papers' shapes, for any model of their family: which matrices, A and B, how many terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.algebra import Shape
from tinykron.kron.plan import Choice, KronPlan
from tinykron.kron.restructure import dense_shapes
from tinykron.nn import Module

ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
MLP = ("mlp.up", "mlp.down")


def kngpt2_plan(model: Module | Mapping[str, Shape]) -> KronPlan:
    """Return KnGPT2's plan: halve the token embedding, and all matrices of attention and MLP in blocks 1, 3, 5, ...

    model  with `embedding` and `blocks.<i>`, each block with attention.query, .key, .value, .output and mlp.up, .down;
           or only the shapes of those, by name, which is enough to count parameters
    A weight (out, in) becomes A x B with B (2, 1) if out >= in, else B (1, 2): the longer side is halved, so that a
    matrix that is not square keeps its rank. The embedding becomes A (V, D/2) x B (1, 2): each token keeps its row.
    KnGPT2 (arXiv 2110.08152) leaves the shapes of the MLP open. Raises TinykronError if the model has no such matrix,
    ShapeError if a side to be halved is odd.
    """
    shapes = dense_shapes(model) if isinstance(model, Module) else dict(model)
    count = _block_count(shapes)
    names = _named(shapes, "kngpt2_plan", range(1, count, 2), (*ATTENTION, *MLP), embedding=True)
    if count < 2:
        raise TinykronError(f"kngpt2_plan: the odd blocks are factorised, and the model has {count} block")
    plan = KronPlan()
    for name in names:
        rows, columns = shapes[name]
        halve_rows = name != "embedding" and rows >= columns
        if (rows if halve_rows else columns) % 2:
            raise ShapeError(
                f"kngpt2_plan: {name} {shapes[name]} cannot be halved, {rows if halve_rows else columns} is odd"
            )
        plan[name] = Choice((rows, columns), (rows // 2, columns) if halve_rows else (rows, columns // 2))
    return plan


def kroneckerbert8_plan(model: Module | Mapping[str, Shape]) -> KronPlan:
    """Return KroneckerBERT-8's plan: 14.65 M parameters of BERT-base's 109.48 M, pooler included; the paper says 14.3.

    model  as for `kngpt2_plan`
    Attention: B (2, 2). MLP: A (8, 2) up, (2, 8) down. Embedding: B (1, 8). KroneckerBERT (arXiv 2109.06243), table 1.
    Raises TinykronError if the model has no such matrix, ShapeError if a shape does not divide one.
    """
    return _kroneckerbert("kroneckerbert8_plan", model, attention=(2, 2), mlp=(8, 2), embedding=8)


def kroneckerbert21_plan(model: Module | Mapping[str, Shape]) -> KronPlan:
    """Return KroneckerBERT-21's plan: 5.23 M parameters, pooler included, and 1.40 GFLOPs for 128 tokens.

    Attention: B (2, 16). MLP: A (16, 2) up, (2, 16) down. Embedding: B (1, 16). Otherwise as `kroneckerbert8_plan`.
    """
    return _kroneckerbert("kroneckerbert21_plan", model, attention=(2, 16), mlp=(16, 2), embedding=16)


# KroneckerBERT-5 has no plan. Its row of table 1 (20 M parameters, 9.4 GFLOPs) cannot be what was run: four terms of A
# (384, 384) x B (2, 2) hold 4 * (147,456 + 4) = 589,840 parameters, more than the 589,824 of the dense matrix, and as
# min(M*N, P*Q) = 4 they can be any matrix. So counted, the model has 45.5 M parameters.


def _kroneckerbert(
    name: str, model: Module | Mapping[str, Shape], attention: Shape, mlp: Shape, embedding: int
) -> KronPlan:
    """Return a plan of every block: B of the attention, A of the first MLP matrix, columns of the embedding's B."""
    shapes = dense_shapes(model) if isinstance(model, Module) else dict(model)
    plan = KronPlan()
    for key in _named(shapes, name, range(_block_count(shapes)), (*ATTENTION, *MLP), embedding=True):
        rows, columns = shapes[key]
        if key == "embedding":
            p, q = 1, embedding
        elif "attention" in key:
            p, q = attention
        else:
            m, n = mlp if key.endswith("up") else mlp[::-1]
            p, q = rows // m, columns // n
            rows, columns = m * p, n * q
        if shapes[key] != (rows // p * p, columns // q * q):
            raise ShapeError(f"{name}: {key} {shapes[key]} is not divided by A {mlp} or B ({p}, {q})")
        plan[key] = Choice(shapes[key], (rows // p, columns // q))
    return plan


KRONY_PT: dict[str, tuple[Shape, int]] = {  # A of the first MLP matrix, terms; the names are GPT-2's sizes in the paper
    "67M": ((64, 32), 1),
    "74M": ((1024, 256), 1),
    "75M": ((768, 384), 1),
    "80M": ((1024, 256), 2),
    "82M": ((768, 768), 1),
    "86M": ((1024, 256), 3),
    "92M": ((1024, 256), 4),
    "96M": ((1536, 768), 1),
}


def krony_pt_plan(model: Module | Mapping[str, Shape], size: str = "92M") -> KronPlan:
    """Return Krony-PT's plan (arXiv 2412.12351, table I): the MLP of every block, nothing else.

    size  one of `KRONY_PT`: what GPT-2 124M then has. A of the second matrix has the sides of the first one's swapped.
    Raises TinykronError for another size or a model without such matrices, ShapeError if A does not divide one: the
    shapes are those for GPT-2 small.
    """
    if size not in KRONY_PT:
        raise TinykronError(f"krony_pt_plan: found size {size!r}, expected one of {', '.join(KRONY_PT)}")
    shapes = dense_shapes(model) if isinstance(model, Module) else dict(model)
    (m, n), terms = KRONY_PT[size]
    names = _named(shapes, "krony_pt_plan", range(_block_count(shapes)), MLP, embedding=False)
    return KronPlan((name, Choice(shapes[name], (m, n) if name.endswith("up") else (n, m), terms)) for name in names)


PRESETS: dict[str, Callable[[Module | Mapping[str, Shape]], KronPlan]] = {  # by the names that `--preset` takes
    "kngpt2": kngpt2_plan,
    "kroneckerbert8": kroneckerbert8_plan,
    "kroneckerbert21": kroneckerbert21_plan,
    **{f"krony-pt-{size.lower()}": partial(krony_pt_plan, size=size) for size in KRONY_PT},
}


def published_flops(choice: Choice) -> int:
    """Return the FLOPs of one vector as KroneckerBERT counts them (eq. 7): 2 k - 1 for a product of k numbers."""
    if choice.is_dense:
        return (2 * choice.dense[1] - 1) * choice.dense[0]
    (m, n), (p, q) = choice.shape, choice.other
    b_first = (2 * q - 1) * p * n + (2 * n - 1) * p * m
    a_first = (2 * n - 1) * q * m + (2 * q - 1) * p * m
    return choice.terms * min(b_first, a_first)


def _block_count(shapes: Mapping[str, Shape]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1)


def _named(
    shapes: Mapping[str, Shape], preset: str, blocks: Iterable[int], parts: Iterable[str], embedding: bool
) -> list[str]:
    """Return the names of a preset's matrices. Raises TinykronError listing those that the model has not."""
    names = [*(["embedding"] if embedding else []), *(f"blocks.{i}.{part}" for i in blocks for part in parts)]
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise TinykronError(f"{preset}: the model has no dense matrix {', '.join(missing) or 'in a block'}")
    return names

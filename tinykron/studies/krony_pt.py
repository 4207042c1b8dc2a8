"""What later papers changed in KnGPT2, and how it can be beaten: R11 and R12, B1 to B3.

Papers: Krony-PT (arXiv 2412.12351), ProcrustesGPT (2506.02818).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinykron import kron
from tinykron.kron.fitting import starts
from tinykron.kron.plan import Choice, KronPlan
from tinykron.kron.planning.presets import ATTENTION, MLP
from tinykron.studies.claims import Relation, Values, relation, throughout
from tinykron.studies.fits import tiny_b
from tinykron.studies.kngpt2 import ILKD, KNGPT2, S2, UNTIED, WEIGHTED, plan_of
from tinykron.studies.kron_students import LABELS, PERPLEXITY, SURE, Student, Study, factorised, started, sums

FOLLOW_UPS: list[Relation] = []


def halves(study: Study, blocks: Sequence[int], terms: int) -> KronPlan:
    """Return a plan of sums with B (2, 2), where four terms are any matrix, in some blocks; and of the embedding."""
    shapes = {
        f"blocks.{block}.{part}": study.teacher.get(f"blocks.{block}.{part}").weight.shape[::-1]
        for block in blocks
        for part in (*ATTENTION, *MLP)
    }
    choices = {name: Choice(dense, (dense[0] // 2, dense[1] // 2), terms) for name, dense in shapes.items()}
    return KronPlan({"embedding": plan_of(study)["embedding"]} | choices)


def every_second(study: Study) -> KronPlan:
    return halves(study, range(1, len(study.teacher.blocks), 2), 2)


def every_block(study: Study) -> KronPlan:
    return halves(study, range(len(study.teacher.blocks)), 3)


@relation(
    FOLLOW_UPS,
    "R11",
    "compressing every second block beats compressing all of them evenly, at equal size",
    "KnGPT2 chose the one, Krony-PT the other",
    f"{PERPLEXITY}; sums with B 2 x 2, two terms in half of the blocks or three in all; parameters",
    throughout("every second block", "all blocks", SURE),
)
def r11(study: Study, seed: int) -> Values:
    plans = {"every second block": every_second, "all blocks": every_block}
    students = {name: Student(name.replace(" ", "-"), factorised(plan), ILKD) for name, plan in plans.items()}
    size = study.teacher.parameter_count()
    sizes = {f"parameters, {name}": float(plan(study).total(size)) for name, plan in plans.items()}
    return study.courses(seed, students) | sizes


@relation(
    FOLLOW_UPS,
    "R11b",
    "block 0 is the one that is worst to compress",
    "a replication: perplexity 59 to 4825, others 62 to 68",
    "perplexity with one block halved, untrained",
    lambda values: 1 if values["block 0"] == max(values.values()) else -1,
)
def r11b(study: Study, seed: int) -> Values:
    found = {}
    for block in range(len(study.teacher.blocks)):
        names = [f"blocks.{block}.{part}" for part in (*ATTENTION, *MLP)]
        plan = KronPlan((name, tiny_b(study.teacher.get(name).weight.shape[::-1], 0.5)) for name in names)
        found[f"block {block}"] = study.perplexity(kron.factorise(study.teacher, plan), seed)
    return found


def krony_pt(name: str, way: Callable[[Any, Choice, int], kron.KronSum]) -> Student:
    """Return a student with the MLP of every block halved, trained on the text alone: Krony-PT's setting."""

    def make(study: Study, seed: int) -> Any:
        names = [f"blocks.{block}.{part}" for block in range(len(study.teacher.blocks)) for part in MLP]
        shapes = {name: study.teacher.get(name).weight.shape[::-1] for name in names}
        return started(study.teacher, KronPlan((name, tiny_b(shape, 0.5)) for name, shape in shapes.items()), way)

    return Student(name, make, LABELS)


NEAREST = krony_pt("krony-nearest", lambda w, choice, number: kron.nearest(w, choice.shape))
PRUNED = krony_pt("krony-pruned", lambda w, choice, number: starts.pruned(w, choice.shape))
RESCALED = krony_pt("krony-rescaled", lambda w, choice, number: starts.rescaled(kron.nearest(w, choice.shape), w))


@relation(
    FOLLOW_UPS,
    "R12",
    "every second row is a better start than the nearest product",
    "Krony-PT, table VII: 38.2 and 42.0",
    PERPLEXITY,
    throughout("pruned", "nearest", SURE),
)
def r12(study: Study, seed: int) -> Values:
    return study.courses(seed, {"pruned": PRUNED, "nearest": NEAREST})


@relation(
    FOLLOW_UPS,
    "R12b",
    "the nearest product, scaled to the matrix's norm, is a better start than as it is",
    "Krony-PT, table VIII",
    PERPLEXITY,
    throughout("rescaled", "nearest", SURE),
)
def r12b(study: Study, seed: int) -> Values:
    return study.courses(seed, {"rescaled": RESCALED, "nearest": NEAREST})


@relation(
    FOLLOW_UPS,
    "B1",
    "products fitted to what the matrices see of a text beat plain ones",
    "ProcrustesGPT, before training: 36.1 and 55.9",
    f"{PERPLEXITY} (0: before training)",
    throughout("weighted", "plain", SURE),
)
def b1(study: Study, seed: int) -> Values:
    """Alternating least squares in the metric of the inputs; the embedding's rows count by how often they occur."""
    return study.courses(seed, {"weighted": WEIGHTED, "plain": KNGPT2})


def rescaled_sums(study: Study, seed: int) -> Any:
    return started(
        study.teacher,
        sums(plan_of(study), 2),
        lambda w, choice, number: starts.rescaled(kron.nearest(w, choice.shape, choice.terms), w),
    )


@relation(
    FOLLOW_UPS,
    "B2",
    "sums of two products, scaled to the matrix's norm, beat KnGPT2's products at equal parameters",
    "ours, after Krony-PT",
    f"{PERPLEXITY} (0: before training)",
    throughout("two terms, rescaled", "KnGPT2", SURE),
)
def b2(study: Study, seed: int) -> Values:
    rescaled = Student("kngpt2-2-terms-rescaled", rescaled_sums, ILKD)
    return study.courses(seed, {"two terms, rescaled": rescaled, "two terms": S2, "KnGPT2": KNGPT2})


@relation(
    FOLLOW_UPS,
    "B3",
    "a head tied to the factorised embedding is as good as the paper's dense one, which it saves",
    "ours; the paper does not count the dense one",
    f"{PERPLEXITY}; parameters; at most 2 % above asked",
    throughout("tied head", "dense head", -0.02),
)
def b3(study: Study, seed: int) -> Values:
    sizes = {
        name: float(one.make(study, seed).parameter_count()) for name, one in (("tied", KNGPT2), ("dense", UNTIED))
    }
    found = study.courses(seed, {"tied head": KNGPT2, "dense head": UNTIED})
    return found | {f"parameters, {name}": size for name, size in sizes.items()}

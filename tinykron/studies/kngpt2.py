"""`tinykron reproduce kngpt2`: what KnGPT2 and its successors claim, on the shipped GPT-2.

Students of one teacher, trained alike with as many tokens, for each of several budgets. Papers: KnGPT2 (arXiv
2110.08152), Krony-PT (2412.12351), ProcrustesGPT (2506.02818), KroneckerBERT (2109.06243).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tinykron import kron
from tinykron.distill.losses import Losses
from tinykron.jobs.students import truncate, untie
from tinykron.kron.fitting import starts
from tinykron.kron.plan import KronPlan
from tinykron.kron.planning.presets import ATTENTION, MLP
from tinykron.studies.claims import Relation, Values, below, near, relation, throughout
from tinykron.studies.identities import IDENTITIES
from tinykron.studies.kron_students import (
    BOTH_FITS,
    LABELS,
    PERPLEXITY,
    SURE,
    Scale,
    Student,
    Study,
    against_low_rank,
    attention_targets,
    by_terms,
    factorised,
    started,
    sums,
)
from tinykron.tasks.metrics import spearman

RELATIONS: list[Relation] = [*IDENTITIES]
FULL = Scale("gpt2-tiny")
QUICK = Scale("gpt2-tiny", (6, 24), held_out=4096, calibration=4096, examples=(128, 384), epochs=2, teacher_epochs=3)
ILKD = Losses()  # KnGPT2's four terms; the paper leaves their weights open


# Students -------------------------------------------------------------------------------------------------------------


def plan_of(study: Study) -> KronPlan:
    return kron.kngpt2_plan(study.teacher)


def truncated(study: Study, parameters: int) -> Any:
    """Return a student of evenly spread blocks, as many as come nearest to a number of parameters."""
    depth, each = len(study.teacher.blocks), study.teacher.blocks[0].parameter_count()
    count = round(depth - (study.teacher.parameter_count() - parameters) / each)
    return truncate(study.teacher, [round(place) for place in np.linspace(0, depth - 1, max(1, min(depth, count)))])


def random_factors(study: Study, seed: int, model: Any = None) -> Any:
    """Return a student whose factors are drawn, as large as the teacher's matrices; the rest is the teacher's."""
    return started(
        model or study.teacher,
        plan_of(study),
        lambda w, choice, number: starts.random(w, choice.shape, choice.terms, 1000 * seed + number),
    )


def random_all(study: Study, seed: int) -> Any:
    """The same with nothing of the teacher's: every matrix is drawn."""
    kind: Any = type(study.teacher)
    model = kind(study.teacher.config, np.random.default_rng(seed))
    model.tokenizer = study.teacher.tokenizer
    return random_factors(study, seed, model)


def dense_head(study: Study, seed: int) -> Any:
    """The paper's model: beside the factorised embedding, an output matrix of its own."""
    student = kron.factorise(study.teacher, plan_of(study))
    untie(student, study.teacher)
    return student


def start_of_sums(terms: int) -> Callable[[Study, int], Any]:
    return factorised(lambda study: sums(plan_of(study), terms))


KNGPT2 = Student("kngpt2", factorised(plan_of), ILKD)
UNTIED = Student("kngpt2-dense-head", dense_head, ILKD)
S2 = Student("kngpt2-2-terms", start_of_sums(2), ILKD)
S4 = Student("kngpt2-4-terms", start_of_sums(4), ILKD)
WEIGHTED = Student("kngpt2-weighted", factorised(plan_of, weighted=True), ILKD)
ABLATION = {  # R3: what is added to the cross-entropy
    "text alone": replace(KNGPT2, name="kngpt2-text", losses=LABELS),
    "logits": replace(KNGPT2, name="kngpt2-logits", losses=replace(LABELS, logits=1.0)),
    "embedding": replace(KNGPT2, name="kngpt2-embedding", losses=replace(LABELS, embedding=1.0)),
    "attention": replace(KNGPT2, name="kngpt2-attention", losses=replace(LABELS, attention=1.0)),
    "hidden": replace(KNGPT2, name="kngpt2-hidden", losses=replace(LABELS, hidden=1.0)),
    "all": KNGPT2,
}


# KnGPT2 ---------------------------------------------------------------------------------------------------------------

GPT2_SMALL = {"embedding": (50257, 768)} | {
    f"blocks.{block}.{part}": shape
    for block in range(12)
    for part, shape in (*((part, (768, 768)) for part in ATTENTION), (MLP[0], (3072, 768)), (MLP[1], (768, 3072)))
}
GPT2_SMALL_PARAMETERS = 124_439_808


@relation(
    RELATIONS,
    "K7",
    "KnGPT2 has 83 M parameters",
    "83 M, the dense output matrix not counted",
    "millions, counted from the shapes; within 1.5 % of 83",
    near("KnGPT2", "published", 0.015),
    "All four matrices of attention are counted as halved: without the output matrix it would be 85.7 M.",
)
def k7(study: Study, seed: int) -> Values:
    count = kron.kngpt2_plan(GPT2_SMALL).total(GPT2_SMALL_PARAMETERS)
    rows, width = GPT2_SMALL["embedding"]
    return {"KnGPT2": count / 1e6, "published": 83.0, "with its output matrix": (count + rows * width) / 1e6}


@relation(
    RELATIONS,
    "R1",
    "KnGPT2 beats a student of fewer blocks (DistilGPT2) of like size, at an equal light budget",
    "perplexity 20.5 and 23.7 (WikiText-103, as quoted elsewhere)",
    f"{PERPLEXITY}; parameters",
    throughout("KnGPT2", "truncated", SURE),
    "Sizes as the paper counts them: no output matrix.",
)
def r1(study: Study, seed: int) -> Values:
    size = factorised(plan_of)(study, seed).parameter_count()
    student = Student("truncated", lambda study, seed: truncated(study, size), ILKD)
    sizes = {
        "parameters, KnGPT2": float(size),
        "parameters, truncated": float(truncated(study, size).parameter_count()),
    }
    return study.courses(seed, {"KnGPT2": KNGPT2, "truncated": student}) | sizes


@relation(
    RELATIONS,
    "R1b",
    "the same with KnGPT2's dense output matrix counted",
    "not published",
    f"{PERPLEXITY}; parameters",
    throughout("KnGPT2, dense head", "truncated", SURE),
)
def r1b(study: Study, seed: int) -> Values:
    size = dense_head(study, seed).parameter_count()
    student = Student("truncated-head-counted", lambda study, seed: truncated(study, size), ILKD)
    sizes = {
        "parameters, KnGPT2": float(size),
        "parameters, truncated": float(truncated(study, size).parameter_count()),
    }
    return study.courses(seed, {"KnGPT2, dense head": UNTIED, "truncated": student}) | sizes


@relation(
    RELATIONS,
    "R2",
    "factors of the nearest products are a better start than random ones",
    "the method of both papers",
    f"{PERPLEXITY}; random: with the teacher's other matrices, or with none of the teacher's",
    throughout("nearest", "random factors", SURE),
)
def r2(study: Study, seed: int) -> Values:
    """The distance from "all random" to "random factors" is what the matrices that are left dense bring."""
    return study.courses(
        seed,
        {
            "nearest": KNGPT2,
            "random factors": Student("random-factors", random_factors, ILKD),
            "all random": Student("all-random", random_all, ILKD),
        },
    )


@relation(
    RELATIONS,
    "R3",
    "distilling from inner layers beats training on the text alone",
    "GLUE dev 79.25 with it (as quoted elsewhere); Krony-PT: no benefit",
    f"{PERPLEXITY}, by what is added to the cross-entropy",
    throughout("all", "text alone", SURE),
)
def r3(study: Study, seed: int) -> Values:
    return study.courses(seed, ABLATION)


@relation(
    RELATIONS,
    "R5",
    "KL of attention probabilities (KnGPT2) is a better target than MSE of scores (KroneckerBERT)",
    "open: neither paper compares",
    f"{PERPLEXITY}: the best of weights 0.1, 1 and 10 of each, and each of them; without either",
    throughout("KL", "scores", SURE),
    "The terms differ in size, so each is given the weight that serves it best.",
)
def r5(study: Study, seed: int) -> Values:
    return attention_targets(study, seed, KNGPT2)


@relation(
    RELATIONS,
    "R6",
    "Kronecker products beat low rank at equal parameters in each matrix",
    "open: the reason that both papers give, tested by neither",
    f"{PERPLEXITY} (0: before training); fitted plainly, and weighted by the inputs",
    BOTH_FITS,
)
def r6(study: Study, seed: int) -> Values:
    return against_low_rank(study, seed, KNGPT2, plan_of)


@relation(
    RELATIONS,
    "R7",
    "sums of four smaller products beat one product at equal parameters",
    "open: CoLA 43.6 and 49.5, but with 14.3 M and 20 M parameters",
    f"{PERPLEXITY} (0: before training), by terms; parameters of the matrices",
    throughout("four terms", "one term", SURE),
)
def r7(study: Study, seed: int) -> Values:
    return by_terms(study, seed, {"one term": KNGPT2, "two terms": S2, "four terms": S4}, plan_of)


@relation(
    RELATIONS,
    "R10",
    "lower perplexity does not always mean a better task score",
    "pre-trained with and without distillation",
    "rank correlation of -perplexity and accuracy over the six students of R3, fine-tuned alike; below 0.9 asked",
    below("rank correlation", 0.9),
    "Few students and few examples: exploratory.",
)
def r10(study: Study, seed: int) -> Values:
    steps, (_, examples) = study.scale.budgets[0], study.scale.examples
    perplexities, scores = [], []
    for student in ABLATION.values():
        perplexities.append(study.course(student, seed)[steps])
        start = partial(study.trained, student, seed, steps)
        scores.append(study.score(study.tuned(f"tuned-{student.name}", start, LABELS, examples, seed)))
    return {"rank correlation": spearman(-np.array(perplexities), np.array(scores))} | {
        f"accuracy, {name}": score for name, score in zip(ABLATION, scores, strict=True)
    }

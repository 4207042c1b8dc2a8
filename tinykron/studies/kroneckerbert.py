"""`tinykron reproduce kroneckerbert`: what KroneckerBERT claims, on the shipped BERT.

Stage 1 trains students on text beside the teacher, stage 2 fine-tunes them on a labelled task beside the fine-tuned
teacher. Paper: KroneckerBERT (arXiv 2109.06243).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import nan
from typing import Any

import numpy as np

from tinykron import kron
from tinykron.data.batch import inputs
from tinykron.distill.losses import Losses
from tinykron.jobs.students import truncate
from tinykron.kron.plan import KronPlan
from tinykron.kron.planning.presets import ATTENTION, MLP, published_flops
from tinykron.nn import evaluating
from tinykron.studies.claims import Relation, Values, agree, both, less, near, relation, throughout
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
    sums,
)
from tinykron.tasks.features import collate
from tinykron.tensor import no_grad

RELATIONS: list[Relation] = [*IDENTITIES]
FULL = Scale("bert-tiny", lr=1e-3)
QUICK = Scale(
    "bert-tiny", (10, 40), context=64, lr=1e-3, held_out=4096, calibration=4096, examples=(128, 768), epochs=2,
    teacher_epochs=3,
)  # fmt: skip
EQ_14 = Losses(attention_form="scores", logits=1.0)  # all weights 1; L_Logit is never defined: KL here
ACCURACY = "accuracy on the task's dev set"


# Students -------------------------------------------------------------------------------------------------------------


def plan_8(study: Study) -> KronPlan:
    return kron.kroneckerbert8_plan(study.teacher)


def plan_21(study: Study) -> KronPlan:
    return kron.kroneckerbert21_plan(study.teacher)


def sums_8(study: Study, terms: int) -> KronPlan:
    return sums(plan_8(study), terms)


KBERT8 = Student("kroneckerbert8", factorised(plan_8), EQ_14)
KBERT21 = Student("kroneckerbert21", factorised(plan_21), EQ_14)
ONE_BLOCK = Student("one-block", lambda study, seed: truncate(study.teacher, [0]), EQ_14)
S2 = Student("kroneckerbert8-2-terms", factorised(partial(sums_8, terms=2)), EQ_14)
S4 = Student("kroneckerbert8-4-terms", factorised(partial(sums_8, terms=4)), EQ_14)
PLAIN = replace(KBERT8, name="kroneckerbert8-text", losses=LABELS)


def after(study: Study, student: Student, seed: int, before: bool, distilled: bool, examples: int) -> Any:
    """Return a student fine-tuned on some examples: after stage 1 or without it, with distillation or without."""
    steps = study.scale.budgets[-1] if before else 0
    losses = EQ_14 if distilled else LABELS
    name = f"{student.name}-{'stage-1' if before else 'start'}-{'kd' if distilled else 'labels'}-{examples}"
    return study.tuned(name, partial(study.kept, student, seed, steps), losses, examples, seed)


# The paper's claims ---------------------------------------------------------------------------------------------------

BERT_BASE = {"embedding": (30522, 768)} | {
    f"blocks.{block}.{part}": shape
    for block in range(12)
    for part, shape in (*((part, (768, 768)) for part in ATTENTION), (MLP[0], (3072, 768)), (MLP[1], (768, 3072)))
}
BERT_BASE_PARAMETERS = 109_482_240  # with the pooler
SEQUENCE = 128


@relation(
    RELATIONS,
    "K7",
    "KroneckerBERT-21 has 5.2 M parameters and takes 1.4 GFLOPs for 128 tokens",
    "5.2 M, 1.4 G (table 1)",
    "counted from the shapes; within 1 %",
    agree(near("millions", "published, millions", 0.01), near("GFLOPs", "published, GFLOPs", 0.01)),
    "KroneckerBERT-5 cannot be checked: its row of table 1 has more parameters than the dense matrices.",
)
def k7(study: Study, seed: int) -> Values:
    plan = kron.kroneckerbert21_plan(BERT_BASE)
    flops = SEQUENCE * sum(published_flops(choice) for name, choice in plan.items() if name != "embedding")
    count = plan.total(BERT_BASE_PARAMETERS)
    eight = kron.kroneckerbert8_plan(BERT_BASE).total(BERT_BASE_PARAMETERS)
    return {
        "millions": count / 1e6,
        "published, millions": 5.2,
        "GFLOPs": flops / 1e9,
        "published, GFLOPs": 1.4,
        "KroneckerBERT-8, millions": eight / 1e6,
    }


@relation(
    RELATIONS,
    "R3",
    "distillation helps in stage 1",
    "not published: table 6 leaves all of stage 1 out (MNLI 80.7, with it 82.8)",
    f"{PERPLEXITY}, of hidden tokens",
    throughout("distilled", "text alone", SURE),
    "What is measured is the loss of the text alone; of the terms of eq. 14 it is one.",
)
def r3(study: Study, seed: int) -> Values:
    return study.courses(seed, {"distilled": KBERT8, "text alone": PLAIN})


@relation(
    RELATIONS,
    "R3b",
    "distillation helps in stage 2",
    "MNLI 80.0 without, 82.8 with (table 6)",
    f"{ACCURACY}, after stage 1, all its examples",
    less("labels alone", "distilled"),
)
def r3b(study: Study, seed: int) -> Values:
    large = study.scale.examples[1]
    return {
        "distilled": study.score(after(study, KBERT8, seed, True, True, large)),
        "labels alone": study.score(after(study, KBERT8, seed, True, False, large)),
        "teacher": study.score(study.tuned_teacher),
    }


@relation(
    RELATIONS,
    "R4",
    "stage 1 helps small tasks more than large ones, distillation in stage 2 large ones more than small ones",
    "without stage 1: MRPC -16.7, MNLI -2.1; without distillation: MRPC -1.0, MNLI -2.8 (table 6)",
    f"{ACCURACY}: what each brings, with few and with many examples",
    both(less("stage 1, many", "stage 1, few"), less("distillation, few", "distillation, many")),
    "The same task in two sizes.",
)
def r4(study: Study, seed: int) -> Values:
    found: Values = {}
    for size, examples in zip(("few", "many"), study.scale.examples, strict=True):
        scores = {
            (before, distilled): study.score(after(study, KBERT8, seed, before, distilled, examples))
            for before, distilled in ((True, True), (False, True), (True, False))
        }
        whole = scores[True, True]
        found |= {
            f"both, {size}": whole,
            f"stage 1, {size}": whole - scores[False, True],
            f"distillation, {size}": whole - scores[True, False],
        }
    return found


@relation(
    RELATIONS,
    "R5",
    "MSE of attention scores (KroneckerBERT) is a better target than KL of probabilities (KnGPT2)",
    "open: neither paper compares",
    f"{PERPLEXITY}: the best of weights 0.1, 1 and 10 of each, and each of them; without either",
    throughout("scores", "KL", SURE),
    "The terms differ in size, so each is given the weight that serves it best.",
)
def r5(study: Study, seed: int) -> Values:
    return attention_targets(study, seed, KBERT8)


@relation(
    RELATIONS,
    "R6",
    "Kronecker products beat low rank at equal parameters in each matrix",
    "open: the reason that both papers give, tested by neither",
    f"{PERPLEXITY} (0: before training); fitted plainly, and weighted by the inputs",
    BOTH_FITS,
)
def r6(study: Study, seed: int) -> Values:
    return against_low_rank(study, seed, KBERT8, plan_8)


@relation(
    RELATIONS,
    "R7",
    "sums of four smaller products beat one product at equal parameters",
    "open: CoLA 43.6 and 49.5, but with 14.3 M and 20 M parameters (table 4)",
    f"{PERPLEXITY} (0: before training), by terms; parameters of the matrices",
    throughout("four terms", "one term", SURE),
)
def r7(study: Study, seed: int) -> Values:
    return by_terms(study, seed, {"one term": KBERT8, "two terms": S2, "four terms": S4}, plan_8)


def _not_smaller_and_worse(values: Values) -> int:
    """The one block is larger: where it is better, nothing is said."""
    return max(0, throughout("KroneckerBERT-21", "one block", SURE)(values))


@relation(
    RELATIONS,
    "R8",
    "8 times smaller beats 21 times smaller, and that beats fewer blocks at equal size",
    "dev 80.9 and 77.8 (tables 4 and 7)",
    f"{PERPLEXITY}; parameters",
    both(throughout("KroneckerBERT-8", "KroneckerBERT-21", SURE), _not_smaller_and_worse),
    "Fewer blocks do not come so small: a single one has more parameters. So its winning says nothing.",
)
def r8(study: Study, seed: int) -> Values:
    students = {"KroneckerBERT-8": KBERT8, "KroneckerBERT-21": KBERT21, "one block": ONE_BLOCK}
    sizes = {f"parameters, {name}": float(one.make(study, seed).parameter_count()) for name, one in students.items()}
    return study.courses(seed, students) | sizes


@relation(
    RELATIONS,
    "R8b",
    "the same after both stages",
    "MNLI dev 82.8 and 80.6 (tables 4 and 7)",
    f"{ACCURACY}, all its examples",
    less("KroneckerBERT-21", "KroneckerBERT-8"),
)
def r8b(study: Study, seed: int) -> Values:
    large = study.scale.examples[1]
    students = {"KroneckerBERT-8": KBERT8, "KroneckerBERT-21": KBERT21}
    return {name: study.score(after(study, one, seed, True, True, large)) for name, one in students.items()}


@relation(
    RELATIONS,
    "R9",
    "distillation makes classes easier to tell apart in the middle of the model",
    "a picture (figure 4, t-SNE of layer 6)",
    "silhouette of the first position's states in the middle, by class, on the dev set; distilled in both stages, or "
    "fine-tuned from the start on the labels",
    less("labels alone", "distilled"),
)
def r9(study: Study, seed: int) -> Values:
    large = study.scale.examples[1]
    models = {
        "distilled": after(study, KBERT8, seed, True, True, large),
        "labels alone": after(study, KBERT8, seed, False, False, large),
        "teacher": study.tuned_teacher,
    }
    return {name: middle_silhouette(model, study.features[study.task.dev[0]]) for name, model in models.items()}


def middle_silhouette(model: Any, features: Any, batch: int = 32) -> float:
    """Return the silhouette of what leaves the middle block at the first position, by the examples' classes."""
    states = []
    with no_grad(), evaluating(model):
        for start in range(0, len(features), batch):
            out = model(*inputs(model, collate(features[start : start + batch])))
            states.append(out.hidden[len(model.blocks) // 2][:, 0].numpy())
    return silhouette(np.concatenate(states), np.array([example.target for example in features]))


def silhouette(x_ND: np.ndarray, classes_N: np.ndarray) -> float:
    """Return the mean of (b - a) / max(a, b): a the mean distance to one's own class, b to the nearest other one.

    From -1 to 1; an example that is alone in its class counts 0. NaN with a single class. Rousseeuw 1987.
    """
    squares_N = (x_ND * x_ND).sum(axis=1)
    far_NN = np.sqrt(np.maximum(squares_N[:, None] + squares_N - 2.0 * x_ND @ x_ND.T, 0.0))
    np.fill_diagonal(far_NN, 0.0)
    kinds_C, own_N = np.unique(classes_N, return_inverse=True)
    if len(kinds_C) < 2:
        return nan
    members_NC = np.eye(len(kinds_C))[own_N]
    sums_NC, counts_C = far_NN @ members_NC, members_NC.sum(axis=0)
    rows, others_N = np.arange(len(x_ND)), counts_C[own_N] - 1.0
    a_N = sums_NC[rows, own_N] / np.maximum(others_N, 1.0)
    means_NC = sums_NC / counts_C
    means_NC[rows, own_N] = np.inf
    b_N = means_NC.min(axis=1)
    return float(np.where(others_N > 0, (b_N - a_N) / np.maximum(np.maximum(a_N, b_N), 1e-12), 0.0).mean())

"""The students that the relations of KnGPT2 and KroneckerBERT compare: one teacher, one text, as many tokens for each.

A student is how it starts, and what it is trained on. It is trained once for each budget, from its start, when a
relation first asks; what that gave is kept in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import checkpoint, data, kron, tasks
from tinykron.data.batch import batches
from tinykron.data.masking import Masking
from tinykron.distill.losses import Losses
from tinykron.distill.objective import Distillation
from tinykron.jobs.finetune import task_loss
from tinykron.jobs.students import low_rank_plan, with_head_of
from tinykron.kron.algebra import KronSum
from tinykron.kron.plan import Choice, KronPlan
from tinykron.kron.planning.factorise import matrix
from tinykron.measure.perplexity import held_out_perplexity
from tinykron.nn import Module
from tinykron.studies.claims import Values, agree, throughout
from tinykron.tasks.features import predict
from tinykron.tasks.tuning import FineTuning
from tinykron.tasks.tuning import fit as fit_task
from tinykron.train.loop import fit
from tinykron.train.settings import Score, Settings, mean_score

COURSES = "courses.jsonl"
LABELS = Losses(0.0, 0.0, 0.0, 1.0)  # the text, or the labels, alone: no distillation


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    model: str
    budgets: tuple[int, ...] = (60, 240)  # steps on text, each from the start; the same number of tokens for all
    batch: int = 4
    context: int = 128
    lr: float = 5e-4
    held_out: int = 8192  # tokens that perplexity is measured on
    calibration: int = 8192  # tokens that a weighted fit sees
    task: str = "docs/package"
    examples: tuple[int, int] = (256, 1536)  # of a small and a large task
    epochs: int = 4
    task_batch: int = 16
    task_lr: float = 1e-3
    teacher_epochs: int = 4
    seeds: int = 3


@dataclass(frozen=True)
class Student:
    """How a student starts, and what it is trained on."""

    name: str  # of what is kept: no two are called alike
    make: Callable[[Study, int], Any]  # of a study and a seed
    losses: Losses


class Study:
    """One teacher, its text and its task; students are trained when they are first asked for."""

    def __init__(self, scale: Scale, folder: str | Path) -> None:
        self.scale, self.folder = scale, Path(folder)
        self.teacher = checkpoint.load(data.weights_folder(scale.model)).eval()
        self.documents, held_out = data.split(data.documents())
        self.tokens = data.encode(self.teacher.tokenizer, self.documents)
        self.held_out = data.encode(self.teacher.tokenizer, held_out)
        self.masking = None if self.teacher.causal else Masking.of(self.teacher.tokenizer)
        self.known = read(self.folder / COURSES)
        self._seen: dict[int, kron.Calibration] = {}

    # Text -------------------------------------------------------------------------------------------------------------

    def perplexity(self, model: Any, seed: int) -> float:
        """Return the perplexity of held-out text, of hidden tokens for a BERT; the seed draws which part of it."""
        count = min(self.scale.held_out, len(self.held_out))
        start = int(np.random.default_rng((seed, 5)).integers(0, len(self.held_out) - count + 1))
        tokens = self.held_out[start : start + count]
        return held_out_perplexity(model, tokens, self.scale.context, self.masking)

    def trained(self, student: Student, seed: int, steps: int) -> Any:
        """Return a student after so many steps on text, beside the teacher where its losses ask for one."""
        model, scale = student.make(self, seed), self.scale
        if not steps:
            return model.eval()
        settings = Settings(
            steps, scale.batch, scale.context, lr=scale.lr, warmup=steps // 10, weight_decay=0.0, seed=seed,
            checkpoint_every=10**6, measure_every=0,
        )  # fmt: skip
        fit(
            model, self.tokens, settings, losses=student.losses, masking=self.masking,
            teacher=self.teacher if student.losses.needs_teacher else None, title=f"{student.name}, seed {seed}",
        )  # fmt: skip
        return model.eval()

    def kept(self, student: Student, seed: int, steps: int) -> Any:
        """Return the same, kept in the folder: a student that is fine-tuned in several ways is trained once."""
        path = self._path(f"{student.name}-{steps}-steps", seed)
        return self._loaded(path) or self._saved(self.trained(student, seed, steps), path)

    def course(self, student: Student, seed: int) -> dict[int, float]:
        """Return the perplexity by steps: 0, before any training, and each budget."""
        for steps in (0, *self.scale.budgets):
            key = student.name, seed, steps
            if key not in self.known:
                self.known[key] = self.perplexity(self.trained(student, seed, steps), seed)
                line = {"student": student.name, "seed": seed, "steps": steps, "perplexity": self.known[key]}
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / COURSES).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        return {steps: self.known[student.name, seed, steps] for steps in (0, *self.scale.budgets)}

    def courses(self, seed: int, students: Mapping[str, Student]) -> Values:
        """Return the courses of several students, by "name steps"."""
        found = {name: self.course(student, seed) for name, student in students.items()}
        return {f"{name} {steps}": value for name, course in found.items() for steps, value in course.items()}

    def seen(self, seed: int) -> kron.Calibration:
        """Return what the teacher's matrices are given on some of the training text, which the seed draws."""
        if seed not in self._seen:
            text = batches(self.teacher, self.documents, self.scale.calibration, seed)
            self._seen = {seed: kron.calibrate(self.teacher, text)}
        return self._seen[seed]

    # The task ---------------------------------------------------------------------------------------------------------

    @cached_property
    def task(self) -> Any:
        return tasks.find(self.scale.task)

    @cached_property
    def features(self) -> dict[str, Any]:
        """The examples of the task's train and dev sets, as the teacher's tokenizer reads them."""
        source, context = tasks.source_of(self.task, None), min(self.task.context, self.teacher.context)
        self.examples = {name: self.task.read(source, name).examples for name in ("train", *self.task.dev)}
        return {
            name: self.task.features(self.teacher.tokenizer, found, context) for name, found in self.examples.items()
        }

    def score(self, model: Module) -> float:
        """Return how well a model does on the task's dev set."""
        return mean_score(self._scores(model))

    def _scores(self, model: Module) -> Score:
        read = self.features
        said = {name: predict(model, read[name]) for name in self.task.dev}
        return {name: self.task.measure(self.examples[name], read[name], said[name]) for name in self.task.dev}

    @cached_property
    def tuned_teacher(self) -> Any:
        """The teacher, fine-tuned on all examples."""
        start = tasks.fitted(self.teacher, self.task, np.random.default_rng(0))
        loss = task_loss(self.task)
        return self._tuned("teacher", start, loss, len(self.features["train"]), self.scale.teacher_epochs, 0)

    def tuned(self, name: str, start: Callable[[], Any], losses: Losses, examples: int, seed: int) -> Any:
        """Return a student fine-tuned on some examples, which the seed draws, beside the fine-tuned teacher.

        It takes over that teacher's head: KroneckerBERT, section 3.7. The epoch that is best on the dev set counts, so
        that scores flatter all alike.
        """
        if found := self._loaded(self._path(name, seed)):
            return found
        student = with_head_of(self.tuned_teacher, start(), self.task)
        distillation = Distillation(student, self.tuned_teacher, losses, label_loss=self.task.loss)
        return self._tuned(name, student, distillation, examples, self.scale.epochs, seed)

    def _tuned(self, name: str, model: Any, loss: Any, count: int, epochs: int, seed: int) -> Any:
        if found := self._loaded(self._path(name, seed)):
            return found
        train, scale = self.features["train"], self.scale
        chosen = np.random.default_rng((seed, 6)).permutation(len(train))[:count]
        settings = FineTuning(
            epochs, scale.task_batch, min(self.task.context, model.context), lr=scale.task_lr, seed=seed
        )
        examples = [train[index] for index in chosen]
        fit_task(model, examples, settings, loss, self._scores, title=f"{name}, seed {seed}")
        return self._saved(model, self._path(name, seed))

    def _path(self, name: str, seed: int) -> Path:
        return self.folder / "models" / f"{name}-seed{seed}"

    def _loaded(self, path: Path) -> Any:
        return checkpoint.load(path).eval() if path.exists() else None

    def _saved(self, model: Any, path: Path) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(model, path, dtype="float32")
        return self._loaded(path)


def read(path: Path) -> dict[tuple[str, int, int], float]:
    """Return the perplexities that a folder holds, by student, seed and steps."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = map(json.loads, lines)
    return {(row["student"], row["seed"], row["steps"]): row["perplexity"] for row in rows}


# Ways to start --------------------------------------------------------------------------------------------------------


def started(model: Any, plan: KronPlan, way: Callable[[Any, Choice, int], KronSum]) -> Any:
    """Return a model with the matrices of a plan factorised in a given way: of (matrix, choice, its number)."""
    own = KronPlan(plan)
    for number, (name, choice) in enumerate(plan.items()):
        own.fits[name] = way(matrix(model.get(name)), choice, number)
    return kron.factorise(model, own)


def sums(plan: KronPlan, terms: int) -> KronPlan:
    """Return a plan of sums of 2, 4, 8, ... terms with about as many parameters as a plan of single products.

    For each doubling, the larger factor of each matrix loses half of its longer side to the other one. Of the
    embedding it is the columns: each token keeps a row of its own.
    """
    return KronPlan((name, _sum(choice, terms, name == "embedding")) for name, choice in plan.items())


def _sum(choice: Choice, terms: int, rows_stay: bool) -> Choice:
    (m, n), (p, q) = choice.shape, choice.other
    for _ in range(terms.bit_length() - 1):
        if m * n >= p * q:
            m, n = (m, n // 2) if rows_stay or n > m else (m // 2, n)
        else:
            m, n = (m, 2 * n) if q > p else (2 * m, n)
        p, q = choice.dense[0] // m, choice.dense[1] // n
    return Choice(choice.dense, (m, n), terms)


def factorised(plan: Callable[[Study], KronPlan], weighted: bool = False) -> Callable[[Study, int], Any]:
    """Return how a student starts that has the nearest sums of a plan, in the plain norm or as a text weighs it."""
    return lambda study, seed: kron.factorise(study.teacher, plan(study), study.seen(seed) if weighted else None)


# Comparisons that both papers are asked for ---------------------------------------------------------------------------

PERPLEXITY = "held-out perplexity by steps"
SURE = 0.005  # of a perplexity: what is nearer than this says nothing
FORMS, WEIGHTS = {"KL": "probabilities", "scores": "scores"}, (0.1, 1.0, 10.0)
BOTH_FITS = agree(throughout("Kronecker", "SVD", SURE), throughout("Kronecker, weighted", "SVD, weighted", SURE))


def attention_targets(study: Study, seed: int, base: Student) -> Values:
    """Return the courses of a student with either target at each weight, and the best of each at each budget.

    Beside them, without any attention target: where that is as good, neither target does anything.
    """
    without = replace(base, name=f"{base.name}-no-attention", losses=replace(base.losses, attention=0.0))
    found = study.courses(seed, {"without": without})
    for name, form in FORMS.items():
        each: Values = {}
        for weight in WEIGHTS:
            losses = replace(base.losses, attention=weight, attention_form=form)
            own = base if losses == base.losses else replace(base, name=f"{base.name}-{form}-{weight:g}", losses=losses)
            each |= study.courses(seed, {f"{name} x{weight:g}": own})
        for steps in study.scale.budgets:
            found[f"{name} {steps}"] = min(each[f"{name} x{weight:g} {steps}"] for weight in WEIGHTS)
        found |= each
    return found


def against_low_rank(study: Study, seed: int, base: Student, plan: Callable[[Study], KronPlan]) -> Values:
    """Return the courses of a plan and of low rank with no more parameters in any matrix, with either fit."""

    def ranks(study: Study) -> KronPlan:
        return low_rank_plan(plan(study))

    students = {
        "Kronecker": base,
        "SVD": replace(base, name=f"{base.name}-svd", make=factorised(ranks)),
        "Kronecker, weighted": replace(base, name=f"{base.name}-weighted", make=factorised(plan, weighted=True)),
        "SVD, weighted": replace(base, name=f"{base.name}-svd-weighted", make=factorised(ranks, weighted=True)),
    }
    return study.courses(seed, students) | {
        "parameters, Kronecker": float(plan(study).parameters),
        "parameters, SVD": float(ranks(study).parameters),
    }


def by_terms(study: Study, seed: int, students: dict[str, Student], plan: Callable[[Study], KronPlan]) -> Values:
    """Return the courses of students of 1, 2 and 4 terms, and what their matrices take."""
    plans = zip(students, (1, 2, 4), strict=True)
    sizes = {f"parameters, {name}": float(sums(plan(study), terms).parameters) for name, terms in plans}
    return study.courses(seed, students) | sizes

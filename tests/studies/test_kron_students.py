"""What the relations of KnGPT2 and KroneckerBERT share: starts, sums of equal size, students that are trained once."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import host
from tinykron import checkpoint, data, kron
from tinykron.data import corpus, shipped
from tinykron.jobs.students import truncate
from tinykron.kron.plan import Choice, KronPlan
from tinykron.studies import kngpt2 as kn
from tinykron.studies import kron_students
from tinykron.studies.kron_students import LABELS, Scale, Student, Study, started, sums

MICRO: dict[str, Any] = {
    "budgets": (1,), "batch": 1, "context": 16, "held_out": 64, "calibration": 256, "examples": (16, 16),
    "epochs": 1, "teacher_epochs": 1, "seeds": 1, "task": "docs/neighbours",
}  # fmt: skip


def small_study(scale: Scale, folder: Path, patch: pytest.MonkeyPatch) -> Study:
    """A study of a shipped model at the smallest scale, on a part of the text and of the task."""
    patch.setattr(data, "documents", lambda source=None: corpus.language_reference()[:40])
    study = Study(replace(scale, **MICRO), folder)
    for name, count in (("train", 16), ("dev", 12)):
        study.features[name] = study.features[name][:count]
        study.examples[name] = study.examples[name][:count]
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        return small_study(kn.QUICK, tmp_path_factory.mktemp("study"), patch)


@pytest.mark.parametrize("terms", [2, 4])
@pytest.mark.parametrize("preset", ["kngpt2", "kroneckerbert8"])
def test_sums_take_as_many_parameters_as_the_product(preset: str, terms: int) -> None:
    model = checkpoint.load(shipped.weights_folder("gpt2-tiny"))
    plan = kron.PRESETS[preset](model)
    made = sums(plan, terms)
    assert list(made) == list(plan) and sums(plan, 1) == plan
    for name, choice in made.items():
        assert choice.terms == terms and choice.dense == plan[name].dense
        assert choice.parameters == pytest.approx(plan[name].parameters, rel=0.07)
    assert made.parameters == pytest.approx(plan.parameters, rel=0.03)
    assert made["embedding"].shape[0] == 2048  # each token keeps a row of its own


def test_a_start_is_what_the_way_says() -> None:
    model = checkpoint.load(shipped.weights_folder("gpt2-tiny")).eval()
    name = "blocks.1.mlp.up"
    plan = KronPlan({name: Choice((512, 128), (256, 128))})
    seen: list[tuple[tuple[int, ...], int]] = []

    def zeros(w: Any, choice: Choice, number: int) -> kron.KronSum:
        seen.append((w.shape, number))
        return kron.KronSum(np.zeros((1, *choice.shape), np.float32), np.zeros((1, *choice.other), np.float32))

    student = started(model, plan, zeros)
    assert seen == [((512, 128), 0)] and not host(student.get(name).factors.dense()).any()
    assert host(model.get(name).weight).any() and not plan.fits


def test_a_truncated_student_has_the_blocks_it_is_given() -> None:
    model = checkpoint.load(shipped.weights_folder("gpt2-tiny"))
    student = truncate(model, [0, 3, 7])
    assert student.config.n_layer == 3 and len(truncate(model).blocks) == 4
    for own, block in enumerate((0, 3, 7)):
        np.testing.assert_array_equal(host(student.blocks[own].mlp.up.weight), host(model.blocks[block].mlp.up.weight))


def test_a_student_is_trained_once_and_an_interrupted_course_goes_on(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(study: Study, seed: int) -> Any:
        if len(made) == 1:
            made.append(-1)
            raise KeyboardInterrupt
        made.append(seed)
        return truncate(study.teacher, [0])

    student = Student("short", make, LABELS)
    with pytest.raises(KeyboardInterrupt):
        study.course(student, 0)
    course = study.course(student, 0)
    assert made == [0, -1, 0] and set(course) == {0, 1}  # the perplexity before training was known
    again = copy.copy(study)
    again.known = kron_students.read(study.folder / kron_students.COURSES)
    monkeypatch.setattr(kron_students, "fit", None)
    assert again.course(student, 0) == course and made == [0, -1, 0]
    with pytest.raises(TypeError):
        again.course(student, 1)


def test_the_seed_draws_the_text_that_is_measured(study: Study) -> None:
    values = {study.perplexity(study.teacher, seed) for seed in range(3)}
    assert len(values) == 3 and study.perplexity(study.teacher, 0) in values


def test_a_tuned_student_is_kept(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study.tuned("one", lambda: truncate(study.teacher, [0]), LABELS, 8, 0)
    monkeypatch.setattr(kron_students, "fit_task", None)
    again = study.tuned("one", lambda: pytest.fail("made again"), LABELS, 8, 0)
    np.testing.assert_array_equal(host(found.score.weight), host(again.score.weight))
    assert 0.0 <= study.score(found) <= 1.0 and len(found.blocks) == 1

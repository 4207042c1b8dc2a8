"""`finetune`, whole: what is tried, what is kept, what the card says; and what it does not overwrite or mix up."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tests.glue_files import write
from tests.helpers import host
from tests.tiny_tasks import QUICK, SST2, STSB, tiny_bert, write_sst2
from tests.tiny_training import interrupt
from tinykron import tasks
from tinykron.commands import cli
from tinykron.errors import CheckpointError, DataError, Interrupted, TinykronError
from tinykron.jobs import finetune
from tinykron.jobs.finetune import PRESETS, Run
from tinykron.tasks.glue import TASKS
from tinykron.tasks.tuning import FineTuning

SHORT = replace(QUICK, epochs=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a model and a task."""
    base = tmp_path_factory.mktemp("finetune")
    tk.save(tiny_bert(), base / "model", dtype="bfloat16")
    write_sst2(base / "task")
    return base


@pytest.fixture(scope="module")
def made(base):
    """What two learning rates with two seeds make."""
    return finetune.finetune(base / "model", SST2, base / "made", base / "task", SHORT, lrs=(1e-2, 1e-5), seeds=2)


# A whole run ----------------------------------------------------------------------------------------------------------


def test_every_learning_rate_is_tried_with_every_seed_and_the_best_is_saved(base, made):
    assert [(run.lr, run.seed) for run in made.runs] == [(1e-2, 0), (1e-2, 1), (1e-5, 0), (1e-5, 1)]
    assert all(run.epochs == 2 and run.best_epoch in (1, 2) for run in made.runs)
    assert made.chosen is finetune._chosen(made.runs)
    assert made.chosen.score >= 0.5 and made.chosen.lr == 1e-2
    model = tk.load(base / "made")
    assert model.config.extra["id2label"] == {"0": "0", "1": "1"} and model.config.head == "sequence"
    assert made.saved == tasks.evaluate(model, SST2, base / "task", QUICK.context)
    assert made.saved.score == pytest.approx(made.chosen.score, abs=0.1)  # it was rounded to bfloat16
    assert not (base / "made.training").exists()


def test_the_card_says_what_was_done(base, made):
    card = (base / "made" / "README.md").read_text()
    assert card.startswith("# made\n\nmodel, fine-tuned by tinykron on glue/sst2: 40 training examples, ")
    for line in (*finetune.summary(made.runs), *tasks.render(made.saved).splitlines()):
        assert f"- {line}\n" in card
    assert f"- kept: lr 0.01, seed {made.chosen.seed}, epoch {made.chosen.best_epoch} of 2" in card


def test_a_run_that_was_stopped_continues(base, made, monkeypatch):
    count = 0
    task_loss = finetune.task_loss

    def stopping(*arguments):
        loss = task_loss(*arguments)

        def counted(model, batch):
            nonlocal count
            count += 1
            if count == 13:  # in the second of four runs
                interrupt()
            return loss(model, batch)

        return counted

    monkeypatch.setattr(finetune, "task_loss", stopping)
    arguments = (base / "model", SST2, base / "again", base / "task", SHORT, (1e-2, 1e-5), 2)
    with pytest.raises(Interrupted):
        finetune.finetune(*arguments)
    assert not (base / "again").exists() and (base / "again.training").is_dir()
    found = finetune.finetune(*arguments)
    assert found.runs == made.runs and count == 13 + 40 - 13
    ours, theirs = tk.load(base / "again"), tk.load(base / "made")
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert np.array_equal(host(one), host(other)), name


def test_another_model_does_not_continue_a_run(base, monkeypatch):
    tk.save(tiny_bert(seed=5), base / "other")
    monkeypatch.setattr(finetune, "_card", lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(base / "model", SST2, base / "half", base / "task", replace(SHORT, epochs=1))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        finetune.finetune(base / "other", SST2, base / "half", base / "task", replace(SHORT, epochs=1))


def test_class_weights_change_the_run_and_are_off_by_default(base, tmp_path):
    assert not FineTuning().class_weights
    folder = write_sst2(tmp_path / "skewed")
    lines = (folder / "train.tsv").read_text().splitlines(keepends=True)
    (folder / "train.tsv").write_text("".join(lines[:1] + lines[1::2] + lines[2:8:2]))
    one_step = replace(SHORT, epochs=1, batch=64)
    models = []
    for weighted in (False, True):
        finetune.finetune(
            base / "model", SST2, tmp_path / str(weighted), folder, replace(one_step, class_weights=weighted)
        )
        models.append(tk.load(tmp_path / str(weighted)))
    assert any(
        not np.array_equal(host(one), host(other))
        for one, other in zip(*(model.parameters() for model in models), strict=True)
    )


def test_a_head_of_the_task_is_kept(base, made, tmp_path):
    still = replace(SHORT, epochs=1, lr=0.0)
    finetune.finetune(base / "made", SST2, tmp_path / "out", base / "task", still)
    ours, theirs = tk.load(tmp_path / "out"), tk.load(base / "made")
    assert np.array_equal(host(ours.head.linear.weight), host(theirs.head.linear.weight))


def test_what_cannot_be_run_is_refused_before_any_work(base, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="there: exists already; choose another folder"):
        finetune.finetune(base / "model", SST2, tmp_path / "there", base / "task", SHORT)
    with pytest.raises(TinykronError, match="seeds: found 0, expected at least 1"):
        finetune.finetune(base / "model", SST2, tmp_path / "x", base / "task", SHORT, seeds=0)
    with pytest.raises(DataError, match="expected train.tsv or sts-train.csv of glue/stsb"):
        finetune.finetune(base / "model", STSB, tmp_path / "x", tmp_path, SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# Choosing -------------------------------------------------------------------------------------------------------------


def run(lr: float, seed: int, score: float) -> Run:
    return Run(lr, seed, 3, 1, score, {"dev": {"accuracy": score}})


def test_the_learning_rate_with_the_best_mean_is_taken_and_its_best_seed():
    runs = [run(1.0, 0, 0.9), run(1.0, 1, 0.1), run(2.0, 0, 0.6), run(2.0, 1, 0.7)]
    assert finetune._chosen(runs) is runs[3]
    assert finetune._chosen([run(1.0, 0, float("nan")), *runs[:2]]) is not None
    undefined = [run(1.0, 0, float("nan")), run(2.0, 0, 0.1)]
    assert finetune._chosen(undefined) is undefined[1]


def test_the_summary_has_mean_and_deviation():
    lines = finetune.summary([run(1.0, 0, 0.9), run(1.0, 1, 0.7), run(5e-5, 0, 0.6)])
    assert lines == ["lr 1: 80.00 +- 14.14 over 2 seeds", "lr 5e-05: 60.00"]


def test_presets_are_the_papers():
    assert PRESETS["bert"].lrs == (5e-5, 3e-5, 2e-5) and PRESETS["kroneckerbert"].lrs == (5e-5, 1e-4, 5e-4)
    table = {
        ("kroneckerbert8", "glue/sst2"): (1e-4,),
        ("kroneckerbert8", "glue/cola"): (5e-5,),
        ("kroneckerbert8", "glue/rte"): (1e-5,),
        ("kroneckerbert21", "glue/mnli"): (5e-4,),
        ("kroneckerbert21", "glue/qqp"): (1e-4,),
        ("kroneckerbert21", "glue/rte"): (5e-5,),
    }
    assert {key: finetune.preset(key[0], TASKS[key[1]])[0] for key in table} == table
    epochs = {name: finetune.preset("kroneckerbert", TASKS[name])[1].epochs for name in ("glue/sst2", "glue/cola")}
    assert epochs == {"glue/sst2": 15, "glue/cola": 30}
    with pytest.raises(TinykronError, match="preset: found 'large', expected one of tiny, bert, "):
        finetune.preset("large", SST2)


# The command line -----------------------------------------------------------------------------------------------------


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verbs_finetune_evaluate_and_answer(base, capsys, tmp_path):
    given = ["--task", "glue/sst2", "--data", base / "task"]
    options = [
        "--preset",
        "tiny",
        "--lr",
        "1e-2",
        "1e-3",
        "--epochs",
        "1",
        "--batch",
        "8",
        "--seed",
        "3",
        "--seeds",
        "2",
    ]
    code, out, _ = call(capsys, "finetune", base / "model", *given, *options, "--out", tmp_path / "out", "--json")
    content = json.loads(out)
    assert code == 0 and [(found["lr"], found["seed"]) for found in content["runs"]] == [
        (1e-2, 3), (1e-2, 4), (1e-3, 3), (1e-3, 4),
    ]  # fmt: skip
    code, out, _ = call(capsys, "eval", tmp_path / "out", *given, "--json")
    assert code == 0 and json.loads(out)["sets"] == content["saved"]["sets"] == asdict_sets(tmp_path / "out", base)
    code, out, _ = call(capsys, "eval", tmp_path / "out", *given)
    assert code == 0 and out.startswith("glue/sst2 dev: accuracy ")
    code, out, _ = call(capsys, "eval", tmp_path / "out", *given, "--predict", tmp_path / "answers")
    assert code == 0 and out == f"{tmp_path / 'answers' / 'SST-2.tsv'}\n"
    assert (tmp_path / "answers" / "SST-2.tsv").read_text().startswith("index\tprediction\n0\t")


def asdict_sets(model: Path, base: Path) -> dict:
    return asdict(tasks.evaluate(tk.load(model), SST2, base / "task"))["sets"]


def test_a_metric_that_is_not_defined_is_null(base, capsys, tmp_path):
    head = tasks.fitted(tiny_bert(), STSB, np.random.default_rng(0))
    head.head.linear.weight.data *= 0.0  # all answers are alike
    tk.save(head, tmp_path / "constant")
    options = ["--task", "glue/stsb", "--data", write("glue/stsb", tmp_path / "stsb")]
    code, out, _ = call(capsys, "eval", tmp_path / "constant", *options, "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0 and found["sets"]["dev"] == {"pearson": None, "spearman": None} and found["score"] is None


BAD_INPUT = {
    "an unknown task": (["eval", "{base}/model", "--task", "glue/sst"], "similarity/sts, qa/closed-book"),
    "an unknown task to learn": (["finetune", "{base}/model", "--task", "glue", "--out", "{base}/x"], "lm/text, lm/w"),
    "a task without files": (["eval", "{base}/made", "--task", "glue/sst2"], "--data"),
    "a model without the head": (["eval", "{base}/model", "--task", "glue/sst2", "--data", "{base}/task"], "fine-tune"),
    "answers to no task": (["eval", "{base}/model", "--predict", "{base}/x"], "--predict: expected a --task"),
    "a stride for a task": (["eval", "{base}/made", "--task", "glue/sst2", "--stride", "3"], "--stride"),
    "an unknown preset": (["finetune", "{base}/model", "--preset", "huge", "--out", "{base}/x"], "preset"),
    "no epochs": (["finetune", "{base}/model", "--epochs", "0", "--out", "{base}/x"], "epochs"),
    "no data": (["finetune", "{base}/model", "--task", "glue/rte", "--out", "{base}/x"], "--data"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_line_and_exit_code_2(base, made, capsys, case):
    arguments, word = BAD_INPUT[case]
    code, out, err = call(capsys, *(argument.format(base=base) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("tinykron: ") and word in err and "Traceback" not in err
    assert not (base / "x").exists()

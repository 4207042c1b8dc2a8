"""`tinykron grid`: a grid that is trained, measured and saved; `generate --budget`; what both refuse."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import host
from tests.nested_models import nested
from tests.tiny_tasks import TOKENIZER, tiny_bert
from tests.tiny_teacher import make_teacher, write_text
from tinykron import data, kron
from tinykron.commands import cli
from tinykron.errors import CheckpointError, Interrupted, TinykronError
from tinykron.exits import pareto
from tinykron.exits.grid import GridLoss, Point, points
from tinykron.exits.pareto import elastic_front
from tinykron.jobs import sort_grid
from tinykron.jobs.sort_grid import Elastic, train_grid

SMALL = Elastic((1, 2), (1, 2), steps=4, batch=2, context=16, calibration=256, lr=1e-2)
GRID = [Point(1, 1), Point(1, 2), Point(2, 1), Point(2, 2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    make_teacher(folder / "dense", write_text(folder / "text.txt"), layers=2)
    return folder


@pytest.fixture(scope="module")
def made(base: Path) -> sort_grid.Trained:
    found = train_grid(base / "dense", base / "out", SMALL, base / "text.txt", say=lambda line: None)
    assert found is not None
    return found


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sort_grid, "plot", lambda *args: None)  # drawing takes longer than so little training


def test_the_folder_holds_one_model_and_what_its_points_do(base: Path, made: sort_grid.Trained) -> None:
    assert {path.name for path in (base / "out").iterdir()} == {
        "config.json",
        "elastic.json",
        "elastic.md",
        "elastic.png",
        "model.safetensors",
        "tokenizer.json",
    }
    assert not (base / "out.partial").exists()
    model = tk.load(base / "out")
    _, held_out = data.split(data.documents(base / "text.txt"))
    assert elastic_front(model, held_out, GRID, 2) == made.after == pareto.read(base / "out")
    assert made.dense is not None and made.dense.parameters == tk.load(base / "dense").parameter_count()
    told = (base / "out" / "elastic.md").read_text()
    assert "| 1 | 2 | 1 |" in told and f"{made.dense.loss:.3f}" in told and "Before training: exit 1, terms 1:" in told
    assert "before training: exit 1, terms 1:" in sort_grid.render(made)
    assert json.dumps(made.as_dict())


def test_training_helps_the_points(base: Path, made: sort_grid.Trained) -> None:
    before, after = (np.mean([one.loss for one in found.points]) for found in (made.before, made.after))
    assert after < before


def test_a_model_with_sums_is_taken_as_it_is(
    base: Path, made: sort_grid.Trained, tmp_path: Path, no_plot: None
) -> None:
    settings = Elastic((1,), (1,), draws=0, steps=1, batch=2, context=16)
    found = train_grid(base / "out", tmp_path / "again", settings, base / "text.txt", say=lambda line: None)
    assert found is not None and found.dense is None
    assert found.before == made.after
    assert kron.plan_of(tk.load(tmp_path / "again")).keys() == kron.plan_of(tk.load(base / "out")).keys()
    assert [one.point for one in found.after.points] == GRID  # with the full model


def test_another_teacher_may_teach(base: Path, made: sort_grid.Trained, tmp_path: Path, no_plot: None) -> None:
    runs = {}
    for name, teacher in (("own", None), ("dense", base / "dense")):
        settings = Elastic((1, 2), (1, 2), steps=2, batch=2, context=16, distil=1.0, lr=1e-2)
        train_grid(base / "out", tmp_path / name, settings, base / "text.txt", teacher, say=lambda line: None)
        runs[name] = host(tk.load(tmp_path / name)([[1, 2, 3]]).logits)
    assert np.abs(runs["own"] - runs["dense"]).max() > 1e-4


def test_a_masked_model_has_a_grid_too(base: Path, tmp_path: Path, no_plot: None) -> None:
    tk.save(tiny_bert(layers=2), tmp_path / "bert")
    settings = Elastic((1, 2), (1,), steps=2, batch=2, context=12, calibration=128, share=0.6)
    found = train_grid(tmp_path / "bert", tmp_path / "out", settings, base / "text.txt", say=lambda line: None)
    assert found is not None and [one.point for one in found.after.points] == [Point(1, 1), Point(2, 1)]


def test_ctrl_c_costs_nothing(
    base: Path, made: sort_grid.Trained, tmp_path: Path, monkeypatch: Any, no_plot: None
) -> None:
    original, calls = GridLoss.__call__, []

    def interrupted(self: GridLoss, *args: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == 6:  # in the second step, of four draws each
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **options)

    monkeypatch.setattr(GridLoss, "__call__", interrupted)
    lines: list[str] = []
    with pytest.raises(Interrupted):
        train_grid(base / "dense", tmp_path / "out", SMALL, base / "text.txt", say=lines.append)
    assert not (tmp_path / "out").exists() and len(calls) == 8
    found = train_grid(base / "dense", tmp_path / "out", SMALL, base / "text.txt", say=lines.append)
    assert found.after == made.after and len(calls) == 16


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terms", "share"), [(1, 0.5), (2, 0.5), (4, 0.5), (2, 0.3)])
def test_a_plan_keeps_to_its_share(base: Path, terms: int, share: float) -> None:
    model = tk.load(base / "dense")
    plan = sort_grid.nested_plan(model, terms, share)
    for name, choice in plan.items():
        assert name.startswith("blocks.") and choice.terms == terms
        assert choice.parameters <= share * 1.05 * choice.parameters_before
        assert choice.flops <= share * 1.05 * 2 * choice.parameters_before
    assert len(plan) == 12


def test_a_plan_leaves_room_for_widths(base: Path) -> None:
    plan = sort_grid.nested_plan(tk.load(base / "dense"), 2, 0.5, (0.125, 0.75))
    assert all(
        plan[f"blocks.{i}.mlp.up"].shape[0] % 8 == plan[f"blocks.{i}.mlp.down"].shape[1] % 8 == 0 for i in (0, 1)
    )
    with pytest.raises(TinykronError, match="rows of A|columns of A"):
        points(kron.factorise(tk.load(base / "dense"), plan), [1], [1], [0.3, 1.0])


def test_more_terms_than_fit_are_refused(base: Path) -> None:
    with pytest.raises(TinykronError, match="no matrix of the model has 500 terms in a share of 0.5; ask for fewer"):
        sort_grid.nested_plan(tk.load(base / "dense"), 500)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exits": (2, 1)}, "exits: expected .* each above the one before"),
        ({"ranks": (2, 2)}, "ranks: expected .* each above the one before"),
        ({"share": 0.0}, "share: found 0.0, expected a number above 0 and below 1"),
        ({"draws": -1}, "draws: found -1, expected a whole number"),
        ({"draws": True}, "draws: found True, expected a whole number"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TinykronError, match=message):
        Elastic(**({"exits": (1,), "ranks": (1,)} | settings))


def test_bad_input_is_refused_before_any_work(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TinykronError, match=r"exits: expected a number of blocks in 1\.\.2, found 3"):
        train_grid(base / "dense", tmp_path / "out", Elastic((1, 3), (1,)), base / "text.txt")
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        train_grid(base / "dense", tmp_path / "there", SMALL, base / "text.txt")
    make_teacher(tmp_path / "mute", base / "text.txt", layers=2, with_tokenizer=False)
    with pytest.raises(CheckpointError, match="expected a tokenizer.json"):
        train_grid(tmp_path / "mute", tmp_path / "out", SMALL, base / "text.txt")
    small = nested("bert")
    small.tokenizer = TOKENIZER
    tk.save(small, tmp_path / "small")
    with pytest.raises(TinykronError, match=r"ranks: expected numbers in 1\.\.4"):
        train_grid(tmp_path / "small", tmp_path / "out", Elastic((1,), (8,)), base / "text.txt")
    assert not (tmp_path / "out").exists()


# The command line -----------------------------------------------------------------------------------------------------


def test_the_verb(base: Path, tmp_path: Path, capsys: Any) -> None:
    sort = ["grid", str(base / "dense"), "--data", str(base / "text.txt"), "--exits", "1,2", "--batch", "2"]
    sort += ["--steps", "1", "--context", "16", "--draws", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*sort, "--ranks", "1,2", "--widths", ".5,1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["after"]["points"]) == 8 and told["settings"]["steps"] == 1
    assert cli.main([*sort, "--ranks", "1,2", "--widths", "half"]) == 2
    assert "--widths: expected shares such as .5,1, found 'half'" in capsys.readouterr().err
    assert tk.load(tmp_path / "out").exits == (1, 2)
    assert cli.main([*sort, "--ranks", "1", "--method", "plain"]) == 2
    assert "unrecognized arguments: --method plain" in capsys.readouterr().err
    assert cli.main([*sort, "--ranks", "1,x"]) == 2
    assert "--ranks: expected whole numbers such as 2,4,8, found '1,x'" in capsys.readouterr().err


def test_generate_within_a_budget(base: Path, made: sort_grid.Trained, capsys: Any) -> None:
    generate = ["generate", str(base / "out"), "--prompt", "the list", "--max-new-tokens", "4", "--json"]
    for cost in ("flops", "bytes"):
        assert cli.main([*generate, "--budget", "0.9", "--budget-of", cost]) == 0
        shown = capsys.readouterr()
        best = made.after.best(0.9, cost)
        assert str(best.point) in shown.err
        model = tk.load(base / "out")
        ids = model.tokenizer.encode("the list").ids
        part = kron.cut(model, *best.point)
        assert json.loads(shown.out)["ids"] == tk.generate(part, ids, 4)[0].tolist()
    assert cli.main([*generate, "--budget", "0.01"]) == 2
    assert "the smallest point, exit 1, terms 1, takes" in capsys.readouterr().err
    assert cli.main(["generate", str(base / "dense"), "--budget", "0.5"]) == 2
    assert "elastic.json: found nothing" in capsys.readouterr().err

"""`sort`, whole, on models of a few thousand parameters: what each method trains, what it leaves, what it saves."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import host
from tests.tiny_tasks import TOKENIZER, tiny_bert
from tests.tiny_teacher import make_teacher, write_text
from tests.tiny_training import interrupt
from tinykron import data, kron
from tinykron.commands import cli
from tinykron.commands import sort as commands_sort
from tinykron.decode import shortlist
from tinykron.errors import CheckpointError, DataError, Interrupted, TinykronError
from tinykron.exits import analysis
from tinykron.exits import losses as exits_losses
from tinykron.jobs import describe, sort, sort_data
from tinykron.jobs.sort import METHODS, Sorting
from tinykron.models.exit_parts import kind_of
from tinykron.train.loop import fit

SETTINGS = Sorting((1, 3), steps=6, batch=2, context=16, lr=3e-3)
IDS = np.random.default_rng(0).integers(0, 200, (2, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sort")
    make_teacher(base / "model", write_text(base / "text.txt"))
    return base


@pytest.fixture(scope="module")
def made(base: Path) -> dict[str, sort.Sorted]:
    """What each method makes of the same model."""

    def run(method: str) -> Any:
        return sort.sort(base / "model", base / method, replace(SETTINGS, method=method), base / "text.txt")

    return {method: run(method) for method in METHODS}


def state(model: Any, prefix: str = "") -> dict[str, np.ndarray]:
    return {name: host(array) for name, array in model.state_dict().items() if name.startswith(prefix)}


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(array, state(other)[name]) for name, array in state(one).items())


# What each method trains ----------------------------------------------------------------------------------------------


def test_every_method_saves_what_it_measured_and_nothing_else(base: Path, made: dict[str, sort.Sorted]) -> None:
    text = data.documents(base / "text.txt")
    tokens = data.encode(tk.load(base / "model").tokenizer, data.split(text)[1])
    for method, found in made.items():
        assert found.settings.exits == (1, 3, 4)  # all blocks are always among them
        assert not (base / f"{method}.training").exists()
        assert found.losses.keys() == {"before", method}
        for exit in (1, 3, 4):
            loaded = tk.load(base / method / f"exit-{exit}" if method == "extracted" else base / method)
            again = analysis.losses(loaded, tokens, 16, [exit])[exit]
            assert found.losses[method][exit] == pytest.approx(again, rel=1e-5)


def test_exits_are_better_after_sorting(made: dict[str, sort.Sorted]) -> None:
    before, after = (made["sorted"].losses[name] for name in ("before", "sorted"))
    assert all(after[exit] < before[exit] for exit in (1, 3, 4))


def test_the_folder_says_its_exits(base: Path, made: dict[str, sort.Sorted]) -> None:
    told = {method: tk.load(base / method) for method in METHODS if method != "extracted"}
    assert {method: (model.exits, kind_of(model)) for method, model in told.items()} == {
        "sorted": ((1, 3, 4), None),
        "plain": ((), None),
        "heads": ((1, 3, 4), "heads"),
        "balcony": ((1, 3, 4), "blocks"),
    }
    config = json.loads((base / "sorted" / "config.json").read_text())
    assert config["tinykron"] == {"exits": [1, 3, 4]}
    assert "exits after 1, 3, 4 blocks were trained" in describe.render(
        describe.describe(base / "sorted", told["sorted"])
    )
    assert "exits after" not in describe.render(describe.describe(base / "plain", told["plain"]))


def test_the_folder_says_which_tokens_were_frequent(base: Path, made: dict[str, sort.Sorted]) -> None:
    tokenizer = tk.load(base / "model").tokenizer
    ids = data.encode(tokenizer, data.split(data.documents(base / "text.txt"))[0])
    common = [token for token, _ in Counter(sorted(ids.tolist())).most_common()]
    for method in METHODS:
        if method == "extracted":
            assert not list((base / method).rglob(shortlist.FILE))
        else:
            assert shortlist.read(base / method).tolist() == common


def test_plain_is_what_fit_does_without_exits(base: Path, made: dict[str, sort.Sorted], tmp_path: Path) -> None:
    model = tk.load(base / "model").train()
    tokens = data.encode(model.tokenizer, data.split(data.documents(base / "text.txt"))[0])
    fit(model, tokens, SETTINGS.training)
    tk.save(model, tmp_path / "plain", "bfloat16")
    wanted, found = state(tk.load(tmp_path / "plain")), state(tk.load(base / "plain"))
    assert all(np.allclose(found[name], array, atol=1e-3, rtol=1e-2) for name, array in wanted.items())


def test_heads_leave_the_trunk_of_plain_fine_tuning(base: Path, made: dict[str, sort.Sorted]) -> None:
    plain, heads = tk.load(base / "plain"), tk.load(base / "heads")
    assert same(plain, heads)
    assert not any(np.array_equal(host(part.head.weight), host(plain.embedding.weight)) for part in heads.exit_parts)
    assert made["heads"].losses["heads"][4] == made["plain"].losses["plain"][4]
    assert all(made["heads"].losses["heads"][exit] < made["plain"].losses["plain"][exit] for exit in (1, 3))


def test_balcony_leaves_the_full_model_equal_to_the_bit(base: Path, made: dict[str, sort.Sorted]) -> None:
    start, balcony = tk.load(base / "model"), tk.load(base / "balcony")
    assert same(start, balcony)
    for options in ({}, {"exit": 2}):
        assert np.array_equal(host(start(IDS, **options).logits), host(balcony(IDS, **options).logits))
    part, other = balcony.exit_parts
    assert not same(part.block, start.blocks[-1])
    assert same(other.block, start.blocks[-1])  # after 3 of 4 blocks the copy of the last one has nothing to learn
    losses = made["balcony"].losses
    assert losses["balcony"][4] == losses["before"][4]


def test_extracted_is_training_the_cut_model(base: Path, made: dict[str, sort.Sorted], tmp_path: Path) -> None:
    model = kron.cut(tk.load(base / "model"), 3)
    tokens = data.encode(model.tokenizer, data.split(data.documents(base / "text.txt"))[0])
    fit(model, tokens, SETTINGS.training, distillation=exits_losses.SortedLoss(model, {3: 1.0}))
    tk.save(model, tmp_path / "cut", "bfloat16")
    assert same(tk.load(tmp_path / "cut"), tk.load(base / "extracted" / "exit-3"))
    assert len(tk.load(base / "extracted" / "exit-1").blocks) == 1


@pytest.mark.parametrize(
    "options",
    [{"loss": "sampled"}, {"loss": "sampled", "draws": 1}, {"loss": "depth", "distil": 1.0}, {"loss": "rotational"}],
)
def test_every_loss_trains(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = replace(SETTINGS, exits=(2, 4), steps=12, **options)
    found = sort.sort(base / "model", tmp_path / "out", settings, base / "text.txt")
    assert found is not None
    assert all(found.losses["sorted"][exit] < found.losses["before"][exit] for exit in (2, 4))


def test_a_bert_learns_hidden_tokens_at_every_exit(base: Path, tmp_path: Path) -> None:
    bert = tiny_bert(layers=2)
    bert.tokenizer = TOKENIZER
    tk.save(bert, tmp_path / "bert")
    settings = Sorting((1,), steps=10, batch=4, context=8, lr=1e-2)
    found = sort.sort(tmp_path / "bert", tmp_path / "out", settings, base / "text.txt", beside=["plain", "extracted"])
    assert found is not None and tk.load(tmp_path / "out").exits == (1, 2)
    assert found.losses["sorted"][1] < found.losses["before"][1]
    with pytest.raises(TinykronError, match="balcony: for decoders, found a Bert"):
        sort.sort(tmp_path / "bert", tmp_path / "no", replace(settings, method="balcony"), base / "text.txt")


def facts(folder: Path) -> dict[str, Path]:
    """Files of instructions and questions with as many entries as are needed to hold some out."""
    words = ["list", "items", "dict", "keys", "values", "tuples"]
    entries = [{"instruction": f"the {one} maps {n}", "output": f"the {one}"} for one in words for n in range(9)]
    asked = [{"Question": one["instruction"], "Answer": {"Value": one["output"]}} for one in entries]
    (folder / "alpaca.json").write_text(json.dumps(entries))
    (folder / "trivia.json").write_text(json.dumps({"Data": asked}))
    return {"instructions": folder / "alpaca.json", "questions": folder / "trivia.json"}


@pytest.mark.parametrize("kind", ["instructions", "questions"])
def test_answers_are_learned_at_every_exit(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    files = facts(tmp_path)
    text = write_text(tmp_path / "text.txt")
    text.write_text(text.read_text() + files["instructions"].read_text() * 3)
    make_teacher(tmp_path / "model", text)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    model = tk.load(tmp_path / "model")
    longer = type(model)(replace(model.config, n_positions=256), np.random.default_rng(0))
    longer.tokenizer = model.tokenizer
    tk.save(longer, tmp_path / "longer")
    settings = Sorting((2,), kind=kind, steps=20, batch=4, lr=5e-3)
    found = sort.sort(tmp_path / "longer", tmp_path / "out", settings, files[kind], ["extracted", "balcony"])
    assert found is not None and found.settings.context == 256 and config["n_positions"] == 32
    assert all(found.losses["sorted"][exit] < 0.9 * found.losses["before"][exit] for exit in (2, 4))
    assert "54 examples" not in found.trained_on and " examples" in found.trained_on  # some are held out
    rows = {"before", "sorted", "extracted", "balcony"}
    assert found.right.keys() == (rows if kind == "questions" else set())
    if kind == "questions":
        assert all(0.0 <= share <= 100.0 for row in found.right.values() for share in row.values())
        assert "exact match" in sort.render(found)
    assert "examples/s" in capsys.readouterr().err


def test_a_factorised_model_is_sorted_and_keeps_its_plan(base: Path, tmp_path: Path) -> None:
    model = tk.load(base / "model")
    plan = kron.kngpt2_plan(model)
    tk.save(kron.factorise(model, plan), tmp_path / "small")
    for method in ("sorted", "heads", "balcony"):
        out = tmp_path / method
        found = sort.sort(tmp_path / "small", out, replace(SETTINGS, method=method), base / "text.txt")
        assert found is not None and found.losses[method].keys() == {1, 3, 4}
        saved = tk.load(out)
        assert saved.exits == (1, 3, 4) and kron.plan_of(saved).keys() >= set(plan)
        assert set(json.loads((out / "config.json").read_text())["tinykron"]) >= {"kron", "exits"}


# Stopping, and bad input ----------------------------------------------------------------------------------------------


def test_an_interrupted_run_continues_to_the_same_bits(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    settings, passes = replace(SETTINGS, loss="sampled"), 0
    loss = exits_losses.SortedLoss._loss

    def stopping(self: Any, batch: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 3:
            interrupt()
        return loss(self, batch)

    monkeypatch.setattr(exits_losses.SortedLoss, "_loss", stopping)
    with pytest.raises(Interrupted):
        sort.sort(base / "model", tmp_path / "out", settings, base / "text.txt")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(exits_losses.SortedLoss, "_loss", loss)
    other = tk.load(base / "model")
    other.norm.weight.data[0] += 1.0
    tk.save(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        sort.sort(tmp_path / "other", tmp_path / "out", settings, base / "text.txt")
    sort.sort(base / "model", tmp_path / "out", settings, base / "text.txt")
    sort.sort(base / "model", tmp_path / "whole", settings, base / "text.txt")
    assert same(tk.load(tmp_path / "out"), tk.load(tmp_path / "whole"))


def test_the_command_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["--steps", "2", "--batch", "2", "--context", "16", "--data", str(base / "text.txt")]
    model, out = str(base / "model"), str(tmp_path / "out")
    assert cli.main(["sort", model, "--exits", "1,3", "--out", out, "--beside", "plain", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "before", "sorted", "plain", "saved:"]
    assert "| sorted |" in (tmp_path / "out" / "README.md").read_text()
    assert cli.main(["sort", model, "--exits", "2", "--out", str(tmp_path / "json"), "--json", *small]) == 0
    assert list(json.loads(capsys.readouterr().out)["losses"]["sorted"]) == ["2", "4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--exits", "2,x"], "--exits: expected whole numbers such as 2,4,8, found '2,x'"),
        (["--exits", "2,5"], "exits: expected rising numbers of blocks in 1..4, found (2, 5)"),
        (["--exits", "3,2"], "found (3, 2)"),
        (["--exits", "2,2"], "found (2, 2)"),
        (["--exits", "0"], "found (0,)"),
        ([], "expected --exits"),
        (["--config", "{base}/none.toml"], "none.toml: cannot be read"),
        (["--config", "{base}/text.txt"], "or a .toml file"),
        (["--config", "sorted-llama-13b"], "exits: expected rising numbers of blocks in 1..4, found (12, 16, "),
        (["--exits", "2", "--distil", "1.5"], "distil: found 1.5"),
        (["--exits", "2", "--distil", "0.5", "--method", "plain"], "distil: is for the method sorted, found plain"),
        (["--exits", "2", "--distil", "0.5", "--loss", "sampled"], "distil: an exit that is drawn alone"),
        (["--exits", "1,3", "--loss", "depth"], "leave none to an exit after 1 block"),
        (["--exits", "2", "--draws", "2"], "draws: found 2"),
        (["--exits", "2", "--scale", "0"], "scale: found 0"),
        (["--exits", "2", "--steps", "0"], "steps: found 0"),
        (["--exits", "2", "--beside", "plane"], "method: found 'plane', expected one of sorted, plain"),
        (["--exits", "4", "--method", "balcony"], "exits: expected one below the last"),
        (["--exits", "2", "--data", "{base}/short"], "short: found"),
        (["--exits", "2", "--data", "{base}/none.txt"], "none.txt: cannot be read"),
        (["--exits", "2", "--kind", "instructions"], "text.txt: not JSON"),
        (["--exits", "2", "--kind", "questions", "--data", "{base}/none.json"], "none.json: cannot be read"),
        (["--exits", "2", "--out", "{base}/model"], "exists already"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(base: Path, capsys: Any, arguments: list[str], says: str) -> None:
    (base / "short").mkdir(exist_ok=True)
    for name in "abcde":
        (base / "short" / f"{name}.txt").write_text("the list")
    arguments = ["--out", "{base}/no", "--data", "{base}/text.txt", *arguments]
    code = cli.main(["sort", str(base / "model"), *(one.format(base=base) for one in arguments)])
    error = capsys.readouterr().err.splitlines()
    assert code == 2 and error[-1].startswith("tinykron: ") and says in error[-1]
    assert not (base / "no").exists() and not (base / "no.training").exists()


SMALL = 'exits = [1, 3]\nsteps = 2\nbatch = 2\ncontext = 16\nlr = 1\nloss = "depth"\n'


def test_settings_are_read_from_a_file_and_the_command_line_goes_first(base: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(SMALL)
    assert Sorting.read(tmp_path / "own.toml") == Sorting((1, 3), loss="depth", steps=2, batch=2, context=16, lr=1.0)
    arguments = [
        "--config",
        str(tmp_path / "own.toml"),
        "--lr",
        "1e-3",
        "--exits",
        "2",
        "--data",
        str(base / "text.txt"),
    ]
    assert cli.main(["sort", str(base / "model"), "--out", str(tmp_path / "out"), *arguments]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "exits (2, 4)" in card and "loss depth" in card and "lr 0.001" in card and "steps 2" in card


def test_the_recipe_is_the_papers() -> None:
    found = Sorting.read("sorted-llama-13b")
    assert found.exits == tuple(range(12, 41, 4)) and (found.method, found.loss, found.distil) == (
        "sorted",
        "mean",
        0.0,
    )
    assert found.batch * found.accumulate == 32 and found.steps == 2 * 52_002 // 32
    assert Sorting.read("sorted-llama-13b", exits=(2,), steps=5).training.accumulate == 8


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("rate = 1", "own.toml: unknown rate; expected some of exits, method"),
        ("seed = 0.5", "own.toml: seed: found 0.5, expected a whole number"),
        ('distil = "x"', "own.toml: distil: found 'x', expected a number"),
        ("method = 3", "own.toml: method: found 3, expected a text"),
        ("draws = true", "own.toml: draws: found True, expected a whole number"),
    ],
)
def test_a_setting_that_is_off_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "own.toml").write_text(SMALL + line)
    with pytest.raises(TinykronError) as error:
        Sorting.read(tmp_path / "own.toml")
    assert says in str(error.value)
    (tmp_path / "own.toml").write_text("steps = 2")
    with pytest.raises(TinykronError, match=r"own.toml: expected exits, such as"):
        Sorting.read(tmp_path / "own.toml")


def test_models_that_cannot_be_sorted_are_refused(base: Path, made: Any, tmp_path: Path) -> None:
    with pytest.raises(TinykronError, match="parts of their own"):
        sort.sort(base / "heads", tmp_path / "no", SETTINGS, base / "text.txt")
    model = tk.load(base / "model")
    model.tokenizer = None
    tk.save(model, tmp_path / "mute")
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        sort.sort(tmp_path / "mute", tmp_path / "no", SETTINGS, base / "text.txt")
    tk.save(tiny_bert(head="sequence"), tmp_path / "classes")
    with pytest.raises(TinykronError, match="no head that predicts tokens"):
        sort.sort(tmp_path / "classes", tmp_path / "no", Sorting((1,)), base / "text.txt")


def test_a_text_of_one_document_cannot_be_held_out(base: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("the list holds items")
    with pytest.raises(DataError, match="give more text"):
        sort.sort(base / "model", tmp_path / "no", SETTINGS, tmp_path / "one.txt")


def test_the_command_line_offers_what_there_is():
    """It names the choices itself, so that `tinykron --help` need not import what trains."""
    offered = commands_sort.METHODS, commands_sort.LOSSES, commands_sort.KINDS
    assert offered == tuple(map(tuple, (METHODS, sort.LOSSES, sort_data.KINDS)))

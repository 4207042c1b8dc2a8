"""The benchmark of exits: it refuses drafts that change a text, fills its tables, and recommends what pays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import axis

import tinykron as tk
from tests.decoders import deep
from tests.exits.test_thresholds import lists
from tests.tiny_teacher import make_teacher, write_text
from tinykron.bench import exits as module
from tinykron.bench.engine import Spread
from tinykron.bench.exits import Drafts, Early, Turns, bench_exits, check_same
from tinykron.bench.exits_report import as_dict, plot, recommendation, render, write
from tinykron.commands import cli
from tinykron.data.tokens import windows
from tinykron.decode import shortlist
from tinykron.decode.speed import Costs, predicted_speedup
from tinykron.errors import TinykronError
from tinykron.exits import analysis
from tinykron.exits.thresholds import promise_folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    base = tmp_path_factory.mktemp("exits")
    text = write_text(base / "text.txt", lines=100)
    return text, make_teacher(base / "model", text)


@pytest.fixture(scope="module")
def report(places):
    text, folder = places
    return bench_exits(folder, (1, 3), (1, 2), text, prompts=2, new=8, threads=1, repeats=2)


def test_every_exit_and_length_is_measured(report):
    assert [(row.exit, row.length) for row in report.drafts] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    for row in report.drafts:
        assert 0 <= row.acceptance <= 1
        assert row.predicted == predicted_speedup(row.exit, 4, row.length, row.acceptance)
        assert 0 < row.speedup.least <= row.speedup.median <= row.speedup.most
    assert [row.name for row in report.early[:2]] == ["exit 1", "exit 3"]
    assert [row.depth for row in report.early[:2]] == [1.0, 3.0]
    assert len(report.early) == 2 + len(module.LEVELS)
    assert report.costs.block.keys() == report.costs.head.keys() == {1, 2, 3}
    assert report.ms > 0 and not report.interrupted


def test_a_folders_own_exits_and_thresholds_are_measured(places, tmp_path):
    text, folder = places
    chosen = shutil.copytree(folder, tmp_path / "model")
    options = {"lengths": (1,), "source": text, "prompts": 1, "new": 2, "threads": 1, "repeats": 1}
    assert sorted({row.exit for row in bench_exits(chosen, **options).drafts}) == [1, 2, 3]
    lists(chosen, [2, 4])
    promise_folder(chosen, ["the list"] * 8, 0.4, 0.1, tokens=2, levels=(0.9,))
    found = bench_exits(chosen, **options)
    assert [row.exit for row in found.drafts] == [2]
    assert found.early[-1].name == "the folder's thresholds" and found.early[-1].depth <= 4.0


def test_drafts_of_frequent_tokens_are_measured_beside_those_of_all(places, tmp_path):
    text, folder = places
    chosen = shutil.copytree(folder, tmp_path / "model")
    options = {"lengths": (1,), "source": text, "prompts": 1, "new": 4, "threads": 1, "repeats": 1}
    with pytest.raises(TinykronError, match="has no frequent_tokens.json"):
        bench_exits(chosen, (1,), shortlists=(4,), **options)
    shortlist.write(np.arange(100), chosen)
    with pytest.raises(TinykronError, match="shortlist"):
        bench_exits(chosen, (1,), shortlists=(0,), **options)
    vocabulary = tk.load(chosen).config.vocab_size
    assert [row.listed for row in bench_exits(chosen, (1,), **options).drafts] == [None, vocabulary // 16]
    assert [row.listed for row in bench_exits(chosen, (1,), shortlists=(), **options).drafts] == [None]
    found = bench_exits(chosen, (1, 3), shortlists=(4, 200), **options)
    assert [(row.exit, row.listed) for row in found.drafts] == [(e, n) for e in (1, 3) for n in (None, 4, 100)]
    assert found.costs.listed.keys() == {4, 100} and min(found.costs.listed.values()) > 0
    assert "1, 100 tokens" in drawn_labels(found, tmp_path / "map.png")
    assert " 100 " in render(found)


def drawn_labels(report, path) -> list[str]:
    """Draw the heat map, and return the labels of its rows."""
    labels: list[str] = []
    real = axis.Axis.set_ticklabels

    def noted(self, names, **options):
        labels.extend(map(str, names))
        return real(self, names, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(axis.Axis, "set_ticklabels", noted)
        plot(report, path)
    return labels


def test_losses_are_those_of_the_exits():
    model = deep("gpt2", 0)
    tokens = np.random.default_rng(0).integers(0, 40, 70)
    expected = analysis.losses(model, tokens, 32, (1, 4))
    for exit, thresholds in ((1, {1: 0.0}), (4, {})):
        assert module._loss(model, windows(tokens, 32), thresholds) == pytest.approx(expected[exit], rel=1e-5)


def test_costs_of_blocks_alone_are_the_prediction():
    """Heads that cost nothing, and rows that go through together as fast as one."""
    costs = Costs(dict.fromkeys((1, 4), 0.7), dict.fromkeys((1, 4), 0.0))
    assert costs.speedup(2, 8, 3, 0.6) == pytest.approx(predicted_speedup(2, 8, 3, 0.6))
    dear = Costs(costs.block, dict.fromkeys((1, 4), 0.7))  # a head is a block that every draft needs
    assert dear.speedup(2, 8, 3, 0.6) == pytest.approx(9 * (1 + 0.6 + 0.36 + 0.216) / (4 * 3 + 6))
    short = replace(dear, listed={50: 0.07})  # a tenth of a block
    assert short.speedup(2, 8, 3, 0.6, 50) == pytest.approx(9 * (1 + 0.6 + 0.36 + 0.216) / (4 * 3 + 6 - 2.7))


def test_drafts_that_change_a_text_are_not_timed(monkeypatch):
    model = deep("gpt2", 1)
    turns = Turns(model, [[1, 2, 3]], 8, 1)
    check_same(turns.write({"draft": 2})[1], turns.texts, "drafts")
    monkeypatch.setattr("tinykron.decode.speculate.acceptance", lambda p, q: 1)  # a check that checks nothing
    with pytest.raises(TinykronError, match=r"exit 1 drafts 3 tokens: token \d+ of prompt 0 is \d+, expected \d+"):
        module._drafts(turns, Costs({}, {}), 1, 3)
    assert not turns.plain_times


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": (3, 1)}, "exits: expected them from shallow to deep"),
        ({"exits": (1, 4)}, r"exits: .*1\.\.3, found 4"),
        ({"exits": (1, 1)}, "each named once"),
        ({"exits": (0,)}, r"1\.\.3, found 0"),
        ({"lengths": (2, 1)}, r"draft lengths: .*1\.\.7, rising, found \(2, 1\)"),
        ({"lengths": (8,)}, "draft lengths"),
        ({"lengths": ()}, "draft lengths"),
        ({"new": 1}, "new tokens: found 1, expected 2 to 20"),
        ({"new": 21}, "a context of 32"),
        ({"prompts": 0}, "prompts"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_bad_arguments_are_refused(places, options, message):
    text, folder = places
    with pytest.raises(TinykronError, match=message):
        bench_exits(folder, **{"source": text, "new": 8} | options)


def test_ctrl_c_keeps_what_was_measured(places, monkeypatch):
    text, folder = places
    real = module._drafts

    def interrupted(turns, costs, exit, length, tokens):
        if exit == 3:
            raise KeyboardInterrupt
        return real(turns, costs, exit, length, tokens)

    monkeypatch.setattr(module, "_drafts", interrupted)
    found = bench_exits(folder, (1, 3), (1,), text, prompts=1, new=4, threads=1, repeats=1)
    assert found.interrupted and len(found.drafts) == 1 and found.notes == ["interrupted after 1 of 8 ways to decode"]
    assert found.notes[0] in render(found)


# What is shown --------------------------------------------------------------------------------------------------------


def drafts(speed: float, least: float = 2.0, costed: float = 1.2) -> Drafts:
    return Drafts(2, 1, None, 0.5, 1.1, costed, Spread(speed, min(speed, least), speed), Spread(1, 1, 1), 0.1, 0.3, 0.2)


def early(speed: float, change: float) -> Early:
    return Early("exit 2", Spread(speed, speed, speed), Spread(1, 1, 1), 2.0, 3.0, change)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (drafts(1.3), "Speculate by exit 2 with 1 draft a round: 1.30 times as fast, the same text."),
        (
            replace(drafts(1.3), listed=2000),
            "Speculate by exit 2 with 1 draft a round, of the 2,000 most frequent tokens",
        ),
        (drafts(0.8), "Do not speculate: at best, by exit 2"),
        (drafts(1.3, least=0.9), "Do not speculate: not in every turn, or against all costs"),
        (drafts(1.3, costed=0.9), "Do not speculate: not in every turn"),
        (early(1.5, 0.015), "Leave early, exit 2: 1.50 times as fast, loss +1.5%."),
        (early(1.5, 0.03), "Do not leave early"),
        (early(0.9, 0.0), "Do not leave early"),
    ],
)
def test_what_pays_is_recommended(report, row, words):
    kind = {"drafts": [row], "early": []} if isinstance(row, Drafts) else {"drafts": [], "early": [row]}
    assert recommendation(replace(report, **kind)).startswith(words)


def test_the_fastest_of_what_pays_is_recommended(report):
    rows = [drafts(1.2), replace(drafts(1.4), exit=3), replace(drafts(1.6, least=0.5), exit=1)]
    assert "exit 3" in recommendation(replace(report, drafts=rows))


def test_the_tables_hold_every_row(report):
    text = render(report)
    assert all(row.name in text for row in report.early)
    assert recommendation(report) in text and report.machine["cpu"] in text
    shown = render(replace(report, drafts=[drafts(1.3)]))
    assert "1.30 (1.30 - 1.30)" in shown and "rows" in shown.split("1.30 (1.30 - 1.30)")[1].splitlines()[0]


def test_a_folder_is_written(report, tmp_path):
    write(report, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"bench-exits.{kind}" for kind in ("txt", "json", "png")
    }
    found = json.loads((tmp_path / "out" / "bench-exits.json").read_text())
    assert found == json.loads(json.dumps(as_dict(report)))
    assert (tmp_path / "out" / "bench-exits.png").read_bytes().startswith(b"\x89PNG")
    write(replace(report, drafts=[]), tmp_path / "none")
    assert not (tmp_path / "none" / "bench-exits.png").exists()


def test_the_plot_takes_rows_that_are_missing(report, tmp_path):
    for name, rows in {"part": report.drafts[:3], "slow": [drafts(0.5)]}.items():
        plot(replace(report, drafts=rows), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_and_writes(places, tmp_path, capsys):
    text, folder = places
    options = ["--exits", "1", "--drafts", "1", "--data", str(text), "--threads", "1", "--repeats", "1"]
    assert cli.main(["bench", "exits", str(folder), *options, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["exit"] for row in found["drafts"]] == [1] and found["recommendation"]
    assert cli.main(["bench", "exits", str(folder), "--exits", "1,x"]) == 2
    assert "--exits: expected whole numbers" in capsys.readouterr().err
    assert cli.main(["bench", "exits", str(folder), "--exits", "3,1", "--data", str(text)]) == 2
    assert "from shallow to deep" in capsys.readouterr().err

"""Decoding on the command line: exits, thresholds, drafts, and what bad input gets."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import tinykron as tk
from tests.commands.test_cli import call
from tests.exits.test_thresholds import lists, prompts
from tests.exits.test_thresholds import teacher as teacher  # a fixture
from tinykron.bench import exits as bench_exits
from tinykron.commands import generate
from tinykron.data.shipped import shipped_folder
from tinykron.decode import shortlist, speed
from tinykron.decode.generate import Trace
from tinykron.errors import TinykronError
from tinykron.exits import thresholds

TEXT = ["--prompt", "the list", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def sorted_folder(teacher):
    thresholds.promise_folder(teacher, prompts(60), 0.3, 0.1, tokens=2)
    return teacher


def written(capsys, folder, *options) -> dict:
    code, out, err = call(capsys, "generate", folder, *TEXT, "--json", *options)
    assert code == 0, err
    return json.loads(out)


def expected(folder, **options) -> list[int]:
    model = tk.load(folder)
    return tk.generate(model, model.tokenizer.encode("the list").ids, 8, **options)[0].tolist()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ([], {}),
        (["--exit", "2"], {"exit": 2}),
        (["--threshold", "0.3"], {"confidence": {1: 0.3, 2: 0.3}}),
        (["--threshold", "2:.2", "--missing", "copy"], {"confidence": {2: 0.2}, "skipped": "copy"}),
        (["--exit", "2", "--threshold", "1:0.3"], {"exit": 2, "confidence": {1: 0.3}}),
        (["--speculate", "1:3", "--temperature", "1"], {"draft": 1, "draft_length": 3, "temperature": 1.0}),
        (["--speculate", "2"], {"draft": 2}),
    ],
)
def test_options_are_those_of_generate(capsys, sorted_folder, options, rule):
    found = written(capsys, sorted_folder, *options)
    assert found["ids"] == expected(sorted_folder, **rule)
    assert found["tokens_per_second"] > 0
    assert sum(found["exits"].values()) == pytest.approx(1.0)
    assert ("drafts" in found) == ("draft" in rule)


def test_confident_leaves_by_the_folders_thresholds(capsys, sorted_folder):
    promise = thresholds.read(sorted_folder)
    found = written(capsys, sorted_folder, "--confident")
    assert found["ids"] == expected(sorted_folder, confidence=promise.thresholds)
    assert set(found["exits"]) <= {"1", "2", "4"}
    _, _, err = call(capsys, "generate", sorted_folder, *TEXT, "--confident")
    assert "warning: the folder's promise is for greedy texts of at most 2 tokens" in err
    short = ["--prompt", "the list", "--max-new-tokens", "2", "--confident"]
    assert "warning" not in call(capsys, "generate", sorted_folder, *short)[2]
    assert "warning" in call(capsys, "generate", sorted_folder, *short, "--temperature", "1")[2]
    code, _, err = call(capsys, "generate", sorted_folder, *TEXT, "--confident", "--missing", "copy")
    assert code == 2 and "the folder's promise is for recompute, found copy" in err


def test_drafts_of_any_kind_write_the_plain_text(capsys, sorted_folder):
    plain = written(capsys, sorted_folder)["ids"]
    other = [["--draft", f"{sorted_folder}{length}"] for length in ("", ":2", ":auto")]
    early = [["--speculate", "3:2", "--threshold", "1:.3,2:.2"], ["--draft", str(sorted_folder), "--threshold", ".2"]]
    for options in (["--speculate", "1:2"], ["--speculate", "auto"], ["--speculate", "1:auto"], *early, *other):
        found = written(capsys, sorted_folder, *options)
        assert found["ids"] == plain
    assert found["acceptance"] == 1.0  # the model drafts for itself


def test_drafts_know_frequent_tokens_alone(capsys, sorted_folder, tmp_path):
    plain = written(capsys, sorted_folder)["ids"]
    folder = shutil.copytree(sorted_folder, tmp_path / "model")
    code, _, err = call(capsys, "generate", folder, *TEXT, "--speculate", "2:2", "--shortlist", "9")
    assert code == 2 and "has no frequent_tokens.json" in err
    said = sorted(set(plain[-8:]))
    never = [token for token in range(200) if token not in said]
    shortlist.write(np.array(never[:9] + said), folder)
    for options in (["--speculate", "2:2"], ["--speculate", "auto"], ["--draft", str(folder)]):
        for count in (9, 9 + len(said)):
            found = written(capsys, folder, *options, "--shortlist", str(count))
            assert found["ids"] == plain
            assert "drafts" not in found or (found["drafts"]["accepted"] > 0) == (count > 9)
    code, _, err = call(capsys, "generate", folder, *TEXT, "--shortlist", "9")
    assert code == 2 and "expected --speculate or --draft" in err
    code, _, err = call(capsys, "generate", folder, *TEXT, "--shortlist", "0", "--speculate", "2")
    assert code == 2 and "--shortlist: found 0, expected a whole number from 1 on" in err


def test_auto_takes_the_exit_that_says_what_the_model_says(capsys, sorted_folder, tmp_path, monkeypatch):
    model = tk.load(sorted_folder)
    for block in model.blocks[1:]:
        for linear in (block.attention.output, block.mlp.down):
            linear.weight.data[:] = 0.0
            linear.bias.data[:] = 0.0
    tk.save(model, tmp_path / "easy")
    costs = speed.Costs(dict.fromkeys(range(1, 9), 1.0), dict.fromkeys(range(1, 9), 0.0))
    monkeypatch.setattr(speed, "costs_of", lambda model, rows, lists: costs)
    _, _, err = call(capsys, "generate", tmp_path / "easy", *TEXT, "--speculate", "auto")
    assert "speculate: exit 1, 6 drafts: predicted 2.80 times as fast" in err  # 4 * 7 / (7 + 3)
    assert "accepted, each with probability 1.00" in err


def test_auto_drafts_nothing_where_nothing_helps(capsys, monkeypatch, sorted_folder):
    monkeypatch.setattr("tinykron.decode.speed.fastest_draft", lambda *predictions: None)
    code, out, err = call(capsys, "generate", sorted_folder, *TEXT, "--speculate", "auto", "--json")
    assert code == 0 and "no exit is predicted to help" in err
    assert "drafts" not in json.loads(out)


def test_the_bench_takes_numbers_of_prompts_and_shortlists(capsys, sorted_folder, tmp_path, monkeypatch):
    asked = {}

    def measure(folder, exits, lengths, source, prompts, **options):
        asked.update(options, exits=exits, prompts=prompts)
        raise TinykronError("enough")

    monkeypatch.setattr(bench_exits, "bench_exits", measure)
    code, _, err = call(capsys, "bench", "exits", sorted_folder, "--prompts", "24", "--shortlist", "9,20")
    assert code == 2 and "enough" in err
    assert asked["prompts"] == 24 and list(asked["shortlists"]) == [9, 20]
    call(capsys, "bench", "exits", sorted_folder)
    assert asked["prompts"] == 4 and asked["shortlists"] is None


def test_what_happened_is_said(capsys, sorted_folder):
    _, out, err = call(capsys, "generate", sorted_folder, *TEXT, "--speculate", "1:2")
    assert out.startswith("the list") and "tokens/s; 4 blocks 100%" in err and "drafts accepted" in err
    _, _, err = call(capsys, "generate", sorted_folder, *TEXT, "--speculate", "3:3", "--threshold", "1:0")
    assert re.search(r"; drafted (\d+) by 1 blocks$", err, re.MULTILINE)
    _, _, err = call(capsys, "generate", sorted_folder, *TEXT, "--exit", "2")
    assert "2 blocks 100%" in err and "warning" not in err


def test_the_report_counts_each_depth():
    trace = Trace(depths=np.array([[2, 4, 2, 0], [2, 2, 2, 4]]))
    found = generate.account(trace, 2.0)
    assert found == {"seconds": 2.0, "tokens_per_second": 3.5, "exits": {2: 5 / 7, 4: 2 / 7}}
    trace = Trace(rounds=1, drafted=np.array([0]), accepted=np.array([0]), refused=np.array([0]))
    assert generate.account(trace, 1.0)["acceptance"] is None  # JSON has no NaN


def test_exits_that_were_not_trained_are_warned_of(capsys, sorted_folder):
    for options, exits in ((["--exit", "3"], "exit 3 was"), (["--threshold", "1:.5,3:.5"], "exit 3 was")):
        code, _, err = call(capsys, "generate", sorted_folder, *TEXT, *options)
        assert (
            code == 0 and f"tinykron: warning: {sorted_folder}: {exits} not trained: config.json lists 1, 2, 4" in err
        )
    _, _, err = call(capsys, "generate", sorted_folder, *TEXT, "--speculate", "3:2")
    assert "warning" not in err  # a draft cannot change the text


BAD = {
    "an exit that is not there": (["--exit", "5"], "1..4, found 5"),
    "thresholds that fall": (["--threshold", "2:.5,1:.5"], "from shallow to deep"),
    "an exit twice": (["--threshold", "2:.5,2:.6"], "each once"),
    "a threshold that is no number": (["--threshold", "high"], "found 'high'"),
    "a threshold above 1": (["--threshold", "1.5"], "[0, 1]"),
    "a threshold of the last": (["--threshold", "4:.5"], "1..3, found 4"),
    "two rules": (["--threshold", ".5", "--confident"], "--confident and --threshold"),
    "a promise for drafts": (["--speculate", "2", "--confident"], "--threshold says where drafts leave"),
    "missing keys of drafts": (["--speculate", "2", "--missing", "copy"], "for texts without a draft"),
    "a draft that leaves at its end": (["--speculate", "2:2", "--threshold", "2:.5"], "1..1, found 2"),
    "a draft below all exits": (["--speculate", "1:2", "--threshold", ".5"], "no trained exits below 1"),
    "two drafts": (["--speculate", "2", "--draft", "x"], "--speculate and --draft"),
    "a rule without exits": (["--missing", "copy"], "--missing"),
    "a draft of all blocks": (["--speculate", "4:2"], "1..3, found 4"),
    "no draft": (["--speculate", "1:0"], "draft_length"),
    "drafts that are no number": (["--speculate", "1:x"], "behind the colon"),
    "an exit that is no number": (["--speculate", "x"], "EXIT:DRAFTS or auto"),
    "auto with an exit": (["--speculate", "auto", "--exit", "2"], "say EXIT:DRAFTS"),
    "a draft that is not there": (["--draft", "nowhere"], "nowhere"),
    "a draft of another vocabulary": (["--draft", str(shipped_folder("weights") / "gpt2-tiny")], "another vocabulary"),
    "a draft that writes nothing": (["--draft", str(shipped_folder("weights") / "bert-tiny")], "vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(capsys, sorted_folder, case):
    options, word = BAD[case]
    code, out, err = call(capsys, "generate", sorted_folder, *TEXT, *options)
    assert code == 2 and out == ""
    assert err.splitlines()[-1].startswith("tinykron: ") and word in err and "Traceback" not in err


def test_a_folder_without_exits_says_so(capsys, sorted_folder, tmp_path):
    tk.save(tk.load(sorted_folder), tmp_path / "plain")
    lists(tmp_path / "plain", None)
    for options, word in (
        (["--confident"], "has no exits.json"),
        (["--threshold", ".5"], "lists no trained exits below 4"),
    ):
        code, _, err = call(capsys, "generate", tmp_path / "plain", *TEXT, *options)
        assert code == 2 and word in err


# promise --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(prompts(60)))
    return tmp_path / "prompts.txt"


def test_calibrating_prints_what_was_tested_and_the_promise(capsys, sorted_folder, prompt_file):
    options = ["--delta", ".3", "--prompts", prompt_file, "--exits", "2"]
    greedy = ["--epsilon", ".1", "--tokens", "2"]
    code, out, _ = call(capsys, "promise", sorted_folder, *options, *greedy)
    assert code == 0 and "of 60 fail, p " in out and "written: " in out and "at most a share of 0.3" in out
    code, out, _ = call(capsys, "promise", sorted_folder, *options, *greedy, "--json")
    found = json.loads(out)
    assert code == 0 and list(found["promise"]["thresholds"]) == ["2"] and found["tested"][0]["failures"] >= 0
    code, out, _ = call(capsys, "promise", sorted_folder, *options, "--loss", ".5")
    assert code == 0 and "prompt's own loss is more than 0.5 nats" in out


def test_what_cannot_be_promised_is_said(capsys, monkeypatch, sorted_folder, prompt_file):
    monkeypatch.setattr(
        thresholds.promise_folder, "__defaults__", (*thresholds.promise_folder.__defaults__[:-1], (0.0,))
    )
    code, out, _ = call(capsys, "promise", sorted_folder, "--tokens", "8", "--prompts", prompt_file)
    assert code == 1 and "no threshold can be promised" in out


def test_ctrl_c_leaves_the_folder_as_it_is(capsys, monkeypatch, sorted_folder, prompt_file):
    before = (sorted_folder / "exits.json").read_text()

    def interrupted(thresholds):
        raise KeyboardInterrupt

    monkeypatch.setattr(thresholds, "changes", lambda *model, **options: interrupted)
    code, _, err = call(capsys, "promise", sorted_folder, "--tokens", "8", "--prompts", prompt_file)
    assert code == 130 and "interrupted" in err
    assert (sorted_folder / "exits.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "required: --prompts"),
        (["--gamma", "1", "--prompts", "{file}"], "unrecognized arguments: --gamma 1"),
        (["--delta", "small", "--prompts", "{file}"], "--delta: found 'small', expected a number above 0 and below 1"),
        (["--delta", ".01", "--prompts", "{file}"], "60 prompts prove nothing, whatever they give; at least 29"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--prompts", "{file}", "--exits", "2,1"], "from shallow to deep"),
        (["--prompts", "{file}", "--exits", "2;3"], "--exits"),
        (["--missing", "guess", "--prompts", "{file}"], "'guess'"),
    ],
)
def test_bad_input_to_calibrating_gets_one_line(capsys, sorted_folder, prompt_file, options, word):
    code, _, err = call(capsys, "promise", sorted_folder, *(option.format(file=prompt_file) for option in options))
    assert code == 2 and err.splitlines()[-1].startswith("tinykron: ") and word in err


def test_the_lists_of_exits_are_checked_before_anything_runs(capsys, sorted_folder, prompt_file, tmp_path):
    tk.save(tk.load(sorted_folder), tmp_path / "plain")
    lists(tmp_path / "plain", "2,4")
    code, _, err = call(capsys, "promise", tmp_path / "plain", "--prompts", prompt_file)
    assert code == 2 and "config.json: " in err and "exits: expected " in err

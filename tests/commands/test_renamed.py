"""Old spellings stand for the new verbs, with a line that says so."""

from __future__ import annotations

import importlib

import pytest

from tinykron.commands import info
from tinykron.commands.cli import FILES, VERBS, main
from tinykron.commands.renamed import translated


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sort M --exits 2,4 --out D", ["sort M --exits 2,4 --out D"]),
        ("sort M --ranks 1,2 --exits 2,4 --out D", ["grid M --ranks 1,2 --exits 2,4 --out D"]),
        ("sort M --ranks=1,2 --exits 2", ["grid M --ranks=1,2 --exits 2"]),
        ("sort M --calibrate --prompts F", ["promise M --prompts F"]),
        (
            "sort M --calibrate delta=.1 tokens=2 --prompts F --exits 2",
            ["promise M --exits 2 --delta .1 --tokens 2 --prompts F"],
        ),
        (
            "sort M --prompts F --exits 2 --out D --calibrate missing=copy --json",
            ["sort M --exits 2 --out D --json", "promise D --missing copy --prompts F --json"],
        ),
        (
            "sort M --ranks 1 --exits 2 --out D --calibrate --prompts F",
            ["grid M --ranks 1 --exits 2 --out D", "promise D --prompts F"],
        ),
        ("generate M --prompt --calibrate", ["generate M --prompt --calibrate"]),
        ("", [""]),
    ],
)
def test_an_old_spelling_is_translated(capsys, old, new):
    assert [" ".join(words) for words in translated(old.split())] == new
    said = capsys.readouterr().err
    assert ("is called `grid` now" in said) == ("--ranks" in old)
    assert ("is called `promise` now" in said) == (old.startswith("sort") and "--calibrate" in old)


def test_a_promise_that_is_not_kept_ends_the_line(capsys, tmp_path):
    assert main(["sort", str(tmp_path / "nowhere"), "--exits", "2", "--out", "D", "--calibrate", "--prompts", "F"]) == 2
    assert capsys.readouterr().err.count("nowhere") == 1  # what would come after it was not run


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_a_file_that_is_read_when_it_is_asked_for(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "--json" in said
    assert importlib.import_module(f"tinykron.commands.{FILES.get(verb, verb)}").options.__doc__.startswith("Add what")
    for line in said.splitlines():
        assert len(line) <= 100


@pytest.mark.parametrize(
    "line",
    [
        "info --seed -1", "info --seed 1.5", "info --seed 1e400", "info --ratio nan", "info --ratio inf",
        "train --seed x --out D", "compress --params nan --out D", "compress --bytes -5 --out D",
        "compress --tokens 0 --out D", "eval --context 0", "eval --stride -1", "eval --limit 1.5",
        "finetune --epochs 0 --out D", "finetune --lr nan --out D", "finetune --seeds 0 --out D",
        "finetune --batch 99999999999999999999 --out D", "finetune --split-batch 0 --out D",
        "sort --exits 2 --steps 0 --out D", "sort --exits 2 --distil 2 --out D",
        "sort --exits 2 --scale 0 --out D", "grid --exits 2 --ranks 1 --share 1 --out D",
        "grid --exits 2 --ranks 1 --draws -1 --out D", "promise --prompts F --delta 0",
        "promise --prompts F --loss nan", "generate --temperature -1", "generate --max-new-tokens 0",
        "generate --top-k 0", "generate --budget 1.5", "bench engine --repeats 0", "bench kron --threads x",
        "lesson --port 70000",
    ],
)  # fmt: skip
def test_every_number_is_checked_in_the_same_words(capsys, line):
    assert main(line.split()) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("tinykron: argument -") and ": found " in said and ", expected a " in said


@pytest.mark.parametrize("verb", ["sort --exits 2", "grid --exits 2 --ranks 1", "finetune"])
def test_a_count_beyond_all_memory_is_refused_by_its_limit(capsys, tmp_path, verb):
    assert main([*verb.split(), "--batch", str(2**63 - 1), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "argument --batch: found 9223372036854775807, expected a whole number up to 1000000000" in said


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    def greedy(options):
        raise MemoryError("Unable to allocate 5 TiB")

    monkeypatch.setattr(info, "run", greedy)
    assert main(["info"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tinykron: out of memory: Unable to allocate 5 TiB; lower --batch")

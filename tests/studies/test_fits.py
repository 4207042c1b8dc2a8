"""`tinykron reproduce fit`: the plans that it compares, its rows, what it says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_teacher import make_teacher, write_text
from tinykron import data
from tinykron.commands import cli
from tinykron.data import corpus
from tinykron.errors import CheckpointError, TinykronError
from tinykron.studies import fits
from tinykron.studies.fits import METHODS, Row, Scale, balanced, tiny_b

SCALE = Scale(models=("gpt2-tiny",), shares=(0.5,), seeds=1, steps=2, batch=1, context=16, calibration_tokens=256)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to; the shipped models and their text are replaced by a tiny teacher and a small text."""
    text = write_text(tmp_path / "text.txt")
    teacher = make_teacher(tmp_path / "teacher", text, layers=1)
    documents = corpus.documents(text)
    monkeypatch.setattr(data, "weights_folder", lambda name: teacher)
    monkeypatch.setattr(data, "documents", lambda source=None: documents)
    return tmp_path / "out"


def test_a_run_gives_every_row_and_continues(small: Path) -> None:
    said: list[str] = []
    rows = fits.fit_relation(small, SCALE, said.append)
    assert [(row.budget, row.method) for row in rows] == [(b, m) for b in ("FLOPs", "bytes") for m in METHODS]
    assert all(row.before > 1.0 and row.after > 1.0 and row.dense == rows[0].dense for row in rows)
    by_name = {(row.budget, row.method): row for row in rows}
    for (budget, method), row in by_name.items():
        spent = row.parameters if budget == "bytes" else row.flops
        extra = 0.1 if (budget, method) == ("FLOPs", "KnGPT2-like") else 0.0  # B's products, on so narrow a model
        assert spent <= 0.51 + extra, (budget, method, spent)
    assert by_name["bytes", "SVD"].after == by_name["FLOPs", "SVD"].after  # the same run
    kept = (small / "rows.jsonl").read_text()
    (small / "rows.jsonl").write_text("".join(line + "\n" for line in kept.splitlines()[:-1]))
    again = fits.fit_relation(small, SCALE, said.append)
    assert [row.key for row in again] == [row.key for row in rows] and "1 rows" in said[-2]
    fits.write(rows, SCALE, small)
    assert (small / "fit.png").read_bytes().startswith(b"\x89PNG")
    told = (small / "fit.md").read_text()
    assert told.count("| gpt2-tiny (") == 12 and "open: a single seed" in told
    assert len(json.loads((small / "fit.json").read_text())["rows"]) == 12
    with pytest.raises(CheckpointError, match="holds rows of another run"):
        fits.fit_relation(small, replace(SCALE, steps=3), said.append)


def rows_of(after: dict[str, list[float]]) -> list[Row]:
    return [
        Row("gpt2-tiny", 0.5, "bytes", method, seed, 0.5, 0.5, 90.0 + place, value, 50.0)
        for place, (method, values) in enumerate(after.items())
        for seed, value in enumerate(values)
    ]


def test_what_wins_is_said_with_every_seed_or_left_open() -> None:
    clear = fits.verdicts(rows_of({"SVD": [80.0, 82.0], "SVD-LLM": [70.0, 71.0], "automatic": [60.0, 61.0]}))
    assert clear[1] == (
        "gpt2-tiny, 50% of bytes, after distillation: automatic, by 16.5% over SVD-LLM, with all of 2 seeds"
    )
    assert "before distillation: SVD, by" in clear[0]
    mixed = fits.verdicts(rows_of({"SVD": [80.0, 60.0], "automatic": [79.0, 60.5]}))
    assert mixed[1].endswith("open: 2 seeds do not agree on it")
    single = fits.verdicts(rows_of({"SVD": [80.0], "automatic": [79.0]}))
    assert single[1].endswith("open: a single seed")
    assert fits.verdicts(rows_of({"SVD": [80.0]})) == []


def test_the_table_shows_mean_and_standard_deviation() -> None:
    told = fits.markdown(rows_of({"SVD": [80.0, 82.0], "automatic": [60.0, 61.0]}), SCALE)
    assert "| gpt2-tiny (50.00) | 50% of bytes | SVD | 0.50 | 0.50 | 2 | 90.00 ± 0.00 | 81.00 ± 1.41 |" in told


@pytest.mark.parametrize(
    ("dense", "share", "shape"),
    [((128, 128), 0.5, (64, 128)), ((512, 128), 0.25, (128, 128)), ((128, 512), 0.5, (128, 256))],
)
def test_a_tiny_b(dense: tuple[int, int], share: float, shape: tuple[int, int]) -> None:
    assert tiny_b(dense, share).shape == shape


def test_a_tiny_b_needs_even_sides() -> None:
    with pytest.raises(TinykronError, match="cannot be halved to 25%"):
        tiny_b((6, 5), 0.25)


@pytest.mark.parametrize("budget", ["bytes", "FLOPs"])
def test_balanced_factors_are_alike_and_within_the_budget(budget: str) -> None:
    choice = balanced((512, 128), 0.25, budget)
    (m, n), (p, q) = choice.shape, choice.other
    assert m * n == p * q == 256
    spent = choice.parameters if budget == "bytes" else choice.flops
    whole = 512 * 128 * (1 if budget == "bytes" else 2)
    one_more = spent + spent // choice.terms
    assert spent <= 0.25 * whole < one_more


def test_the_command_line(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(fits, "QUICK", SCALE)
    assert cli.main(["reproduce", "fit", "--quick", "--out", str(small), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 12
    assert cli.main(["reproduce", "fit", "--model", "other"]) == 2
    assert "--model: found 'other', expected one of gpt2-tiny" in capsys.readouterr().err

"""Files are whole or not there, and a finished folder takes the place of the unfinished one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinykron.errors import CheckpointError
from tinykron.support import files


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("first é\n", "second"):
        files.write(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_was_there_stays_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match=r"a\.txt cannot be written: No space left on device"):
        files.write(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.a\.txt cannot be written"):
        files.write(tmp_path / "none" / "a.txt", "text")


def test_a_finished_folder_takes_its_name_and_its_workshop_goes(tmp_path: Path) -> None:
    workshop = tmp_path / "out.training"
    (workshop / "result").mkdir(parents=True)
    (workshop / "result" / "model").write_text("weights")
    (workshop / "state").write_text("unneeded")
    files.finish(workshop / "result", tmp_path / "out", workshop)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model").read_text() == "weights"


def test_a_name_that_is_taken_loses_nothing(tmp_path: Path) -> None:
    for place in ("out", "out.training/result"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model").write_text(place)
    with pytest.raises(CheckpointError, match="out cannot be written"):
        files.finish(tmp_path / "out.training" / "result", tmp_path / "out", tmp_path / "out.training")
    assert (tmp_path / "out" / "model").read_text() == "out"
    assert (tmp_path / "out.training" / "result" / "model").exists()

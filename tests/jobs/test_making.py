"""The frame of a job: refused before any work, whole or not there, and nothing lost where it ends early."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tests.tiny_training import tiny_gpt2
from tinykron.errors import CheckpointError
from tinykron.jobs.making import making, refuse


@pytest.mark.parametrize("kind", ["a folder", "a file", "a link that leads nowhere"])
def test_what_is_there_is_refused_before_any_work_and_stays(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    made = {"a folder": out.mkdir, "a file": out.touch, "a link that leads nowhere": lambda: out.symlink_to("nowhere")}
    made[kind]()
    with pytest.raises(CheckpointError, match="out: exists already; choose another folder"), making(out):
        pytest.fail("began")
    assert os.path.lexists(out) and [path.name for path in tmp_path.iterdir()] == ["out"]
    refuse(None, tmp_path / "other")
    with pytest.raises(CheckpointError, match="out: exists already"):
        refuse(None, tmp_path / "other", out)


@pytest.mark.parametrize("ending", [".training", ".partial"])
def test_the_folder_appears_whole_and_its_progress_goes(tmp_path: Path, ending: str) -> None:
    model = tiny_gpt2(layers=1)
    with making(tmp_path / "out", ending) as work:
        work.result.mkdir(parents=True)
        (work.result / "left by a kill").touch()
        saved = work.save(model, "float16")
        work.write("README.md", "a card")
        assert not (tmp_path / "out").exists() and work.progress == tmp_path / f"out{ending}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    for name, array in tk.load(tmp_path / "out").state_dict().items():
        assert np.array_equal(array, saved.state_dict()[name])  # what `save` returned is what a user loads


def test_progress_stays_where_work_ends_early(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), making(tmp_path / "out") as work:
        work.save(tiny_gpt2(layers=1))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    with making(tmp_path / "out") as work:
        work.save(tiny_gpt2(layers=1))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

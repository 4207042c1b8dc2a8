"""However a run ends, it continues to the same bits; a checkpoint that cannot be used or written is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.tiny_training import (
    SETTINGS,
    SHORT,
    TOKENS,
    Scripted,
    at,
    interrupt,
    scripted,
    tiny_gpt2,
    unstable_gpt2,
    values,
)
from tinykron.distill.losses import Losses
from tinykron.errors import CheckpointError, Interrupted, TinykronError
from tinykron.models.gpt2 import GPT2
from tinykron.train.loop import fit
from tinykron.train.resume import CHECKPOINT

ROOT = Path(__file__).parents[2]


def assert_same_bits(one: GPT2, other: GPT2) -> None:
    mine, theirs = values(one), values(other)
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].tobytes() == theirs[name].tobytes(), name


def steps_in(path: Path) -> int:
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["history"])["steps"]


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight() -> GPT2:
    """What `python -m tests.tiny_training` trains when nothing happens to it."""
    model = unstable_gpt2()
    fit(model, TOKENS, SETTINGS)
    return model


@pytest.fixture(scope="module")
def short() -> GPT2:
    model = unstable_gpt2()
    fit(model, TOKENS, SHORT)
    return model


def start(folder: Path, *limit: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tiny_training", str(folder), *limit]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_a_step(process: subprocess.Popen[str], path: Path) -> None:
    """Return when the process has replaced the checkpoint, which it does after every step."""
    before = path.stat().st_ino if path.exists() else None
    while process.poll() is None and (not path.exists() or path.stat().st_ino == before):
        time.sleep(0.001)


def test_killed_at_several_moments_it_continues_to_the_same_bits(straight, tmp_path):
    path = tmp_path / CHECKPOINT
    for delay in (0.0, 0.004, 0.015):  # s after a checkpoint: in a forward pass, in the next save, wherever
        process = start(tmp_path)
        wait_for_a_step(process, path)
        time.sleep(delay)
        process.kill()
        output, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, output + errors
        assert 0 < steps_in(path) < SETTINGS.steps
    model = unstable_gpt2()
    done = steps_in(path)
    history = fit(model, TOKENS, SETTINGS, folder=tmp_path)
    assert history.steps == len(history.terms) == SETTINGS.steps > done
    assert_same_bits(model, straight)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_ctrl_c_ends_cleanly_and_it_continues_to_the_same_bits(straight, tmp_path):
    path = tmp_path / CHECKPOINT
    process = start(tmp_path)
    wait_for_a_step(process, path)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in errors
    done = steps_in(path)
    assert output == f"training: interrupted after {done} of {SETTINGS.steps} steps\n"
    assert 0 < done < SETTINGS.steps
    model = unstable_gpt2()
    fit(model, TOKENS, SETTINGS, folder=tmp_path)
    assert_same_bits(model, straight)


@pytest.mark.parametrize("number", range(1, SHORT.steps))
def test_ctrl_c_finishes_the_step_and_writes_it(short, tmp_path, number):
    plan, before = replace(SHORT, checkpoint_every=1000), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"after {number} of"):
        fit(scripted(at(number, interrupt)), TOKENS, plan, folder=tmp_path)
    assert steps_in(tmp_path / CHECKPOINT) == number
    assert signal.getsignal(signal.SIGINT) is before
    model = unstable_gpt2()
    history = fit(model, TOKENS, plan, folder=tmp_path)
    assert history.steps == SHORT.steps
    assert_same_bits(model, short)


def test_ctrl_c_in_the_last_step_is_no_interruption(short):
    model = scripted(at(SHORT.steps, interrupt))
    fit(model, TOKENS, SHORT)
    assert_same_bits(model, short)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(scripted(lambda number: (interrupt(), interrupt())), TOKENS, SHORT, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crash_in", [3, 4, 5])
def test_a_crash_between_two_checkpoints_repeats_the_steps_since(short, tmp_path, crash_in):
    def crash() -> None:
        raise RuntimeError("the power went")

    plan = replace(SHORT, checkpoint_every=2)
    with pytest.raises(RuntimeError, match="the power went"):
        fit(scripted(at(crash_in, crash)), TOKENS, plan, folder=tmp_path)
    assert steps_in(tmp_path / CHECKPOINT) == 2 * ((crash_in - 1) // 2)
    (tmp_path / f"{CHECKPOINT}.tmp").mkdir()
    (tmp_path / f"{CHECKPOINT}.tmp" / ".tmpx1Y2z3").write_bytes(b"half a checkpoint")  # as a kill may leave one
    model = unstable_gpt2()
    fit(model, TOKENS, plan, folder=tmp_path)
    assert_same_bits(model, short)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_resumed_run_has_the_whole_history(device, tmp_path):
    plan = replace(SHORT, evaluate_every=2)
    straight = fit(unstable_gpt2(), TOKENS, plan, held_out=TOKENS[:20])
    model = scripted(lambda number: interrupt() if number == 5 else None)  # the 3rd pass evaluates, so does the 6th
    with pytest.raises(Interrupted):
        fit(model, TOKENS, plan, held_out=TOKENS[:20], folder=tmp_path)
    second = fit(unstable_gpt2(), TOKENS, plan, held_out=TOKENS[:20], folder=tmp_path)
    assert second == straight


def test_a_finished_run_is_not_trained_further(short, tmp_path):
    fit(unstable_gpt2(), TOKENS, SHORT, folder=tmp_path)
    model = unstable_gpt2(kind=Scripted)
    history = fit(model, TOKENS, SHORT, folder=tmp_path)
    assert (history.steps, model.passes) == (SHORT.steps, 0)
    assert_same_bits(model, short)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(unstable_gpt2(), TOKENS, SHORT)
    assert list(tmp_path.iterdir()) == []


def test_training_in_a_thread(short):
    model = unstable_gpt2()
    thread = threading.Thread(target=fit, args=(model, TOKENS, SHORT))
    thread.start()
    thread.join()
    assert_same_bits(model, short)


# What cannot be continued or written ----------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint after 3 of 6 steps."""
    with pytest.raises(Interrupted):
        fit(scripted(at(3, interrupt)), TOKENS, SHORT, folder=tmp_path)
    return tmp_path / CHECKPOINT


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray], Any], Any]) -> None:
    """Save the checkpoint again after `change(arrays, history)`, which returns the new history."""
    with safe_open(path, framework="numpy") as file:
        history = json.loads(file.metadata()["history"])
    arrays = load_file(path)
    save_file(arrays, path, metadata={"history": json.dumps(change(arrays, history))})


def without(name: str) -> Callable[[dict[str, np.ndarray], Any], Any]:
    return lambda arrays, history: arrays.pop(name) is None or history


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "cut in its arrays": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(1000)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no metadata": lambda path: save_file(load_file(path), path),
    "no JSON": lambda path: save_file(load_file(path), path, metadata={"history": "{"}),
    "no object": lambda path: rewrite(path, lambda arrays, history: [history]),
    "no settings": lambda path: rewrite(path, lambda arrays, history: {"steps": history["steps"]}),
    "no such settings": lambda path: rewrite(path, lambda arrays, history: {**history, "settings": 1}),
    "no such perplexities": lambda path: rewrite(path, lambda arrays, history: {**history, "perplexities": [1]}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named(checkpoint, kind):
    DAMAGE[kind](checkpoint)
    model = unstable_gpt2()
    before = values(model)
    with pytest.raises(CheckpointError, match="not a training checkpoint") as caught:
        fit(model, TOKENS, SHORT, folder=checkpoint.parent)
    assert str(checkpoint) in str(caught.value)
    assert all((array == before[name]).all() for name, array in values(model).items())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("model.norm.bias"), r"missing +norm.bias"),
        (without("optimiser.0.first"), "optimiser state"),
        (lambda arrays, history: arrays.update({"model.x": np.ones(1)}) or history, r"unexpected +x"),
        (lambda arrays, history: arrays.update({"model.norm.bias": np.ones(3)}) or history, r"norm.bias: found \(3,\)"),
    ],
    ids=["missing", "missing slot", "unexpected", "shape"],
)
def test_a_checkpoint_of_another_model_is_named(checkpoint, change, complaint):
    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match=f"belongs to another model: .*(?s:.*){complaint}") as caught:
        fit(unstable_gpt2(), TOKENS, SHORT, folder=checkpoint.parent)
    assert str(checkpoint) in str(caught.value)


def test_a_checkpoint_of_the_version_before_is_read(checkpoint, short):
    def as_before(arrays, history):  # what tinykron 0.1.0 wrote of the same run
        gone = {key: history["settings"].pop(key) for key in ("split_batch",)} | {"scores": history.pop("scores")}
        assert gone == {"split_batch": 1, "scores": []}
        return {**history, "settings": history["settings"] | {"epoch": 0}, "interrupted": True}

    rewrite(checkpoint, as_before)
    model = unstable_gpt2()
    assert fit(model, TOKENS, SHORT, folder=checkpoint.parent).steps == SHORT.steps
    assert_same_bits(model, short)


def test_a_fine_tuning_of_the_version_before_is_refused_by_name(checkpoint):
    rewrite(checkpoint, lambda arrays, history: {**history, "settings": {"epochs": 3, "batch": 2}})
    with pytest.raises(CheckpointError, match="tinykron 0.1.0 wrote it, whose fine-tuning kept other settings"):
        fit(unstable_gpt2(), TOKENS, SHORT, folder=checkpoint.parent)


def test_other_settings_are_listed_and_the_checkpoint_survives(checkpoint):
    content = checkpoint.read_bytes()
    other = replace(SHORT, lr=0.5, betas=(0.8, 0.9), checkpoint_every=2)
    with pytest.raises(CheckpointError) as caught:
        fit(unstable_gpt2(), TOKENS, other, folder=checkpoint.parent)
    changes = "lr 0.01 -> 0.5, betas [0.9, 0.95] -> [0.8, 0.9], checkpoint_every 1 -> 2"
    assert f"{checkpoint}: belongs to another run ({changes})" in str(caught.value)
    assert checkpoint.read_bytes() == content


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / CHECKPOINT
    process = start(tmp_path)
    wait_for_a_step(process, path)
    process.kill()
    process.communicate()
    content = path.read_bytes()
    process = start(tmp_path, str(len(content) // 2))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in errors
    complaints = [line for line in errors.splitlines() if line.startswith("tinykron: ")]
    assert len(complaints) == 1
    assert f"{path}: cannot write the training checkpoint: " in complaints[0]
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="cannot write the training checkpoint") as caught:
        fit(unstable_gpt2(), TOKENS, SHORT, folder=tmp_path / "file")
    assert os.path.join(tmp_path, "file", CHECKPOINT) in str(caught.value)


def test_a_loss_that_is_not_a_number_stops_before_it_spoils_anything(checkpoint):
    content = checkpoint.read_bytes()

    def spoil(number: int) -> None:
        if number == 2:
            model.norm.weight.data[0] = np.nan

    model = scripted(spoil)
    with pytest.raises(TinykronError, match=r"training: the loss became \{'cross_entropy': nan\} at step 4"):
        fit(model, TOKENS, replace(SHORT, checkpoint_every=1), folder=checkpoint.parent)
    assert steps_in(checkpoint) == 4
    assert checkpoint.read_bytes() != content
    assert all(np.isfinite(array).all() for array in load_file(checkpoint).values())


@pytest.mark.parametrize("change", ["tokens", "losses", "teacher"])
def test_a_run_on_other_inputs_is_not_continued(tmp_path, change):
    teacher, losses = tiny_gpt2(seed=1), Losses(hidden=0.5)
    inputs = {"tokens": TOKENS, "losses": losses, "teacher": teacher}
    settings = replace(SETTINGS, steps=3)

    def run(tokens, losses, teacher):
        return fit(tiny_gpt2(), tokens, settings, teacher=teacher, losses=losses, folder=tmp_path)

    assert run(**inputs).steps == 3
    assert run(**inputs).steps == 3  # found done
    other = {"tokens": TOKENS[::-1], "losses": Losses(hidden=0.6), "teacher": tiny_gpt2(seed=2)}
    with pytest.raises(CheckpointError, match="another text, teacher or losses"):
        run(**(inputs | {change: other[change]}))

"""What a teacher said comes back from the disk, whose share of it is said first; that of another run is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_close
from tests.tiny_training import SHORT, TOKENS, Scripted, interrupt, tiny_gpt2
from tests.train.test_resume import assert_same_bits
from tinykron import backend
from tinykron.data.masking import Masking
from tinykron.distill.losses import Losses
from tinykron.distill.teacher_cache import INDEX, TeacherCache
from tinykron.errors import CheckpointError, TinykronError
from tinykron.train.loop import fit
from tinykron.train.settings import History

ORIGIN = {"teacher": "a", "text": "b"}
SETTINGS = replace(SHORT, epoch=2, accumulate=2, measure_every=5)
LOSSES = Losses(logits=1.0, value_relation=1.0)


def teacher(seed: int = 1) -> Any:
    return tiny_gpt2(seed, spread=10.0, kind=Scripted)


def run(
    cache_folder: Path | None, of: Any = None, student: Any = None, dtype: str = "float32", **options: Any
) -> History:
    cache = TeacherCache(cache_folder, dtype) if cache_folder else None
    given = {"settings": SETTINGS, "losses": LOSSES, "tokens": TOKENS, **options}
    student = tiny_gpt2(0) if student is None else student
    return fit(student, teacher=teacher() if of is None else of, cache=cache, **given)


# Use ------------------------------------------------------------------------------------------------------------------


def test_each_batch_is_asked_for_once_and_the_training_is_the_same(device, tmp_path):
    straight, cached, of = tiny_gpt2(0), tiny_gpt2(0), teacher()
    expected = run(None, student=straight)
    found = run(tmp_path / "cache", of, cached)
    assert of.passes == 4  # two steps of two batches
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    assert (found.terms, found.term_norms) == (expected.terms, expected.term_norms)
    assert_same_bits(cached, straight)
    again, third = teacher(), tiny_gpt2(0)
    run(tmp_path / "cache", again, third)  # another run: another student, say
    assert again.passes == 0
    assert_same_bits(third, straight)


def test_without_an_epoch_the_batches_of_the_whole_run_are_kept(tmp_path):
    run(tmp_path / "cache", settings=SHORT)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == SHORT.steps


def test_scheduled_terms_are_kept_from_the_first_step_on(tmp_path):
    losses = Losses.from_dict({"hidden": {"start": 0.0, "end": 1.0}})
    expected = run(None, losses=losses)
    assert run(tmp_path / "cache", losses=losses).terms == expected.terms


def test_half_precision_rounds_what_comes_back(device, tmp_path):
    exact = np.array([1.0, 1.0 / 3.0, -60000.0], np.float32)
    cache = TeacherCache(tmp_path, "float16")
    cache.open(ORIGIN, 1)
    for _ in range(2):  # as it is written, and as it is read
        found = cache.get(0, lambda: {"hidden 0": backend.to_device(exact)}, device)["hidden 0"]
        assert backend.backend_of(found).name == device
        assert_close(found, exact.astype(np.float16).astype(np.float32), rtol=0.0, atol=0.0)
    half, full = ((tmp_path / name) for name in ("half", "full"))
    terms = [run(folder, dtype=dtype).terms for folder, dtype in ((half, "float16"), (full, "float32"))]
    assert terms[0] != terms[1]
    assert terms[0][0]["hidden"] == pytest.approx(terms[1][0]["hidden"], rel=1e-2)


def test_an_interrupted_run_continues_with_its_cache(tmp_path):
    straight, broken, model = tiny_gpt2(0), tiny_gpt2(0, kind=Scripted), tiny_gpt2(0)
    broken.script = lambda number: interrupt() if number == 12 else None
    run(tmp_path / "cache", student=straight)
    assert run(tmp_path / "other", student=broken, folder=tmp_path).interrupted
    run(tmp_path / "other", student=model, folder=tmp_path)
    assert_same_bits(model, straight)


# Size -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2)])
def test_its_size_is_said_before_anything_is_written(tmp_path, capfd, dtype, width):
    folder = tmp_path / "cache"
    of = teacher()
    of.script = lambda number: None if number > 1 else assert_empty(folder)
    run(folder, of, dtype=dtype)
    batch, context, states, vocabulary = SHORT.batch, SHORT.context, 8, 13
    scores, heads = 2 * 2 * context, 3 * states  # two layers of two heads; queries, keys and values of one
    numbers = batch * context * (vocabulary + 3 * states + scores + heads)
    said = f"{folder}: 4 batches of the teacher's outputs take {4 * numbers * width:,} bytes in {dtype}; "
    assert capfd.readouterr().err.count(said) == 1
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 4 * numbers * width < files < 4 * numbers * width + 4 * 2048  # names and shapes
    run(folder, of, dtype=dtype)
    assert said not in capfd.readouterr().err  # nothing is missing


def assert_empty(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == [INDEX]


def test_what_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    cache = TeacherCache(tmp_path)
    cache.open(ORIGIN, 11)
    with pytest.raises(CheckpointError, match=r"11 batches .* take 1,100 bytes in float32; the disk has 1,000 free"):
        cache.get(0, lambda: {"logits": np.ones(25, np.float32)}, "cpu")
    assert_empty(tmp_path)
    cache.open(ORIGIN, 10)
    assert list(cache.get(0, lambda: {"logits": np.ones(25, np.float32)}, "cpu")) == ["logits"]


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"of": teacher(2)}, "teacher"),
        ({"tokens": TOKENS[::-1]}, "text"),
        ({"settings": replace(SETTINGS, seed=9)}, "batches"),
        ({"settings": replace(SETTINGS, epoch=3)}, "batches"),
        ({"settings": replace(SETTINGS, accumulate=1)}, "batches"),
        ({"losses": Losses()}, "losses"),
        ({"layers": [1, 1]}, "layer map"),
        ({"dtype": "float16"}, "dtype"),
        ({"of": teacher(2), "dtype": "float16"}, "teacher, dtype"),
    ],
    ids=["teacher", "text", "seed", "epoch", "accumulate", "losses", "layers", "dtype", "two"],
)
def test_a_cache_of_something_else_is_named(tmp_path, change, named):
    run(tmp_path / "cache")
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    with pytest.raises(CheckpointError, match=f"cache: was made from other {named}; use another folder") as caught:
        run(tmp_path / "cache", **change)
    assert str(tmp_path) in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before


def test_other_weights_rates_or_forms_may_share_a_cache(tmp_path):
    run(tmp_path / "cache")
    of = teacher()
    changed = replace(LOSSES, hidden=0.5, attention_form="scores", temperature=2.0)
    run(tmp_path / "cache", of, losses=changed, settings=replace(SETTINGS, lr=1e-3, steps=4))
    assert of.passes == 0


def test_a_text_of_hidden_tokens_is_another_text():
    from tinykron.train.batches import _digest_text

    masking = Masking(2, 3, 4, 13)
    assert len({_digest_text(TOKENS, one) for one in (None, masking, replace(masking, share=0.5))}) == 3


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda folder: cut(folder / "000000.safetensors"), "000000.safetensors: cannot be read"),
    "index": (lambda folder: (folder / INDEX).write_text("{"), "cannot be used as the index"),
    "list": (lambda folder: (folder / INDEX).write_text("[]"), "was made from other teacher, text, batches"),
    "no index": (lambda folder: (folder / INDEX).unlink(), "cannot be used as the index"),
    "folder": (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "cannot be used as the index"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_named(tmp_path, kind):
    run(tmp_path / "cache")
    damage, complaint = DAMAGE[kind]
    damage(tmp_path / "cache")
    with pytest.raises(CheckpointError, match=complaint) as caught:
        run(tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value)


def test_a_number_too_large_for_half_precision_is_named(tmp_path):
    cache = TeacherCache(tmp_path, "float16")
    cache.open(ORIGIN, 1)
    with pytest.raises(TinykronError, match="scores 1 reaches 70000, more than float16 holds; use float32"):
        cache.get(0, lambda: {"scores 1": np.array([1.0, -70000.0], np.float32)}, "cpu")
    assert_empty(tmp_path)
    with pytest.raises(TinykronError, match="found dtype 'bfloat16', expected float32 or float16"):
        TeacherCache(tmp_path, "bfloat16")


def test_the_index_says_what_the_cache_is_of(tmp_path):
    run(tmp_path)
    said = json.loads((tmp_path / INDEX).read_text())
    assert said["batches"] == "batch 2, context 8, accumulate 2, seed 5, epoch 2"
    assert said["losses"] == "attention, cross_entropy, embedding, hidden, logits, value_relation"
    assert (said["layer map"], said["dtype"]) == ("[0, 1]", "float32")

"""The shipped checkpoints are what their cards say."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import tinykron as tk
from tinykron.data.shipped import shipped_folder
from tinykron.jobs.pretrain import read_recipe

FOLDERS = sorted(path.parent for path in shipped_folder("weights").glob("*/config.json"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


def test_some_weights_are_shipped():
    assert [folder.name for folder in FOLDERS] == ["bert-tiny", "gpt2-tiny", "llama-tiny"]


def test_the_card_holds_the_checksum_of_every_file(folder):
    rows = re.findall(r"^\| (\S+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.M)
    assert {name for name, _, _ in rows} == {path.name for path in folder.iterdir()} - {"README.md"}
    for name, size, digest in rows:
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size.replace(",", "")), digest)


def test_the_model_is_small_and_as_its_recipe_says(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    model = tk.load(folder)
    recipe = read_recipe(folder.with_suffix(".toml"))
    config = json.loads((folder / "config.json").read_text())
    assert {key: config[key] for key in recipe.model} == recipe.model
    assert (config["dtype"], recipe.dtype) == ("bfloat16", "bfloat16")
    assert model.tokenizer.get_vocab_size() == model.config.vocab_size == recipe.vocab_size
    assert f"{model.parameter_count():,} parameters" in (folder / "README.md").read_text()

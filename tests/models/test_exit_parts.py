"""What exits have of their own: it is read at its exit alone, saved and loaded by name, and cut out with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.decoders import deep
from tests.helpers import assert_close, host
from tests.tiny_tasks import tiny_bert
from tinykron import kron
from tinykron.decode.generate import generate
from tinykron.errors import CheckpointError, TinykronError
from tinykron.measure.costs import flops_per_token
from tinykron.models.exit_parts import KINDS, add_parts, kind_of

IDS = np.random.default_rng(0).integers(0, 40, (2, 9))
EXITS = (1, 3)


def with_parts(family: str, kind: str, **config: Any) -> Any:
    """A model whose parts are no copies any more."""
    model = add_parts(deep(family, 0, **config), kind, EXITS).eval()
    for part in model.exit_parts:
        for parameter in part.parameters():
            parameter.data *= 1.5
    model.exits = (*EXITS, 4)
    return model


def logits(model: Any, **options: Any) -> np.ndarray:
    with tk.no_grad():
        return host(model(IDS, **options).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("family", "tied"), [("gpt2", True), ("gpt2", False), ("llama", False)], ids=["gpt2", "untied", "llama"]
)
def test_parts_are_read_at_their_exit_saved_and_loaded(device, tmp_path: Path, family: str, tied: bool, kind: str):
    model, plain = with_parts(family, kind, tie_word_embeddings=tied), deep(family, 0, tie_word_embeddings=tied)
    assert_close(logits(model), logits(plain), rtol=0, atol=0)
    assert_close(logits(model, exit=2), logits(plain, exit=2), rtol=0, atol=0)  # has no part
    assert np.abs(logits(model, exit=1) - logits(plain, exit=1)).max() > 1e-3
    assert flops_per_token(model, 4) == flops_per_token(plain, 4)
    tk.save(model, tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "config.json").read_text())["tinykron"]
    assert told == {"exits": [1, 3, 4], "exit_parts": kind}
    loaded = tk.load(tmp_path / "saved")
    assert (loaded.exits, kind_of(loaded)) == ((1, 3, 4), kind)
    served = loaded(IDS, exits=(1, 2, 3, 4)).exits
    for exit in (1, 2, 3, 4):
        assert_close(served[exit], logits(model, exit=exit), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_an_exit_cut_out_is_a_model_with_the_same_logits(tmp_path: Path, kind: str | None):
    model = with_parts("llama", kind) if kind else deep("llama", 0)
    before = {name: host(array).copy() for name, array in model.state_dict().items()}
    part = kron.cut(model, 3)
    assert_close(logits(part), logits(model, exit=3), rtol=0, atol=0)
    tk.save(part, tmp_path / "part")
    assert_close(logits(tk.load(tmp_path / "part")), logits(model, exit=3), rtol=0, atol=0)
    for parameter in part.parameters():
        parameter.data *= 0.0  # a copy: the model it came from stays as it is
    assert all(np.array_equal(before[name], host(array)) for name, array in model.state_dict().items())


def test_decoding_by_an_exit_with_a_head_of_its_own():
    model = with_parts("gpt2", "heads")
    assert_close(generate(model, IDS[0], 5, exit=3, stop=()), generate(kron.cut(model, 3), IDS[0], 5, stop=()))


def test_what_no_cache_holds_is_refused():
    model = with_parts("gpt2", "blocks")
    for options in ({"exit": 3}, {"draft": 1}, {"confidence": {1: 0.5}}):
        with pytest.raises(TinykronError, match="block of its own"):
            generate(model, IDS[0], 5, **options)
    assert generate(model, IDS[0], 2, stop=()).shape == (1, 11)  # all blocks, and exit 2, which has none
    assert generate(model, IDS[0], 2, exit=2, stop=()).shape == (1, 11)


@pytest.mark.parametrize("exits", ["2", [], [2, 1], [1, 1], [0, 1], [5], [1.0], [True], None])
def test_a_folder_whose_exits_are_none_is_refused(tmp_path: Path, exits: Any):
    model = deep("gpt2", 0)
    model.exits = (2, 4)
    tk.save(model, tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tinykron": {"exits": exits}}))
    with pytest.raises(CheckpointError, match=r"exits: expected rising numbers of blocks in 1\.\.4"):
        tk.load(tmp_path / "saved")


def test_parts_that_are_none_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="exit_parts: found 'tails'"):
        add_parts(deep("gpt2", 0), "tails", (1,))
    with pytest.raises(CheckpointError, match="for decoders, found a Bert"):
        add_parts(tiny_bert(), "heads", (1,))
    with pytest.raises(TinykronError, match=r"1\.\.3, found 4"):
        add_parts(deep("gpt2", 0), "heads", (4,))

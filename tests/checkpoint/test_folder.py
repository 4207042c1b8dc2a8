"""Folders that hold a GPT-2: what they may look like, what comes back from saving, and what it costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import tinykron as tk
from tests.checkpoints import IDS, TINY, gpt2_configs, gpt2_logits, gpt2_tensors, write_folder
from tests.helpers import assert_close
from tinykron import checkpoint, kron
from tinykron.errors import CheckpointError
from tinykron.models.gpt2 import GPT2, GPT2Config

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
UNTIED = TINY | {"tie_word_embeddings": False}
CLOSE = 2e-6  # of the largest logit


def logits(model: GPT2, ids=IDS) -> np.ndarray:
    with tk.no_grad():
        return model(ids).logits.numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_reads(folder: Path, config: dict, tensors: dict) -> None:
    """The folder loads, and its model computes what the tensors say."""
    assert distance(logits(tk.load(folder)), gpt2_logits(config, tensors)) < CLOSE


# What a folder may look like ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_load(device, tmp_path, config, shards):
    tensors = gpt2_tensors(config)
    write_folder(tmp_path, config, tensors, shards)
    assert_reads(tmp_path, config, tensors)
    model = tk.load(tmp_path)
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert model.tokenizer is None and not model.training
    assert model.parameter_count() == sum(array.size for array in tensors.values())


def test_the_prefix_is_optional(tmp_path):
    tensors = gpt2_tensors(UNTIED)
    head = {"lm_head.weight": tensors["lm_head.weight"]}
    body = {f"transformer.{name}": array for name, array in tensors.items() if name not in head}
    assert_reads(write_folder(tmp_path / "some", UNTIED, body | head), UNTIED, tensors)
    everywhere = body | {"transformer.lm_head.weight": head["lm_head.weight"]}
    assert_reads(write_folder(tmp_path / "all", UNTIED, everywhere), UNTIED, tensors)


def test_buffers_of_old_files_are_no_parameters(tmp_path):
    tensors = gpt2_tensors(TINY)
    buffers = {f"h.{i}.attn.bias": np.tri(9, dtype=bool)[None, None] for i in range(2)}
    buffers |= {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(2)}
    assert_reads(write_folder(tmp_path, TINY, tensors | buffers), TINY, tensors)


def test_the_single_file_goes_before_the_index(tmp_path):
    write_folder(tmp_path, TINY, gpt2_tensors(TINY, seed=1), shards=2)
    assert_reads(write_folder(tmp_path, TINY, gpt2_tensors(TINY)), TINY, gpt2_tensors(TINY))


def test_a_tied_head_is_the_embedding_whatever_the_file_says(tmp_path):
    tensors = gpt2_tensors(TINY)
    other = gpt2_tensors(UNTIED)["lm_head.weight"]
    assert_reads(write_folder(tmp_path / "both", TINY, tensors | {"lm_head.weight": other}), TINY, tensors)
    renamed = {("lm_head.weight" if name == "wte.weight" else name): array for name, array in tensors.items()}
    assert_reads(write_folder(tmp_path / "renamed", TINY, renamed), TINY, tensors)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(tmp_path, dtype):
    tensors = {name: array.astype(dtype) for name, array in gpt2_tensors(TINY).items()}
    assert_reads(write_folder(tmp_path, TINY, tensors), TINY, tensors)
    assert {parameter.dtype for parameter in tk.load(tmp_path).parameters()} == {np.dtype(np.float32)}


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    tensors = gpt2_tensors(TINY)
    bits = np.arange(13 * 6, dtype=np.uint16).reshape(13, 6) * 811  # NaN, infinities and subnormals among them
    tensors["wte.weight"] = bits.view(ml_dtypes.bfloat16)
    found = tk.load(write_folder(tmp_path, TINY, tensors)).embedding.weight.numpy()
    assert_close(found, (bits.astype(np.uint32) << 16).view(np.float32), rtol=0, atol=0)


def test_reading_in_blocks_of_rows(tmp_path):
    config = TINY | {"vocab_size": 1_000_003, "n_embd": 6}  # the embedding is 24 MB: twelve blocks, the last uneven
    tensors = gpt2_tensors(config)
    model = tk.load(write_folder(tmp_path, config, tensors))
    assert_close(model.embedding.weight, tensors["wte.weight"], rtol=0, atol=0)


# Each trap is one that this suite would see --------------------------------------------------------------------------


def interleave(c_attn):
    """Read columns as (head, q | k | v) instead of (q | k | v, head)."""
    heads_first = c_attn.reshape(*c_attn.shape[:-1], TINY["n_head"], 3, -1)
    return heads_first.swapaxes(-3, -2).reshape(c_attn.shape)


def every(tensors, suffix, change):
    return {name: change(array) if name.endswith(suffix) else array for name, array in tensors.items()}


WRONG = {
    "square matrix transposed": lambda config, w: (config, every(w, "attn.c_proj.weight", np.transpose)),
    "interleaved heads": lambda config, w: (config, every(w, "attn.c_attn.weight", interleave)),
    "c_attn.bias taken for a buffer": lambda config, w: (config, every(w, "attn.c_attn.bias", np.zeros_like)),
    "erf GELU for gelu_new": lambda config, w: (config | {"activation_function": "gelu"}, w),
    "BERT's epsilon": lambda config, w: (config | {"layer_norm_epsilon": 1e-12}, w),
    "one head too many": lambda config, w: (config | {"n_head": 3}, w),
    "head of its own, tied": lambda config, w: (config, w | {"lm_head.weight": gpt2_tensors(UNTIED)["lm_head.weight"]}),
    "no position": lambda config, w: (config, every(w, "wpe.weight", np.zeros_like)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reading_shows(tmp_path, wrong):
    config, tensors = WRONG[wrong](TINY, gpt2_tensors(TINY))
    found = logits(tk.load(write_folder(tmp_path, TINY, gpt2_tensors(TINY))))
    assert distance(found, gpt2_logits(config, tensors)) > 50 * CLOSE


# Saving ---------------------------------------------------------------------------------------------------------------


@given(config=gpt2_configs(), dtype=st.sampled_from(["float32", "bfloat16", "float16"]), seed=st.integers(0, 99))
def test_round_trip(tmp_path_factory, config, dtype, seed):
    folder = tmp_path_factory.mktemp("round") / "trip"
    model = GPT2(GPT2Config.from_dict(config), np.random.default_rng(seed)).eval()
    tk.save(model, folder, dtype)
    loaded = tk.load(folder)
    assert {name: getattr(loaded.config, name) for name in config if name != "model_type"} == {
        name: value for name, value in config.items() if name != "model_type"
    }
    for (name, found), (_, saved) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert np.array_equal(found.numpy(), saved.numpy().astype(dtype).astype(np.float32)), name


def test_saved_names_and_layout_are_hugging_face_s(device, tmp_path):
    tensors = gpt2_tensors(UNTIED)
    tk.save(tk.load(write_folder(tmp_path / "in", UNTIED | {"bos_token_id": 5}, tensors)), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    head = {"lm_head.weight": written.pop("lm_head.weight")}
    found = {name.removeprefix("transformer."): array for name, array in written.items()} | head
    assert all(name.startswith("transformer.") for name in written)  # as transformers writes it
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32" and config["bos_token_id"] == 5
    assert config["architectures"] == ["GPT2LMHeadModel"]


def test_the_dtype_in_config_is_that_of_the_tensors(tmp_path):
    model = tk.load(write_folder(tmp_path / "in", TINY | {"torch_dtype": "float16"}, gpt2_tensors(TINY)))
    tk.save(model, tmp_path / "out", "bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_stored_dtype_is_that_of_most_values(tmp_path):
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in gpt2_tensors(TINY).items()}
    mixed = tensors | {"ln_f.bias": np.zeros(6, np.float32)}
    assert checkpoint.stored_dtype(write_folder(tmp_path / "mixed", TINY, mixed, shards=2)) == "bfloat16"
    double = {name: array.astype(np.float64) for name, array in tensors.items()}
    assert checkpoint.stored_dtype(write_folder(tmp_path / "double", TINY, double)) == "float32"


def test_a_parameter_in_another_memory_order_is_saved_as_it_reads(tmp_path):
    model = tk.load(write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY)))
    weight = model.blocks[0].attention.output.weight
    weight.data = np.asfortranarray(weight.data)
    tk.save(model, tmp_path / "out")
    assert np.array_equal(logits(tk.load(tmp_path / "out")), logits(model))


def test_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY)) / "tokenizer.json"))
    tk.save(tk.load(tmp_path / "in"), tmp_path / "out")
    assert tk.load(tmp_path / "out").tokenizer.encode("b a b").ids == [1, 0, 1]


def test_the_published_tokenizer(tmp_path):
    if not (DATA / "gpt2-tokenizer").exists():
        pytest.skip("needs shared/data/gpt2-tokenizer")
    folder = write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY))
    (folder / "tokenizer.json").write_bytes((DATA / "gpt2-tokenizer" / "tokenizer.json").read_bytes())
    tk.save(tk.load(folder), tmp_path / "out")
    text = "The dog was found in a field\n"
    for read in (folder, tmp_path / "out"):
        tokenizer = tk.load(read).tokenizer
        assert tokenizer.encode(text).ids == [464, 3290, 373, 1043, 287, 257, 2214, 198]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text and tokenizer.get_vocab_size() == 50257


def test_a_published_model_sorts(device):
    if not (DATA / "gpt2-nano-sort").exists():
        pytest.skip("needs shared/data/gpt2-nano-sort")
    model = tk.load(DATA / "gpt2-nano-sort")
    ids_BT = np.array(list(product(range(3), repeat=6)))  # all 729 inputs
    with tk.no_grad():
        for _ in range(6):
            next_B = model(ids_BT, last_only=True).logits.numpy()[:, -1].argmax(-1)
            ids_BT = np.concatenate([ids_BT, next_B[:, None]], axis=1)
    assert np.array_equal(ids_BT[:, 6:], np.sort(ids_BT[:, :6], axis=1))


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_factorised_model(device, tmp_path, config):
    model = tk.load(write_folder(tmp_path / "in", config, gpt2_tensors(config)))
    plan = kron.KronPlan(
        {
            "embedding": kron.Choice((13, 6), (13, 3)),
            "blocks.1.attention.key": kron.Choice((6, 6), (3, 2), terms=2),
            "blocks.1.mlp.up": kron.Choice((10, 6), (5, 3)),
        }
    )
    small = kron.factorise(model, plan)
    tk.save(small, tmp_path / "small")
    names = set(load_file(tmp_path / "small" / "model.safetensors"))
    assert {"embedding.a_RMN", "embedding.b_RPQ", "blocks.1.mlp.up.a_RMN", "blocks.1.attention.query.weight"} <= names
    assert {"transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias"} <= names
    assert "transformer.h.1.attn.c_attn.weight" not in names
    loaded = tk.load(tmp_path / "small")
    assert kron.plan_of(loaded) == kron.plan_of(small) and not loaded.training
    assert np.array_equal(logits(loaded), logits(small))
    tk.save(kron.merge(loaded), tmp_path / "dense")
    assert "tinykron" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert distance(logits(tk.load(tmp_path / "dense")), logits(small)) < CLOSE


# Where it is written --------------------------------------------------------------------------------------------------


def test_the_folder_may_be_new_or_empty_but_not_in_use(tmp_path):
    model = tk.load(write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY)))
    (tmp_path / "empty").mkdir()
    tk.save(model, tmp_path / "empty")
    tk.save(model, tmp_path / "new" / "below")
    for folder in ("empty", "new/below"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["config.json", "model.safetensors"]
        assert len({path.stat().st_mode for path in (tmp_path / folder).iterdir()}) == 1
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    for taken in (tmp_path / "in", tmp_path / "in" / "config.json"):
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            tk.save(model, taken)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in", "new"]


def test_a_folder_cannot_lie_in_a_file(tmp_path):
    model = tk.load(write_folder(tmp_path, TINY, gpt2_tensors(TINY)))
    with pytest.raises(CheckpointError, match="out cannot be written: Not a directory"):
        tk.save(model, tmp_path / "config.json" / "out")


SAVE_ON_A_SMALL_DISK = """
import resource, signal, sys
import tinykron as tk
model = tk.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, getattr(signal, sys.argv[3]))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    tk.save(model, sys.argv[2])
except tk.TinykronError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
@pytest.mark.parametrize("when_full", ["SIG_IGN", "SIG_DFL"], ids=["an error", "killed while writing"])
def test_nothing_half_written(tmp_path, when_full):
    folder = write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY))
    command = [sys.executable, "-c", SAVE_ON_A_SMALL_DISK, str(folder), str(tmp_path / "out"), when_full]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not (tmp_path / "out").exists()
    if when_full == "SIG_DFL":
        assert done.returncode == -signal.SIGXFSZ
    else:
        assert "refused" in done.stderr and "out cannot be written" in done.stderr and "File too large" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    model = tk.load(write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY)))
    model.norm.weight.data[0] = 1e5
    with pytest.raises(CheckpointError, match=r"ln_f\.weight reaches 100000, more than float16 holds"):
        tk.save(model, tmp_path / "out", "float16")
    with pytest.raises(CheckpointError, match='dtype is "int8", expected one of float32'):
        tk.save(model, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_save_refuses_a_model_that_its_configuration_does_not_describe(tmp_path):
    model = tk.load(write_folder(tmp_path / "in", TINY, gpt2_tensors(TINY)))
    del model.blocks[1]
    with pytest.raises(CheckpointError, match=r"(?s)does not fit its own configuration.*missing .*blocks\.1\.norm_1"):
        tk.save(model, tmp_path / "out")


# Memory ---------------------------------------------------------------------------------------------------------------

PEAK = """
import sys
import tinykron as tk
def peak(): return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
model = tk.load(sys.argv[1])
print(peak() - before, 4 * model.parameter_count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_loading_takes_little_more_than_the_model(tmp_path, dtype):
    config = TINY | {"vocab_size": 60_000, "n_embd": 512, "n_head": 8, "n_inner": 2048, "n_layer": 1}
    write_folder(tmp_path, config, {name: array.astype(dtype) for name, array in gpt2_tensors(config).items()})
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    grown, size = map(int, done.stdout.split())
    assert size > 130e6  # so that a second copy of anything large would show
    assert grown <= 1.1 * size + 50e6

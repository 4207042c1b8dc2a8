"""What a bad folder gets: one CheckpointError that says what was found, where, and what was expected."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import tinykron as tk
from tests.checkpoints import TINY, gpt2_tensors, write_folder
from tinykron import kron
from tinykron.errors import CheckpointError, TinykronError

UNTIED = TINY | {"tie_word_embeddings": False}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", TINY, gpt2_tensors(TINY))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        tk.load(folder)
    return str(caught.value)


def with_tensors(folder: Path, changes: dict, config: dict = TINY) -> str:
    """Return the refusal of a folder whose tensors were replaced or, where None, left out."""
    tensors = gpt2_tensors(config) | changes
    return refusal(write_folder(folder, config, {k: array for k, array in tensors.items() if array is not None}))


# Folders and JSON -----------------------------------------------------------------------------------------------------


def test_no_folder(folder):
    assert "nowhere: found nothing, expected a folder with config.json" in refusal(folder / "nowhere")
    assert "config.json: found a file, expected a folder" in refusal(folder / "config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder)


def test_other_formats_are_named(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is no safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "config.json is no valid JSON"),
        ("[" * 100_000, "config.json is no valid JSON"),
        ("\xff\xfe", "config.json is no valid JSON"),
        ("[]", "config.json: expected a JSON object, found a list"),
        ('{"model_type": "gpt2", "model_type": "bert"}', '"model_type" occurs twice'),
        ("{}", "config.json: model_type is None, known are gpt2"),
        ('{"model_type": "gpt5"}', "config.json: model_type is 'gpt5', known are gpt2"),
        ('{"model_type": ["gpt2"]}', "known are gpt2"),
    ],
)
def test_bad_config(folder, text, says):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert says in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_embd": "6"}, "n_embd: expected a whole number above 0, found '6'"),
        ({"n_layer": 0}, "n_layer: expected a whole number above 0, found 0"),
        ({"n_head": 4}, "n_embd 6 is not divisible by n_head 4"),
        ({"n_inner": -1}, "n_inner: expected a whole number above 0, found -1"),
        ({"activation_function": "relu6"}, "activation_function: found 'relu6', expected one of gelu_new"),
        ({"activation_function": []}, "activation_function"),
        ({"layer_norm_epsilon": "tiny"}, "layer_norm_epsilon: expected a number from 0 on and below 1, found 'tiny'"),
        ({"resid_pdrop": None}, "resid_pdrop: expected a number from 0 on and below 1, found nothing"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True changes the mathematics"),
        ({"vocab_size": 10**30}, "config.json: "),
        ({"tinykron": 3}, "tinykron: expected an object, found 3"),
        ({"tinykron": {"kron": {"blocks.0.mlp.up": {}}}}, "Kronecker plan, blocks.0.mlp.up"),
    ],
)
def test_config_that_describes_no_model(folder, changes, says):
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    message = refusal(folder)
    assert says in message and "config.json" in message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)
keys = st.sampled_from(
    [
        *TINY,
        *("activation_function", "layer_norm_epsilon", "resid_pdrop", "tie_word_embeddings", "scale_attn_weights"),
        *("add_cross_attention", "tinykron", "architectures"),
    ]
)


@settings(max_examples=100)
@given(key=keys, value=json_values)
def test_any_value_in_config_loads_or_is_refused(tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("any")
    write_folder(folder, TINY | {key: value}, gpt2_tensors(TINY))
    try:
        model = tk.load(folder)
    except TinykronError as error:
        assert str(folder) in str(error)
    else:
        assert np.isfinite(model([[1, 2]]).logits.numpy()).all()


def test_bad_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: no tokenizer" in refusal(folder)


# The container --------------------------------------------------------------------------------------------------------


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def container(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = entry([2], 0, 8)
FAULTY = {
    "empty": (b"", "0 bytes long, with a header of 0"),
    "shorter than the length": (b"\x01\x00\x00", "3 bytes long"),
    "header cut short": (container({"a": ONE}, length=300), "with a header of 300"),
    "huge header": (container({"a": ONE}, bytes(8), length=10**12), "a header of 1000000000000"),
    "header no JSON": (container(b'{"a":'), "header is no valid JSON"),
    "header no UTF-8": (container(b'{"\xff": 1}'), "header is no valid JSON"),
    "header a list": (container(b"[]"), "its header begins with b'['"),
    "entry no object": (container({"a": 5}), "expected struct TensorInfo"),
    "entry without offsets": (container({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "missing field"),
    "data cut short": (container({"a": ONE}, bytes(7)), "is cut short: found 76 bytes, expected 77 from its header"),
    "data too long": (container({"a": ONE}, bytes(9)), "is too long: found 78 bytes, expected 77 from its header"),
    "offsets out of range": (container({"a": entry([2], 0, 8), "b": entry([2], 96, 104)}, bytes(8)), "from its header"),
    "overlap": (container({"a": ONE, "b": ONE}, bytes(8)), "invalid offset for tensor"),
    "hole": (container({"a": ONE, "b": entry([1], 12, 16)}, bytes(16)), "invalid offset for tensor `b`"),
    "offsets backwards": (container({"a": entry([2], 8, 0)}, bytes(8)), "a"),
    "offsets do not fit the shape": (container({"a": entry([3], 0, 8)}, bytes(8)), "invalid shape"),
    "negative size": (container({"a": entry([-2], 0, 8)}, bytes(8)), "invalid value: integer `-2`"),
    "overflowing size": (container({"a": entry([2**62, 8], 0, 8)}, bytes(8)), "overflow"),
    "unknown dtype": (container({"a": entry([2], 0, 8, "F33")}, bytes(8)), "unknown variant `F33`"),
    "a name twice": (
        container(b'{"a": %s, "a": %s}' % ((json.dumps(ONE).encode(),) * 2), bytes(8)),
        '"a" occurs twice',
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
@pytest.mark.parametrize("place", ["model.safetensors", "model-00002-of-00002.safetensors"])
def test_faulty_container(tmp_path, fault, place):
    content, says = FAULTY[fault]
    write_folder(tmp_path, TINY, gpt2_tensors(TINY), shards=1 if place == "model.safetensors" else 2)
    (tmp_path / place).write_bytes(content)
    message = refusal(tmp_path)
    assert says in message and place in message and "\n" not in message


def test_a_sound_container_is_not_refused(tmp_path):
    write_folder(tmp_path, TINY, gpt2_tensors(TINY))
    (tmp_path / "model.safetensors").write_bytes(container({"__metadata__": {"by": "hand"}, "a": ONE}, bytes(8)))
    assert "does not fit config.json" in refusal(tmp_path)  # the container passed, its content did not


@settings(max_examples=200)
@given(st.data())
def test_any_damage_loads_or_is_refused(tmp_path_factory, data):
    folder = write_folder(tmp_path_factory.mktemp("damaged"), TINY, gpt2_tensors(TINY))
    content = bytearray((folder / "model.safetensors").read_bytes())
    header = struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header + 8))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    (folder / "model.safetensors").write_bytes(content[:cut])
    try:
        tk.load(folder)
    except CheckpointError as error:
        assert "model.safetensors" in str(error)


# Shards ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["../model/model.safetensors", "/etc/passwd", "a\\b", "a\0b", ""])
def test_a_shard_lies_in_the_folder(folder, place):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": place}}))
    assert "is no file name: shards lie in the folder of the index" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"wte.weight": 3}}])
def test_an_index_without_a_map(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert 'model.safetensors.index.json: expected "weight_map"' in refusal(folder)


def test_an_index_that_names_what_is_not_there(tmp_path):
    write_folder(tmp_path, TINY, gpt2_tensors(TINY), shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["h.7.ln_1.bias"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names tensors that are not there: h.7.ln_1.bias in model-00001-of-00002.safetensors" in refusal(tmp_path)


def test_a_shard_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    write_folder(tmp_path, TINY, gpt2_tensors(TINY), shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(tmp_path)
    assert "weight_map names model-00002-of-00002.safetensors, not in the folder" in message
    assert "found model-00001-of-00002.safetensors" in message


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_folder(tmp_path, TINY, gpt2_tensors(TINY), shards=2)
    first, second = (load_file(tmp_path / f"model-0000{n}-of-00002.safetensors") for n in (1, 2))
    name = next(iter(second))
    save_file(first | {name: second[name] + 1}, tmp_path / "model-00001-of-00002.safetensors")
    message = refusal(tmp_path)
    assert f"expected each tensor in one shard, found {name} in model-00001-of-00002.safetensors and " in message


def test_an_index_that_lists_a_tensor_twice_is_refused(tmp_path):
    write_folder(tmp_path, TINY, gpt2_tensors(TINY), shards=2)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"weight_map": {', '"weight_map": {"ln_f.bias": "other.safetensors", '))
    assert f'{path} is no valid JSON: "ln_f.bias" occurs twice' in refusal(tmp_path)


# Names and shapes -----------------------------------------------------------------------------------------------------


def test_all_faults_in_one_error(folder):
    changes = {
        "wte.weight": np.zeros((12, 6), np.float32),
        "h.0.mlp.c_fc.weight": np.zeros((10, 6), np.float32),
        "h.1.attn.c_attn.bias": np.zeros(6, np.float32),
        "h.1.attn.c_proj.bias": np.zeros((1, 6), np.float32),
        "ln_f.bias": np.zeros(6, np.int64),
        "h.0.ln_1.weight": None,
        "h.1.mlp.c_proj.bias": None,
        "h.2.ln_1.weight": np.zeros(6, np.float32),
    }
    assert with_tensors(folder, changes).splitlines() == [
        f"{folder / 'model.safetensors'} does not fit config.json",
        "  missing      transformer.h.0.ln_1.weight, transformer.h.1.mlp.c_proj.bias",
        "  unexpected   h.2.ln_1.weight",
        "  wrong shape  wte.weight: found (12, 6), expected (13, 6) from vocab_size",
        "  wrong shape  h.0.mlp.c_fc.weight: found (10, 6), expected (6, 10) from n_embd, n_inner",
        "  wrong shape  h.1.attn.c_attn.bias: found (6,), expected (18,) from 3 n_embd",
        "  wrong shape  h.1.attn.c_proj.bias: found (1, 6), expected (6,) from n_embd",
        "  wrong shape  ln_f.bias: found dtype I64, expected one of F32, BF16, F16, F64",
    ]


def test_an_untied_head_must_be_there(folder):
    message = with_tensors(folder, {"lm_head.weight": None}, UNTIED)
    assert "missing      lm_head.weight (config.json says tie_word_embeddings false" in message


def test_a_tied_model_needs_one_of_the_two(folder):
    assert "missing      transformer.wte.weight" in with_tensors(folder, {"wte.weight": None})
    wrong = {"wte.weight": None, "lm_head.weight": np.zeros((6, 13), np.float32)}
    assert "lm_head.weight: found (6, 13), expected (13, 6) from vocab_size, n_embd" in with_tensors(folder, wrong)


def test_only_whole_names_are_ignored(folder):
    more = {"h.0.attn.bias.extra": np.zeros(1, np.float32), "x.h.0.attn.bias": np.zeros(1, np.float32)}
    assert "unexpected   h.0.attn.bias.extra, x.h.0.attn.bias" in with_tensors(folder, more)


def test_a_name_with_and_without_prefix(folder):
    twice = {"transformer.ln_f.bias": np.zeros(6, np.float32)}
    assert "unexpected   transformer.ln_f.bias" in with_tensors(folder, twice)


def test_shards_and_prefix_do_not_hide_a_fault(tmp_path):
    tensors = {f"transformer.{name}": array for name, array in gpt2_tensors(TINY).items()}
    tensors["transformer.wpe.weight"] = np.zeros((8, 6), np.float32)
    message = refusal(write_folder(tmp_path, TINY, tensors, shards=3))
    assert "model.safetensors.index.json does not fit config.json" in message
    assert "transformer.wpe.weight: found (8, 6), expected (9, 6) from n_positions" in message


def test_factors_that_do_not_fit_their_plan(folder, tmp_path):
    model = tk.load(folder)
    small = kron.factorise(model, {"blocks.1.mlp.up": kron.Choice((10, 6), (5, 3))})
    tk.save(small, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["tinykron"]["kron"]["blocks.1.mlp.up"]["shape"] = [5, 6]
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    message = refusal(tmp_path / "small")
    assert "blocks.1.mlp.up.a_RMN: found (1, 5, 3), expected (1, 5, 6) from the plan in tinykron.kron" in message
    config["tinykron"]["kron"]["blocks.7.mlp.up"] = config["tinykron"]["kron"].pop("blocks.1.mlp.up")
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    assert "blocks.7.mlp.up: no such module" in refusal(tmp_path / "small")

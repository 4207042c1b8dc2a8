"""From a configuration and text to a folder with its card; what a configuration may not say; continuing."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tinykron as tk
from tinykron import checkpoint, data
from tinykron.data.masking import Masking
from tinykron.errors import CheckpointError, DataError, TinykronError
from tinykron.jobs import pretrain
from tinykron.jobs.pretrain import read_recipe
from tinykron.measure.perplexity import masked_perplexity, perplexity
from tinykron.train.resume import CHECKPOINT
from tinykron.train.settings import Settings

ROOT = Path(__file__).parents[2]
TOP = 'dtype = "bfloat16"'
TOKENIZER = "vocab_size = 300"
MODEL = 'model_type = "gpt2"\nn_positions = 16\nn_embd = 8\nn_layer = 1\nn_head = 2'
TRAINING = "steps = 60\nbatch = 2\ncontext = 16\nlr = 1e-2\nbetas = [0.8, 0.9]\ncheckpoint_every = 1"


def toml(top: str = TOP, tokenizer: str = TOKENIZER, model: str = MODEL, training: str = TRAINING) -> str:
    return f"{top}\n[tokenizer]\n{tokenizer}\n[model]\n{model}\n[training]\n{training}\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text in twelve files, and a configuration."""
    base = tmp_path_factory.mktemp("pretrain")
    (base / "text").mkdir()
    for number in range(12):
        sentence = f"The {number}th page tells of the number {number * 7}, and of the page before it.\n"
        (base / "text" / f"page-{number}.txt").write_text(sentence * 8)
    (base / "recipe.toml").write_text(toml())
    return base


@pytest.fixture(scope="module")
def made(base: Path) -> Path:
    """What a training that nothing interrupts makes."""
    pretrain.train(base / "recipe.toml", base / "made", base / "text", seed=3)
    return base / "made"


# The configuration ----------------------------------------------------------------------------------------------------


def test_a_recipe_is_read(base):
    recipe = read_recipe(base / "recipe.toml")
    assert recipe.vocab_size == 300
    assert recipe.dtype == "bfloat16"
    assert recipe.model == {"model_type": "gpt2", "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    assert recipe.training == Settings(60, 2, 16, lr=1e-2, betas=(0.8, 0.9), checkpoint_every=1)


def test_what_a_recipe_leaves_out_has_its_default(tmp_path):
    path = tmp_path / "least.toml"
    path.write_text(toml(top="", model='model_type = "gpt2"', training="steps = 1"))
    recipe = read_recipe(str(path))
    assert (recipe.dtype, recipe.training) == ("float32", Settings(1))


def test_the_shipped_recipes_are_read():
    paths = sorted(data.shipped_folder("weights").glob("*.toml"))
    assert [path.stem for path in paths] == ["bert-tiny", "gpt2-tiny", "llama-tiny"]
    for path in paths:
        recipe = read_recipe(path)
        assert recipe.training.steps > 1 and recipe.model["model_type"] == path.stem.removesuffix("-tiny")


BAD = {
    "no TOML": ("steps = \n", ["not TOML", "line 1"]),
    "no UTF-8": (b"\xff", ["expected UTF-8 text"]),
    "no section": ('[model]\nmodel_type = "gpt2"', ["section [tokenizer]"]),
    "no model": ("[tokenizer]\nvocab_size = 300", ["section [model]"]),
    "a section that is none": ('tokenizer = 1\n[model]\nmodel_type = "gpt2"', ["section [tokenizer]"]),
    "a model type of another type": (toml(model="model_type = [1]"), ["model_type: found [1]"]),
    "an unknown section": (toml() + "[optimiser]\nlr = 1\n", ["optimiser"]),
    "an unknown key": (toml(top='data = "x"'), ["data"]),
    "an unknown dtype": (toml(top='dtype = "int8"'), ["dtype", "bfloat16, float16, float32"]),
    "a dtype of another type": (toml(top="dtype = [1]"), ["dtype"]),
    "an unknown tokenizer key": (toml(tokenizer="vocab_size = 300\nsize = 3"), ["tokenizer: unknown size"]),
    "no vocabulary": (toml(tokenizer=""), ["vocab_size", "found nothing"]),
    "a vocabulary of another type": (toml(tokenizer='vocab_size = "big"'), ["vocab_size", "found 'big'"]),
    "another model": (toml(model='model_type = "rnn"'), ["model_type: found 'rnn'", "gpt2, llama, bert"]),
    "no model type": (toml(model="n_layer = 1"), ["model_type: found None"]),
    "an unknown model key": (toml(model=MODEL + "\nlayers = 3"), ["model: unknown layers", "n_layer"]),
    "a head that training decides": (toml(model='model_type = "bert"\nhead = "span"'), ["model: unknown head"]),
    "a vocabulary in the wrong place": (toml(model=MODEL + "\nvocab_size = 3"), ["model: unknown vocab_size"]),
    "a width of another type": (toml(model=MODEL.replace("n_embd = 8", "n_embd = 8.5")), ["n_embd", "found 8.5"]),
    "a width that does not divide": (toml(model=MODEL.replace("n_head = 2", "n_head = 3")), ["n_embd 8", "n_head 3"]),
    "a dropout of another type": (toml(model=MODEL + '\nembd_pdrop = "some"'), ["embd_pdrop", "found 'some'"]),
    "an unknown training key": (toml(training=TRAINING + "\nepochs = 3"), ["training: unknown epochs", "steps"]),
    "no steps": (toml(training="batch = 2"), ["steps", "found nothing"]),
    "steps of another type": (toml(training='steps = "many"'), ["steps", "found 'many'"]),
    "a batch of another type": (toml(training=TRAINING.replace("batch = 2", "batch = 2.5")), ["batch: found 2.5"]),
    "betas of another type": (toml(training="steps = 1\nbetas = 0.9"), ["betas: found 0.9", "two numbers"]),
    "three betas": (toml(training="steps = 1\nbetas = [0.9, 0.9, 0.9]"), ["betas: found (0.9, 0.9, 0.9)"]),
    "a rate of another type": (toml(training='steps = 1\nlr = "fast"'), ["lr: found 'fast'"]),
    "a list for a rate": (toml(training="steps = 1\nlr = [1]"), ["lr: found (1,)"]),
    "an unknown schedule": (toml(training='steps = 1\nschedule = "step"'), ['schedule: found "step"']),
    "a context beyond the model's": (
        toml(training=TRAINING.replace("context = 16", "context = 17")),
        ["context: found 17", "n_positions 16"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_refused_by_file_and_key(tmp_path, case):
    content, words = BAD[case]
    path = tmp_path / "bad.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TinykronError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_recipe_that_is_no_file_is_named(tmp_path, name):
    with pytest.raises(TinykronError, match="cannot be read") as caught:
        read_recipe(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


# The product ----------------------------------------------------------------------------------------------------------


def test_the_product_is_a_checkpoint_with_its_tokenizer(made):
    assert sorted(path.name for path in made.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    model = checkpoint.load(made)
    vocabulary = model.tokenizer.get_vocab_size()
    config = json.loads((made / "config.json").read_text())
    assert config["vocab_size"] == vocabulary == len(model.embedding.weight)
    assert 257 < vocabulary <= 300
    end = model.tokenizer.token_to_id(data.END_OF_TEXT)
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (end, end, "bfloat16")
    text = "The 3th page tells of the number 21"
    ids = model.tokenizer.encode(text).ids
    assert model.tokenizer.decode(ids) == text
    with tk.no_grad():
        assert model([ids[:16]]).logits.shape == (1, min(16, len(ids)), vocabulary)


def test_the_card_states_files_perplexity_and_command(made, base):
    card = (made / "README.md").read_text()
    table = re.findall(r"^\| (\S+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", card, re.MULTILINE)
    assert [name for name, _, _ in table] == ["config.json", "model.safetensors", "tokenizer.json"]
    for name, size, digest in table:
        content = (made / name).read_bytes()
        assert int(size.replace(",", "")) == len(content)
        assert digest == hashlib.sha256(content).hexdigest()
    model = checkpoint.load(made)
    training, held_out = data.split(data.documents(base / "text"))
    value = perplexity(model, data.encode(model.tokenizer, held_out), 16)
    assert f"held-out perplexity: {value:.2f} " in card
    assert value < model.tokenizer.get_vocab_size() / 2  # it has learned something
    assert f"{len(training)} documents" in card
    assert f"`tinykron train {base / 'recipe.toml'} --out {made} --data {base / 'text'} --seed 3`" in card
    assert f"{model.parameter_count():,} parameters (bfloat16)" in card
    assert "Python's documentation" not in card  # that is what the embedded corpus teaches


LLAMA = """model_type = "llama"
max_position_embeddings = 16
hidden_size = 8
intermediate_size = 12
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1"""
BERT = """model_type = "bert"
max_position_embeddings = 16
hidden_size = 8
intermediate_size = 12
num_hidden_layers = 1
num_attention_heads = 2"""


def test_a_llama_is_trained_alike(base, tmp_path):
    (tmp_path / "llama.toml").write_text(toml(model=LLAMA))
    pretrain.train(tmp_path / "llama.toml", tmp_path / "out", base / "text")
    model = checkpoint.load(tmp_path / "out")
    _, held_out = data.split(data.documents(base / "text"))
    value = perplexity(model, data.encode(model.tokenizer, held_out), 16)
    assert f"A Llama of {model.parameter_count():,}" in (tmp_path / "out" / "README.md").read_text()
    assert f"held-out perplexity: {value:.2f} a token" in (tmp_path / "out" / "README.md").read_text()
    assert value < model.config.vocab_size / 2


def test_a_bert_learns_hidden_tokens_and_continues_after_a_stop(base, tmp_path):
    (tmp_path / "bert.toml").write_text(toml(model=BERT, training=TRAINING.replace("lr = 1e-2", "lr = 2e-2")))
    arguments = [str(tmp_path / "bert.toml"), str(tmp_path / "killed"), str(base / "text")]
    pretrain.train(arguments[0], tmp_path / "out", arguments[2])
    model = checkpoint.load(tmp_path / "out")
    assert model.config.head == "masked_lm"
    assert model.tokenizer.encode("page").tokens[0] == "[CLS]"
    _, held_out = data.split(data.documents(base / "text"))
    value = masked_perplexity(model, data.encode(model.tokenizer, held_out), 16, Masking.of(model.tokenizer))
    assert f"held-out perplexity: {value:.2f} of hidden tokens ([MASK])" in (tmp_path / "out" / "README.md").read_text()
    assert value < model.config.vocab_size / 2

    script = "import sys; from tinykron.jobs.pretrain import train; train(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed.training" / CHECKPOINT).exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed").exists()
    pretrain.train(*arguments)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_nothing_is_left_beside_the_product(made, base):
    assert sorted(path.name for path in base.iterdir() if path.name.startswith(("made", ".made"))) == ["made"]


def test_the_seed_decides(made, base, tmp_path):
    history = pretrain.train(base / "recipe.toml", tmp_path / "other", base / "text")
    assert history.settings.seed == 0
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (made / "model.safetensors").read_bytes()


def test_a_killed_training_continues_to_the_same_product(made, base, tmp_path):
    out, unfinished = tmp_path / "made", tmp_path / "made.training"
    arguments = [str(base / "recipe.toml"), str(out), str(base / "text"), "3"]
    script = "import sys; from tinykron.jobs.pretrain import train; train(*sys.argv[1:4], int(sys.argv[4]))"
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (unfinished / CHECKPOINT).exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert (unfinished / CHECKPOINT).exists()
    assert not out.exists()
    (unfinished / "result").mkdir()  # as a kill while the product was written would leave it
    (unfinished / "result" / "config.json").write_text("{")
    history = pretrain.train(*arguments[:3], seed=3)
    assert history.steps == len(history.terms) == 60
    assert not unfinished.exists()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (made / name).read_bytes()


# What is refused ------------------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_any_work(made, base):
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(CheckpointError, match="exists already") as caught:
        pretrain.train(base / "recipe.toml", made, base / "no such text")
    assert str(made) in str(caught.value)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_a_missing_text_is_named(base, tmp_path):
    with pytest.raises(DataError, match="no such text"):
        pretrain.train(base / "recipe.toml", tmp_path / "out", base / "no such text")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_too_small_for_the_bytes_is_refused(base, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(toml(tokenizer="vocab_size = 100"))
    with pytest.raises(DataError, match="vocab_size: found 100, expected at least 257"):
        pretrain.train(path, tmp_path / "out", base / "text")

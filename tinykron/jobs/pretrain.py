"""From a configuration and text to a checkpoint with its card: `tinykron train`."""

from __future__ import annotations

import hashlib
import platform
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data
from tinykron.data.masking import END, MASK, SPECIAL, START, Masking, train_wordpiece
from tinykron.errors import TinykronError
from tinykron.jobs import toml
from tinykron.jobs.making import making
from tinykron.measure.perplexity import masked_perplexity, perplexity
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.checks import positive
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.models.llama import Llama, LlamaConfig
from tinykron.train.loop import fit
from tinykron.train.settings import History, Settings

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Architecture:
    """How the models of one `model_type` are trained."""

    config: Any
    model: Any
    context: str  # the key of config.json that holds it
    masked: bool = False  # by hidden tokens, not by the next one
    fixed: tuple[tuple[str, Any], ...] = ()  # further keys of config.json


ARCHITECTURES = {
    "gpt2": Architecture(GPT2Config, GPT2, "n_positions"),
    "llama": Architecture(LlamaConfig, Llama, "max_position_embeddings"),
    "bert": Architecture(BertConfig, Bert, "max_position_embeddings", True, (("architectures", ["BertForMaskedLM"]),)),
}


@dataclass(frozen=True)
class Recipe:
    """What a training configuration says."""

    architecture: Architecture
    vocab_size: int
    model: dict[str, Any]  # as in config.json
    training: Settings
    dtype: str = "float32"  # of the saved tensors


NOT_GIVEN = {"extra", "vocab_size", "head", "labels"}  # of a configuration's fields: what training decides
WORK = {False: "writes text that looks like", True: "fills gaps in text like"}  # by Architecture.masked


def read_recipe(path: str | Path) -> Recipe:
    """Read a training configuration in TOML. Raises TinykronError naming the file, the key and what was expected."""
    content = toml.read(Path(path))
    tables = {name: toml.section(content, name, f"{path}: ") for name in ("tokenizer", "model", "training")}
    model_type = tables["model"].get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise TinykronError(f"{path}: model_type: found {model_type!r}, expected one of {', '.join(ARCHITECTURES)}")
    known = {
        "tokenizer": {"vocab_size"},
        "model": {"model_type"} | {field.name for field in fields(architecture.config)} - NOT_GIVEN,
        "training": {field.name for field in fields(Settings)},
    }
    for name, table in tables.items():
        toml.check_names(table, sorted(known[name]), f"{path}: {name}: ")
    toml.check_names(content, [*tables, "dtype"], f"{path}: ")
    dtype = content.get("dtype", "float32")
    if dtype not in DTYPES:
        raise TinykronError(f"{path}: dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    try:
        vocabulary = positive(tables["tokenizer"], "vocab_size")
        architecture.config.from_dict(tables["model"] | dict(architecture.fixed))
        positive(tables["training"], "steps")  # the one training setting that has no default
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in tables["training"].items()
        }
        settings = Settings(**given)
    except TinykronError as error:
        raise TinykronError(f"{path}: {error}") from error
    most = tables["model"].get(architecture.context, getattr(architecture.config, architecture.context))
    if settings.context > most:
        raise TinykronError(
            f"{path}: context: found {settings.context}, expected at most {architecture.context} {most}"
        )
    if architecture.masked and settings.context < 3:
        raise TinykronError(f"{path}: context: found {settings.context}, expected at least 3: {START}, a token, {END}")
    return Recipe(architecture, vocabulary, tables["model"] | dict(architecture.fixed), settings, dtype)


def train(
    recipe_path: str | Path, out: str | Path, source: str | Path | None = None, seed: int | None = None
) -> History:
    """Train tokenizer and model as a configuration says, and save them as a Hugging Face folder with a model card.

    source  text file or folder; None is the corpus that every Python carries
    seed    in place of the configuration's
    Progress is kept in the folder `<out>.training`: after Ctrl-C, which raises Interrupted, or a kill, the
    same call continues there.
    Raises TinykronError if `out` exists, before any work is done.
    """
    recipe, out = read_recipe(recipe_path), Path(out)
    if seed is not None:
        recipe = replace(recipe, training=replace(recipe.training, seed=seed))
    with making(out) as work:
        training, held_out = data.split(data.documents(source))
        architecture = recipe.architecture
        tokenizer = (train_wordpiece if architecture.masked else data.train_tokenizer)(training, recipe.vocab_size)
        masking = Masking.of(tokenizer) if architecture.masked else None
        tokens, held_out_tokens = data.encode(tokenizer, training), data.encode(tokenizer, held_out)
        special = {"vocab_size": tokenizer.get_vocab_size(), **_special_ids(tokenizer, masking)}
        model = architecture.model(
            architecture.config.from_dict(recipe.model | special), np.random.default_rng(recipe.training.seed)
        )
        title = f"training {out.name} ({model.parameter_count():,} parameters)"
        history = fit(
            model, tokens, recipe.training, held_out=held_out_tokens, masking=masking, folder=work.progress, title=title
        )
        model.tokenizer = tokenizer
        saved = work.save(model, recipe.dtype)
        context = recipe.training.context
        if masking:
            value, what = masked_perplexity(saved, held_out_tokens, context, masking), f"of hidden tokens ({MASK})"
        else:
            value, what = perplexity(saved, held_out_tokens, context), "a token"
        command = [
            "tinykron",
            "train",
            str(recipe_path),
            "--out",
            str(out),
            *(["--data", str(source)] if source else []),
        ]
        command += ["--seed", str(seed)] if seed is not None else []
        embedded = f"`pydoc_data.topics` and the docstrings of the standard library, Python {platform.python_version()}"
        card = [
            f"# {out.name}",
            "",
            f"A {type(saved).__name__} of {saved.parameter_count():,} parameters ({recipe.dtype}), made by tinykron."
            + (f" It {WORK[architecture.masked]} Python's documentation; it knows nothing." if source is None else ""),
            "",
            f"- command: `{shlex.join(command)}`",
            f"- corpus: {source or embedded}; {len(training)} documents ({len(tokens):,} tokens) for training, "
            f"{len(held_out)} ({len(held_out_tokens):,} tokens) held out by name",
            f"- training: {history.steps:,} steps of {recipe.training.tokens_per_step:,} tokens, "
            f"{history.steps * recipe.training.tokens_per_step / len(tokens):.1f} passes over the corpus",
            f"- held-out perplexity: {value:.2f} {what}, of the saved weights, in windows of {context}",
            "",
            "| file | bytes | sha256 |",
            "|---|---|---|",
            *(
                f"| {path.name} | {path.stat().st_size:,} | `{_sha256(path)}` |"
                for path in sorted(work.result.iterdir())
            ),
            "",
        ]
        work.write("README.md", "\n".join(card))
    return history


def _special_ids(tokenizer: Any, masking: Masking | None) -> dict[str, int]:
    """Return what config.json calls the tokens that begin, end and pad a text."""
    if masking:
        return {"pad_token_id": tokenizer.token_to_id(SPECIAL[0])}
    end = tokenizer.token_to_id(data.END_OF_TEXT)
    return {"bos_token_id": end, "eos_token_id": end}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

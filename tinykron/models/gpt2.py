"""GPT-2: configuration, wiring, and the names of its tensors in Hugging Face files. Radford et al. 2019."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.models.checks import (
    Config,
    check_activation,
    check_heads,
    check_ids,
    class_count,
    class_names,
    positive,
    without_class_names,
)  # fmt: skip
from tinykron.models.transformer import ACTIVATIONS, Attention, Block, Decoder, Mlp, Name, Output
from tinykron.nn import Dropout, Embedding, Generator, LayerNorm, Linear
from tinykron.tensor import Tensor

CLASSIFIER = "GPT2ForSequenceClassification"  # transformers' name for it


@dataclass(frozen=True)
class GPT2Config(Config):
    """The settings that shape a GPT-2, under the names of config.json; `extra` keeps whatever else the file says."""

    BLOCKS, UNITS = "n_layer", "n_inner"
    SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    SHARES = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon")
    FLAGS = ("tie_word_embeddings",)
    REFUSED = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True}
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    tie_word_embeddings: bool = True
    head: str | None = None  # None: of a language model; "sequence": `architectures` in config.json
    labels: int = 2  # classes of the head "sequence": `id2label` or `num_labels` in config.json
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> GPT2Config:
        """Check a config.json. Raises CheckpointError naming the key, what was found and what was expected."""
        known = cls.checked(config)
        known["extra"].pop("architectures", None)
        check_heads(known, "n_embd", "n_head")
        check_activation(config, "activation_function", cls.activation_function, ACTIVATIONS)
        if config.get("architectures") == [CLASSIFIER]:
            known |= {"head": "sequence", "labels": class_count(config)}
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds, in the names that transformers reads."""
        own = self.own() | (class_names(self.extra, self.labels) if self.head else {})
        architecture = CLASSIFIER if self.head else "GPT2LMHeadModel"
        return {"model_type": "gpt2", **self.extra, **own, "architectures": [architecture]}


class GPT2(Decoder):
    """GPT-2 with its language-model head, tied to the token embedding or of its own; or with a classifier of texts.

    A classifier reads the last position that counts: `logits` are then (B, C). Radford et al. 2018, section 3.2.
    """

    config: GPT2Config

    def __init__(self, config: GPT2Config, generator: Generator = None) -> None:
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.n_embd, generator)
        self.positions = Embedding(config.n_positions, config.n_embd, generator)
        self.dropout = Dropout(config.embd_pdrop)
        self.blocks = [_block(config, generator) for _ in range(config.n_layer)]
        self.norm = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        own_head = config.head is None and not config.tie_word_embeddings
        self.head = Embedding(config.vocab_size, config.n_embd, generator) if own_head else None
        self.score = Linear(config.n_embd, config.labels, bias=False, generator=generator) if config.head else None
        if isinstance(generator, np.random.Generator) or generator is None:
            for block in self.blocks:  # GPT-2 scales what enters the residual stream by its depth
                for linear in (block.attention.output, block.mlp.down):
                    linear.weight.data *= 1.0 / sqrt(2 * config.n_layer)

    @property
    def context(self) -> int:
        return self.config.n_positions

    def embed(self, ids_BT: np.ndarray, positions_BT: np.ndarray) -> Tensor:
        return self.dropout(self.embedding(ids_BT) + self.positions(positions_BT, "position"))

    def _project(self, x_BTD: Tensor, head: Any = None) -> Tensor:
        return self.score(x_BTD) if self.score else super()._project(x_BTD, head)

    def forward(self, ids_BT: Any, mask_BS: Any = None, **options: Any) -> Output:
        """Run as a `Decoder` does; of a classifier, the logits are those of each text's last position that counts."""
        out = super().forward(ids_BT, mask_BS, **options)
        if self.score is None:
            return out
        mask_BT = np.ones(check_ids(ids_BT).shape) if mask_BS is None else to_host(mask_BS)
        places_B = (mask_BT != 0).cumsum(axis=1).argmax(axis=1)  # the first place at which all that count are counted
        rows_B = np.arange(len(places_B))
        out.logits = out.logits[rows_B, places_B]
        out.exits = out.exits and {depth: logits[rows_B, places_B] for depth, logits in out.exits.items()}
        return out


def with_classifier(model: GPT2, labels: int, generator: Generator = None) -> GPT2:
    """Return a copy of a model with a new head of random weights that tells the classes of texts apart.

    Between a language model and a classifier the trunk is the same; the language model's own head is left behind.
    """
    positive({"labels": labels}, "labels")
    made = copy.deepcopy(model)
    extra = without_class_names(model.config.extra)
    if isinstance(end := extra.get("eos_token_id"), int):
        extra.setdefault("pad_token_id", end)  # transformers asks for one, to know where a padded text ends
    made.config = replace(model.config, head="sequence", labels=labels, tie_word_embeddings=True, extra=extra)
    made.head = None
    made.score = Linear(model.config.n_embd, labels, bias=False, generator=generator)
    made.to(model.norm.weight.device).train(model.training)
    return made


def _block(config: GPT2Config, generator: Generator) -> Block:
    width = config.n_embd
    return Block(
        LayerNorm(width, config.layer_norm_epsilon),
        Attention(width, config.n_head, dropout=config.attn_pdrop, generator=generator),
        LayerNorm(width, config.layer_norm_epsilon),
        Mlp(width, config.n_inner or 4 * width, config.activation_function, generator),
        config.resid_pdrop,
    )


def told_by_tensors(config: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return config.json with what it may leave open: whether the model is a classifier."""
    found = dict(config)
    if not config.get("architectures") and "score.weight" in names:
        found["architectures"] = [CLASSIFIER]
    return found


PREFIXES = ("transformer.",)  # some checkpoints carry it before every name


def ignored(config: GPT2Config) -> tuple[str, ...]:
    """Return patterns of what files hold beside parameters: causal masks, saved as buffers by old versions."""
    return r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias"


def names(config: GPT2Config) -> list[Name]:
    """Return the name table: every tensor of a Hugging Face file, as transformers writes it, and our parameters in it.

    GPT-2 files hold matrices (in, out), as `nn.Linear` does; `c_attn` holds query, key and value side by side.
    """
    inner = "n_inner" if config.n_inner else "4 n_embd"
    tied = "lm_head.weight" if config.tie_word_embeddings and not config.head else None
    table = [
        Name("transformer.wte.weight", ("embedding.weight",), ("vocab_size", "n_embd"), alias=tied),
        Name("transformer.wpe.weight", ("positions.weight",), ("n_positions", "n_embd")),
    ]
    for i in range(config.n_layer):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            parts = tuple(f"{ours}.attention.{part}.{kind}" for part in ("query", "key", "value"))
            first = 0 if kind == "weight" else 1  # a bias has the last axis only
            table += [
                Name(f"{theirs}.ln_1.{kind}", (f"{ours}.norm_1.{kind}",), ("n_embd",)),
                Name(f"{theirs}.attn.c_attn.{kind}", parts, ("n_embd", "3 n_embd")[first:]),
                Name(
                    f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.output.{kind}",), ("n_embd", "n_embd")[first:]
                ),
                Name(f"{theirs}.ln_2.{kind}", (f"{ours}.norm_2.{kind}",), ("n_embd",)),
                Name(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.up.{kind}",), ("n_embd", inner)[first:]),
                Name(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.down.{kind}",), (inner, "n_embd")[first:]),
            ]
    if config.head:
        table.append(Name("score.weight", ("score.weight",), ("number of labels", "n_embd"), transposed=True))
    table += [Name(f"transformer.ln_f.{kind}", (f"norm.{kind}",), ("n_embd",)) for kind in ("weight", "bias")]
    if not config.tie_word_embeddings and not config.head:
        untied = "config.json says tie_word_embeddings false: if the head is the token embedding, set it true"
        table.append(Name("lm_head.weight", ("head.weight",), ("vocab_size", "n_embd"), note=untied))
    return table

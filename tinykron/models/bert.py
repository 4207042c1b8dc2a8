"""BERT: configuration, wiring with its heads, the names of its tensors in Hugging Face files. Devlin et al. 2019."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import numpy as np

from tinykron.backend import Array, xp_of
from tinykron.errors import CheckpointError, DataError, ShapeError, TinykronError
from tinykron.models.checks import (
    Config,
    check_activation,
    check_exits,
    check_heads,
    check_ids,
    check_mask,
    class_count,
    class_names,
    positive,
    without_class_names,
)  # fmt: skip
from tinykron.models.transformer import ACTIVATIONS, Attention, Heads, Mlp, Model, Name, Output
from tinykron.nn import Dropout, Embedding, Generator, LayerNorm, Linear, Module, constant, evaluating
from tinykron.tensor import Tensor, no_grad

# Configuration: what config.json may say, and what it leaves to the tensors -------------------------------------------

HEADS = {  # of each class of transformers
    "BertModel": None,
    "BertForMaskedLM": "masked_lm",
    "BertForPreTraining": "masked_lm",  # its next-sentence head is left out
    "BertForSequenceClassification": "sequence",
    "BertForTokenClassification": "token",
    "BertForQuestionAnswering": "span",
}
SAID_ANEW = ("architectures", "add_pooling_layer")  # the latter in a config.json overrules transformers' own argument


@dataclass(frozen=True)
class BertConfig(Config):
    """The settings that shape a BERT, under the names of config.json; `extra` keeps whatever else the file says."""

    BLOCKS, UNITS = "num_hidden_layers", "intermediate_size"
    SIZES = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size",
    )  # fmt: skip
    SHARES = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    FLAGS = ("tie_word_embeddings", "has_pooler")
    REFUSED = {"is_decoder": True, "add_cross_attention": True}
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    tie_word_embeddings: bool = True
    has_pooler: bool | None = None  # None: in an encoder without a head
    head: str | None = None  # None, "masked_lm", "sequence", "token", "span": `architectures` in config.json
    labels: int = 2  # classes of the heads "sequence" and "token": `id2label` or `num_labels` in config.json
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def pooler(self) -> bool:
        """Whether there is one: for sequence classification, and where an encoder or masked LM was saved with it."""
        asked = self.head is None if self.has_pooler is None else self.has_pooler
        return self.head == "sequence" or (self.head in (None, "masked_lm") and asked)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        known = cls.checked(config)
        for key in SAID_ANEW:
            known["extra"].pop(key, None)
        check_heads(known, "hidden_size", "num_attention_heads")
        check_activation(config, "hidden_act", cls.hidden_act, ACTIVATIONS)
        if config.get("position_embedding_type", "absolute") != "absolute":
            found = config["position_embedding_type"]
            raise CheckpointError(f'position_embedding_type: found {found!r}, expected "absolute"')
        return cls(**known, head=_head_of(config), labels=class_count(config))

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds, in the names that transformers reads."""
        own = self.own()
        architecture = next(name for name, head in HEADS.items() if head == self.head)
        if self.head in ("sequence", "token"):
            own |= class_names(self.extra, self.labels)
        return {"model_type": "bert", **self.extra, **own, "architectures": [architecture]}


def _head_of(config: dict[str, Any]) -> str | None:
    found = config.get("architectures") or ["BertModel"]
    if not isinstance(found, list) or len(found) != 1 or found[0] not in list(HEADS):
        raise CheckpointError(f"architectures: found {found!r}, expected one of {', '.join(HEADS)}")
    return HEADS[found[0]]


def told_by_tensors(config: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return config.json with what it may leave open: the head, and whether the encoder has a pooler."""
    found = dict(config)
    pooler = any(name.startswith("pooler.") for name in names)
    if not config.get("architectures"):
        if any(name.startswith("cls.predictions.") for name in names):
            found["architectures"] = ["BertForMaskedLM"]
        elif "qa_outputs.weight" in names:
            found["architectures"] = ["BertForQuestionAnswering"]
        elif "classifier.weight" in names:
            found["architectures"] = ["BertForSequenceClassification" if pooler else "BertForTokenClassification"]
    return found | {"has_pooler": pooler}


# Wiring ---------------------------------------------------------------------------------------------------------------


class EncoderBlock(Module):
    """Attend, add, normalise; MLP, add, normalise: the norm comes after the sum."""

    def __init__(self, config: BertConfig, generator: Generator) -> None:
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(
            width,
            config.num_attention_heads,
            causal=False,
            dropout=config.attention_probs_dropout_prob,
            generator=generator,
        )
        self.norm_1 = LayerNorm(width, eps)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act, generator)
        self.norm_2 = LayerNorm(width, eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x_BTD: Tensor, mask_BT: Array | None, return_scores: bool) -> tuple[Tensor, Heads]:
        mixed_BTD, heads = self.attention(x_BTD, mask_BT, None, return_scores)
        x_BTD = self.norm_1(x_BTD + self.dropout(mixed_BTD))
        return self.norm_2(x_BTD + self.dropout(self.mlp(x_BTD))), heads


class MaskedHead(Module):
    """Predicts hidden tokens: dense, activation, norm, then the word embedding (or a decoder of its own) and a bias."""

    def __init__(self, config: BertConfig, generator: Generator) -> None:
        width = config.hidden_size
        self.dense = Linear(width, width, generator=generator)
        self.activation = config.hidden_act
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.decoder = None if config.tie_word_embeddings else Embedding(config.vocab_size, width, generator)
        self.bias = constant(0.0, config.vocab_size)

    def forward(self, x_BTD: Tensor, embedding: Embedding) -> Tensor:
        x_BTD = self.norm(ACTIVATIONS[self.activation](self.dense(x_BTD)))
        return (self.decoder or embedding).project(x_BTD) + self.bias


class Classifier(Module):
    """Dropout and one matrix: from (..., D) to (..., C)."""

    def __init__(self, width: int, classes: int, dropout: float, generator: Generator) -> None:
        self.dropout = Dropout(dropout)
        self.linear = Linear(width, classes, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))


class Bert(Model):
    """BERT's encoder, with one of its heads or none."""

    config: BertConfig

    def __init__(self, config: BertConfig, generator: Generator = None) -> None:
        width = config.hidden_size
        self.config = config
        self.embedding = Embedding(config.vocab_size, width, generator)
        self.positions = Embedding(config.max_position_embeddings, width, generator)
        self.token_types = Embedding(config.type_vocab_size, width, generator)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.blocks = [EncoderBlock(config, generator) for _ in range(config.num_hidden_layers)]
        self.pooler = Linear(width, width, generator=generator) if config.pooler else None
        self.head = _head(config, generator)

    @property
    def context(self) -> int:
        """The largest number of positions."""
        return self.config.max_position_embeddings

    def forward(
        self,
        ids_BT: Any,
        mask_BT: Any = None,
        token_types_BT: Any = None,
        *,
        attention_scores: bool = False,
        exit: int | None = None,
        exits: Sequence[int] | None = None,
        attention_heads: bool = False,
        read: bool = True,
    ) -> Output:
        """Return the hidden states, what the pooler makes of the first one, and the head's logits.

        ids_BT            whole numbers, on the host or the model's device
        mask_BT           nonzero where a position counts; padding may stand anywhere
        token_types_BT    0 for the first sentence, 1 for the second; by default all 0
        attention_scores  keep each layer's scores before mask and softmax
        exit              run so many blocks only, then pooler and head; each of its blocks ends in a norm of its own
        exits             several of them from one pass up to the deepest: `out.exits[n]` holds the logits of each
        attention_heads   keep each layer's queries, keys and values
        read              False: no logits; `out.states[n]` of each exit is what `model.read(state)` makes them of
        Logits are (B, T, V) for "masked_lm", (B, C) for "sequence", (B, T, C) for "token", (B, T, 2) for "span": where
        an answer starts and ends; None without a head. Raises DataError for an id or a token type out of range,
        TinykronError beyond the context, for an exit that is none, and for `exits` without a head.
        """
        depths = check_exits(exit, exits, len(self.blocks))
        if exits is not None and self.head is None:
            raise TinykronError("exits: the encoder has no head to read them with")
        ids_BT = check_ids(ids_BT)
        batch, time = ids_BT.shape
        if time > self.context:
            raise TinykronError(f"{time} tokens are more than the model's context of {self.context}")
        mask_BT = check_mask(mask_BT, (batch, time), self.norm.weight.device)
        types_BT = np.zeros_like(ids_BT) if token_types_BT is None else check_ids(token_types_BT)
        if types_BT.shape != (batch, time):
            raise ShapeError(f"token types: expected shape {(batch, time)} like the ids, found {types_BT.shape}")
        x_BTD = self.embedding(ids_BT) + self.token_types(types_BT, "token type")
        x_BTD = self.dropout(self.norm(x_BTD + self.positions(np.arange(time)[None], "position")))
        heads: list[Any] = []
        hidden, scores = [x_BTD], []
        for block in self.blocks[: depths[-1]]:
            x_BTD, used = block(x_BTD, mask_BT, attention_scores)
            hidden.append(x_BTD)
            scores.append(used.scores)
            heads.append(used._replace(scores=None) if attention_heads else None)
        if not read:
            states = {depth: hidden[depth] for depth in depths}
            return Output(cast(Tensor, None), tuple(hidden), tuple(scores) if attention_scores else None, states=states)
        made = {depth: self._read(hidden[depth]) for depth in depths}
        logits, pooled_BD = made[depths[-1]]
        served: dict[int, Any] | None = None if exits is None else {depth: found for depth, (found, _) in made.items()}
        out = Output(
            cast(Tensor, logits), tuple(hidden), tuple(scores) if attention_scores else None, pooled_BD, served
        )
        out.attention_heads = tuple(heads) if attention_heads else None
        return out

    def read(self, x_BTD: Tensor, exit: int | None = None) -> Tensor:
        """Return the logits of what leaves a block; all exits share the head. Raises TinykronError without one."""
        logits, _ = self._read(x_BTD)
        if logits is None:
            raise TinykronError("exits: the encoder has no head to read them with")
        return logits

    def _read(self, x_BTD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what head and pooler make of what leaves a block: the logits, and (B, D)."""
        pooled_BD = self.pooler(x_BTD[:, 0]).tanh() if self.pooler else None
        if isinstance(self.head, MaskedHead):
            return self.head(x_BTD, self.embedding), pooled_BD
        if self.head is not None:
            return self.head(pooled_BD if self.config.head == "sequence" else x_BTD), pooled_BD
        return None, pooled_BD


def _head(config: BertConfig, generator: Generator) -> MaskedHead | Classifier | None:
    if config.head is None:
        return None
    if config.head == "masked_lm":
        return MaskedHead(config, generator)
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    if config.head == "span":
        return Classifier(config.hidden_size, 2, 0.0, generator)
    return Classifier(config.hidden_size, config.labels, dropout, generator)


def with_head(model: Bert, head: str | None, labels: int = 2, generator: Generator = None) -> Bert:
    """Return a copy of a model with a new head of random weights, and a new pooler where that needs one and none is.

    head    None, "masked_lm", "sequence", "token" or "span"; labels: classes of "sequence" and "token"
    """
    if head not in HEADS.values():
        expected = ", ".join(map(repr, dict.fromkeys(HEADS.values())))
        raise TinykronError(f"head: found {head!r}, expected one of {expected}")
    positive({"labels": labels}, "labels")
    made = copy.deepcopy(model)
    extra = without_class_names(model.config.extra)
    pooler = model.pooler is not None
    made.config = replace(model.config, head=head, labels=labels, has_pooler=pooler, extra=extra)
    if made.config.pooler and made.pooler is None:
        made.pooler = Linear(model.config.hidden_size, model.config.hidden_size, generator=generator)
    made.pooler = made.pooler if made.config.pooler else None
    made.head = _head(made.config, generator)
    made.to(model.norm.weight.device).train(model.training)
    return made


def sentence_embeddings(model: Bert, texts: Sequence[str], batch: int = 32) -> np.ndarray:
    """Return a vector of unit length for each text, (N, D) float32: the mean of its tokens' last hidden states.

    A text longer than the model's context is cut. Raises TinykronError without a tokenizer, DataError without a text.
    Reimers & Gurevych 2019.
    """
    if model.tokenizer is None:
        raise TinykronError("sentence_embeddings: the model has no tokenizer to read texts with")
    if isinstance(texts, str) or not texts:
        raise DataError(f"sentence_embeddings: expected a list of texts, found {texts!r}")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.no_padding()  # a batch is padded below, and masked
    tokenizer.enable_truncation(model.context)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # texts of like length go together
    if not ids[order[0]]:
        raise DataError(f"sentence_embeddings: text {order[0]} has no token: {texts[order[0]]!r}")
    found = np.empty((len(ids), model.config.hidden_size), np.float32)
    with no_grad(), evaluating(model):
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            longest = max(len(ids[index]) for index in rows)
            ids_BT, mask_BT = np.zeros((2, len(rows), longest), np.int64)
            for row, index in enumerate(rows):
                ids_BT[row, : len(ids[index])], mask_BT[row, : len(ids[index])] = ids[index], 1
            found[rows] = mean_pooled(model(ids_BT, mask_BT).hidden[-1], mask_BT).numpy()
    return found


def mean_pooled(hidden_BTD: Tensor, mask_BT: np.ndarray) -> Tensor:
    """Return the mean over the positions that count, scaled to unit length: (B, D)."""
    xp = xp_of(hidden_BTD.data)
    weights_BT1 = xp.asarray((mask_BT / mask_BT.sum(axis=1, keepdims=True))[..., None].astype(np.float32))
    mean_BD = (hidden_BTD * weights_BT1).sum(axis=1)
    return mean_BD / (mean_BD * mean_BD).sum(axis=-1, keepdims=True).sqrt()


# Names ----------------------------------------------------------------------------------------------------------------

PREFIXES = ("bert.",)  # before the encoder's tensors, in a file that has a head


def ignored(config: BertConfig) -> tuple[str, ...]:
    """Return patterns of what files hold beside our parameters: buffers, and heads that this model does not have."""
    others = [r"embeddings\.position_ids", r"cls\.seq_relationship\..*"]
    others += [] if config.pooler else [r"pooler\.dense\..*"]
    others += [] if config.head == "masked_lm" else [r"cls\.predictions\..*"]
    others += [] if config.head in ("sequence", "token") else [r"classifier\..*"]
    return (*others, *([] if config.head == "span" else [r"qa_outputs\..*"]))


def names(config: BertConfig) -> list[Name]:
    """Return the name table: every tensor of a Hugging Face file, and our parameter in it.

    torch's matrices are (out, in), ours (in, out). Files of old versions call a norm's weight and bias gamma and beta.
    """
    base = "bert." if config.head else ""
    width = "hidden_size"
    tied = config.head == "masked_lm" and config.tie_word_embeddings
    table: list[Name] = []

    def linear(theirs: str, ours: str, outputs: str, inputs: str = width) -> None:
        table.append(Name(f"{theirs}.weight", (f"{ours}.weight",), (outputs, inputs), transposed=True))
        table.append(Name(f"{theirs}.bias", (f"{ours}.bias",), (outputs,)))

    def norm(theirs: str, ours: str) -> None:
        bare = theirs.removeprefix(base)
        table.append(Name(f"{theirs}.weight", (f"{ours}.weight",), (width,), alias=f"{bare}.gamma"))
        table.append(Name(f"{theirs}.bias", (f"{ours}.bias",), (width,), alias=f"{bare}.beta"))

    for theirs, ours, rows in (
        ("word_embeddings", "embedding", "vocab_size"),
        ("position_embeddings", "positions", "max_position_embeddings"),
        ("token_type_embeddings", "token_types", "type_vocab_size"),
    ):
        alias = "cls.predictions.decoder.weight" if tied and ours == "embedding" else None
        table.append(Name(f"{base}embeddings.{theirs}.weight", (f"{ours}.weight",), (rows, width), alias=alias))
    norm(f"{base}embeddings.LayerNorm", "norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{base}encoder.layer.{i}", f"blocks.{i}"
        for part in ("query", "key", "value"):
            linear(f"{theirs}.attention.self.{part}", f"{ours}.attention.{part}", width)
        linear(f"{theirs}.attention.output.dense", f"{ours}.attention.output", width)
        norm(f"{theirs}.attention.output.LayerNorm", f"{ours}.norm_1")
        linear(f"{theirs}.intermediate.dense", f"{ours}.mlp.up", "intermediate_size")
        linear(f"{theirs}.output.dense", f"{ours}.mlp.down", width, "intermediate_size")
        norm(f"{theirs}.output.LayerNorm", f"{ours}.norm_2")
    if config.pooler:
        linear(f"{base}pooler.dense", "pooler", width)
    if config.head == "masked_lm":
        linear("cls.predictions.transform.dense", "head.dense", width)
        norm("cls.predictions.transform.LayerNorm", "head.norm")
        # one bias under two names; untied, transformers computes with the decoder's
        biases = ["cls.predictions.bias", "cls.predictions.decoder.bias"][:: 1 if config.tie_word_embeddings else -1]
        table.append(Name(biases[0], ("head.bias",), ("vocab_size",), alias=biases[1]))
        if not config.tie_word_embeddings:
            table.append(Name("cls.predictions.decoder.weight", ("head.decoder.weight",), ("vocab_size", width)))
    elif config.head is not None:
        theirs = "qa_outputs" if config.head == "span" else "classifier"
        linear(theirs, "head.linear", "2" if config.head == "span" else "number of labels")
    return table

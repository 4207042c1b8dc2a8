"""BERT's configuration: what config.json may say, and what it leaves to the tensors. Devlin et al. 2019."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tinykron.errors import CheckpointError
from tinykron.models import classes
from tinykron.models.transformer import ACTIVATIONS, boolean, number, positive

HEADS = {  # of each class of transformers
    "BertModel": None,
    "BertForMaskedLM": "masked_lm",
    "BertForPreTraining": "masked_lm",  # its next-sentence head is left out
    "BertForSequenceClassification": "sequence",
    "BertForTokenClassification": "token",
    "BertForQuestionAnswering": "span",
}
DERIVED = ("head", "labels", "extra")  # what stands under another name in config.json
SAID_ANEW = ("architectures", "add_pooling_layer")  # the latter in a config.json overrules transformers' own argument
UNSUPPORTED = {"is_decoder": True, "add_cross_attention": True}
SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size"
).split()


@dataclass(frozen=True)
class BertConfig:
    """The settings that shape a BERT, under the names of config.json; `extra` keeps whatever else the file says."""

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
    def from_dict(cls, config: dict[str, Any]) -> BertConfig:
        """Check a config.json. Raises CheckpointError naming the key, what was found and what was expected."""
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config and name not in DERIVED}
        extra = {key: value for key, value in config.items() if key not in known and key not in SAID_ANEW}
        for key in SIZES:
            known[key] = positive(config, key, getattr(cls, key))
        for key in ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            known[key] = number(config, key, getattr(cls, key), below=1.0)
        if known.get("classifier_dropout") is not None:
            number(config, "classifier_dropout", None, below=1.0)
        known["tie_word_embeddings"] = boolean(config, "tie_word_embeddings", True)
        if known.get("has_pooler") is not None:
            boolean(config, "has_pooler", True)
        if known["hidden_size"] % known["num_attention_heads"]:
            width, heads = known["hidden_size"], known["num_attention_heads"]
            raise CheckpointError(f"hidden_size {width} is not divisible by num_attention_heads {heads}")
        activation = known.get("hidden_act", cls.hidden_act)
        if activation not in list(ACTIVATIONS):
            raise CheckpointError(f"hidden_act: found {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        if config.get("position_embedding_type", "absolute") != "absolute":
            found = config["position_embedding_type"]
            raise CheckpointError(f'position_embedding_type: found {found!r}, expected "absolute"')
        for key, refused in UNSUPPORTED.items():
            if config.get(key) is refused:
                raise CheckpointError(f"{key}: {refused} changes the mathematics and is not supported")
        return cls(**known, head=_head_of(config), labels=classes.count(config), extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds, in the names that transformers reads."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in DERIVED}
        architecture = next(name for name, head in HEADS.items() if head == self.head)
        if self.head in ("sequence", "token"):
            own |= classes.said(self.extra, self.labels)
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

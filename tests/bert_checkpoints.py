"""BERT folders for tests, written without the package, and a BERT in float64 NumPy that reads the same tensors.

Everything here is by Hugging Face names: nothing knows how tinykron calls or stores a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from tests.checkpoints import Config, Tensors, gelu_erf, gelu_tanh

TINY = {  # no two sizes alike, but the matrices of the attention are square whatever one does
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 13,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
}
CLASSES = {
    "masked_lm": "BertForMaskedLM",
    "sequence": "BertForSequenceClassification",
    "token": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
    None: "BertModel",
}
IDS = np.array([[3, 1, 4, 1, 5, 9, 2], [12, 0, 5, 5, 8, 11, 7]])
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 0]])  # padding need not come last
TYPES = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 0, 0, 0]])


def with_class(head: str | None, labels: int = 4, **changes: Any) -> Config:
    """Return TINY with the class of a head, and labels where it has any."""
    names = {"id2label": {str(i): f"class {i}" for i in range(labels)}} if head in ("sequence", "token") else {}
    return TINY | {"architectures": [CLASSES[head]]} | names | changes


def head_of(config: Config) -> str | None:
    return next(head for head, name in CLASSES.items() if name == config["architectures"][0])


def bert_tensors(config: Config, seed: int = 0, pooler: bool | None = None) -> Tensors:
    """Return random tensors under the hub's names, without prefix; the pooler where transformers has one."""
    generator, tensors, head = np.random.default_rng(seed), {}, head_of(config)
    width, inner = config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int, mean: float = 0.0, std: float = 0.3) -> np.ndarray:
        return (mean + std * generator.standard_normal(shape)).astype(np.float32)

    def linear(name: str, outputs: int, inputs: int = width, std: float = 0.3) -> None:
        tensors.update({f"{name}.weight": normal(outputs, inputs, std=std), f"{name}.bias": normal(outputs)})

    def norm(name: str) -> None:
        tensors.update({f"{name}.weight": normal(width, mean=1.0), f"{name}.bias": normal(width)})

    for name, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        tensors[f"embeddings.{name}_embeddings.weight"] = normal(config[rows], width, std=0.02)  # so that epsilon shows
    norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{layer}.{name}", width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, std=1.0)  # so large that the two GELUs differ
        linear(f"{layer}.output.dense", width, inner, std=1.0)
        norm(f"{layer}.output.LayerNorm")
    if head in (None, "sequence") if pooler is None else pooler:
        linear("pooler.dense", width)
    if head == "masked_lm":
        linear("cls.predictions.transform.dense", width, std=1.0)
        norm("cls.predictions.transform.LayerNorm")
        if config.get("tie_word_embeddings", True):
            tensors["cls.predictions.bias"] = normal(config["vocab_size"])
        else:
            linear("cls.predictions.decoder", config["vocab_size"])
    elif head is not None:
        linear("qa_outputs" if head == "span" else "classifier", 2 if head == "span" else len(config["id2label"]))
    return tensors


def written(
    tensors: Mapping[str, np.ndarray], prefix: bool = False, old: bool = False, buffers: bool = False
) -> Tensors:
    """Return the tensors as other versions of transformers name them: with a prefix, with gamma and beta."""

    def name_of(name: str) -> str:
        for new, before in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            name = name.removesuffix(new) + before if old and name.endswith(new) else name
        return f"bert.{name}" if prefix and not name.startswith(("cls.", "classifier.", "qa_outputs.")) else name

    found = {name_of(name): array for name, array in tensors.items()}
    return found | ({name_of("embeddings.position_ids"): np.arange(9)[None]} if buffers else {})


class Reference(NamedTuple):
    logits: np.ndarray | None
    hidden: list[np.ndarray]
    pooled: np.ndarray | None


def bert_reference(
    config: Config,
    tensors: Mapping[str, np.ndarray],
    ids_BT: np.ndarray = IDS,
    mask_BT: np.ndarray | None = None,
    types_BT: np.ndarray | None = None,
    *,
    pre_norm: bool = False,
    pooled_from: int = 0,
) -> Reference:
    """Return what BERT computes in float64, from tensors under the hub's names. The options are wrong on purpose."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    (batch, time), heads, eps = ids_BT.shape, config["num_attention_heads"], config.get("layer_norm_eps", 1e-12)
    gelu = {"gelu": gelu_erf, "gelu_new": gelu_tanh}[config.get("hidden_act", "gelu")]
    head = head_of(config)
    types_BT = np.zeros_like(ids_BT) if types_BT is None else types_BT
    bias_BT = np.where(np.ones_like(ids_BT) if mask_BT is None else mask_BT, 0.0, -1e9)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attend(x: np.ndarray, layer: str) -> np.ndarray:
        q, k, v = (
            dense(x, f"{layer}.attention.self.{part}").reshape(batch, time, heads, -1).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]) + bias_BT[:, None, None]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(batch, time, -1)
        return dense(mixed, f"{layer}.attention.output.dense")

    def mlp(x: np.ndarray, layer: str) -> np.ndarray:
        return dense(gelu(dense(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")

    x = w["embeddings.word_embeddings.weight"][ids_BT] + w["embeddings.position_embeddings.weight"][:time]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][types_BT], "embeddings.LayerNorm")
    hidden = [x]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        first, second = f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"
        if pre_norm:
            x = x + attend(norm(x, first), layer)
            x = x + mlp(norm(x, second), layer)
        else:
            x = norm(x + attend(x, layer), first)
            x = norm(x + mlp(x, layer), second)
        hidden.append(x)
    pooled = np.tanh(dense(x[:, pooled_from], "pooler.dense")) if "pooler.dense.weight" in w else None
    logits = None
    if head == "masked_lm":
        x = norm(gelu(dense(x, "cls.predictions.transform.dense")), "cls.predictions.transform.LayerNorm")
        table = w.get("cls.predictions.decoder.weight", w["embeddings.word_embeddings.weight"])
        logits = x @ table.T + w.get("cls.predictions.decoder.bias", w.get("cls.predictions.bias"))
    elif head is not None:
        logits = dense(pooled if head == "sequence" else x, "qa_outputs" if head == "span" else "classifier")
    return Reference(logits, hidden, pooled)


@st.composite
def bert_configs(draw: Any) -> Config:
    """Tiny configurations: odd widths and head counts, either GELU, each class, tied or not."""
    count = draw(st.integers(1, 3))
    return with_class(
        draw(st.sampled_from(list(CLASSES))),
        draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(5, 40)),
        hidden_size=count * draw(st.integers(3, 7)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=count,
        intermediate_size=draw(st.integers(1, 20)),
        max_position_embeddings=draw(st.integers(6, 12)),
        type_vocab_size=draw(st.integers(1, 3)),
        hidden_act=draw(st.sampled_from(["gelu", "gelu_new"])),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-3])),
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def bert_batches(draw: Any, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, a mask with padding anywhere (one position of each row counts), and token types: (B, T) each."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, config["max_position_embeddings"]))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    mask_BT = generator.integers(0, 2, shape)
    mask_BT[np.arange(shape[0]), generator.integers(0, shape[1], shape[0])] = 1
    ids_BT = generator.integers(0, config["vocab_size"], shape)
    return ids_BT, mask_BT, generator.integers(0, config["type_vocab_size"], shape)

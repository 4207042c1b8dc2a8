"""Tiny configurations of BERT and LLaMA, by Hugging Face names, as hypothesis draws them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

Config = dict[str, Any]

ROPES: dict[str, Config | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}
BERT_CLASSES = {
    "BertModel": None,
    "BertForMaskedLM": "masked_lm",
    "BertForSequenceClassification": "sequence",
    "BertForTokenClassification": "token",
    "BertForQuestionAnswering": "span",
}


@st.composite
def llama_configs(draw: Any) -> Config:
    """Odd head counts, shared key heads, head_dim apart from width / heads, biases, every way of scaling positions."""
    groups, shared = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * shared
    own = draw(st.sampled_from([4, 6, 10]))  # their dynamic scaling divides by head_dim - 2
    return {
        "vocab_size": draw(st.integers(5, 40)),
        "hidden_size": heads * draw(st.sampled_from([4, 6])),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": draw(st.sampled_from([None, own])),
        "max_position_embeddings": draw(st.integers(6, 12)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "rope_theta": draw(st.sampled_from([10000.0, 500000.0, 17.0])),
        "rope_scaling": copy.deepcopy(draw(st.sampled_from(list(ROPES.values())))),  # transformers writes into it
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def bert_configs(draw: Any) -> Config:
    """Odd widths and head counts, either GELU, some labels, a decoder tied or not."""
    heads = draw(st.integers(1, 3))
    return {
        "vocab_size": draw(st.integers(5, 40)),
        "hidden_size": heads * draw(st.integers(2, 7)),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "max_position_embeddings": draw(st.integers(6, 12)),
        "type_vocab_size": draw(st.integers(1, 3)),
        "hidden_act": draw(st.sampled_from(["gelu", "gelu_new"])),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
        "num_labels": draw(st.integers(1, 4)),
        "tie_word_embeddings": draw(st.booleans()),
    }

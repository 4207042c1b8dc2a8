"""Make gpt2.npz, bert.npz and llama.npz anew: tiny random models of transformers, and what each makes of one batch.

    python -m tests.golden.make [gpt2] [bert] [llama]

Needs torch and transformers; the tests that read the files do not.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.oracle.theirs import Results, bert_results, random_gpt2, random_model, results

FOLDER = Path(__file__).parent
CONFIG = {"vocab_size": 17, "n_positions": 12, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_inner": 22}
BERT = {
    "vocab_size": 17,
    "hidden_size": 15,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 12,
    "pad_token_id": None,  # else torch gives that token's row no gradient
}
LLAMA = {
    "vocab_size": 17,
    "hidden_size": 15,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,  # 15 wide: transformers wants it divisible, whatever head_dim says
    "num_key_value_heads": 1,
    "head_dim": 6,
    "max_position_embeddings": 12,
    "rope_theta": 50.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "tie_word_embeddings": False,
}


def gpt2() -> None:
    model = random_gpt2(CONFIG, seed=0)
    ids_BT = np.random.default_rng(0).integers(0, 17, (2, 9))
    write("gpt2", CONFIG, model, results(model, ids_BT), ids=ids_BT)


def bert() -> None:
    model = random_model("BertForMaskedLM", BERT, seed=0)
    generator = np.random.default_rng(0)
    ids_BT, types_BT = generator.integers(0, 17, (2, 9)), generator.integers(0, 2, (2, 9))
    mask_BT = np.array([[1] * 9, [1, 1, 0, 1, 1, 1, 0, 0, 0]])
    found = bert_results(model, ids_BT, mask_BT, types_BT)
    config = {"architectures": ["BertForMaskedLM"], **BERT}
    write("bert", config, model, found, ids=ids_BT, mask=mask_BT, types=types_BT)


def llama() -> None:
    model = random_model("LlamaForCausalLM", copy.deepcopy(LLAMA), seed=0)
    ids_BT = np.random.default_rng(0).integers(0, 17, (2, 9))
    write("llama", LLAMA, model, results(model, ids_BT), ids=ids_BT)


def write(kind: str, config: dict[str, Any], model: Any, found: Results, **batch: np.ndarray) -> None:
    np.savez_compressed(
        FOLDER / f"{kind}.npz",
        config=json.dumps({"model_type": kind, **config}),
        **batch,
        logits=found.logits,
        **{f"hidden.{i}": hidden for i, hidden in enumerate(found.hidden)},
        **{f"attention.{i}": weights for i, weights in enumerate(found.attention)},
        **{f"weight.{name}": parameter.detach().numpy() for name, parameter in model.named_parameters()},
        **{f"gradient.{name}": gradient for name, gradient in found.gradients.items()},
    )


if __name__ == "__main__":
    for kind in sys.argv[1:] or ["gpt2", "bert", "llama"]:
        {"gpt2": gpt2, "bert": bert, "llama": llama}[kind]()

"""Make gpt2.npz anew: a tiny random GPT-2 of transformers, and what it makes of one batch.

    python -m tests.golden.make

Needs torch and transformers; the tests that read the file do not.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.oracle.theirs import random_gpt2, results

PATH = Path(__file__).parent / "gpt2.npz"
CONFIG = {"vocab_size": 17, "n_positions": 12, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_inner": 22}


def main() -> None:
    model = random_gpt2(CONFIG, seed=0)
    ids_BT = np.random.default_rng(0).integers(0, 17, (2, 9))
    found = results(model, ids_BT)
    np.savez_compressed(
        PATH,
        config=json.dumps({"model_type": "gpt2", **CONFIG}),
        ids=ids_BT,
        logits=found.logits,
        **{f"hidden.{i}": hidden for i, hidden in enumerate(found.hidden)},
        **{f"attention.{i}": weights for i, weights in enumerate(found.attention)},
        **{f"weight.{name}": parameter.detach().numpy() for name, parameter in model.named_parameters()},
        **{f"gradient.{name}": gradient for name, gradient in found.gradients.items()},
    )


if __name__ == "__main__":
    main()

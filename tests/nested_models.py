"""Models of three families, some of whose matrices are Kronecker sums of four, three and two terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.decoders import deep
from tests.tiny_tasks import tiny_bert
from tinykron import kron

FAMILIES = ("gpt2", "llama", "bert")
IDS = np.random.default_rng(0).integers(5, 40, (2, 9))


def nested(family: str, seed: int = 0, layers: int = 3, **config: Any) -> Any:
    """A model whose embedding has 4 terms, whose MLPs have 3 (a gate 1) and whose queries have 2; the rest is dense."""
    dense = tiny_bert(seed, layers=layers) if family == "bert" else deep(family, seed, layers, **config)
    plan = kron.KronPlan()
    for name, (rows, columns) in kron.dense_shapes(dense).items():
        terms = {"embedding": 4, "gate": 1, "up": 3, "down": 3, "query": 2}.get(name.rpartition(".")[2])
        if terms and name in ("embedding", *(f"blocks.{i}.{part}" for i in range(layers) for part in PARTS)):
            plan[name] = kron.Choice(
                (rows, columns), (rows, columns // 4) if terms == 4 else (rows // 2, columns // 2), terms
            )
    return kron.factorise(dense, plan).eval()


PARTS = ("attention.query", "mlp.gate", "mlp.up", "mlp.down")

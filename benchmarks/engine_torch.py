"""The other side of `tinykron bench`: transformers on torch, asked as engine_tinykron.py is.

It stands outside the package, which never imports torch. The first request also names the number of threads and the
attention implementation.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers


class Engine:
    """A causal language model by transformers, in float32."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        torch.set_float32_matmul_precision("highest")  # no TF32: both sides at the same precision
        torch.backends.cudnn.allow_tf32 = False
        transformers.logging.set_verbosity_error()
        self.device, self.results, self.attention = (options[key] for key in ("device", "results", "attention"))
        self.folder = options["folder"]
        self.model = self.loaded()
        self.model.generation_config.eos_token_id = None  # every turn makes as many tokens
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4)

    def loaded(self) -> Any:
        auto, options = transformers.AutoModelForCausalLM, {"attn_implementation": self.attention}
        return auto.from_pretrained(self.folder, dtype=torch.float32, **options).to(self.device).eval()

    def describe(self) -> dict[str, str]:
        blas = "with MKL" if torch.backends.mkl.is_available() else "without MKL"
        attention = f"{transformers.__version__}, {self.attention} attention"
        return {"torch": f"{torch.__version__} {blas}", "transformers": attention}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        kind, ids = request["kind"], torch.tensor(request["ids"], device=self.device)
        work = {"forward": self.forward, "decode": self.decode, "train": self.train, "load": self.load}[kind]
        if request["do"] == "check":
            np.save(self.results, [work(ids, request["new"]) for _ in range(3 if kind == "train" else 1)])
            return {}
        self.synchronise()
        start = time.perf_counter()
        work(ids, request["new"])
        self.synchronise()
        return {"seconds": time.perf_counter() - start}

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, new: int) -> np.ndarray:
        return self.model(ids, use_cache=False).logits.cpu().numpy()

    def decode(self, ids: torch.Tensor, new: int) -> np.ndarray:
        mask = torch.ones_like(ids)
        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        return out.cpu().numpy()

    def load(self, ids: torch.Tensor, new: int) -> int:
        return self.loaded().num_parameters()

    def train(self, ids: torch.Tensor, new: int) -> float:
        logits = self.model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print must not mix with the answers
    engine = Engine(json.loads(sys.stdin.readline()))
    print(json.dumps(engine.describe()), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""Our side of `tinykron bench`, which is in tinykron/bench/engine.py; engine_torch.py is the other side.

One JSON object a line comes on standard input; each gets one in answer. The first names the checkpoint folder and the
device; the others name a kind of work, "forward", "decode", "train" or "load", and whether to "check" it, to "time"
it, or to time its matrix "products" alone (of loading: reading the files).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import backend, checkpoint, fused, threads
from tinykron.decode.generate import generate
from tinykron.nn import Linear
from tinykron.optim import AdamW, decay_groups
from tinykron.tensor import no_grad

CHECKED = {
    "forward": 1,
    "decode": 1,
    "load": 1,
    "train": 3,
}  # results to compare: the loss shows what an update did a step later


class Engine:
    """A model by tinykron."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.backend, self.results = backend.get(options["device"]), options["results"]
        self.xp = self.backend.xp
        self.folder = Path(options["folder"])
        self.model = checkpoint.load(self.folder)
        self.places = {path: np.empty(path.stat().st_size, np.uint8) for path in self.folder.glob("*.safetensors")}
        self.optimiser = AdamW(decay_groups(self.model, weight_decay=0.01), lr=1e-4)

    def describe(self) -> dict[str, str]:
        from threadpoolctl import threadpool_info

        blas = [f"{b['internal_api']} {b['version']}" for b in threadpool_info() if b["user_api"] == "blas"]
        found = {"numpy": f"{np.__version__} with {', '.join(blas) or 'an unknown BLAS'}"}
        if self.backend.name == "cuda":
            found |= {"cupy": self.xp.__version__, "gpu": self.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()}
        return found

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        kind, ids_BT = request["kind"], np.array(request["ids"])
        methods = {"forward": self.forward, "decode": self.decode, "train": self.train, "load": self.load}
        if request["do"] == "check":
            np.save(self.results, [methods[kind](ids_BT, request["new"]) for _ in range(CHECKED[kind])])
            return {}
        if request["do"] == "products":
            return {"seconds": self.timed(self.products(kind, *ids_BT.shape, request["new"]))}
        return {"seconds": self.timed(lambda: methods[kind](ids_BT, request["new"]))}

    def timed(self, work: Callable[[], object]) -> float:
        self.synchronise()
        start = time.perf_counter()
        work()
        self.synchronise()
        return time.perf_counter() - start

    def synchronise(self) -> None:
        if self.backend.name == "cuda":
            self.xp.cuda.Device().synchronize()

    # The tasks

    def forward(self, ids_BT: np.ndarray, new: int) -> np.ndarray:
        with no_grad():
            return backend.to_host(self.model(ids_BT).logits.data)

    def decode(self, ids_BT: np.ndarray, new: int) -> np.ndarray:
        return generate(self.model, ids_BT, new, stop=())

    def train(self, ids_BT: np.ndarray, new: int) -> float:
        loss = fused.cross_entropy(self.model(ids_BT[:, :-1]).logits, ids_BT[:, 1:])
        loss.backward()
        self.optimiser.step()
        self.model.zero_grad()
        return loss.item()

    def load(self, ids_BT: np.ndarray, new: int) -> int:
        return checkpoint.load(self.folder).parameter_count()

    # What no engine can go below

    def read(self) -> None:
        """Read the tensor files into memory that is there already."""
        for path, place in self.places.items():
            with path.open("rb", buffering=0) as file:
                file.readinto(place)

    def products(self, kind: str, batch: int, time: int, new: int) -> Callable[[], object]:
        """Return what does the matrix products of a task and nothing else: the Linears', the head's, the attention's.

        Training has three products for one. Decoding is a pass over the prompt, then one over a position for each new
        token but the last, the head at one position alone.
        """
        if kind == "load":
            return self.read
        if kind == "train":
            return self.one_pass(batch, time - 1, time - 1, batch * (time - 1), backward=True)
        if kind == "forward":
            return self.one_pass(batch, time, time, batch * time)
        passes = [self.one_pass(batch, time, time, batch)]
        passes += [self.one_pass(batch, 1, past + 1, batch) for past in range(time, time + new - 1)]
        return lambda: [run() for run in passes]

    def one_pass(
        self, batch: int, queries: int, keys: int, head_rows: int, backward: bool = False
    ) -> Callable[[], None]:
        matrices = [module.weight.data for _, module in self.model.modules() if isinstance(module, Linear)]
        inputs = {width: self.ones(batch * queries, width) for width in {len(matrix) for matrix in matrices}}
        pairs = [(inputs[len(matrix)], matrix) for matrix in matrices]
        head_DV = (self.model.head or self.model.embedding).weight.data.T
        pairs.append((self.ones(head_rows, len(head_DV)), head_DV))
        attention = self.model.blocks[0].attention
        q_BHTK = self.ones(batch, attention.heads, queries, attention.head_width)
        k_BHSK = self.ones(batch, attention.heads, keys, attention.head_width)

        def run() -> None:
            for x, matrix in pairs:
                y = x @ matrix
                if backward:
                    _ = y @ matrix.T
                    _ = x.T @ y
            for _ in self.model.blocks:
                scores = q_BHTK @ k_BHSK.swapaxes(-1, -2)
                mixed = scores @ k_BHSK
                if backward:  # the gradients of the weights, the values, the queries and the keys
                    _ = mixed @ k_BHSK.swapaxes(-1, -2)
                    _ = scores.swapaxes(-1, -2) @ mixed
                    _ = scores @ k_BHSK
                    _ = scores.swapaxes(-1, -2) @ q_BHTK

        return run

    def ones(self, *shape: int) -> Any:
        return self.xp.ones(shape, dtype=np.float32)


def main() -> None:
    options = json.loads(sys.stdin.readline())
    with ExitStack() as stack:
        stack.enter_context(backend.device(options["device"]))
        stack.enter_context(threads.long_work())  # as the command line and train.fit run
        engine = Engine(options)
        print(json.dumps(engine.describe()), flush=True)
        for line in sys.stdin:
            print(json.dumps(engine.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""The other side of `tinykron bench kron`: torch, and the Kronecker layers that are installed beside it.

It stands outside the package, which never imports torch. It is asked as kron_tinykron.py is. The answer to a "check"
of a way that cannot do the case is what it said, under "refused".
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear

PEERS = {"lycoris": "lycoris-lora", "peft": "peft", "pyfastkron": "pyfastkron"}  # module: what pip calls it
USED = {
    "lycoris": "lycoris.functional.lokr",
    "peft": "peft.tuners.lokr.layer",
    "pyfastkron": "pyfastkron.fastkrontorch",
}


def loads(name: str) -> bool:
    """Whether what is used of a peer can be imported: one that lacks something of its own spoils no other's figures."""
    try:
        import_module(USED[name])
    except Exception as error:  # whatever a peer raises
        print(f"{PEERS[name]}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


class Side:
    """The ways of one case. Peers that know one term only are called once a term, and the results added."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        torch.set_float32_matmul_precision("highest")  # no TF32: both sides at the same precision
        self.device, self.results = options["device"], options["results"]
        from tinykron.bench.kron import CHECKED, drawn  # the same numbers on both sides; loads no torch

        self.drawn, self.checked = drawn, CHECKED
        self.peers = {"lycoris": self.lycoris, "peft": self.peft, "pyfastkron": self.fastkron}
        self.missing = [name for name in self.peers if not find_spec(name)]
        self.broken = [name for name in self.peers if name not in self.missing and not loads(name)]
        self.peers = {name: self.peers[name] for name in self.peers if name not in self.missing + self.broken}

    def describe(self) -> dict[str, str]:
        found = {"torch": f"{torch.__version__} {'with' if torch.backends.mkl.is_available() else 'without'} MKL"}
        found |= {name: version(PEERS[name]) for name in self.peers}
        for why, names in (("not installed", self.missing), ("cannot be imported", self.broken)):
            if names:
                found[f"not measured, {why}"] = ", ".join(PEERS[name] for name in names)
        return found

    def case(self, request: dict[str, Any]) -> dict[str, Any]:
        arrays = [torch.from_numpy(array).to(self.device) for array in self.drawn(request)]
        self.a, self.b, self.x, self.grad = arrays
        self.backward = request["backward"]
        self.terms = [(a.clone(), b.clone()) for a, b in zip(self.a, self.b, strict=True)]  # leaves of their own
        self.w = sum(torch.kron(a, b) for a, b in self.terms)
        every = [self.a, self.b, self.x, self.w, *(factor for pair in self.terms for factor in pair)]
        for tensor in every:
            tensor.requires_grad_(self.backward)
        self.ways: dict[str, Callable[[], Any]] = {
            "dense torch": lambda: linear(self.x, self.w),
            "torch, built": lambda: linear(self.x, sum(torch.kron(a, b) for a, b in self.terms)),
            "einsum": self.einsum,
        }
        for name, prepare in self.peers.items():
            self.ways[name] = prepare()
        return {"ways": list(self.ways)}

    # The ways: y = x W^T from x (T, N*Q) and a (R, M, N), b (R, P, Q) or the terms

    def einsum(self) -> Any:
        """In two steps, in the order with fewer multiplications: what a careful user writes."""
        (_, m, n), (_, p, q) = self.a.shape, self.b.shape
        x_TNQ = self.x.reshape(-1, n, q)
        if n * p * (q + m) <= m * q * (n + p):
            y_TMP = torch.einsum("rmn,trnp->tmp", self.a, torch.einsum("tnq,rpq->trnp", x_TNQ, self.b))
        else:
            y_TMP = torch.einsum("trmq,rpq->tmp", torch.einsum("rmn,tnq->trmq", self.a, x_TNQ), self.b)
        return y_TMP.reshape(-1, m * p)

    def lycoris(self) -> Callable[[], Any]:
        from lycoris.functional.lokr import kron_bypass

        return lambda: sum(kron_bypass(self.x, a, None, None, b, None, None, None, scale=1.0) for a, b in self.terms)

    def fastkron(self) -> Callable[[], Any]:
        from pyfastkron.fastkrontorch import gemkm

        return lambda: sum(gemkm(self.x, [a.T, b.T]) for a, b in self.terms)

    def peft(self) -> Callable[[], Any]:
        """Its layer takes shapes of its own choice; here it gets our factors, and its own code multiplies by them."""
        from peft import LoKrConfig
        from peft.tuners.lokr.layer import Linear

        outputs, inputs = self.w.shape
        base = torch.nn.Linear(inputs, outputs, bias=False, device=self.device)
        layers = []
        for a, b in self.terms:
            layer = Linear(base, "term", config=LoKrConfig(), r=1 << 20, alpha=float(1 << 20))  # full factors, scale 1
            for parameters, factor in ((layer.lokr_w1, a), (layer.lokr_w2, b)):
                parameters["term"] = torch.nn.Parameter(factor.detach(), requires_grad=self.backward)
            layers.append(layer)
        self.peft_terms = [(layer.lokr_w1["term"], layer.lokr_w2["term"]) for layer in layers]
        return lambda: sum(layer._get_delta_activations("term", self.x) for layer in layers)

    # Checking and timing

    def run(self, way: str) -> list[Any]:
        """Return y, and with a backward pass the gradients of x and of what the way multiplies by."""
        if not self.backward:
            with torch.no_grad():
                return [self.ways[way]()]
        y = self.ways[way]()
        return [y, *torch.autograd.grad(y, [self.x, *self.weights(way)], self.grad)]

    def weights(self, way: str) -> list[Any]:
        if way == "dense torch":
            return [self.w]
        if way == "einsum":
            return [self.a, self.b]
        terms = self.peft_terms if way == "peft" else self.terms
        return [a for a, _ in terms] + [b for _, b in terms]

    def check(self, way: str) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            results = [tensor.detach().cpu().numpy() for tensor in self.run(way)]
        except Exception as error:  # whatever a peer raises, the others are measured
            return {"refused": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - start
        count = len(self.terms)
        if way == "dense torch":
            results = results[:2]
        elif self.backward and way != "einsum":
            results = [*results[:2], np.stack(results[2 : 2 + count]), np.stack(results[2 + count :])]
        np.savez(self.results, *(array[: self.checked] if i < 2 else array for i, array in enumerate(results)))
        return {"seconds": seconds}

    def time(self, way: str, seconds: float) -> dict[str, Any]:
        self.run(way)
        least, start = float("inf"), time.perf_counter()
        while least == float("inf") or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            self.run(way)
            if self.device == "cuda":
                torch.cuda.synchronize()
            least = min(least, time.perf_counter() - before)
        return {"seconds": least}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print must not mix with the answers
    side = Side(json.loads(sys.stdin.readline()))
    print(json.dumps(side.describe()), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "case":
            answer = side.case(request)
        elif request["do"] == "check":
            answer = side.check(request["way"])
        else:
            answer = side.time(request["way"], request["seconds"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

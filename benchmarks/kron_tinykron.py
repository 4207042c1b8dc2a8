"""Our side of `tinykron bench kron`, which is in tinykron/bench/kron.py; kron_torch.py is the other side.

One JSON object a line comes on standard input; each gets one in answer. The first names the device; a "case" names
sizes, rows and passes, and gets the ways to compute it; "check" leaves a way's results in a file, "time" times it.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from tinykron import backend, threads
from tinykron.bench.kron import CHECKED, drawn
from tinykron.kron import order, product
from tinykron.kron.linear import kron_linear
from tinykron.tensor import Tensor, no_grad


class Side:
    """The ways of one case: tinykron itself; the dense matrix in NumPy or CuPy, ready or built in every call."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.backend, self.results = backend.get(options["device"]), options["results"]
        self.xp = self.backend.xp

    def describe(self) -> dict[str, str]:
        from threadpoolctl import threadpool_info

        blas = [f"{b['internal_api']} {b['version']}" for b in threadpool_info() if b["user_api"] == "blas"]
        costs = order.cost_model(self.backend.name)
        found = {"numpy": f"{np.__version__} with {', '.join(blas) or 'an unknown BLAS'}"}
        return found | {"cost model": ", ".join(f"{name} {seconds:.3g} s" for name, seconds in vars(costs).items())}

    def case(self, request: dict[str, Any]) -> dict[str, Any]:
        arrays = [self.backend.from_host(array) for array in drawn(request)]
        self.a, self.b, self.x, self.grad = arrays
        self.leaves = [Tensor(array, requires_grad=request["backward"]) for array in arrays[:3]]
        self.backward = request["backward"]
        self.w = self.xp.ascontiguousarray(product.merged(self.a, self.b).T)  # (in, out), as nn.Linear stores it
        passes = "training" if self.backward else "forward"
        plan = order.choose(self.a.shape, self.b.shape, len(self.x), passes, self.backend.name)
        return {"ways": ["tinykron", "factors", "dense NumPy", "NumPy, built"], "plan": plan}

    def run(self, way: str) -> list[Any]:
        """Return y, and with a backward pass the gradients: of x, and where the way has them of a and b."""
        if way == "tinykron":
            return self.layer("auto")
        if way == "factors":
            return self.layer("factors")
        return self.dense(self.w) if way == "dense NumPy" else self.built()

    def layer(self, plan: str) -> list[Any]:
        a, b, x = self.leaves
        if not self.backward:
            with no_grad():
                return [kron_linear(x, a, b, order=plan).data]
        x.grad = a.grad = b.grad = None
        y = kron_linear(x, a, b, order=plan)
        y.backward(self.grad)
        return [y.data, x.grad, a.grad, b.grad]

    def dense(self, w: Any) -> list[Any]:
        y = self.x @ w
        if not self.backward:
            return [y]
        self.grad_w = self.x.T @ self.grad
        return [y, self.grad @ w.T]

    def built(self) -> list[Any]:
        """By the definition, written independently of the package: np.kron of each term; einsum for the factors."""
        w = sum(self.xp.kron(a, b) for a, b in zip(self.a, self.b, strict=True)).T
        results = self.dense(w)
        if self.backward:
            (_, m, n), (_, p, q) = self.a.shape, self.b.shape
            w_MPNQ = self.grad_w.T.reshape(m, p, n, q)
            results.append(self.xp.einsum("mpnq,rpq->rmn", w_MPNQ, self.b, optimize=True))
            results.append(self.xp.einsum("mpnq,rmn->rpq", w_MPNQ, self.a, optimize=True))
        return results

    def check(self, way: str) -> dict[str, Any]:
        start = time.perf_counter()
        results = [self.backend.to_host(array) for array in self.run(way)]
        seconds = time.perf_counter() - start
        np.savez(self.results, *(array[:CHECKED] if i < 2 else array for i, array in enumerate(results)))
        return {"seconds": seconds}

    def time(self, way: str, seconds: float) -> dict[str, Any]:
        """Call for so many seconds, at least once; the least time of a call: what disturbs it makes it longer.

        A call before that does not count: the caches are another way's.
        """
        self.run(way)
        least, start = float("inf"), time.perf_counter()
        while least == float("inf") or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            self.run(way)
            if self.backend.name == "cuda":
                self.xp.cuda.Device().synchronize()
            least = min(least, time.perf_counter() - before)
        return {"seconds": least}


def main() -> None:
    options = json.loads(sys.stdin.readline())
    with ExitStack() as stack:
        stack.enter_context(backend.device(options["device"]))
        stack.enter_context(threads.long_work())  # as the command line and train.fit run
        side = Side(options)
        print(json.dumps(side.describe()), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "case":
                answer = side.case(request)
            elif request["do"] == "check":
                answer = side.check(request["way"])
            else:
                answer = side.time(request["way"], request["seconds"])
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

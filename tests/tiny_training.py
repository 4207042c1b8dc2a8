"""Models and a text so small that a training step takes milliseconds; `python -m tests.tiny_training FOLDER` trains."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.helpers import host
from tinykron.errors import Interrupted, TinykronError
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.train import loop
from tinykron.train.batches import Feed
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

VOCABULARY, CONTEXT = 13, 8
TOKENS = np.tile(np.random.default_rng(7).permutation(VOCABULARY), 20)  # each token tells the next
SETTINGS = Settings(steps=100, batch=2, context=CONTEXT, lr=1e-2, warmup=3, seed=5, checkpoint_every=1)
SHORT = replace(SETTINGS, steps=6, warmup=1)
BATCHES = [TOKENS[start : start + 4 * CONTEXT].reshape(4, CONTEXT).astype(np.int64) for start in (0, 64, 128)]


class Scripted(GPT2):
    """A GPT-2 to which something happens: it calls `script(number)` before its number-th pass."""

    script: Callable[[int], object] = staticmethod(lambda number: None)
    passes = 0

    def forward(self, *args: Any, **options: Any) -> Any:
        self.passes += 1
        self.script(self.passes)
        return super().forward(*args, **options)


def tiny_gpt2(
    seed: int = 0, layers: int = 2, dropout: float = 0.0, spread: float = 1.0, kind: type = GPT2, **config: Any
) -> Any:
    """A random GPT-2 of width 8, in training mode; `spread` scales its matrices, `kind` is the class."""
    shape = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 8, "n_layer": layers, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = kind(GPT2Config(**(shape | rates | config)), np.random.default_rng(seed))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= spread
    return model


def wide_gpt2() -> Any:
    """One in evaluation whose matrices divide in many ways, and matter."""
    return tiny_gpt2(spread=10.0, n_embd=16, n_inner=48).eval()


def at(number: int, action: Callable[[], object]) -> Callable[[int], object]:
    """A script that acts before one pass."""
    return lambda passes: action() if passes == number else None


def interrupt() -> None:
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def unstable_gpt2(kind: type = GPT2) -> Any:
    """The model that `main` trains: dropout makes every step random."""
    return tiny_gpt2(layers=1, dropout=0.1, kind=kind)


def scripted(script: Callable[[int], object]) -> Scripted:
    """The model that `main` trains, with a script."""
    model = unstable_gpt2(kind=Scripted)
    model.script = script
    return model


def values(model: GPT2) -> dict[str, np.ndarray]:
    """Copies of all parameters, on the host."""
    return {name: host(array).copy() for name, array in model.state_dict().items()}


def gradients(feed: Feed, step: int) -> dict[str, float]:
    """Fill the gradients of a step of `fit`; return its terms."""
    return loop._gradients(feed.distillation.student, feed, feed.distillation, feed.settings, step)


def main(folder: str, file_size_limit: int = resource.RLIM_INFINITY) -> int:
    """Train for SETTINGS in `folder`, as the command line would; no file may grow beyond the limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, resource.RLIM_INFINITY))
    try:
        fit(unstable_gpt2(), TOKENS, SETTINGS, folder=folder)
    except Interrupted as error:
        print(error)
        return 0
    except TinykronError as error:
        print(f"tinykron: {error}", file=sys.stderr)
        return 2
    print("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))

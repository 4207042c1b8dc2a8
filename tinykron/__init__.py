"""tinykron: learn the compression of transformers by doing it.

What lies flat in this folder is the engine. Read it in this order: errors, backend, threads, tensor, shapes, ops,
fused, attention, gradcheck, nn, optim. Every other subject has a folder of its own, whose first line says what it is.
"""

from typing import TYPE_CHECKING, Any

from tinykron import data as data
from tinykron import distill as distill
from tinykron import exits as exits
from tinykron import fused as fused
from tinykron import gradcheck as gradcheck
from tinykron import kron as kron
from tinykron import nn as nn
from tinykron import ops as ops
from tinykron import optim as optim
from tinykron import train as train
from tinykron.backend import device as device
from tinykron.checkpoint.folder import load as load
from tinykron.checkpoint.folder import save as save
from tinykron.decode.bit_exact import bit_exact as bit_exact
from tinykron.decode.generate import Trace as Trace
from tinykron.decode.generate import generate as generate
from tinykron.errors import TinykronError as TinykronError
from tinykron.tensor import Tensor as Tensor
from tinykron.tensor import detect_anomaly as detect_anomaly
from tinykron.tensor import no_grad as no_grad

__version__ = "0.1.0"


if not TYPE_CHECKING:  # a type checker is told of no old name

    def __getattr__(name: str) -> Any:
        """Find a file that lay flat in the version before, with a warning that says where it is now."""
        from tinykron.support import renamed

        return renamed.module(name)

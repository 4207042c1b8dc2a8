"""tinykron: learn the compression of transformers by doing it.

Read the files in this order: errors, files, backend, tensor, shapes, ops, fused, attention, gradcheck, nn; kron;
models; safetensors_file, tokenizer, hub, checkpoint; losses, distill, exits, grid; sampling, continuation, partial,
speculate, bitexact, generate, thresholds; optim, data, masking, evaluate, train; metrics, features, glue, squad,
standins, tasks, task_train, finetune; info, compress, front, elastic, report, recipes, stages, reproduce, cli.
"""

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
from tinykron.bitexact import bit_exact as bit_exact
from tinykron.checkpoint import load as load
from tinykron.checkpoint import save as save
from tinykron.errors import TinykronError as TinykronError
from tinykron.generate import Trace as Trace
from tinykron.generate import generate as generate
from tinykron.tensor import Tensor as Tensor
from tinykron.tensor import detect_anomaly as detect_anomaly
from tinykron.tensor import no_grad as no_grad

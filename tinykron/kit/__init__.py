"""What lessons are made of: guesses, checks of the learner's code, pictures, a pretended device."""

from tinykron.kit.checks import (
    Todo,
    array_module,
    bars,
    check,
    fast,
    finish,
    gate,
    graph,
    heat,
    help,
    lines,
    once,
    predict,
    reveal,
    row,
    table,
)
from tinykron.kit.device import pretend_device
from tinykron.kit.pictures import host, tape

__all__ = [
    "Todo", "array_module", "bars", "check", "fast", "finish", "gate", "graph", "heat", "help", "host", "lines", "once",
    "predict", "pretend_device", "reveal", "row", "table", "tape",
]  # fmt: skip

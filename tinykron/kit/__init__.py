"""What lessons are made of: guesses, checks of the learner's code, pictures, a pretended device."""

from typing import TYPE_CHECKING, Any

from tinykron.kit.device import pretend_device
from tinykron.kit.pictures import host, tape

if TYPE_CHECKING:
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
    )  # fmt: skip

__all__ = [
    "Todo", "array_module", "bars", "check", "fast", "finish", "gate", "graph", "heat", "help", "host", "lines",
    "once", "predict", "pretend_device", "reveal", "row", "table", "tape",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Look into `checks` when a lesson asks: it needs the extra `lessons`, which pictures and device do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinykron.kit import checks

    return getattr(checks, name)

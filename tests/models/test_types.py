"""What a type checker, and so an editor, knows of a model that was loaded and of what it returns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROGRAM = """
import tinykron as tk

model = tk.load("weights/gpt2-tiny")
out = model([[1, 2]])
reveal_type(model)
reveal_type(model.config)
reveal_type(model.config.with_blocks(2))
reveal_type(model.writes)
reveal_type(out)
reveal_type(out.logits)
reveal_type(model.eval())
reveal_type(tk.generate(model, [1, 2]))
reveal_type(tk.kron.cut(model, exit=2))
"""
KNOWN = [
    "Model", "Config", "Config", "bool", "Output", "Tensor", "Model", "ndarray", "Model",
]  # fmt: skip


def test_an_editor_completes_what_load_and_generate_return(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    said, faults, _ = api.run([str(tmp_path / "program.py"), "--no-error-summary"])
    assert not faults and "error:" not in said
    types = re.findall(r'Revealed type is "([^"]+)"', said)
    assert [name.partition("[")[0].rpartition(".")[2] for name in types] == KNOWN

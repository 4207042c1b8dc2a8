"""The house rules that a program can see: who imports what, in which order, and how long a file may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tinykron"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "__pycache__" not in path.parts
}

# Reading order: a file imports from those above it. A package's __init__ stands for its parts, behind the last of them.
ORDER = """
errors files backend tensor shapes ops fused attention gradcheck nn progress
kron.algebra kron.order kron.product kron.factors kron.spectral kron.operators kron.kronecker_sum
kron.svd kron.metric kron.als kron.fit kron.controls kron.calibration kron.linear
kron.plan kron.budget kron.candidates kron.compress kron.nested kron.sensitivity kron.planner kron.presets kron.__init__
models.checks models.transformer models.classes models.gpt2 models.bert_config models.bert models.llama
models.exit_parts models.__init__
safetensors_file tokenizer hub checkpoint data instructions accumulate features distances losses distill teacher_cache
exits grid sampling continuation shortlist partial speculate bitexact generate thresholds closed_book
optim masking evaluate exit_analysis wikitext train pretrain metrics glue squad_score squad similarity
standins tasks task_train finetune info compress measurement text_finetune front elastic report recipes students stages
reproduce relations material sort sorted_study relations_decoding relations_elastic relations_sorted
kron_study relations_kron relations_kngpt2 relations_krony relations_kroneckerbert reproduce_kron bench bench_kron
bench_exits bench_exits_report kit_device kit_pictures kit lessons lesson_page lesson_export
cli_lessons cli_elastic cli_tasks cli_serve cli_exits cli_recipes cli __init__ __main__
""".split()
EXCEPTIONS = {("tensor", "ops")}  # at its end: the operators of a Tensor are ops


def imports(path: Path) -> Iterator[str]:
    """Yield the full dotted name of all that a file imports, wherever in the file: `from a.b import c` is `a.b.c`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; the package writes `from tinykron...`"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_module(name: str) -> str | None:
    """Return which file of the package `tinykron.kron.linear.KronLinear` comes from: "kron.linear"."""
    parts = name.split(".")
    if parts[0] != "tinykron":
        return None
    for end in range(len(parts), 1, -1):
        found = ".".join(parts[1:end])
        if found in MODULES:
            return found
        if f"{found}.__init__" in MODULES:
            return f"{found}.__init__"
    return "__init__"


def arrows_down(module: str, imported: list[str], order: list[str]) -> list[str]:
    """Return the modules that `module` imports although they stand below it (or beside it: itself) in `order`."""
    own = {found for name in imported if (found := own_module(name))}
    return sorted(name for name in own if order.index(name) >= order.index(module) and (module, name) not in EXCEPTIONS)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_upward(module):
    assert module in ORDER, f"give {module} its place in the reading order"
    assert not arrows_down(module, list(imports(MODULES[module])), ORDER)


def test_an_arrow_downward_is_seen():
    assert arrows_down("backend", ["numpy", "tinykron.tensor.Tensor", "tinykron.errors.DataError"], ORDER) == ["tensor"]
    assert arrows_down("tensor", ["tinykron.ops"], ORDER) == []
    assert arrows_down("errors", ["tinykron.Tensor"], ORDER) == ["__init__"]


@pytest.mark.parametrize("module", MODULES)
def test_only_the_backend_knows_cupy_and_nothing_knows_torch(module):
    allowed = {"cupy", "cupyx"} if module == "backend" else set()
    tops = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not tops & {"cupy", "cupyx", "torch", "transformers"} - allowed


def test_the_backend_is_where_cupy_is_found():
    assert "cupy" in set(imports(MODULES["backend"]))  # else the rule above is looking in the wrong way


def test_import_is_light():
    code = "import json, sys, tinykron; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    loaded = set(json.loads(output))
    assert {"tinykron", "numpy"} <= loaded
    assert not loaded & {"cupy", "matplotlib", "ml_dtypes", "rich", "safetensors", "scipy", "tokenizers", "torch"}


@pytest.mark.parametrize(("folder", "most"), [("tinykron", 400), ("tests", 400), ("lessons", 560)])  # lessons: prose
def test_no_file_is_long(folder, most):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > most} == {}


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {requirement.split(">")[0] for requirement in project["dependencies"]} | {"cupy", "cupyx", "tinykron"}
    declared |= {"huggingface_hub"}  # tokenizers requires it
    declared |= {"marimo"}  # the extra `lessons`, which kit alone needs
    tops = {name.split(".")[0] for path in MODULES.values() for name in imports(path)}
    assert tops - sys.stdlib_module_names <= declared

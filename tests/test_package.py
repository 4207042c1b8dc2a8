"""The house rules that a program can see: who imports what, in which order, and how long a file may be."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tinykron
from tinykron.commands.cli import main
from tinykron.support import renamed

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tinykron"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "__pycache__" not in path.parts
}

# The house: what lies flat is the engine, a folder is a subject. Imports go to lower layers, or stay in the folder.
LAYERS = """
engine · support data kit · kron learn · models measure · checkpoint decode · distill · train · exits tasks · jobs bench
· studies · commands
"""
NEVER = {  # by folder, what no path of imports from it may reach
    "decode": ("kron.fitting", "kron.planning", "distill"),
    "models": ("kron.fitting", "kron.planning", "distill"),
}
AFTERNOON = """
errors backend tensor shapes ops fused attention nn kron.algebra kron.product kron.linear models.transformer models.gpt2
decode.generate train.loop
""".split()
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
ENGINE = "errors backend threads tensor shapes ops fused attention gradcheck nn optim".split()
EXCEPTIONS = {("tensor", "ops"), ("tensor", "shapes")}  # at its end: the operators of a Tensor are ops
BUDGETS = {  # lines of code, as `code_lines` counts them
    "the engine": (ENGINE, 1800),
    "the path of an afternoon": (AFTERNOON, 3000),
    "the package": (list(MODULES), 17950),  # to come down to 15,000
}


def imports(path: Path, top: bool = False) -> Iterator[str]:
    """Yield the full dotted name of all that a file imports, anywhere or at its top: `from a.b import c` is `a.b.c`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top else ast.walk(tree):
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


def layer(module: str) -> int:
    """Return on which layer a file stands: that of its folder, or of the engine."""
    folder = module.split(".")[0] if "." in module else "engine"
    return next(number for number, names in enumerate(LAYERS.split("·")) if folder in names.split())


def arrows_up(module: str, imported: Iterable[str]) -> list[str]:
    """Return what `module` imports of the package although it stands on the same layer, in another folder, or above."""
    own = {found for name in imported if (found := own_module(name))}
    away = (name for name in own if name.split(".")[0] != module.split(".")[0] or "." not in name)
    if "." in module or module in ENGINE:
        return sorted(name for name in away if not _below(name, module))
    return []  # __init__ and __main__: the face of the whole, and the command line


def _below(name: str, module: str) -> bool:
    """Whether a file of another folder stands below `module`; in the engine, before it. On top are the commands."""
    if name == "__init__":
        return module.startswith("commands.")
    if "." not in name and "." not in module:
        return ENGINE.index(name) < ENGINE.index(module) or (module, name) in EXCEPTIONS
    return layer(name) < layer(module)


def reached(module: str, top: bool) -> set[str]:
    """Return the files of the package that a file reaches by its imports: those at the top of modules, or all."""
    seen, ahead = set(), [module]
    while ahead:
        here = ahead.pop()
        if here not in seen:
            seen.add(here)
            ahead += [found for name in imports(MODULES[here], top) if (found := own_module(name))]
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    assert not arrows_up(module, imports(MODULES[module]))


def test_an_arrow_upward_is_seen():
    assert arrows_up("backend", ["numpy", "tinykron.tensor.Tensor", "tinykron.errors.DataError"]) == ["tensor"]
    assert arrows_up("tensor", ["tinykron.ops"]) == []
    assert arrows_up("errors", ["tinykron.Tensor"]) == ["__init__"]
    assert arrows_up("data.corpus", ["tinykron.support.files", "tinykron.data.tokens"]) == ["support.files"]
    assert arrows_up("models.gpt2", ["tinykron.checkpoint", "tinykron.kron"]) == ["checkpoint.__init__"]


@pytest.mark.parametrize("folder", NEVER)
def test_what_a_folder_never_reaches(folder):
    files = {found for name in MODULES if name.startswith(folder) for found in reached(name, top=True)}
    assert not [name for name in files if name.startswith(NEVER[folder])]


@pytest.mark.parametrize(("module", "most"), [("models.gpt2", 18), ("decode.generate", 24), ("checkpoint.folder", 28)])
def test_few_files_are_reached(module, most):
    assert len(reached(module, top=True)) <= most


@pytest.mark.parametrize("module", MODULES)
def test_only_the_backend_knows_cupy_and_nothing_knows_torch(module):
    allowed = {"cupy", "cupyx"} if module == "backend" else set()
    tops = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not tops & {"cupy", "cupyx", "torch", "transformers"} - allowed


def test_the_backend_is_where_cupy_is_found():
    assert "cupy" in set(imports(MODULES["backend"]))  # else the rule above is looking in the wrong way


def code_lines(text: str) -> int:
    """Count the lines of code of a file: docstrings, comments and blank lines are none."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if ast.get_docstring(node) is not None else None
            prose.update(range(first.lineno, first.end_lineno + 1) if first else ())
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for one in tokens if one.type not in NO_CODE for line in range(one.start[0], one.end[0] + 1)}
    return len(code - prose)


@pytest.mark.parametrize("budget", BUDGETS)
def test_code_keeps_to_its_budget(budget):
    names, most = BUDGETS[budget]
    found = {name: code_lines(MODULES[name].read_text(encoding="utf-8")) for name in names}
    assert sum(found.values()) <= most, f"{sum(found.values())} lines of code, expected at most {most}: {found}"


def test_docstrings_comments_and_blank_lines_are_no_code():
    prose = '"""Two\n\nlines."""\n# a comment\n\n'
    assert code_lines(prose) == 0
    assert code_lines(prose + 'x = """text\nin two lines"""  # is code\n\n\ndef f():\n    "None."\n    return x\n') == 4


@pytest.mark.parametrize("face", [name for name in MODULES if name.endswith(".__init__") and name != "kit.__init__"])
def test_a_face_lists_what_it_has(face):
    module = importlib.import_module(f"tinykron.{face.removesuffix('.__init__')}")
    assert module.__doc__ and list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name) or f"{face.removesuffix('__init__')}{name}" in MODULES


def test_the_version_is_said_once(capsys):
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in content["project"]["dynamic"]
    assert content["tool"]["hatch"]["version"] == {"path": "tinykron/__init__.py"}
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"tinykron {tinykron.__version__}\n"
    assert f"\n## {tinykron.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("old", renamed.MODULES)
def test_a_file_that_moved_is_found_and_said_to_have_moved(old):
    new = f"tinykron.{renamed.MODULES[old]}"
    with pytest.warns(DeprecationWarning, match=f"tinykron.{old} is called {new} now") as caught:
        assert getattr(tinykron, old) is importlib.import_module(new)
    assert caught[0].filename == __file__


def test_a_name_that_never_was_is_no_attribute():
    with pytest.raises(AttributeError, match="'tinykron' has no attribute 'nothing'"):
        _ = tinykron.nothing


def test_the_design_lists_every_file_and_no_other():
    layout = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("```")[1]
    assert [name for name in MODULES if name.split(".")[-1][:2] != "__" and not listed(layout, name)] == []
    assert not listed(layout, "exits.nothing") and not listed(layout, "nothing")


def listed(layout: str, module: str) -> bool:
    """Whether a layout names a file behind its folder, before the next one; the files of verbs are said together."""
    *folders, name = module.split(".")
    start = layout.index(f"{folders[-1]}/") if folders else 0
    end = re.compile(r"\n *[a-z]+/").search(layout, start)
    words = layout[start : end.start() if end else len(layout)].split()
    return name in words or (folders == ["commands"] and "verb:" in words)


NAMED = re.compile(r"(?<![\w/.])(?:tinykron|tests|lessons|benchmarks|docs|recipes)/[\w/.-]+\.(?:py|md|png|toml)\b")
PLACEHOLDER = re.compile(r"NN|NAME|/name\.py")


def missing_files(text: str) -> list[str]:
    """Return the files of the repository that a text names with their folder, and that are not there."""
    return [name for name in NAMED.findall(text) if not PLACEHOLDER.search(name) and not (ROOT / name).exists()]


def test_files_that_prose_names_exist():
    prose = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lessons/*"), *ROOT.glob("benchmarks/*")]
    prose += [*MODULES.values(), *(path for path in ROOT.glob("tests/**/*.py") if path != Path(__file__))]
    texts = {path: path.read_text(encoding="utf-8") for path in prose if path.suffix in (".md", ".py")}
    assert {path.name: missing for path, text in texts.items() if (missing := missing_files(text))} == {}


def test_a_file_that_is_not_there_is_seen():
    assert missing_files("see tinykron/tensor.py and tinykron/exits.py") == ["tinykron/exits.py"]


def test_import_is_light():
    code = "import json, sys, tinykron; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    loaded = set(json.loads(output))
    assert {"tinykron", "numpy"} <= loaded
    assert not loaded & {"cupy", "matplotlib", "ml_dtypes", "rich", "safetensors", "scipy", "tokenizers", "torch"}


@pytest.mark.parametrize(("folder", "most"), [("tinykron", 500), ("tests", 500), ("lessons", 561)])  # lessons: prose
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

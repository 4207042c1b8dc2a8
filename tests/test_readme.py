"""README does what it says: its Python runs and prints what its comments promise, and its two commands are there."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from tinykron.learn.copies import lessons

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
PROMISE = "# ->"


def promises(code: str) -> list[tuple[int, str]]:
    """Return (line, text) of each comment `# -> text`, behind or below the statement that prints it."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [
        (token.start[0], token.string.removeprefix(PROMISE).removeprefix(" "))
        for token in tokens
        if token.type == tokenize.COMMENT and token.string.startswith(PROMISE)
    ]


def run_examples(markdown: str) -> int:
    """Run all ```python blocks in one namespace; return how many lines they promised and printed.

    Every line that a statement prints stands after `# ->` behind or below it, and no other. Trailing spaces aside, the
    two must be equal; the AssertionError shows the statement.
    """
    namespace: dict[str, object] = {"__name__": "readme"}
    kept = 0
    for language, code in FENCE.findall(markdown):
        if language != "python":
            continue
        statements = ast.parse(code).body
        ends = [statement.lineno for statement in statements[1:]] + [len(code.splitlines()) + 1]
        start = 0
        for statement, end in zip(statements, ends, strict=True):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(ast.Module([statement], []), "README.md", "exec"), namespace)
            found = [line.rstrip() for line in printed.getvalue().splitlines()]
            expected = [text.rstrip() for line, text in promises(code) if start < line < end]
            assert found == expected, f"{ast.unparse(statement)}\nprinted  {found}\npromised {expected}"
            kept += len(found)
            start = end - 1
    return kept


def test_readme_prints_what_it_promises(tmp_path, monkeypatch):
    (tmp_path / "weights").symlink_to(ROOT / "weights")  # as in the clone, but what an example saves is swept away
    monkeypatch.chdir(tmp_path)
    assert run_examples((ROOT / "README.md").read_text(encoding="utf-8")) > 0


@pytest.mark.parametrize(
    "command", ["pip install -e . && tinykron run kngpt2", 'pip install -e ".[test]" && pytest'], ids=["run", "test"]
)
def test_readme_names_its_two_commands(command):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fenced = [line.split("  #")[0].strip() for language, code in FENCE.findall(readme) for line in code.splitlines()]
    assert command in [*fenced, *re.findall(r"`([^`\n]+)`", FENCE.sub("", readme))]


def test_readme_lists_the_lessons():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [one for one in lessons() if f"{one.number} {one.title}" not in readme] == []


GOOD = """
Text with print(1 / 0) outside of any block.

```sh
print(1 / 0)
```
```python
import math

x = [1,
     2]
print(x)  # -> [1, 2]
```
More text.
```python
for item in x:
    print(item)
# -> 1
# -> 2
print("a b\\n")
# -> a b
# ->
```
"""


def test_the_runner_takes_promises_that_are_kept():
    assert run_examples(GOOD) == 5


@pytest.mark.parametrize(
    ("kept", "broken"),
    [
        ("# -> [1, 2]", "# -> [1, 3]"),  # another value
        ("# -> 2\n", ""),  # prints more than it promises
        ("# -> a b\n# ->\n", "# -> a b\n# ->\n# -> c\n"),  # promises more than it prints
        ("# -> 1\n# -> 2\n", "# -> 2\n# -> 1\n"),  # the order
        ("import math", "print('unannounced')"),
        ("     2]\n", "     2]\n# -> [1, 2]\n"),  # a promise under a statement that prints nothing
    ],
)
def test_the_runner_refuses_promises_that_are_broken(kept, broken):
    assert GOOD.count(kept) == 1
    with pytest.raises(AssertionError, match="promised"):
        run_examples(GOOD.replace(kept, broken))


def test_the_runner_lets_an_error_through():
    with pytest.raises(ZeroDivisionError):
        run_examples("```python\nx = 1 / 0\n```\n")

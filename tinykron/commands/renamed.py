"""Spellings of the version before, for one release: `sort --ranks` is `grid`, `sort --calibrate` is `promise`."""

from __future__ import annotations

from collections.abc import Sequence

from tinykron.support.progress import say


def translated(arguments: Sequence[str]) -> list[list[str]]:
    """Return the commands that a line stands for, one after the other: itself, but for an old spelling of `sort`."""
    words = list(arguments)
    if words[:1] != ["sort"]:
        return [words]
    if any(word.split("=")[0] == "--ranks" for word in words):
        say("tinykron: `sort --ranks` is called `grid` now; the old spelling goes with the next release")
        words[0] = "grid"
    if "--calibrate" not in words:
        return [words]
    say("tinykron: `sort --calibrate` is called `promise` now; the old spelling goes with the next release")
    start = words.index("--calibrate")
    end = start + 1
    pairs = []
    while end < len(words) and not words[end].startswith("-"):
        name, _, value = words[end].partition("=")
        pairs += [f"--{name}", value]
        end += 1
    before, after = words[:start], words[end:]
    prompts = []
    for words in (before, after):
        if "--prompts" in words:
            place = words.index("--prompts")
            prompts, words[place : place + 2] = words[place : place + 2], []
    rest = [*before, *after]
    if "--out" not in rest:
        return [["promise", *rest[1:], *pairs, *prompts]]
    out = rest[rest.index("--out") + 1 : rest.index("--out") + 2]
    return [rest, ["promise", *out, *pairs, *prompts, *(["--json"] if "--json" in rest else [])]]

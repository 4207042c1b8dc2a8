"""Where the folders lie that come with tinykron: weights, recipes, lessons."""

from __future__ import annotations

from pathlib import Path

from tinykron.errors import TinykronError


def shipped_folder(kind: str) -> Path:
    """Return the shipped folder "weights", "recipes" or "lessons": in the installed package, or beside it."""
    package = Path(__file__).parents[1]
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise TinykronError(f'no "{kind}" folder came with this tinykron: looked in {package} and {package.parent}')


def weights_folder(name: str) -> Path:
    """Return the folder of the shipped checkpoint `name`. Raises TinykronError, listing those that are there."""
    folder = shipped_folder("weights")
    names = sorted(path.name for path in folder.iterdir() if (path / "config.json").is_file())
    if name not in names:
        raise TinykronError(f'no shipped weights "{name}" in {folder}: found {", ".join(names) or "none"}')
    return folder / name

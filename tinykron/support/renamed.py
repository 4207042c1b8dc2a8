"""Names of the version before, which stay one release: each use says the new name once more."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

# Files that lay flat in the package: `from tinykron import exit_analysis` finds `tinykron.exits.analysis`.
MODULES = dict(
    line.split()
    for line in """
    bitexact decode.bit_exact
    cli commands.cli
    closed_book tasks.closed_book
    compress jobs.compress
    distances distill.distances
    elastic jobs.sort_grid
    evaluate measure.perplexity
    exit_analysis exits.analysis
    features tasks.features
    files support.files
    finetune jobs.finetune
    front exits.pareto
    glue tasks.glue
    grid exits.grid
    hub checkpoint.hub
    info jobs.describe
    instructions data.instructions
    lessons learn.copies
    losses distill.losses
    masking data.masking
    metrics tasks.metrics
    partial decode.partial_pass
    pretrain jobs.pretrain
    progress support.progress
    recipes jobs.recipes
    report jobs.report
    reproduce studies.fits
    safetensors_file checkpoint.safetensors_file
    sampling decode.sampling
    shortlist decode.shortlist
    similarity tasks.similarity
    sort jobs.sort
    speculate decode.speculate
    squad tasks.squad
    stages jobs.stages
    standins tasks.standins
    students jobs.students
    text_finetune jobs.finetune_text
    thresholds exits.thresholds
    tokenizer checkpoint.tokenizer
    wikitext tasks.wikitext
    """.strip().splitlines()
)


def module(name: str) -> Any:
    """Return the module that lay flat under `name`, with a DeprecationWarning. Raises AttributeError."""
    if name not in MODULES:
        raise AttributeError(f"module 'tinykron' has no attribute {name!r}")
    deprecated(f"tinykron.{name}", f"tinykron.{MODULES[name]}", level=4)
    return importlib.import_module(f"tinykron.{MODULES[name]}")


def deprecated(old: str, new: str, level: int = 3) -> None:
    """Warn that a name is that of the version before.

    level  frames between this call and the code that uses the name, as for `warnings.warn`
    """
    warnings.warn(f"{old} is called {new} now; the old name goes with the next release", DeprecationWarning, level)

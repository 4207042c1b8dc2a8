"""Training checkpoints: one file, replaced as a whole, so that there is always a whole one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.checkpoint import safetensors_file
from tinykron.errors import CheckpointError
from tinykron.nn import Module
from tinykron.optim import AdamW
from tinykron.train.settings import History

CHECKPOINT = "training.safetensors"


def save_run(path: Path, student: Module, optimiser: AdamW, history: History, adapters: Module | None = None) -> None:
    """Write the checkpoint of a run. Raises CheckpointError where it cannot be written."""
    arrays = {f"model.{name}": to_host(array) for name, array in student.state_dict().items()}
    if adapters is not None:
        arrays |= {f"adapters.{name}": to_host(array) for name, array in adapters.state_dict().items()}
    arrays |= {f"optimiser.{name}": to_host(array) for name, array in optimiser.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(path, arrays, {"history": json.dumps(asdict(history))})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the training checkpoint: {error}") from error


def resume_run(
    path: Path, student: Module, optimiser: AdamW, history: History, adapters: Module | None = None
) -> dict[str, Any]:
    """Continue from a checkpoint; return what it says. Raises CheckpointError if it is damaged, or of another run."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            saved = json.loads((file.metadata() or {})["history"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no dict
        then, steps, terms, gradient_norms = (saved[key] for key in ("settings", "steps", "terms", "gradient_norms"))
        perplexities = [(step, value) for step, value in saved["perplexities"]]
        term_norms = [(step, norms) for step, norms in saved["term_norms"]]
        now = json.loads(json.dumps(asdict(history.settings)))
        changed = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
        changed += [] if saved["inputs"] == history.inputs else ["another text, teacher or losses"]
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a training checkpoint: {error}") from error
    if changed:
        raise CheckpointError(
            f"{path}: belongs to another run ({', '.join(changed)}); use another folder, or remove it"
        )
    try:
        student.load_state_dict(_part(arrays, "model."))
        if adapters is not None:
            adapters.load_state_dict(_part(arrays, "adapters."))
        optimiser.load_state_dict(_part(arrays, "optimiser."), steps)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: belongs to another model: {error}") from error
    history.steps, history.terms, history.gradient_norms = steps, terms, gradient_norms
    history.perplexities, history.term_norms = perplexities, term_norms
    return saved


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

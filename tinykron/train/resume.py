"""Training checkpoints: one file, replaced as a whole, so that there is always a whole one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tinykron.backend import to_host
from tinykron.checkpoint import safetensors_file
from tinykron.errors import CheckpointError
from tinykron.nn import Module
from tinykron.optim import AdamW
from tinykron.train.settings import History

CHECKPOINT = "training.safetensors"
BEST = "best.safetensors"  # beside it: the weights of the evaluation that was best


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


def resume_run(path: Path, student: Module, optimiser: AdamW, history: History, adapters: Module | None = None) -> None:
    """Continue from a checkpoint. Raises CheckpointError if it is damaged, or of another run."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            saved = json.loads((file.metadata() or {})["history"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no dict
        then, steps, terms, gradient_norms = (saved[key] for key in ("settings", "steps", "terms", "gradient_norms"))
        if "epochs" in then:
            raise CheckpointError(f"{path}: tinykron 0.1.0 wrote it, whose fine-tuning kept other settings; remove it")
        perplexities = [(step, value) for step, value in saved["perplexities"]]
        scores = [(step, found) for step, found in saved.get("scores", [])]
        term_norms = [(step, norms) for step, norms in saved["term_norms"]]
        now = json.loads(json.dumps(asdict(history.settings)))
        then.setdefault("split_batch", 1)  # tinykron 0.1.0 knew no such setting
        changed = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
        changed += [] if saved["inputs"] == history.inputs else ["another text, teacher or losses"]
    except CheckpointError:
        raise
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
    history.perplexities, history.scores, history.term_norms = perplexities, scores, term_norms


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def write_best(path: Path | None, arrays: dict[str, np.ndarray]) -> None:
    """Keep the weights of the best epoch beside the checkpoint; after a kill the same epoch writes them once more."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(path.with_name(BEST), arrays, {})
    except OSError as error:
        raise CheckpointError(f"{path.with_name(BEST)}: cannot be written: {error}") from error


def best_weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights of a run's best epoch, by name. Raises CheckpointError where they are not in its folder."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(folder / BEST)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / BEST}: expected the best epoch's weights: {error}") from error

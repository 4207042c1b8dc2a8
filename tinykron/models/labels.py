"""The classes of a sequence or token head, as config.json tells them."""

from __future__ import annotations

from typing import Any

from tinykron.errors import CheckpointError
from tinykron.models.checks import positive


def count(config: dict[str, Any]) -> int:
    """Return how many there are: `id2label`, else `num_labels`, else 2. Raises CheckpointError naming the key."""
    labels = config.get("id2label")
    if labels is None:
        return positive(config, "num_labels", 2)
    if not isinstance(labels, dict) or not labels:
        raise CheckpointError(f"id2label: expected an object of label numbers and names, found {labels!r}")
    if config.get("num_labels", len(labels)) != len(labels):
        raise CheckpointError(f"num_labels: found {config['num_labels']!r}, id2label has {len(labels)}")
    return len(labels)


def said(extra: dict[str, Any], labels: int) -> dict[str, Any]:
    """Return what config.json must say beside `extra`: the names LABEL_0, ... where there are none for so many."""
    if len(extra.get("id2label", ())) == labels:
        return {}
    names = [f"LABEL_{number}" for number in range(labels)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def without_names(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the rest of a configuration without the names of classes, for a head that has others."""
    return {key: value for key, value in extra.items() if key not in ("id2label", "label2id", "num_labels")}

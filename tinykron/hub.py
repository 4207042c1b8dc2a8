"""Where a model is: a folder, a place in the Hugging Face cache, or a hub id. Downloaded only when the user says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tinykron.errors import CheckpointError

ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?")  # owner/name, owner/name@revision
FILES = (  # what tinykron reads; no other framework's weights, no second copies in subfolders
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-[0-9]*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)


def resolve(model: str | os.PathLike[str], download: bool = False) -> Path:
    """Return the folder of a model.

    model     a folder; a repository's place in a Hugging Face cache (`.../models--owner--name`); or a hub id,
              `owner/name` or `owner/name@revision`, which is looked up in the cache
    download  fetch a hub id's configuration, tensors and tokenizer where the cache lacks them; what an interrupted
              download has fetched is kept, and the next one continues
    Raises CheckpointError where nothing is found, and where a download fails, with the cause.
    """
    path = Path(model)
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        return _snapshot(path)
    if path.exists() or not ID.fullmatch(str(model)):
        return path  # loading says what is wrong with a folder
    return _from_hub(str(model), download)


def _snapshot(repository: Path) -> Path:
    """Return the folder of a cached repository's main revision, or of the only one."""
    main = repository / "refs" / "main"
    if main.is_file() and (repository / "snapshots" / main.read_text().strip()).is_dir():
        return repository / "snapshots" / main.read_text().strip()
    found = sorted(path.name for path in (repository / "snapshots").iterdir() if path.is_dir())
    if len(found) != 1:
        raise CheckpointError(f"{repository}: expected refs/main or one snapshot, found {', '.join(found) or 'none'}")
    return repository / "snapshots" / found[0]


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(FILES), local_files_only=not download
        )
        return Path(found)
    except Exception as error:  # the client's own, the network library's, the system's: one line for all
        cause = " ".join(str(error).split()) or type(error).__name__
        if not download:
            raise CheckpointError(
                f"{name}: found no such folder, and no such model in the cache {HF_HUB_CACHE}; "
                f"to fetch it: download=True, or --download on the command line"
            ) from None
        raise CheckpointError(f"{name}: cannot be downloaded: {cause}") from None

"""Where a model is: a folder, a place in the Hugging Face cache, or a hub id. Downloaded only when the user says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tinykron.errors import CheckpointError

ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?")  # owner/name, owner/name@revision
FILES = (  # what is read; no other framework's weights
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
)
OTHERS = ("*/*.safetensors", "consolidated*")  # second copies: a pattern's * goes into subfolders (original/, onnx/)


def resolve(model: str | os.PathLike[str], download: bool = False) -> Path:
    """Return the folder of a model.

    model     a folder; a repository's place in a Hugging Face cache (`.../models--owner--name`); or a hub id,
              `owner/name` or `owner/name@revision`, which is looked up in the cache
    download  fetch a hub id's configuration, tensors and tokenizer where the cache lacks them. A connection that breaks
              is taken up again; after a download that failed, the next one fetches only the files that are not whole
    Raises CheckpointError where nothing is found, and where a download fails, with the cause.
    """
    path = Path(model)
    if path.name.startswith("models--") and any((path / part).is_dir() for part in ("snapshots", "refs", "blobs")):
        return _snapshot(path)
    if path.exists() or not ID.fullmatch(str(model)):
        return path  # loading says what is wrong with a folder
    return _from_hub(str(model), download)


def _snapshot(repository: Path) -> Path:
    """Return the folder of a cached repository's main revision, or of the only one."""
    main = repository / "refs" / "main"
    if main.is_file() and (repository / "snapshots" / main.read_text().strip()).is_dir():
        return repository / "snapshots" / main.read_text().strip()
    found = sorted(path.name for path in (repository / "snapshots").glob("*") if path.is_dir())
    if len(found) != 1:
        raise CheckpointError(f"{repository}: expected refs/main or one snapshot, found {', '.join(found) or 'none'}")
    return repository / "snapshots" / found[0]


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(FILES),
            ignore_patterns=list(OTHERS),
            local_files_only=not download,
        )
        return Path(found)
    except Exception as error:  # the client's own, the network library's, the system's: one line for all
        if download:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{name}: cannot be downloaded: {cause}") from None
        part = getattr(error, "snapshot_path", None)  # the client knows which files a revision has, and misses some
        found = f"only a part of the model, {part}" if part else f"no such model in the cache {HF_HUB_CACHE}"
        raise CheckpointError(
            f"{name}: found no such folder, and {found}; to fetch it: download=True, or --download on the command line"
        ) from None

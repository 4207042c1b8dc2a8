"""Models by folder, by their place in the cache, and by hub id from a file server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.checkpoints import TINY, gpt2_tensors, write_folder
from tinykron.errors import CheckpointError
from tinykron.hub import resolve

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
import tinykron as tk
try:
    print(tk.load(sys.argv[1], download=len(sys.argv) > 2).parameter_count())
except tk.TinykronError as error:
    sys.exit(f"tinykron: {error}")
"""


class Server(ThreadingHTTPServer):
    """Speaks what the client asks a hub: one model, `owner/tiny`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.break_after = folder, [], None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/owner/tiny/tree/"):
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(self.server.folder.iterdir())
            ]
            self.answer(200, json.dumps(files).encode(), body)
        elif path.startswith("/api/models/owner/tiny"):
            names = sorted(file.name for file in self.server.folder.iterdir())
            found = {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "private": False, "tags": []}
            self.answer(200, json.dumps(found | {"siblings": [{"rfilename": name} for name in names]}).encode(), body)
        elif path.startswith("/owner/tiny/resolve/") and (self.server.folder / Path(path).name).is_file():
            content = (self.server.folder / Path(path).name).read_bytes()
            self.answer(200, content, body, hashlib.sha256(content).hexdigest())
        else:
            self.answer(404, b'{"error": "Repository not found"}', body)

    def answer(self, code: int, content: bytes, body: bool, etag: str | None = None) -> None:
        start = 0
        if code == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, code = int(wanted[6:].split("-")[0]), 206
        self.send_response(code)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body and etag and self.server.break_after is not None and len(content) > self.server.break_after:
            self.wfile.write(content[start : start + self.server.break_after])
            self.wfile.flush()
            self.connection.close()  # as a network that fails
            self.close_connection = True
        elif body:
            self.wfile.write(content[start:])


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    folder = write_folder(tmp_path / "hub", TINY, gpt2_tensors(TINY))
    for name in ("pytorch_model.bin", "README.md", "consolidated.00.pth"):
        (folder / name).write_text("not for us")
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def load(server: Server, cache: Path, model: str, *download: str) -> subprocess.CompletedProcess[str]:
    """Load a model in a new process: the client reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", LOAD, model, *download]
    return subprocess.run(command, cwd=ROOT, env=inherited | settings, capture_output=True, text=True, timeout=120)


def test_nothing_is_asked_of_the_network_unless_the_user_says_so(server, tmp_path):
    done = load(server, tmp_path / "cache", "owner/tiny")
    assert done.returncode == 1 and server.asked == []
    assert "tinykron: owner/tiny: found no such folder, and no such model in the cache" in done.stderr
    assert "--download" in done.stderr and "Traceback" not in done.stderr


def test_a_download_brings_what_is_read_and_later_loads_need_no_network(server, tmp_path):
    cache = tmp_path / "cache"
    done = load(server, cache, "owner/tiny", "download")
    size = done.stdout
    assert done.returncode == 0, done.stderr
    fetched = {Path(line).name for line in server.asked if line.startswith("GET /owner/tiny/resolve/")}
    assert fetched == {"config.json", "model.safetensors"}
    server.asked.clear()
    assert load(server, cache, "owner/tiny").stdout == size
    repository = cache / "hub" / "models--owner--tiny"
    for place in (repository, repository / "snapshots" / COMMIT):
        assert load(server, cache, str(place)).stdout == size
    assert server.asked == []


def test_an_interrupted_download_is_named_and_continues(server, tmp_path):
    server.break_after = 1000
    done = load(server, tmp_path / "cache", "owner/tiny", "download")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("tinykron: owner/tiny: cannot be downloaded: ")
    server.break_after = None
    assert load(server, tmp_path / "cache", "owner/tiny", "download").returncode == 0


def test_a_model_that_the_hub_lacks_is_named(server, tmp_path):
    done = load(server, tmp_path / "cache", "owner/other", "download")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "tinykron: owner/other: cannot be downloaded: " in done.stderr


def test_a_hub_that_does_not_answer_is_named(server, tmp_path):
    server.shutdown()
    server.server_close()
    done = load(server, tmp_path / "cache", "owner/tiny", "download")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "tinykron: owner/tiny: cannot be downloaded: " in done.stderr


# Places that need no client -------------------------------------------------------------------------------------------


def cached(folder: Path, *snapshots: str, main: str | None = None) -> Path:
    repository = folder / "models--owner--tiny"
    for name in snapshots:
        (repository / "snapshots" / name).mkdir(parents=True)
    if main is not None:
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(main + "\n")
    return repository


def test_a_cached_repository_is_its_main_snapshot_or_its_only_one(tmp_path):
    both = cached(tmp_path / "both", "a", "b", main="b")
    assert resolve(both) == both / "snapshots" / "b"
    one = cached(tmp_path / "one", "a")
    assert resolve(str(one)) == one / "snapshots" / "a"
    with pytest.raises(CheckpointError, match="expected refs/main or one snapshot, found a, b"):
        resolve(cached(tmp_path / "two", "a", "b"))
    (tmp_path / "none" / "models--x" / "snapshots").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="found none"):
        resolve(tmp_path / "none" / "models--x")


@pytest.mark.parametrize("name", ["folder", "a/b/c", "../elsewhere", "/absolute/folder", "", "weights/"])
def test_what_looks_like_no_hub_id_is_a_folder(name):
    assert resolve(name) == Path(name)


def test_a_folder_goes_before_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/tiny", download=True) == Path("owner/tiny")

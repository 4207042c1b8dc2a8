"""Models by folder, by their place in the cache, and by hub id from a file server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.checkpoints import TINY, gpt2_tensors, write_folder
from tinykron.checkpoint.hub import resolve
from tinykron.errors import CheckpointError

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
import tinykron as tk
try:
    print(tk.load(sys.argv[1], download=len(sys.argv) > 2).parameter_count())
except tk.TinykronError as error:
    sys.exit(f"tinykron: {error}")
"""
IN_SMALL_PIECES = "import huggingface_hub.constants as constants\nconstants.DOWNLOAD_CHUNK_SIZE = 500\n"
READ = {
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
}
NOT_READ = """
README.md .gitattributes pytorch_model.bin tf_model.h5 consolidated.00.pth consolidated.safetensors
consolidated-00001-of-00002.safetensors model.fp16.safetensors generation_config.json
original/consolidated.00.pth original/params.json original/model-00001-of-00002.safetensors original/config.json
onnx/model.onnx onnx/config.json unet/model.safetensors 2_Dense/config.json 2_Dense/model.safetensors
""".split()


class Server(ThreadingHTTPServer):
    """Speaks what the client asks a hub: one model, `owner/tiny`, and `owner/gated`, which it gives to nobody."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.ranges = folder, [], []
        self.break_after: int | None = None  # bytes of a longer file
        self.breaks = 99

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def fetched(self) -> set[str]:
        start = f"GET /owner/tiny/resolve/{COMMIT}/"
        return {line.removeprefix(start) for line in self.asked if line.startswith(start)}

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
        path, folder = self.path.split("?")[0], self.server.folder
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/owner/tiny/tree/"):
            files = [
                {
                    "type": "file",
                    "path": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "oid": "0" * 40,
                }
                for path in self.server.files()
            ]
            self.answer(200, json.dumps(files).encode(), body)
        elif re.fullmatch(f"/api/models/owner/tiny(/revision/(main|v2|{COMMIT}))?", path):
            names = [file.relative_to(folder).as_posix() for file in self.server.files()]
            found = {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "private": False, "tags": []}
            self.answer(200, json.dumps(found | {"siblings": [{"rfilename": name} for name in names]}).encode(), body)
        elif (match := re.fullmatch(f"/owner/tiny/resolve/{COMMIT}/(.+)", path)) and (folder / match[1]).is_file():
            content = (folder / match[1]).read_bytes()
            self.answer(200, content, body, hashlib.sha256(content).hexdigest())
        elif path.startswith("/api/models/owner/gated"):
            self.answer(403, b'{"error": "Access to model owner/gated is restricted"}', body, fault="GatedRepo")
        elif path.startswith("/api/models/owner/tiny/revision/"):
            self.answer(404, b'{"error": "Invalid rev id"}', body, fault="RevisionNotFound")
        else:
            self.answer(404, b'{"error": "Repository not found"}', body, fault="RepoNotFound")

    def answer(self, code: int, content: bytes, body: bool, etag: str | None = None, fault: str | None = None) -> None:
        start = 0
        if code == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, code = int(wanted[6:].split("-")[0]), 206
            self.server.ranges.append(wanted)
        self.send_response(code)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault:
            self.send_header("X-Error-Code", fault)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        limit = self.server.break_after
        if body and etag and limit is not None and len(content) > limit and self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(content[start : start + limit])
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


def load(server: Server, cache: Path, model: str, *download: str, before: str = "") -> subprocess.CompletedProcess[str]:
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
    command = [sys.executable, "-c", before + LOAD, model, *download]
    return subprocess.run(command, cwd=ROOT, env=inherited | settings, capture_output=True, text=True, timeout=120)


def test_nothing_is_asked_of_the_network_unless_the_user_says_so(server, tmp_path):
    done = load(server, tmp_path / "cache", "owner/tiny")
    assert done.returncode == 1 and server.asked == []
    assert "tinykron: owner/tiny: found no such folder, and no such model in the cache" in done.stderr
    assert str(tmp_path / "cache") in done.stderr and "--download" in done.stderr and "Traceback" not in done.stderr


def test_a_download_brings_what_is_read_and_later_loads_need_no_network(server, tmp_path):
    cache = tmp_path / "cache"
    done = load(server, cache, "owner/tiny", "download")
    size = done.stdout
    assert done.returncode == 0, done.stderr
    assert server.fetched() == {"config.json", "model.safetensors"}
    server.asked.clear()
    assert load(server, cache, "owner/tiny").stdout == size
    repository = cache / "hub" / "models--owner--tiny"
    for place in (repository, repository / "snapshots" / COMMIT):
        assert load(server, cache, str(place)).stdout == size
    assert load(server, cache, f"owner/tiny@{COMMIT}").stdout == size
    assert server.asked == []


def test_of_a_crowded_repository_only_what_is_read_is_fetched(server, tmp_path):
    (server.folder / "model.safetensors").unlink()
    write_folder(server.folder, TINY, gpt2_tensors(TINY), shards=2)
    (server.folder / "vocab.json").write_text('{"<|endoftext|>": 0}')
    for name in READ.union(NOT_READ) - {path.relative_to(server.folder).as_posix() for path in server.files()}:
        (server.folder / name).parent.mkdir(exist_ok=True)
        content = "#version: 0.2\n" if name == "merges.txt" else json.dumps({"name": name})  # no two files alike:
        (server.folder / name).write_text(content)  # the client fetches the same content only once
    done = load(server, tmp_path / "cache", "owner/tiny", "download")
    assert done.returncode == 0, done.stderr
    assert server.fetched() == READ


def test_a_revision_is_asked_for_by_name(server, tmp_path):
    done = load(server, tmp_path / "cache", "owner/tiny@v2", "download")
    assert done.returncode == 0, done.stderr
    assert "GET /api/models/owner/tiny/revision/v2" in server.asked
    server.asked.clear()
    assert load(server, tmp_path / "cache", "owner/tiny@v2").returncode == 0
    assert load(server, tmp_path / "cache", "owner/tiny").returncode == 1  # main was never fetched
    assert server.asked == []


def test_a_part_of_a_model_in_the_cache_is_completed(server, tmp_path):
    snapshot = tmp_path / "cache" / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)  # as another program leaves it that wanted the configuration only
    (snapshot / "config.json").write_bytes((server.folder / "config.json").read_bytes())
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    done = load(server, tmp_path / "cache", "owner/tiny")
    assert done.returncode == 1 and server.asked == []
    assert "found neither model.safetensors nor" in done.stderr
    assert load(server, tmp_path / "cache", "owner/tiny", "download").returncode == 0
    assert server.fetched() == {"model.safetensors"}


def test_a_connection_that_breaks_is_taken_up_again_where_it_broke(server, tmp_path):
    server.break_after, server.breaks = 1000, 1
    done = load(server, tmp_path / "cache", "owner/tiny", "download", before=IN_SMALL_PIECES)
    assert done.returncode == 0, done.stderr
    assert server.ranges == ["bytes=1000-"]


def test_an_interrupted_download_is_named_and_continues(server, tmp_path):
    server.break_after = 1000
    done = load(server, tmp_path / "cache", "owner/tiny", "download")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("tinykron: owner/tiny: cannot be downloaded: ")
    done = load(server, tmp_path / "cache", "owner/tiny")
    assert "owner/tiny: found no such folder, and only a part of the model, " in done.stderr
    assert COMMIT in done.stderr and "--download" in done.stderr
    server.break_after = None
    server.asked.clear()
    assert load(server, tmp_path / "cache", "owner/tiny", "download").returncode == 0
    assert server.fetched() == {"model.safetensors"}  # config.json was whole


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("owner/other", "Repository Not Found"),
        ("owner/tiny@v9", "Revision Not Found"),
        ("owner/gated", "Access to model owner/gated is restricted"),
        ("owner/not--a-name", "Cannot have -- or .. in repo_id"),
    ],
)
def test_what_the_hub_does_not_give_is_named(server, tmp_path, name, cause):
    done = load(server, tmp_path / "cache", name, "download")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("tinykron: ")]
    assert line.startswith(f"tinykron: {name}: cannot be downloaded: ") and cause in line


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
    (tmp_path / "begun" / "models--x" / "blobs").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="found none"):
        resolve(tmp_path / "begun" / "models--x")
    (tmp_path / "models--mine").mkdir()
    assert resolve(tmp_path / "models--mine") == tmp_path / "models--mine"  # a folder may be called so


def test_the_client_is_imported_only_for_a_hub_id(tmp_path):
    code = "import sys; from tinykron.checkpoint.hub import resolve; resolve(sys.argv[1], True); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    assert "tinykron.checkpoint.hub" in done.stdout.decode().split()
    assert "huggingface_hub" not in done.stdout.decode().split()


@pytest.mark.parametrize("name", ["folder", "a/b/c", "../elsewhere", "/absolute/folder", "", "weights/"])
def test_what_looks_like_no_hub_id_is_a_folder(name):
    assert resolve(name) == Path(name)


def test_a_folder_goes_before_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/tiny", download=True) == Path("owner/tiny")

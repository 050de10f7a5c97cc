"""Hugging Face ids, with the real hub client against a small hub on loopback."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHILD = """
import sys
from worker.models import resolve_model
try:
    found = resolve_model(sys.argv[1], progress=lambda line: print("said", line))
    print("found", found.name, found.path)
except Exception as error:
    print(type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"a pickle, which nobody should load",
        "README.md": b"# text",
    }
    # Answers to repositories other than "good/model": status and the hub's own error code.
    refusals: ClassVar[dict[str, tuple[int, str]]] = {
        "gated/model": (403, "GatedRepo"),
        "absent/model": (404, "RepoNotFound"),
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        for repository, (status, code) in self.refusals.items():
            if repository in self.path:
                self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code})
                return
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/good/model/tree/"):
            self.answer(200, json.dumps(self.tree()).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "good/model", "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(info).encode())
        else:
            name = path.rpartition("/")[2]
            etag = hashlib.sha1(self.files[name], usedforsecurity=False).hexdigest()
            self.answer(200, self.files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def tree(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
            }
            for name, content in self.files.items()
        ]

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(timeout=5)


def resolved(ref: str, home: Path, endpoint: str, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, ref],
        env={
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": ":".join(sys.path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return ended.stdout.strip().splitlines()[-1]


def test_an_id_is_fetched_without_pickles_and_served_under_its_id(hub: str, tmp_path: Path) -> None:
    found, name, path = resolved("good/model", tmp_path, hub).split()
    assert (found, name) == ("found", "good/model")
    assert {file.name for file in Path(path).iterdir()} == {
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model.safetensors",
    }


def test_what_was_fetched_once_is_served_without_a_network(hub: str, tmp_path: Path) -> None:
    online = resolved("good/model", tmp_path, hub)
    assert resolved("good/model", tmp_path, hub, HF_HUB_OFFLINE="1") == online


@pytest.mark.parametrize(
    ("ref", "kind", "advice"),
    [
        ("absent/model", "ModelNotFound", "Hugging Face has no model 'absent/model'"),
        ("gated/model", "InvalidConfig", "accept its terms"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(
    hub: str, tmp_path: Path, ref: str, kind: str, advice: str
) -> None:
    message = resolved(ref, tmp_path, hub)
    assert message.startswith(f"{kind} ")
    assert advice in message

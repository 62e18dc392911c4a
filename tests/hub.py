"""A hub on loopback: repositories of models and data sets, each with one commit, for the real clients."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).parents[1]
COMMIT = "ab" * 20
Files = dict[str, bytes]


class Hub:
    """The repositories, and what was asked for."""

    def __init__(self, repositories: dict[str, Files]) -> None:
        self.repositories = repositories
        """By ``models/owner/name`` or ``datasets/owner/name``."""
        self.asked: list[str] = []
        self.url = ""

    def run(self, code: str, home: Path, *, offline: bool = False) -> Any:
        """What a process prints as JSON that knows this hub, and keeps its cache in a folder."""
        environment = os.environ | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def serving(repositories: dict[str, Files]) -> Iterator[Hub]:
    """A hub with these files."""
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(path)
        parts = path.split("/")
        if parts[0] == "api":
            self._describe(parts[1:], content)
            return
        kind = "models" if parts[0] != "datasets" else parts.pop(0)
        files = self.hub.repositories.get(f"{kind}/{'/'.join(parts[:2])}")
        name = "/".join(parts[4:])
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif parts[3] not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif name not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name.replace("/", "-")}"'}
            self._send(200, files[name], headers, body=body)

    def _describe(self, parts: list[str], content: str) -> None:
        repository = "/".join(parts[:3])
        files, rest = self.hub.repositories.get(repository), parts[3:]
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] in (["tree"], ["paths-info"]):
            below = "/".join(rest[2:])
            asked = parse_qs(content).get("paths") or (json.loads(content)["paths"] if content[:1] == "{" else None)
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
                if name.startswith(below) and (asked is None or name in asked)
            ]
            self._send(200, json.dumps(entries).encode())
        else:
            siblings = [{"rfilename": name} for name in files]
            described = {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(described | {"private": False, "downloads": 0, "likes": 0}).encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

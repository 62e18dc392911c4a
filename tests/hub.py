"""A hub on loopback: repositories of models and data sets, each with one commit, for the real clients.

Who has :data:`TOKEN` may create repositories of models, and upload files into them: small ones in the commit, others
by Git LFS.
"""

import base64
import hashlib
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
TOKEN = "hf_TheTokenOfTheTests"
IN_THE_COMMIT = (".json", ".md", ".txt")
"""Files that a commit holds itself."""
Files = dict[str, bytes]


class Hub:
    """The repositories, and what was asked for."""

    def __init__(self, repositories: dict[str, Files]) -> None:
        self.repositories = repositories
        """By ``models/owner/name`` or ``datasets/owner/name``."""
        self.asked: list[str] = []
        self.private: set[str] = set()
        """Names of repositories."""
        self.stored: dict[str, bytes] = {}
        """What was uploaded by Git LFS, by its SHA-256."""
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

    def do_PUT(self) -> None:
        content = self._content()
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"")

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _write(self, path: str, content: str) -> bool:
        """Answer a request that belongs to an upload; False for any other."""
        parts = path.split("/")
        if path == "api/validate-yaml":
            self._send(200, b'{"errors": [], "warnings": []}')
            return True
        of_a_repository = parts[0] == "api" and parts[4:5] in (["preupload"], ["commit"])
        if path != "api/repos/create" and not path.endswith(".git/info/lfs/objects/batch") and not of_a_repository:
            return False
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b'{"error": "Invalid username or password."}')
        elif path == "api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.repositories.setdefault(f"models/{name}", {})
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(name)
            self._send(200, json.dumps({"url": f"{self.hub.url}/{name}", "id": name}).encode())
        elif path.endswith("batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            self._send(200, json.dumps({"transfer": "basic", "objects": objects}).encode())
        elif parts[4] == "preupload":
            files = [
                {"path": one["path"], "shouldIgnore": False}
                | {"uploadMode": "regular" if one["path"].endswith(IN_THE_COMMIT) else "lfs"}
                for one in json.loads(content)["files"]
            ]
            self._send(200, json.dumps({"files": files}).encode())
        else:
            self._commit(parts, content)
        return True

    def _commit(self, parts: list[str], content: str) -> None:
        files = self.hub.repositories["/".join(parts[1:4])]
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        url = f"{self.hub.url}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
        self._send(200, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())

    def _answer(self, body: bool) -> None:
        content = self._content().decode()
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(path)
        if self.command == "POST" and self._write(path, content):
            return
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
            private = described["id"] in self.hub.private
            self._send(200, json.dumps(described | {"private": private, "downloads": 0, "likes": 0}).encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

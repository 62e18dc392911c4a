"""The web page: its files, and the chart library that it loads from an installed package.

They are the same for everybody and reveal nothing; what the page shows it asks ``/v1`` for. The addresses of all files
but the page itself contain a hash of the content, so that browsers keep them and never mix two versions.
"""

import gzip
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.safe_pages import PAGE_POLICY

FILES = Path(__file__).parents[1] / "page"
INDEX = "index.html"
CHARTS = "plotly.min.js"
"""Plotly's own bundle, from the package ``plotly`` if it is installed."""
SHORTEST_COMPRESSED = 500
FOREVER, ASKED_AGAIN = "public, max-age=31536000, immutable", "no-cache"
mimetypes.add_type("text/javascript", ".js")
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, content: bytes, name: str) -> "File":
        """A file with this content."""
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        return cls(content, kind + charset, hashlib.sha256(content).hexdigest()[:16])

    @cached_property
    def compressed(self) -> bytes:
        """The content with gzip, compressed once for all requests."""
        return gzip.compress(self.content, 6, mtime=0)


@cache
def _version() -> str:
    """Changes with any of the files."""
    found = hashlib.sha256()
    for file in sorted(FILES.iterdir()):
        found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


@cache
def _file(name: str) -> File:
    return File.of((FILES / name).read_bytes(), name)


@cache
def _index(dashboard: str) -> File:
    charts = _charts()
    known = {"{files}": f"/page/{_version()}", "{charts}": f"/page/{charts.tag}/{CHARTS}" if charts else ""}
    known |= {"{chart-style}": _map_style(charts) if charts else "", "{dashboard}": dashboard}
    text = (FILES / INDEX).read_text()
    for word, value in known.items():
        text = text.replace(word, value)
    return File.of(text.encode(), INDEX)


@cache
def _charts() -> File | None:
    """The chart library, read by the first request for the page; None if it is not installed."""
    package = find_spec("plotly")
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "package_data" / CHARTS
    return File.of(file.read_bytes(), CHARTS) if file.is_file() else None


def _map_style(charts: File) -> str:
    """The id of the inline style for maps that Plotly adds, unless there is an element with this id; empty if none."""
    found = re.search(rb'getElementById\("([0-9a-f]{40,})"\)', charts.content)
    return found[1].decode() if found else ""


@router.get("/")
@router.get("/submit")
@router.get("/compare")
@router.get("/jobs/{id}")
@router.get("/plans/{id}")
def index(request: Request) -> Response:
    """The page, which reads from its own address what it is to show."""
    answer = _sent(request, _index("/dashboard" if request.app.state.studies.served else ""), ASKED_AGAIN)
    answer.headers["Content-Security-Policy"] = PAGE_POLICY
    return answer


@router.get("/page/{version}/{name}")
def file(request: Request, version: str, name: str) -> Response:
    """A file of the page."""
    if name == CHARTS and (charts := _charts()) is not None:
        return _sent(request, charts, FOREVER if version == charts.tag else ASKED_AGAIN)
    if name == INDEX or name not in {file.name for file in FILES.iterdir()}:
        raise HTTPException(404)
    return _sent(request, _file(name), FOREVER if version == _version() else ASKED_AGAIN)


def _sent(request: Request, file: File, kept: str) -> Response:
    packed = len(file.content) >= SHORTEST_COMPRESSED and "gzip" in request.headers.get("accept-encoding", "")
    tag = f'"{file.tag}{"-gzip" if packed else ""}"'
    headers = {"ETag": tag, "Cache-Control": kept, "Vary": "Accept-Encoding"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(file.compressed if packed else file.content, media_type=file.media_type, headers=headers)

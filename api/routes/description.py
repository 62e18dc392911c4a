"""The description of the interface: as OpenAPI, and as a page."""

import json
import threading

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.description_page import render

router = APIRouter()
_LOCK = threading.Lock()


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> Response:
    """For programs."""
    return _made(request, "openapi.json", "application/json")


@router.get("/docs", include_in_schema=False)
def page(request: Request) -> Response:
    """For people."""
    return _made(request, "docs", "text/html; charset=utf-8")


def _made(request: Request, name: str, media_type: str) -> Response:
    """One of the two, both made by the first request for one of them."""
    state = request.app.state
    with _LOCK:
        if not hasattr(state, "description"):
            document = request.app.openapi()
            state.description = {"openapi.json": json.dumps(document).encode(), "docs": render(document).encode()}
    return Response(state.description[name], media_type=media_type)

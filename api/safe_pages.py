"""Headers that keep browsers from being turned against their users, on every answer."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Reports and the description are text, style and pictures in one file: no script runs, and nothing is loaded."""
EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""Of an empty style element: Plotly makes one, and then adds its rules by script."""
PAGE_POLICY = (
    f"default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' {EMPTY_STYLE}; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The web page runs the scripts of this server, and speaks with nobody else."""
ADDED_POLICY = "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""Added to a policy that an answer has already, as those of Optuna's dashboard do: a browser obeys both."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STATIC = "/static/"
"""The dashboard's script, the same for everybody; nothing else may be kept by browsers or proxies."""


class SafePages:
    """Adds the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(MutableHeaders(scope=message), scope["path"])
            await send(message)

        await self._app(scope, receive, send_safe)


def _add(headers: MutableHeaders, path: str) -> None:
    for name, value in HEADERS.items():
        headers[name] = value
    headers.append("Content-Security-Policy", ADDED_POLICY if "Content-Security-Policy" in headers else OWN_POLICY)
    if not path.startswith(STATIC):
        headers.setdefault("Cache-Control", "no-store")

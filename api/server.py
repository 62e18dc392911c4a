"""The HTTP server of ``factor-search serve``: its socket, its start and its end."""

import contextlib
import errno
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.connections import limited
from factor_search.errors import FactorSearchError

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FILES = 8192
"""Open files that are asked for, of which connections are most; systems often begin with 1,024 of many more allowed."""
OTHER_FILES = 200
SWITCH_SECONDS = 0.0005
"""The event loop runs so soon beside threads that compute or import; Python's default is 5 ms for each."""
GRACE_SECONDS = 3
"""Answers under way may take so long when the server stops; event streams end at once."""


STOP_SECONDS = 15.0
"""A server that was told to stop has ended after so long, with all that it started."""


class ServeError(FactorSearchError):
    """The server cannot be started as asked."""


class Server(uvicorn.Server):
    """Uvicorn that ends event streams when it stops, and leaves what follows a signal to its caller."""

    def __init__(
        self, app: FastAPI, *, log_level: str, on_ready: Callable[[], None], on_stop: Callable[[], None]
    ) -> None:
        config = uvicorn.Config(
            app,
            http=limited(app.state.settings, min(app.state.settings.most_connections, _files() - OTHER_FILES)),
            log_config=None,
            log_level=log_level,
            access_log=log_level == "debug",
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        super().__init__(config)
        self._app = app
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        sys.setswitchinterval(SWITCH_SECONDS)
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all event streams, then stop."""
        self._on_stop()
        self._app.state.streams.closing.set()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on these signals; unlike uvicorn's own, does not send them to this process again afterwards."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heeded = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
        before = {number: signal.signal(number, handle) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ServeError: the host has no such address, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"--host {host} is not an address of this machine: {reason}") from None
    # localhost can be both, and 127.0.0.1 is what clients take by default
    family, kind, protocol, _, address = min(found, key=lambda candidate: candidate[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServeError(f"port {port} on {host} is in use: choose another with --port, or --port 0") from None
        raise ServeError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listener


def _files() -> int:
    """How many files this process may open, after asking for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return FILES if soft == resource.RLIM_INFINITY else soft


def url_of(listener: socket.socket) -> str:
    """The address to reach a listening socket at."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

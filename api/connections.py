"""Connections that do not get on: without a request, with a head that does not end, or whose client does not read.

The HTTP server waits for these for ever. Bodies have their own limits, in :mod:`api.body`.
"""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.settings import Settings


class LimitedProtocol(H11Protocol):
    """A connection."""

    settings: ClassVar[Settings]
    most: ClassVar[int]
    waiting: "ClassVar[dict[LimitedProtocol, None]]"
    """Those of one server that have sent no request yet, or none since the last, the longest first."""
    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._follow()
        if len(self.connections) > self.most:
            oldest = next(iter(self.waiting))
            self.waiting.pop(oldest)
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self.waiting.pop(self, None)
        for timer in (self._head, self._stalled):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client does not read as fast as is sent."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _wait_for_reader(self) -> None:
        """Start the time in which the client must read something."""
        unread = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self.settings.stalled_seconds, self._end_unless_read, unread)

    def _end_unless_read(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:  # slowly, but it does
            self._wait_for_reader()
        else:
            self.transport.abort()

    def _follow(self) -> None:
        """Start or stop the time that the head of a request may take."""
        if self.conn.their_state is not h11.IDLE:
            self.waiting.pop(self, None)
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None and not self.transport.is_closing():
            self.waiting[self] = None
            self._head = self.loop.call_later(self.settings.head_seconds, self.transport.abort)


def limited(settings: Settings, most: int) -> type[H11Protocol]:
    """The protocol of one server.

    Args:
        settings: how long a connection may wait for a request, and a client may not read.
        most: connections at a time; beyond, those that have waited longest without a request are closed.
    """
    return type("Limited", (LimitedProtocol,), {"settings": settings, "most": most, "waiting": {}})

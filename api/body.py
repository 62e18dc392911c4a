"""The body of a request: bounded in bytes and in time, and not read on once the answer is known."""

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Send

from api.problems import RefusedError

HERE_SECONDS, HERE_BYTES = 0.02, 2**16
"""The rest of a small body that nobody reads is usually here already; then the connection can be used again."""
LINGER_SECONDS = 1.0
LINGER_BYTES = 2 * 2**20
"""After an early answer so much of a body is thrown away, so that its sender can see the answer before the end."""


class Body:
    """Receives the messages of a request (ASGI), within limits."""

    def __init__(self, headers: Headers, receive: Receive, largest: int, seconds: float) -> None:
        self._receive = receive
        self._largest = largest
        self._deadline = asyncio.get_running_loop().time() + seconds
        length = headers.get("content-length", "")
        self.announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        """Bytes by the Content-Length header; None without one."""
        self.complete = not self.announced and "transfer-encoding" not in headers
        """Whether nothing more is to come."""
        self._may_be_here = self.announced is not None and self.announced <= HERE_BYTES and "expect" not in headers
        self._total = 0

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            RefusedError: the body is too large, or does not come in time.
        """
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(408, "the body of the request did not come in time") from None
        self._note(message)
        if self._total > self._largest:
            raise too_large(self._largest)
        return message

    async def whole(self) -> bytes:
        """All of it.

        Raises:
            RefusedError: see :meth:`__call__`.
        """
        parts = []
        while not self.complete:
            parts.append((await self()).get("body", b""))
        return b"".join(parts)

    def closing(self, send: Send, answered: Callable[[], None]) -> Send:
        """A way to send an answer that closes the connection behind it if part of the body has not been read.

        Args:
            send: sends a message.
            answered: called when all of the answer is sent, before the rest of the body is thrown away.
        """
        closes = False

        async def send_closing(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and not self.complete:
                if self._may_be_here:
                    await self._discard(HERE_SECONDS, HERE_BYTES)
                if not self.complete:
                    closes = True
                    MutableHeaders(scope=message)["Connection"] = "close"
            if closes and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                answered()
                await self._discard(LINGER_SECONDS, LINGER_BYTES)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        return send_closing

    async def _discard(self, seconds: float, most: int) -> None:
        """Throw away what comes, for a while, up to so many bytes."""
        before = self._total
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.complete and self._total - before < most:
                    self._note(await self._receive())

    def _note(self, message: Message) -> None:
        self._total += len(message.get("body", b""))
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)


def too_large(largest: int) -> RefusedError:
    """A body is beyond the limit."""
    return RefusedError(413, f"the body is larger than {largest:,} bytes")

"""Work that can take seconds, in few threads of its own: others are answered meanwhile, and nobody waits for ever."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from api.problems import RefusedError

Value = TypeVar("Value")


class SlowWork:
    """Runs functions in at most so many threads at a time, with a queue of bounded length and a time limit."""

    def __init__(self, what: str, *, threads: int, queue: int, seconds: float) -> None:
        """Prepare.

        Args:
            what: of its tasks, for messages.
            threads: that run at a time.
            queue: tasks that may wait for one of them.
            seconds: from asking to the answer. A thread cannot be ended: it keeps its place until it ends by itself,
                and what comes out is forgotten.
        """
        self._what = what
        self._free = asyncio.Semaphore(threads)
        self._most = threads + queue
        self._asked = 0
        self._seconds = seconds

    async def run(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """The result of a function.

        Raises:
            RefusedError: too many wait already (429), it took too long, or the system has no thread left (503).
        """
        if self._asked >= self._most:
            raise RefusedError(
                429, f"too many {self._what} at a time: try again in a few seconds", headers={"Retry-After": "5"}
            )
        self._asked += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
                return await self._started(function, arguments)
        except TimeoutError:
            raise RefusedError(
                503,
                f"{self._what} took longer than {self._seconds:g} seconds: try again later",
                headers={"Retry-After": "30"},
            ) from None
        finally:
            self._asked -= 1

    def _started(self, function: Callable[..., Value], arguments: tuple[Any, ...]) -> "asyncio.Future[Value]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Value] = loop.create_future()

        def ended(value: Value | None, error: BaseException | None) -> None:
            self._free.release()
            if future.done():
                return
            if error is None:
                future.set_result(value)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

        def work() -> None:
            value: Value | None = None
            error: BaseException | None = None
            try:
                value = function(*arguments)
            except TimeoutError as raised:  # it would read as our own
                error = RuntimeError(f"{type(raised).__name__}: {raised}")
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(ended, value, error)

        try:
            threading.Thread(target=work, name=self._what, daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            raise RefusedError(503, f"no thread for {self._what}: {error}", headers={"Retry-After": "5"}) from None
        return future

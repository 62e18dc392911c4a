"""Events of a job or plan as server-sent events: from any number on, without gaps, until it has ended."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator

import anyio.to_thread
from anyio import CapacityLimiter

from api.schemas import Event, finite, moment
from api.settings import Settings
from storage.database import Database
from storage.errors import DatabaseError
from storage.events import JOB, History, read_events
from storage.events import Event as StoredEvent
from storage.states import ENDED

POLLS_AT_ONCE = 4
"""Threads for the polls of all streams together, so that watchers never keep other requests waiting."""
BATCH = 500
RECONNECT_MILLISECONDS = 1000


class EventStreams:
    """All streams of one server."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._poll_seconds = settings.poll_seconds
        self._keepalive_seconds = settings.keepalive_seconds
        self._limiter = CapacityLimiter(POLLS_AT_ONCE)
        self.closing = threading.Event()
        """Once set, all streams end; their readers reconnect and continue where they stopped."""

    async def of(self, owner_id: str, after: int, history: History = JOB) -> AsyncIterator[str]:
        """The text of the stream after an event's number; a plan that is retried has events after its end."""
        yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
        spoken = time.monotonic()
        while not self.closing.is_set():
            events = await self._read(owner_id, after, history)
            for event in events:
                yield encode(event)
                after = event.number
            if events and events[-1].kind in ENDED and len(events) < BATCH:
                return
            if events:
                spoken = time.monotonic()
            elif time.monotonic() - spoken >= self._keepalive_seconds:
                yield ": keepalive\n\n"
                spoken = time.monotonic()
            if len(events) < BATCH:
                await asyncio.sleep(self._poll_seconds)

    async def _read(self, owner_id: str, after: int, history: History) -> list[StoredEvent]:
        """What is new; nothing while the database cannot be reached, since it may come back."""
        try:
            return await anyio.to_thread.run_sync(
                lambda: read_events(self._database, owner_id, after, BATCH, history), limiter=self._limiter
            )
        except DatabaseError:
            return []


def encode(event: StoredEvent) -> str:
    """One event in the format of server-sent events."""
    value = Event(number=event.number, at=moment(event.at), kind=event.kind, data=finite(event.data))
    return f"id: {event.number}\nevent: {event.kind}\ndata: {json.dumps(value.model_dump(mode='json'))}\n\n"

"""Events of a job or plan as server-sent events: from any number on, without gaps, until it has ended.

All streams of a server share one look at the database: what happened since the last look is read once for each job or
plan that is watched, however many watch it.
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import anyio.to_thread
from anyio import CapacityLimiter

from api.problems import RefusedError
from api.schemas import Event, finite, moment
from api.settings import Settings
from storage.database import Database
from storage.errors import DatabaseError
from storage.events import JOB, PLAN, History, count_events, read_events
from storage.events import Event as StoredEvent
from storage.states import ENDED

READS_AT_ONCE = 4
"""Threads for what streams read of the past, so that watchers never keep other requests waiting."""
BATCH = 100
RECENT = 200
"""Events of a job or plan that are kept for its streams; who is farther behind reads the database."""
RECONNECT_MILLISECONDS = 1000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Told:
    """An event, encoded once for all streams."""

    number: int
    ends: bool
    text: str


class _Watched:
    """A job or plan that streams watch, with its latest events."""

    def __init__(self) -> None:
        self.streams = 0
        self.last: int | None = None
        """Number of the last event that was seen; None before the first look."""
        self.gone = False
        """Whether it was deleted."""
        self.recent: deque[_Told] = deque(maxlen=RECENT)
        """The last ones, without gaps, up to :attr:`last`."""
        self.changed = asyncio.Event()

    def after(self, number: int) -> list[_Told] | None:
        """The events after a number; None if they are not all here."""
        if self.last is None or number < self.last - len(self.recent):
            return None
        return [event for event in self.recent if event.number > number]

    def tell(self) -> None:
        """Wake the streams."""
        self.changed.set()
        self.changed = asyncio.Event()


class EventStreams:
    """All streams of one server."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._limiter = CapacityLimiter(READS_AT_ONCE)
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._looking: asyncio.Task[None] | None = None
        self.closing = threading.Event()
        """Once set, all streams end; their readers reconnect and continue where they stopped."""

    def check_room(self) -> None:
        """Refuse a stream beyond those that a server serves.

        Raises:
            RefusedError: there are so many.
        """
        most = self._settings.most_streams
        if sum(watched.streams for watched in self._watched.values()) >= most:
            raise RefusedError(503, f"{most} event streams are open already", headers={"Retry-After": "30"})

    async def of(self, owner_id: str, after: int, history: History = JOB) -> AsyncIterator[str]:
        """The text of the stream after an event's number; a plan that is retried has events after its end."""
        place = (history.word, owner_id)
        watched = self._watched.setdefault(place, _Watched())
        watched.streams += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_again_and_again())
        try:
            yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
            spoken = time.monotonic()
            while not self.closing.is_set():
                changed, events = watched.changed, watched.after(after)
                if events is None and (events := await self._read(owner_id, after, history)) is None:
                    continue
                for event in events:
                    yield event.text
                    after, spoken = event.number, time.monotonic()
                if watched.gone or (events and events[-1].ends and _is_last(events, watched)):
                    return
                if events:
                    continue
                try:
                    async with asyncio.timeout(max(0.0, spoken + self._settings.keepalive_seconds - time.monotonic())):
                        await changed.wait()
                except TimeoutError:
                    yield ": keepalive\n\n"
                    spoken = time.monotonic()
        finally:
            watched.streams -= 1
            if not watched.streams:
                self._watched.pop(place, None)

    async def _look_again_and_again(self) -> None:
        """Until nobody watches any more."""
        failing = False
        while self._watched and not self.closing.is_set():
            try:
                for history in (JOB, PLAN):
                    owners = {id: watched for (word, id), watched in self._watched.items() if word == history.word}
                    if owners:
                        await self._look(owners, history)
                failing = False
            except Exception:
                if not failing:
                    logger.exception("internal error while events are looked for, which is tried again and again")
                failing = True
            await asyncio.sleep(self._settings.poll_seconds)
        for watched in self._watched.values():
            watched.tell()

    async def _look(self, owners: dict[str, _Watched], history: History) -> None:
        lasts = {id: watched.last for id, watched in owners.items()}
        try:
            found = await anyio.to_thread.run_sync(self._latest, lasts, history, limiter=self._limiter)
        except DatabaseError:
            return  # it may come back
        for id, watched in owners.items():
            if id not in found:
                watched.gone = True
                watched.tell()
                continue
            last, events = found[id]
            watched.recent.extend(events)
            if last != watched.last:
                watched.last = last
                watched.tell()

    def _latest(self, lasts: dict[str, int | None], history: History) -> dict[str, tuple[int, Sequence[_Told]]]:
        """The numbers of the last events, and those events that came since the look before; not of what is deleted."""
        latest: dict[str, tuple[int, Sequence[_Told]]] = {}
        for id, number in count_events(self._database, list(lasts), history).items():
            last = lasts[id]
            if last is None or number <= last:
                latest[id] = (number, ())
            else:
                events = self._told(id, last, history)
                latest[id] = (events[-1].number if events else last, events)
        return latest

    async def _read(self, owner_id: str, after: int, history: History) -> list[_Told] | None:
        """Events of the past; None, after a while, if the database cannot be reached, since it may come back."""
        try:
            return await anyio.to_thread.run_sync(self._told, owner_id, after, history, limiter=self._limiter)
        except DatabaseError:
            await asyncio.sleep(self._settings.poll_seconds)
            return None

    def _told(self, owner_id: str, after: int, history: History) -> list[_Told]:
        found = read_events(self._database, owner_id, after, BATCH, history)
        return [_Told(event.number, event.kind in ENDED, encode(event)) for event in found]


def _is_last(events: Sequence[_Told], watched: _Watched) -> bool:
    """Whether no event is known to come after these."""
    return len(events) < BATCH if watched.last is None else events[-1].number >= watched.last


def encode(event: StoredEvent) -> str:
    """One event in the format of server-sent events."""
    value = Event(number=event.number, at=moment(event.at), kind=event.kind, data=finite(event.data))
    return f"id: {event.number}\nevent: {event.kind}\ndata: {json.dumps(value.model_dump(mode='json'))}\n\n"

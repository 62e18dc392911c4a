"""The keys of a server: looked up together for all who ask at a time, with slow answers to wrong ones."""

import asyncio
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import anyio.to_thread
from anyio import CapacityLimiter

from api.problems import RefusedError
from storage.database import Database
from storage.keys import ApiKey, KeyStore, hash_of

FORGIVEN = 3
"""Wrong keys of one address within a minute that are answered at once: people mistype."""
PERIOD_SECONDS = 60.0
WRONG_KEY_SECONDS = 1.0
"""Further ones are answered after this time."""
MOST_WAITING = 16
"""Answers of one address that wait at a time; beyond, wrong keys are told at once to come back later."""
MOST_ADDRESSES = 10_000


class KeyRing:
    """All keys of a database.

    Each look reads all of them and serves everybody who asked before it began, so a flood of requests costs one read
    at a time, and a key counts from the moment that it is made to the moment that it is revoked.
    """

    def __init__(self, database: Database) -> None:
        self._store = KeyStore(database)
        self._limiter = CapacityLimiter(2)  # one that reads, and one more that begins while its results are handed out
        self._next: asyncio.Task[dict[str, ApiKey]] | None = None
        self._reading = asyncio.Lock()

    async def all(self) -> dict[str, ApiKey]:
        """All keys by their hash, revoked ones included, as of now or later.

        Raises:
            DatabaseError: they cannot be read.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        return await asyncio.shield(self._next)

    async def find(self, secret: str) -> ApiKey | None:
        """The key that somebody presents, if it is one of ours and not revoked.

        A comparison by the hash of a long random secret tells nothing of use by the time that it takes.
        """
        key = (await self.all()).get(hash_of(secret))
        return None if key is None or key.revoked_at is not None else key

    async def _read(self) -> dict[str, ApiKey]:
        async with self._reading:
            self._next = None  # whoever asks from now on needs another look
            return await anyio.to_thread.run_sync(self._store.by_hash, limiter=self._limiter)


@dataclass
class _Failures:
    """Wrong keys of one address."""

    since: float
    count: int = 0
    waiting: int = field(default=0)


class WrongKeys:
    """Slows wrong keys by address, without a thread, and never the right ones: many people may share an address."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    async def slow_down(self, address: str) -> None:
        """Wait before a wrong key of an address is answered.

        Raises:
            RefusedError: too many of its wrong keys wait already (429).
        """
        failures = self._of(network_of(address))
        failures.count += 1
        if failures.count <= FORGIVEN:
            return
        if failures.waiting >= MOST_WAITING:
            raise RefusedError(
                429, "too many wrong keys from this address: try again in a minute", headers={"Retry-After": "60"}
            )
        failures.waiting += 1
        try:
            await asyncio.sleep(WRONG_KEY_SECONDS)
        finally:
            failures.waiting -= 1

    def _of(self, network: str) -> _Failures:
        now = time.monotonic()
        failures = self._failures.get(network)
        if failures is None or (now - failures.since > PERIOD_SECONDS and not failures.waiting):
            failures = self._failures[network] = _Failures(now)
        self._failures.move_to_end(network)
        while len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        return failures


def network_of(address: str) -> str:
    """An address as counted: of IPv6 the network of 64 bits, all of which one machine may use."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))

"""Sends webhooks: only to hosts that the operator allows, to addresses of the internet, signed, for a bounded time."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from factor_search.errors import FactorSearchError, SpecError, one_line
from storage.deliveries import Delivery, DeliveryStore
from workers.aside import aside

SECRET_VARIABLE = "FACTOR_SEARCH_WEBHOOK_SECRET"
PREFIX = "whsec_"
LEAST_SECRET_BYTES = 24
AT_ONCE = 8
"""Webhooks that a coordinator sends at a time."""
ATTEMPT_SECONDS = 15.0
"""From the look-up of the host to the status of the answer, whose body is not read."""
HOLD_SECONDS = 4 * ATTEMPT_SECONDS
"""A webhook whose coordinator was killed while it was sent is due again after so long."""
PORTS = {"https": 443, "http": 80}

logger = logging.getLogger(__name__)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class WebhookError(FactorSearchError):
    """A webhook cannot be sent there."""


class NotAllowedError(WebhookError):
    """The operator does not allow it, so that another attempt cannot succeed."""


@dataclass(frozen=True)
class AllowedHosts:
    """The hosts to which the operator allows webhooks, as ``HOST`` or ``HOST:PORT``."""

    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be a host.

        Raises:
            SpecError: says which.
        """
        for host in self.hosts:
            _host_and_port(host)

    def check(self, url: str) -> SplitResult:
        """The parts of an address that webhooks may go to.

        Raises:
            NotAllowedError: says why they may not.
        """
        parts = urlsplit(url)
        name, port = _plain(parts.hostname or ""), parts.port or PORTS[parts.scheme]
        allowed = [(host, wanted or PORTS[parts.scheme]) for host, wanted in map(_host_and_port, self.hosts)]
        if (name, port) not in allowed:
            shown = name if port == PORTS[parts.scheme] else f"{name}:{port}"
            raise NotAllowedError(
                f"webhooks to {shown[:200]!r} are not allowed here: leave them out, or have the operator start the "
                "service with --webhook-host"
            )
        if parts.scheme != "https" and not _names_loopback(name):
            raise NotAllowedError(f"webhooks to {name[:200]!r} need https")
        return parts

    def resolve(self, parts: SplitResult) -> tuple[str, int]:
        """The address and port to connect to.

        Raises:
            WebhookError: the host has no address, or one that is not of the internet and that the operator did not
                name: then a name of others could lead to machines that only this one can reach.
        """
        name, port = _plain(parts.hostname or ""), parts.port or PORTS[parts.scheme]
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise WebhookError(f"{name} has no address: {one_line(error)}") from None
        addresses = [str(place[4][0]) for place in found]
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            if not (self._is_named(name, address) or all(_is_public(one) for one in _meant_by(address))):
                raise WebhookError(f"{name} is at {text}, which is not an address of the internet")
        return addresses[0], port

    def _is_named(self, name: str, address: Address) -> bool:
        named = {host for host, _ in map(_host_and_port, self.hosts)}
        return str(address) in named or (address.is_loopback and _names_loopback(name) and name in named)


def _host_and_port(text: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.netloc != text or "@" in text or " " in text or not (text.isascii() and text.isprintable()):
        raise SpecError(f"--webhook-host {text[:200]!r} is not a host: write HOST or HOST:PORT, with [] about IPv6")
    return _plain(host), port


def _plain(host: str) -> str:
    host = host.rstrip(".").lower()
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    return host


def _names_loopback(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


def _meant_by(address: Address) -> Iterator[Address]:
    """An address, and those of IPv4 that gateways read in one of IPv6."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        yield from (one for one in (address.ipv4_mapped, address.sixtofour) if one is not None)
        yield from address.teredo or ()
        if address in ipaddress.ip_network("64:ff9b::/96"):
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _is_public(address: Address) -> bool:
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    return mapped or (address.is_global and not address.is_multicast)


def read_secret(file: Path | None) -> bytes | None:
    """The secret that signs webhooks: from a file, or else from the environment, where it is removed.

    Processes that are started later, such as workers, do not have it.

    Raises:
        SpecError: it cannot be read, or is not a secret.
    """
    given, where = os.environ.pop(SECRET_VARIABLE, None), SECRET_VARIABLE
    if file is not None:
        where = f"--webhook-secret-file {file}"
        try:
            given = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{where} cannot be read: {one_line(error)}") from None
    if not given:
        return None
    try:
        secret = base64.b64decode(given.strip().removeprefix(PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) < LEAST_SECRET_BYTES or not given.startswith(PREFIX):
        raise SpecError(
            f"{where} is not a secret: {PREFIX} and at least {LEAST_SECRET_BYTES} random bytes in base64, as by "
            f"(echo -n {PREFIX}; openssl rand -base64 32)"
        )
    return secret


def signature(secret: bytes, id: str, timestamp: int, body: str) -> str:
    """The signature of a message, as Standard Webhooks 1.0 defines it."""
    signed = hmac.new(secret, f"{id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


class WebhookSender:
    """Sends the webhooks of a database that are due; any number of senders may run."""

    def __init__(self, store: DeliveryStore, hosts: AllowedHosts, secret: bytes) -> None:
        self._store = store
        self._hosts = hosts
        self._secret = secret

    def round(self) -> None:
        """Send what is due, :data:`AT_ONCE` messages at most, and return when each was answered or took too long.

        Raises:
            StorageError: the database cannot be reached.
        """
        deliveries = self._store.take(AT_ONCE, HOLD_SECONDS)
        attempts = [aside(partial(self._send, delivery), f"webhook-{delivery.id}") for delivery in deliveries]
        wait(attempts, timeout=ATTEMPT_SECONDS)
        for delivery, attempt in zip(deliveries, attempts, strict=True):
            error = attempt.exception() if attempt.done() else WebhookError("no answer in time")
            if error is None:
                self._store.sent(delivery)
                continue
            logger.info("webhook %s, attempt %d: %s", delivery.id, delivery.attempts, error)
            self._store.failed(delivery, one_line(error), again=not isinstance(error, NotAllowedError))

    def _send(self, delivery: Delivery) -> None:
        parts = self._hosts.check(delivery.url)
        timestamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "factor-search",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, delivery.id, timestamp, delivery.body),
        }
        status = post(parts, self._hosts.resolve(parts), headers, delivery.body)
        if not 200 <= status < 300:
            raise WebhookError(f"it was answered with status {status}")


def post(parts: SplitResult, address: tuple[str, int], headers: dict[str, str], body: str) -> int:
    """Send a request to an address that was looked up before, and return the status of the answer.

    Nobody looks the host up again, follows a redirect, or uses a proxy.

    Raises:
        OSError, http.client.HTTPException: it cannot be sent, or was not answered in time.
    """
    plain = socket.create_connection(address, timeout=ATTEMPT_SECONDS)
    with contextlib.ExitStack() as stack:
        connected = stack.enter_context(contextlib.closing(plain))
        handle = stack.enter_context(plain.dup())  # wrap_socket takes the other one away
        limit = threading.Timer(ATTEMPT_SECONDS, partial(_shut, handle))  # answers may come byte by byte
        limit.daemon = True
        limit.start()
        stack.callback(limit.cancel)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connected = stack.enter_context(context.wrap_socket(plain, server_hostname=parts.hostname))
        connection = http.client.HTTPConnection(parts.netloc)
        connection.sock = connected
        connection.request("POST", f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", body, headers)
        return connection.getresponse().status


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def sending(store: DeliveryStore, hosts: Sequence[str], secret: bytes | None) -> Callable[[], None] | None:
    """A function that sends what is due; None if this coordinator sends no webhooks."""
    if not hosts:
        return None
    if secret is None:
        logger.warning("no webhooks are sent from here: give their secret in %s or a file", SECRET_VARIABLE)
        return None
    return WebhookSender(store, AllowedHosts(tuple(hosts)), secret).round

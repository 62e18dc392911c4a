"""How a server is set up, decided once when it starts."""

import ipaddress
from dataclasses import dataclass

from workers.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator chose."""

    database_url: str
    """Where jobs and evaluations are recorded."""
    policy: Policy
    """What submitted jobs may touch."""
    loopback: bool
    """Whether only this machine can reach the server; then no key is needed until one is made."""
    optuna_url: str | None = None
    """Where the dashboard's studies are, which are deleted with their jobs."""
    keep_days: float | None = None
    """Jobs and plans that ended longer ago are deleted unless they are kept; None: never."""
    largest_body_bytes: int = 2**20
    """Larger request bodies are refused."""
    poll_seconds: float = 0.3
    """Between two looks for new events of a watched job."""
    keepalive_seconds: float = 15.0
    """Silence after which an event stream gets a comment, so that nobody on the way closes it."""
    coordinator_silent_seconds: float = 30.0
    """A coordinator that has not reported for this long does not count as alive."""
    look_seconds: float = 1.0
    """Between two looks at the database, of which health and readiness tell."""
    oldest_look_seconds: float = 10.0
    """The server is not ready if the last look is older, since the database does not answer then."""
    head_seconds: float = 10.0
    """A connection that has not sent a complete request head for so long is closed."""
    body_seconds: float = 20.0
    """The body of a request must have come after so long."""
    stalled_seconds: float = 60.0
    """A client that does not read what is sent for so long is disconnected."""
    most_connections: int = 4000
    """Beyond, the connections that have waited longest without a request are closed."""
    most_requests: int = 400
    """Requests answered at a time, event streams not counted; further ones are told to try again."""
    most_streams: int = 1000
    """Event streams at a time."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port, is that of the machine itself."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

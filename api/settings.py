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


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port, is that of the machine itself."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

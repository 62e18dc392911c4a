"""What is to be done before Ray is imported, which takes seconds and reads the environment."""

import os
import secrets
import socket
from pathlib import Path

from factor_search.errors import FactorSearchError

CONNECT_SECONDS = 5.0


class ClusterError(FactorSearchError):
    """Ray cannot be started or joined."""


def prepare_environment(address: str | None) -> None:
    """Set what is not set: no usage statistics, and authentication by token.

    A Ray of our own gets a token of its own that is written nowhere. A cluster that is joined has one if
    ``RAY_AUTH_TOKEN`` says so, or ``ray start`` has left one in the home folder.

    Args:
        address: of the cluster to join; None if Ray is to be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # workers without a GPU must not see any
    if "RAY_AUTH_MODE" in os.environ:
        return
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if address is None and not given:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if address is None or given or (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"


def check_reachable(address: str) -> None:
    """Find out in seconds what Ray would try for minutes.

    Raises:
        ClusterError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(f"cannot join the Ray cluster at {address} (host:port of its head): {error}") from None

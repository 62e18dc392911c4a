"""Preparation of the environment, which Ray reads when it is imported."""

import os
import secrets
import socket
import tempfile
from pathlib import Path

from factor_search.errors import FactorSearchError

CONNECT_SECONDS = 5.0
LONGEST_FOLDER_BYTES = 35
"""Ray adds up to 68 bytes to the folder, and the path of a socket has at most 107, on macOS 103."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
TEMPORARY = "RAY_TMPDIR"


class ClusterError(FactorSearchError):
    """Ray cannot be started, or the cluster cannot be joined."""


def prepare_environment(address: str | None) -> None:
    """Disable usage statistics and the memory of past calls, and enable token authentication, unless told otherwise.

    A private Ray instance gets a random token that is never written to disk. A cluster uses a token if
    ``RAY_AUTH_TOKEN`` is set or ``ray start`` has stored one in the home folder.

    Args:
        address: of the cluster to join; None to start a private Ray instance.

    Raises:
        ClusterError: no folder has a name that is short enough for Ray's sockets.
    """
    if address is None:
        os.environ[TEMPORARY] = _socket_folder()
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # 100,000 calls of actors would be remembered
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # workers without a GPU must not see one
    if "RAY_AUTH_MODE" in os.environ:
        return
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if address is None and not given:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if address is None or given or (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"


def _socket_folder() -> str:
    """The folder for temporary files, or another if its name is too long for Ray's sockets: batch jobs have such."""
    wanted = os.environ.get(TEMPORARY) or tempfile.gettempdir()
    for folder in (wanted, *SHORT_FOLDERS):
        if len(os.fsencode(folder)) <= LONGEST_FOLDER_BYTES and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ClusterError(
        f"{wanted} cannot hold Ray's sockets: set {TEMPORARY} to a folder that can be written, with a path of at most "
        f"{LONGEST_FOLDER_BYTES} characters"
    )


def check_reachable(address: str) -> None:
    """Check within seconds whether a cluster answers, which Ray would try for minutes.

    Raises:
        ClusterError: nothing answers at the address.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(f"cannot join the Ray cluster at {address} (host:port of its head): {error}") from None

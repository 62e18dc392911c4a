"""What Ray reads from the environment when it is imported; to be called before that."""

import os
import secrets
from pathlib import Path


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

"""Ports of this machine for servers that must come back at the same one, or be told theirs."""

import secrets
import socket

FIRST, LAST = 20_000, 32_767
"""Below the ports that Linux gives to outgoing connections (32768 on), above those of Ray's workers (to 19999)."""


def free_port() -> int:
    """A port that no process listens on, and that no connection is given before it is used."""
    while True:
        port = FIRST + secrets.randbelow(LAST - FIRST + 1)
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port

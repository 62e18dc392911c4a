"""A private Ray cluster on the loopback interface, whose nodes can be killed one by one."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.ports import free_port

START_SECONDS = 60


class RayCluster:
    """A context manager for a head and worker nodes, each started as an operator would."""

    def __init__(self, cpus: int = 2) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        head = ["--head", f"--port={self.port}", "--include-dashboard=false", "--disable-usage-stats"]
        self.head = self._start(*head, f"--num-cpus={cpus}")

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *exception: object) -> None:
        for node in reversed(self._nodes):
            kill_node(node)

    def add_node(self, cpus: int = 1) -> "subprocess.Popen[bytes]":
        """Start another node, which joins the cluster."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}")

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1"]
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
        assert environment.get("RAY_AUTH_MODE") == "token", "call use_token() before Ray is imported"
        with tempfile.NamedTemporaryFile() as output:  # a pipe without a reader would fill
            node = subprocess.Popen(
                [*command, "--object-store-memory=100000000", *arguments],
                env=environment,
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self._nodes.append(node)
            until = time.monotonic() + START_SECONDS
            while "This command will now block" not in (printed := Path(output.name).read_text(errors="replace")):
                if node.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"a Ray node did not start: {printed}")
                time.sleep(0.1)
        return node


def use_token() -> None:
    """A token for the clusters of this process, for it and all that it starts; to be called before Ray is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def kill_node(node: "subprocess.Popen[bytes]") -> None:
    """Kill all processes of a node with SIGKILL."""
    with contextlib.suppress(psutil.NoSuchProcess):
        processes = psutil.Process(node.pid).children(recursive=True)
        for process in [psutil.Process(node.pid), *processes]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    node.wait()

"""Waiting for processes and what they do, and computing as they do."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import psutil
import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as workers do: the last bits of sums depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return when the condition holds; fail when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(process: psutil.Process | int) -> bool:
    """Whether a process, or that of an id, runs; a zombie does not (an init process may be slow to collect it)."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def survivors(processes: Iterable[psutil.Process], seconds: float = 60) -> list[psutil.Process]:
    """Those that still run after so many seconds; returns as soon as there are none."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left

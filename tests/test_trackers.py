"""Trackers of experiments: every one of them with its own package, offline, read back with what the package offers."""

import json
import logging
import math
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import factor_search as fs
from api.retention import _clean as clean
from bench.stub import stub_spec
from factor_search.errors import FactorSearchError, SpecError, TrackerError
from factor_search.plan.run import run_plan
from factor_search.plan.spec import parse_plan
from factor_search.plan.work import work_of
from factor_search.report.trackers import registry
from factor_search.report.trackers.contract import AXES, RunName, Tracker
from factor_search.report.trackers.registry import TRACKERS, check_installed, open_run
from factor_search.report.trackers.search import flattened
from factor_search.report.trackers.tracking import Tracking
from factor_search.spec import TrackerKind, parse_spec
from tests.plans import SETTINGS, plan_document
from tests.service import Service
from workers.policy import Policy

ROOT = Path(__file__).parents[1]
KINDS: list[TrackerKind] = list(TRACKERS)
OPEN = "factor_search.report.trackers.tracking.open_run"
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's own tables, November 2026
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),  # wandb, November 2026
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(wandb|mlflow|tensorboard).*"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker leaves this machine or writes elsewhere, whatever the environment of the tests says."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite store of MLflow, whose tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrackerKind:
    chosen: TrackerKind = request.param
    installed(chosen)
    if chosen == "mlflow":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("store"))
    return chosen


def installed(kind: TrackerKind) -> None:
    try:
        check_installed([kind])
    except TrackerError as error:
        pytest.skip(str(error))


def name_in(folder: Path, id: str = "") -> RunName:
    return RunName(id=id or f"r{abs(hash(str(folder))):x}", name="a name", group="a plan", folder=folder)


def points(kind: TrackerKind, name: RunName) -> dict[str, list[tuple[int, float]]]:
    """All points of the curves of a run, by their names."""
    return {"tensorboard": _tensorboard_points, "mlflow": _mlflow_points, "wandb": _wandb_points}[kind](name)


def _tensorboard_points(name: RunName) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(name.folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _mlflow_run(name: RunName) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    own = None if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{name.folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=own)
    experiment = client.get_experiment_by_name("factor-search")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`factor-search.run` = '{name.id}'")
    return client, run


def _mlflow_points(name: RunName) -> dict[str, list[tuple[int, float]]]:
    client, run = _mlflow_run(name)
    return {
        key: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }


def _wandb_points(name: RunName) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(name):
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key, value in items.items():
            axis = key.partition("/")[0].removeprefix("by_")
            if f"by_{axis}/{axis}" in items:
                found.setdefault(key, []).append((items[f"by_{axis}/{axis}"], float(value)))
    return found


def wandb_records(name: RunName) -> list[Any]:
    """The records of the offline files of a run: those of LevelDB's log format."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process has written everything when it has ended
    records = []
    for file in sorted((name.folder / "wandb").rglob("run-*.wandb")):
        content, place, parts = file.read_bytes(), 7, b""  # after the header of the file
        while place + 7 <= len(content):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, place)
            parts += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                records.append(Record.FromString(parts))
                parts = b""
    return records


class TestTrackerContract:
    """What holds of every tracker."""

    def test_curves_are_read_back(self, kind: TrackerKind, tmp_path: Path) -> None:
        name = name_in(tmp_path)
        run = open_run(kind, name)
        assert dict(run.reached) == {}
        for number in range(1, 4):
            run.figures({"loss": 1 / number}, "candidate", number)
            run.figures({"best_perplexity": 2.0 + number}, "tokens", 1000 * number)
        run.end("finished")
        found = points(kind, name)
        assert [at for at, _ in found["by_candidate/loss"]] == [1, 2, 3]
        assert [value for _, value in found["by_candidate/loss"]] == pytest.approx([1, 1 / 2, 1 / 3])
        assert found["by_tokens/best_perplexity"] == [(1000, 3.0), (2000, 4.0), (3000, 5.0)]

    def test_a_run_that_was_killed_continues_where_it_was(self, kind: TrackerKind, tmp_path: Path) -> None:
        name = name_in(tmp_path)
        first = open_run(kind, name)
        first.parameters({"budget.candidates": 2})
        for number in (1, 2):
            first.figures({"loss": 0.5}, "candidate", number)
        _written(kind, first)  # and no end
        again = Tracking([kind], lambda: name)
        again.parameters({"budget.candidates": 4})
        for number in range(1, 5):
            again.figures({"loss": 0.5}, "candidate", number)
        again.end("finished")
        again.wait(60)
        assert [at for at, _ in points(kind, name)["by_candidate/loss"]] == [1, 2, 3, 4]
        assert open_run(kind, name).reached == {"candidate": 4}

    @settings(
        max_examples=2,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        figures=st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(), min_size=1), min_size=1, max_size=3),
        parameters=st.dictionaries(
            st.from_regex(r"[a-z][a-z._]{0,20}", fullmatch=True),
            st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(), st.text(max_size=600)),
            max_size=4,
        ),
    )
    def test_any_values_are_taken(
        self,
        figures: list[dict[str, float]],
        parameters: dict[str, Any],
        kind: TrackerKind,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        name = name_in(tmp_path_factory.mktemp("any"))
        tracking = Tracking([kind], lambda: name, warn := mock.Mock())
        tracking.parameters({"nothing": None, "nan": math.nan} | parameters)
        for number, values in enumerate([{"a": math.nan, "b": math.inf, "c": -math.inf}, *figures], start=1):
            tracking.figures(values, "candidate", number)
        tracking.table("a table", ("x|", "y"), [[1, "a|b\n"], [None, math.inf], [True, 0.5]])
        tracking.file("factors.json", lambda: '{"a": 1}')
        tracking.end("failed")
        tracking.wait(60)
        warn.assert_not_called()
        found = points(kind, name)["by_candidate/a"]
        assert found[0][0] == 1
        assert math.isnan(found[0][1])

    @settings(
        max_examples=2,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @example(names=["my factors (v2)", "my factors [v2]", "a/../b", "/", "..", "é|*?", "x\ny", "a:b"])
    @given(
        names=st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), max_size=5, unique=True
        )
    )
    def test_names_that_a_user_gave_are_taken_and_stay_apart(
        self, names: list[str], kind: TrackerKind, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        name = name_in(tmp_path_factory.mktemp("names"))
        tracking = Tracking([kind], lambda: name, warn := mock.Mock())
        for candidate in (1, 2):
            values = {f"closed_form_{one}": float(number) for number, one in enumerate(names)}
            tracking.figures({"loss": 1.0} | values, "candidate", candidate)
        tracking.end("finished")
        tracking.wait(60)
        warn.assert_not_called()
        found = {key: curve for key, curve in points(kind, name).items() if "closed_form_" in key}
        assert sorted(curve[-1][1] for curve in found.values()) == [float(number) for number in range(len(names))]
        assert all([at for at, _ in curve] == [1, 2] for curve in found.values())

    def test_a_run_that_is_dropped_has_an_end(
        self, kind: TrackerKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, said = name_in(tmp_path), threading.Event()
        tracking = Tracking([kind], lambda: name, warn := mock.Mock(side_effect=lambda text: said.set()))
        tracking.figures({"loss": 1.0}, "candidate", 1)
        tracking.figures({1: 1.0}, "candidate", 2)  # type: ignore[dict-item]
        tracking.file("x", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        assert said.wait(60)
        tracking.end("finished")
        tracking.wait(60)
        warn.assert_called_once()
        assert _state(kind, name) == "interrupted"

    def test_a_search_is_in_it(self, kind: TrackerKind, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
        out = tmp_path / "results"

        def search(candidates: int) -> fs.SearchResult:
            return fs.search_factors(
                {"id": str(checkpoint), "device": "cpu"},
                {"files": [str(texts / "*.txt")]} | dict.fromkeys(("search_documents", "validation_documents"), 2),
                128,
                out=out,
                budget=candidates,
                strategy="random",
                trackers=[kind],
            )

        search(10)
        result = search(14)
        assert not (out / "report.json").read_text().count("trackers")
        name = name_in(out / "trackers", (out / "trackers" / "run").read_text())
        found = points(kind, name)
        evaluations = result.report["search"]["evaluations"]
        assert [at for at, _ in found["by_candidate/loss"]] == list(range(1, evaluations + 1))
        best = [value for _, value in found["by_candidate/best_perplexity"]]
        assert best == sorted(best, reverse=True)
        assert best[-1] == pytest.approx(result.report["search"]["best_perplexity"])
        tokens = [at for at, _ in found["by_tokens/best_perplexity"]]
        assert tokens == sorted(tokens)
        assert tokens[-1] == result.report["search"]["tokens"]
        assert found["by_candidate/closed_form_yarn"][-1][0] == evaluations
        held_out = {row["name"]: row["held_out"] for row in result.report["results"]}
        assert found["by_end/held_out_found"][-1][1] == pytest.approx(held_out["found"])
        assert found["by_end/held_out_pi"][-1][1] == pytest.approx(held_out["pi"])
        _check_documents(kind, name, result)


def _state(kind: TrackerKind, name: RunName) -> str:
    """How a run ended."""
    if kind == "mlflow":
        _, run = _mlflow_run(name)
        assert run.info.status == "KILLED"
        return str(run.data.tags["state"])
    if kind == "wandb":
        summary = {item.key: item.value_json for one in wandb_records(name) for item in one.summary.update}
        return str(json.loads(summary["state"]))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(name.folder / "tensorboard"))
    events.Reload()
    return str(events.Tensors("state")[-1].tensor_proto.string_val[0].decode())


def _written(kind: TrackerKind, run: Any) -> None:
    """Wait until a run's figures are where a killed process would leave them."""
    if kind == "tensorboard":
        run._writer.flush()
    if kind == "wandb":
        run._run.finish()  # wandb writes in a process of its own, which survives ours


def _check_documents(kind: TrackerKind, name: RunName, result: fs.SearchResult) -> None:
    """Parameters, table of factors, files and state."""
    factors = result.report["factors"]["rescale_factors"]
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(name.folder / "tensorboard"))
        events.Reload()
        texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
        assert "| target_length | 128 |" in texts["parameters"]
        assert "| budget.candidates | 14 |" in texts["parameters"]
        assert "| geometry.original_length | 64 |" in texts["parameters"]
        assert f"| {len(factors) - 1} | {factors[-1]} |" in texts["rescale_factors"]
        assert "factors.json" in texts
        assert texts["state"] == "finished"
    if kind == "mlflow":
        client, run = _mlflow_run(name)
        assert run.data.params["target_length"] == "128"
        assert run.data.params["geometry.original_length"] == "64"
        assert run.data.params["budget.candidates"] == "10"
        assert run.data.tags["budget.candidates"] == "14"
        assert (run.info.status, run.data.tags["state"], run.info.run_name) == ("FINISHED", "finished", "search")
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {"factors.json", "report.json", "report.html", "held_out.json", "rescale_factors.json"}
        root = Path(run.info.artifact_uri.removeprefix("file://"))
        table = json.loads((root / "rescale_factors.json").read_text())
        assert [row[1] for row in table["data"]] == factors
    if kind == "wandb":
        records = wandb_records(name)
        configured = {
            item.key: json.loads(item.value_json)
            for one in records
            for update in (one.run.config.update, one.config.update)
            for item in update
        }
        assert configured["target_length"] == 128
        assert configured["budget.candidates"] == 14
        artifacts = {one.request.log_artifact.artifact.name or one.artifact.name for one in records} - {""}
        assert {name.id + "-factors.json"} <= artifacts
        summary = {item.key: item.value_json for one in records for item in one.summary.update}
        assert summary["state"] == '"finished"'
        (file,) = [*(name.folder / "wandb").rglob("rescale_factors*.table.json")][-1:]
        assert [row[1] for row in json.loads(file.read_text())["data"]] == factors


class Broken:
    """A tracker that cannot keep up, in one way or another."""

    reached: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._call()


def hang() -> None:
    threading.Event().wait(3600)


def no_space() -> None:
    raise OSError(28, "No space left on device")


def ends() -> None:
    raise SystemExit(1)


@pytest.mark.parametrize(("call", "reason"), [(hang, "in time"), (no_space, "No space left"), (ends, "1")])
def test_a_tracker_that_fails_changes_nothing(
    call: Callable[[], None], reason: str, checkpoint: Path, texts: Path, tmp_path: Path, caplog: Any
) -> None:
    installed("tensorboard")
    data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2}
    options: dict[str, Any] = {"budget": 10, "strategy": "random"}

    def search(out: Path, **more: Any) -> Any:
        found = fs.search_factors({"id": str(checkpoint), "device": "cpu"}, data, 128, out=out, **options, **more)
        return found.factors.factors

    with (
        mock.patch(OPEN, return_value=Broken(call)),
        mock.patch.object(Tracking.wait, "__defaults__", (0.3,)),
        caplog.at_level(logging.WARNING),
    ):
        tracked = search(tmp_path / "tracked", trackers=["tensorboard"])
    assert tracked == search(tmp_path / "plain")
    warnings = [record.getMessage() for record in caplog.records if "tensorboard" in record.getMessage()]
    assert len(warnings) == 1
    assert reason in warnings[0]


def test_a_tracker_that_is_slow_is_dropped_and_takes_no_memory(tmp_path: Path) -> None:
    with mock.patch(OPEN, return_value=Broken(hang)):
        tracking = Tracking(["tensorboard"], lambda: name_in(tmp_path), warn := mock.Mock())
        began = time.monotonic()
        for number in range(30_000):
            tracking.figures({"loss": 1.0}, "candidate", number)
        assert time.monotonic() - began < 5
        tracking.end("finished")
        tracking.wait(0.1)
    warn.assert_called_once()
    assert "too slow" in warn.call_args[0][0]
    assert tracking._lanes is not None
    assert tracking._lanes[0]._queue.qsize() < 10


def test_one_that_hangs_does_not_hold_up_another(tmp_path: Path) -> None:
    def opened(kind: TrackerKind, name: RunName) -> Any:
        return Broken(hang if kind == "wandb" else taken.set)

    taken = threading.Event()
    with mock.patch(OPEN, opened):
        tracking = Tracking(["wandb", "tensorboard"], lambda: name_in(tmp_path), mock.Mock())
        tracking.figures({"loss": 1.0}, "candidate", 1)
        assert taken.wait(5)


UNREACHABLE = """
import socket, sys, time
from pathlib import Path
from factor_search.report.trackers import wandb
from factor_search.report.trackers.contract import RunName
from factor_search.report.trackers.tracking import Tracking
wandb.BEGIN_SECONDS = 4.0  # of thirty
name = RunName(id="abc", name="n", folder=Path(sys.argv[2]))
tracking = Tracking([sys.argv[1]], lambda: name, lambda text: print("dropped"))
for number in range(3):
    tracking.figures({"loss": 1.0}, "candidate", number)
tracking.end("finished")
tracking.wait(2.0)
print("search ended", flush=True)
"""


@pytest.mark.parametrize("kind_of_server", ["mlflow", "wandb"])
def test_a_server_that_never_answers_does_not_keep_the_process(kind_of_server: TrackerKind, tmp_path: Path) -> None:
    import socket

    installed(kind_of_server)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"MLFLOW_TRACKING_URI": url, "WANDB_MODE": "online", "WANDB_BASE_URL": url}
        environment["WANDB_API_KEY"] = "0" * 40
        command = [sys.executable, "-c", UNREACHABLE, kind_of_server, str(tmp_path)]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=80, check=False
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["dropped", "search ended"]


def test_a_run_that_a_tracker_held_up_has_an_end_as_well(tmp_path: Path) -> None:
    ended, free = threading.Event(), threading.Event()

    class Slow(Broken):
        def end(self, state: str) -> None:
            states.append(state)
            ended.set()

    states: list[str] = []
    with mock.patch(OPEN, return_value=Slow(lambda: free.wait(60) and None)):
        tracking = Tracking(["tensorboard"], lambda: name_in(tmp_path), warn := mock.Mock())
        tracking.figures({"loss": 1.0}, "candidate", 1)
        tracking.end("finished")
        tracking.wait(0.1)
    warn.assert_called_once()
    free.set()
    assert ended.wait(20)
    assert states == ["interrupted"]


@pytest.mark.parametrize("end", ["slow", "broken"])
def test_a_run_ends_once(end: str, tmp_path: Path) -> None:
    free, states = threading.Event(), list[str]()

    class Ending(Broken):
        def end(self, state: str) -> None:
            states.append(state)
            free.wait(60)
            if end == "broken":
                raise OSError

    with mock.patch(OPEN, return_value=Ending(lambda: None)):
        tracking = Tracking(["tensorboard"], lambda: name_in(tmp_path), mock.Mock())
        tracking.figures({"loss": 1.0}, "candidate", 1)
        tracking.end("finished")
        tracking.wait(0.1)
    free.set()
    assert tracking._lanes is not None
    tracking._lanes[0]._thread.join(20)
    assert states == ["finished"]


LEAKS = """
import json, logging, os, sys
from pathlib import Path
from factor_search.report.trackers.contract import RunName
from factor_search.report.trackers import wandb
from factor_search.report.trackers.tracking import Tracking
from factor_search.visible import set_up_logging
wandb.BEGIN_SECONDS = 4.0  # of thirty
set_up_logging("debug")
name = RunName(id="abc", name="n", folder=Path(sys.argv[2]))
tracking = Tracking([sys.argv[1]], lambda: name, lambda text: print(json.dumps(text), flush=True))
tracking.figures({"loss": 1.0}, "candidate", 1)
tracking.end("finished")
tracking.wait(60.0)
"""


@pytest.mark.parametrize("kind_of_server", ["mlflow", "wandb"])
def test_a_password_of_a_server_is_in_no_message(kind_of_server: TrackerKind, tmp_path: Path) -> None:
    installed(kind_of_server)
    secret, key = "hunter2-of-the-tests", "k" * 40
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"http://user:{secret}@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": f"http://user:{secret}@127.0.0.1:9",
        "WANDB_API_KEY": key,
    }
    command = [sys.executable, "-W", "ignore", "-c", LEAKS, kind_of_server, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"{kind_of_server} gets nothing more" in ended.stdout
    assert secret not in ended.stdout + ended.stderr
    assert key not in ended.stdout + ended.stderr


def test_mlflow_without_a_server_keeps_everything_in_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("mlflow")
    for folder in ("here", "run"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT", raising=False)
    name = name_in(tmp_path / "run")
    run = open_run("mlflow", name)
    run.figures({"loss": 1.0}, "candidate", 1)
    run.file("factors.json", "{}")
    run.end("cancelled")
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "run" / "mlflow.db").exists()
    assert len([*(tmp_path / "run" / "mlflow").rglob("factors.json")]) == 1
    _, found = _mlflow_run(name)
    assert (found.info.status, found.data.tags["state"], found.data.tags["plan"]) == ("KILLED", "cancelled", "a plan")
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT", raising=False)


def test_a_folder_that_cannot_be_made_drops_them_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warn = mock.Mock()

    def name() -> RunName:
        (tmp_path / "file" / "trackers").mkdir()
        raise AssertionError

    tracking = Tracking(["tensorboard", "wandb"], name, warn)
    for number in range(3):
        tracking.figures({"loss": 1.0}, "candidate", number)
    tracking.end("finished")
    tracking.wait()
    warn.assert_called_once()
    assert "tensorboard, wandb cannot be used" in warn.call_args[0][0]


def test_a_search_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    installed("tensorboard")
    with pytest.raises(FactorSearchError):
        fs.search_factors(str(tmp_path / "no-model"), "nothing", 128, out=tmp_path / "out", trackers=["tensorboard"])
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry.TRACKERS, "wandb", ("wandb", "no_such_package"))
    with pytest.raises(TrackerError, match="pip install no_such_package"):
        fs.search_factors("no/model", "nothing", 128, out=tmp_path / "out", trackers=["wandb"])
    assert not (tmp_path / "out").exists()


def test_without_a_folder_there_is_no_place_for_their_files() -> None:
    with pytest.raises(TrackerError, match="give out"):
        fs.search_factors("no/model", "nothing", 128, trackers=["tensorboard"])


def test_trackers_leave_identities_and_stored_json_as_they_were() -> None:
    plain, tracked = stub_spec(), stub_spec(trackers=["wandb", "mlflow"])
    assert plain.sha256 == tracked.sha256
    assert "trackers" not in plain.model_dump(mode="json")
    assert parse_spec(tracked.model_dump(mode="json")) == tracked
    stages = [{"kind": "search", "target_length": 512}, {"kind": "evaluate", "lengths": [256]}]
    document = {"model": "m", "data": ["d"], "stages": stages}
    one, other = (work_of(parse_plan(document | more), 0, []) for more in ({}, {"trackers": ["wandb"]}))
    assert one.sha256 == other.sha256
    assert "trackers" not in one.model_dump(mode="json")
    assert other.as_job("plan")[1]["trackers"] == ["wandb"]


def test_every_stage_of_a_plan_is_a_run(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    installed("tensorboard")
    stages = [
        {"kind": "search", "target_length": 128, "budget": 10, "strategy": "random"},
        {"kind": "finetune", "settings": SETTINGS},
        {"kind": "evaluate", "lengths": [128], "passkey": None},
        {"kind": "export"},
    ]
    document = plan_document(checkpoint, texts, stages=stages, trackers=["tensorboard"])
    result = run_plan(parse_plan(document), tmp_path / "out")
    assert result.status == "finished"
    for work in result.works:
        assert work.trackers == ["tensorboard"]
        assert work.sha256 == work.model_copy(update={"trackers": []}).sha256, work.stage
        name = name_in(tmp_path / "out" / work.stage / "trackers")
        found = points("tensorboard", name)
        if work.stage == "search-1":
            assert len(found["by_candidate/loss"]) >= 10
        if work.stage == "finetune-1":
            steps = [at for at, _ in found["by_step/loss"]]
            assert steps == sorted(set(steps))
            assert steps[-1] == SETTINGS["steps"]
    assert "trackers" not in (tmp_path / "out" / "report.json").read_text()


@pytest.mark.parametrize("wrong", [["comet"], "wandb", ["wandb"] * 4, [1], {"wandb": True}])
def test_other_trackers_are_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match="trackers"):
        stub_spec(trackers=wrong)


def test_a_service_refuses_what_its_operator_does_not_allow(tmp_path: Path) -> None:
    spec = parse_spec(stub_spec(trackers=["tensorboard"]).model_dump(mode="json") | {"model": "a/b", "data": "."})
    policy = Policy((Path("/"),), allow_hub=True, allow_remote_code=False, work_folder=tmp_path)
    with pytest.raises(SpecError, match=r"trackers: tensorboard is not allowed here.*serve|--tracker tensorboard"):
        policy.check(spec)
    replace(policy, trackers=("tensorboard",)).check(spec)


def test_a_job_of_a_service_reports_and_continues(tmp_path: Path) -> None:
    installed("tensorboard")
    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}", tmp_path / "work")
    service.policy = replace(service.policy, trackers=("tensorboard",))
    try:
        spec = stub_spec(budget=60, trackers=["tensorboard"])
        service.faults.seconds = 0.02
        service.start(workers=2)
        job, _ = service.jobs.submit(spec)
        service.candidates(job.id, 20)
        service.jobs.pause(job.id)
        service.wait(job.id, "paused")
        service.jobs.resume(job.id)
        assert service.wait(job.id) == "finished"
    finally:
        service.stop()
    name = name_in(tmp_path / "work" / "trackers" / job.id)
    until = time.monotonic() + 20
    while "by_end/held_out_found" not in points("tensorboard", name) and time.monotonic() < until:
        time.sleep(0.2)  # trackers take what is left after the job has ended
    found = points("tensorboard", name)
    assert [at for at, _ in found["by_candidate/loss"]] == list(range(1, 61))
    assert "by_end/held_out_found" in found
    service.database.close()


def test_a_tracker_that_fails_in_a_service_is_an_event(tmp_path: Path) -> None:
    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}", tmp_path / "work")
    service.policy = replace(service.policy, trackers=("wandb",))
    try:
        with mock.patch(OPEN, return_value=Broken(no_space)):
            service.start(workers=2)
            job, _ = service.jobs.submit(stub_spec(budget=30, trackers=["wandb"]))
            assert service.wait(job.id) == "finished"
    finally:
        service.stop()
    assert service.kinds(job.id).count("tracker_dropped") == 1
    service.database.close()


def test_a_document_becomes_one_level() -> None:
    assert flattened({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": "[1, 2]", "d": None}
    assert set(AXES) == {"candidate", "tokens", "step", "end"}


@pytest.fixture(autouse=True)
def no_wandb_left() -> Iterator[None]:
    """The process of wandb ends with the test that needed it."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def test_trackers_have_the_methods_of_the_contract(kind: TrackerKind, tmp_path: Path) -> None:
    run: Tracker = open_run(kind, name_in(tmp_path))
    assert all(callable(getattr(run, method)) for method in ("parameters", "figures", "table", "file", "end"))
    run.end("cancelled")


def test_their_files_go_with_the_job(tmp_path: Path) -> None:
    for job in ("a", "b"):
        (tmp_path / "trackers" / job / "tensorboard").mkdir(parents=True)
    stores = mock.Mock()
    stores.settings.policy.work_folder, stores.settings.optuna_url = tmp_path, None
    clean(stores, ["a", "never-tracked"], [])
    assert [folder.name for folder in (tmp_path / "trackers").iterdir()] == ["b"]

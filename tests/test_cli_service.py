"""The commands that run a server or talk to one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from api.cli import build_parser, main
from api.cli.commands import COMMANDS
from api.cli.pretrained import _in_use
from api.cli.serve import coordinator_command, coordinator_environment, read_policy
from api.cli.watch import Display, describe
from api.client import Event, Jobs
from api.schemas import moment
from bench.ports import free_port
from factor_search.measure.ledger import Ledger
from tests.rest_service import SPEC, FakeCoordinator, app_on, progress, serving, settings
from workers.__main__ import build_parser as coordinator_parser
from workers.policy import Policy

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FACTOR_SEARCH_") and name != "FACTOR_SEARCH_CACHE"]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = int(exit.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(app_on(tmp_path)) as url:
        monkeypatch.setenv("FACTOR_SEARCH_URL", url)
        yield url


@pytest.fixture
def coordinator(tmp_path: Path, url: str) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        yield coordinator


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(SPEC))
    return file


def test_submit_prints_the_id_alone(run: Run, url: str, spec: Path) -> None:
    status, out, err = run("submit", spec)
    assert status == 0
    assert re.fullmatch(r"[0-9a-f]{24}\n", out)
    assert "no coordinator is running" in err
    assert json.loads(run("submit", spec, "--json")[1])["state"] == "queued"
    first, again = (run("submit", spec, "--idempotency-key", "k")[1] for _ in range(2))
    assert first == again


def test_submit_makes_local_paths_absolute(run: Run, url: str, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "models")
    for name in ("texts/a.txt", "z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    document = SPEC | {"model": "models", "data": {"files": ["texts/*.txt"], "held_out_files": ["/x/../y.txt", "z"]}}
    (tmp_path / "job.json").write_text(json.dumps(document))
    status, _, err = run("submit", "job.json")
    assert (status, "/x/../y.txt is not in a folder" in err) == (1, True)
    document["data"] = {"files": ["texts/*.txt"], "held_out_files": ["z"]}
    (tmp_path / "job.json").write_text(json.dumps(document))
    sent = json.loads(run("submit", "job.json", "--json")[1])["spec"]
    assert sent["model"]["id"] == str(tmp_path / "models")
    assert sent["data"]["files"] == [str(tmp_path / "texts" / "*.txt")]
    assert sent["data"]["held_out_files"] == [str(tmp_path / "z")]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), ("{", "is not JSON"), ("{}", "model"), (json.dumps(SPEC | {"x": 1}), "unknown key")],
)
def test_submit_of_what_is_not_a_specification(content: str | None, message: str, run: Run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    status, out, err = run("submit", "bad.json")
    assert (status, out, message in err, err.count("\n")) == (1, "", True, 1)


def test_jobs_is_a_table(run: Run, url: str, spec: Path, coordinator: FakeCoordinator) -> None:
    assert run("jobs")[1] == "no jobs\n"
    first, second = run("submit", spec)[1].strip(), run("submit", spec)[1].strip()
    lease = coordinator.claim()
    coordinator.generation(lease, 1)
    lines = run("jobs")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["id", second, first]
    assert lines[2].split()[1:4] == ["running", "50%", "5.2500"]
    assert [job["id"] for job in json.loads(run("jobs", "--state", "running", "--json")[1])] == [first]
    assert len(run("jobs", "--limit", 1)[1].splitlines()) == 2
    assert run("jobs", "--state", "lost")[0] == 2


def test_pause_resume_cancel(run: Run, url: str, spec: Path, coordinator: FakeCoordinator) -> None:
    job = run("submit", spec)[1].strip()
    assert run("pause", job)[:2] == (0, f"job {job} is paused\n")
    assert run("resume", job[:16])[:2] == (0, f"job {job} is queued\n")
    coordinator.claim()
    assert "asked to cancel" in run("cancel", job)[1]
    assert json.loads(run("cancel", job, "--json")[1])["request"] == "cancel"
    status, _, err = run("pause", job)
    assert (status, "cancel" in err, err.count("\n")) == (1, True, 1)
    assert run("pause", "nothing")[0] == 1


@pytest.mark.parametrize(("end", "expected"), [("finished", 0), ("failed", 1), ("cancelled", 3), ("paused", 4)])
def test_watch_tells_how_it_ended_by_its_exit_status(
    end: str, expected: int, run: Run, url: str, spec: Path, coordinator: FakeCoordinator
) -> None:
    job = run("submit", spec)[1].strip()
    lease = coordinator.claim()
    coordinator.event(lease, "phase", phase="searching")
    for number in range(3):
        coordinator.generation(lease, number)
    coordinator.event(lease, "strange_new_thing", detail=7)
    if end == "paused":
        coordinator.jobs.pause(job)
        coordinator.jobs.end(lease, "paused")
        coordinator.jobs.resume(job)  # an earlier pause is history
        coordinator.jobs.pause(job)
    elif end == "cancelled":
        coordinator.jobs.end(lease, "cancelled")
    else:
        coordinator.jobs.end(lease, end, error="no file" if end == "failed" else None)
    status, _, err = run("watch", job)
    assert status == expected
    assert "searching ..." in err
    assert "generation 3: 12 of 16 candidates, best 5.2500 (yarn 6.5000), 1,000 tokens/s, 2 workers" in err
    assert "strange new thing: detail 7" in err
    assert ("failed: no file" in err) == (end == "failed")
    events = [json.loads(line) for line in run("watch", job, "--json")[1].splitlines()]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))


def test_watch_on_a_terminal_draws_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    display = Display(as_json=False)
    later = progress(2, phase="choosing", scored=1, to_score=4)
    searched = progress(2, closed_form="yarn", closed_form_perplexity=5.5)
    for number, data in enumerate([progress(1), searched, later], start=1):
        display.show(Event(number=number, at=moment(0), kind="progress", data=data))
    display.show(Event(number=4, at=moment(0), kind="finished", data={}))
    display.close()
    err = capsys.readouterr().err
    assert "50 %|" in err
    assert "8 of 16 candidates, best 5.2500 (yarn 5.5000), 1,000 tokens/s, generation 2, 2 workers" in err
    assert "choosing: 1 of 4 candidates" in err
    assert "finished" in err


def test_the_end_of_a_job_tells_what_ended_its_search() -> None:
    data = {"winner": "found-1", "perplexity": 3.5, "ended": "ended by the budget of 7 candidates"}
    said = describe(Event(number=1, at=moment(0), kind="finished", data=data))
    assert "finished (search ended by the budget of 7 candidates): found-1, held-out perplexity 3.5000" in said
    del data["ended"]  # of a job before it was told
    assert "finished: found-1" in describe(Event(number=1, at=moment(0), kind="finished", data=data))


def test_long_details_of_events_are_cut() -> None:
    event = Event(number=1, at=moment(0), kind="failed", data={"error": "x" * 5000})
    assert len(describe(event)) < 400


def test_watch_outlives_a_restart_of_the_server(run: Run, tmp_path: Path, spec: Path) -> None:
    port = free_port()
    with FakeCoordinator(settings(tmp_path).database_url) as coordinator:
        with serving(app_on(tmp_path), port) as url:
            job = run("submit", spec, "--url", url)[1].strip()
            command = [sys.executable, "-W", "error", "-m", "api", "watch", job, "--url", url]
            watcher = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], env=os.environ
            )
            assert watcher.stderr is not None
            followed = watcher.stderr.readline()
            lease = coordinator.claim()
        coordinator.generation(lease, 0)
        time.sleep(1.5)
        with serving(app_on(tmp_path), port):
            coordinator.finish(lease)
            _, err = watcher.communicate(timeout=30)
    err = followed + err
    assert watcher.returncode == 0, err
    assert err.count("trying again") == 1
    assert [err.count(word) for word in (" submitted", " claimed", "generation 1", " finished")] == [1, 1, 1, 1]


def test_download(run: Run, url: str, spec: Path, coordinator: FakeCoordinator, tmp_path: Path) -> None:
    job = run("submit", spec)[1].strip()
    lease = coordinator.claim()
    assert "is running" in run("download", job)[2]
    coordinator.generation(lease, 0)
    coordinator.finish(lease, {"schema": "ä"}, {"b": 1})
    assert run("download", job[:20])[:2] == (0, "factors.json\n")
    assert Path("factors.json").read_text() == '{\n "schema": "ä"\n}\n'
    assert run("download", job)[0] == 0, "the same content may be there"
    Path("factors.json").write_text("mine")
    status, _, err = run("download", job)
    assert (status, "--force" in err, Path("factors.json").read_text()) == (1, True, "mine")
    assert run("download", job, "--force")[0] == 0
    assert Path("factors.json").read_text() != "mine"
    assert run("download", job, "--out", "/dev/null/x.json")[0] == 1


def test_download_into_a_folder_is_what_run_writes(
    run: Run, url: str, spec: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jobs, "report_html", lambda *_: "<html>")
    job = run("submit", spec)[1].strip()
    lease = coordinator.claim()
    coordinator.generation(lease, 0)
    coordinator.finish(lease)
    status, out, _ = run("download", job, "--out", "results", "--json")
    names = ["factors.json", "report.json", "report.html", "evaluations.jsonl"]
    assert (status, json.loads(out)["files"]) == (0, [f"results/{name}" for name in names])
    stored = coordinator.evaluations.of_job(job)
    ledger = Ledger(Path("results/evaluations.jsonl"))
    assert len(ledger) == 4
    for row in stored:
        assert ledger.get(row.key) == row.evaluation
    ledger.close()


def test_keys(run: Run, tmp_path: Path) -> None:
    database = ("--database", f"sqlite:///{tmp_path / 'jobs.db'}")
    assert "there is no database" in run("keys", "list", *database)[2]
    assert list(tmp_path.iterdir()) == []
    status, secret, err = run("keys", "create", "--name", "ci", "--scope", "submit", *database)
    assert status == 0
    assert re.fullmatch(r"fs_[0-9a-f]{8}_\S{43}\n", secret)
    assert "cannot be shown again" in err
    made = json.loads(run("keys", "create", "--name", "b", "--scope", "read", "--json", *database)[1])
    listed = run("keys", "list", *database)[1]
    assert secret.strip() not in listed
    assert made["key"] not in listed
    assert [line.split()[-1] for line in listed.splitlines()] == ["name", "ci", "b"]
    assert secret.strip().encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("jobs.db*"))
    key_ids = [key["id"] for key in json.loads(run("keys", "list", "--json", *database)[1])]
    assert run("keys", "revoke", key_ids[0], *database)[0] == 0
    assert "last one" in run("keys", "revoke", key_ids[1], *database)[2]
    assert run("keys", "revoke", key_ids[1], *database)[0] == 1
    assert run("keys", "revoke", "nothing", *database)[0] == 1
    assert run("keys", "create", "--name", "a\nb", "--scope", "read", *database)[0] == 1
    assert run("keys", "create", "--name", "x", "--scope", "root", *database)[0] == 2


def test_without_a_server_every_command_says_so_in_one_line(run: Run, spec: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for arguments in (["submit", spec], ["jobs"], ["watch", "x"], ["pause", "x"], ["download", "x"]):
        status, out, err = run(*arguments, "--url", url)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "factor-search serve" in err


def test_serve_elsewhere_needs_a_key_that_is_in_use(run: Run, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'jobs.db'}"
    serve = ("serve", "--host", "0.0.0.0", "--port", "0", "--database", database)
    for _ in range(2):  # without any, and with none but a revoked one
        status, _, err = run(*serve)
        assert (status, err.count("\n"), "factor-search keys create" in err) == (1, 1, True)
        run("keys", "create", "--name", "x", "--scope", "admin", "--database", database)
        run("keys", "revoke", json.loads(run("keys", "list", "--json", "--database", database)[1])[0]["id"],
            "--database", database)  # fmt: skip


def test_serve_says_in_one_line_what_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        bad: list[tuple[list[Any], str]] = [
            (["--port", port], f"port {port} on 127.0.0.1 is in use"),
            (["--root", "nothing"], "--root nothing is not a folder"),
            (["--database", "nonsense"], "not a database URL"),
            (["--database", "sqlite:////no/such/folder/x.db"], "there is no folder"),
            (["--database", "postgresql://nobody@127.0.0.1:1/none"], "cannot use the database"),
        ]
        for arguments, message in bad:
            status, out, err = run("serve", *arguments)
            assert (status, out, err.count("\n")) == (1, "", 1), err
            assert message in err
    for arguments in (["--port", "70000"], ["--workers", "0"], ["--jobs", "x"], ["--evaluation-timeout", "nan"]):
        assert run("serve", *arguments)[0] == 2
    for name, value in (("PORT", "many"), ("HUB", "perhaps"), ("LOG_LEVEL", "loud"), ("WORKERS", "-1")):
        with monkeypatch.context() as patch:
            patch.setenv(f"FACTOR_SEARCH_{name}", value)
            status, _, err = run("serve")
            assert (status, err.count("\n"), f"FACTOR_SEARCH_{name} is '{value}'" in err) == (1, 1, True)


def test_every_flag_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    values = {
        "HOST": "::1",
        "PORT": "0",
        "DATABASE": "sqlite:///x.db",
        "DASHBOARD_DATABASE": "sqlite:///y.db",
        "ROOT": f"{tmp_path}{os.pathsep}{tmp_path / 'a'}",
        "HUB": "0",
        "ALLOW_REMOTE_CODE": "1",
        "WORK": str(tmp_path / "made"),
        "RAY_ADDRESS": "h:1",
        "WORKERS": "3",
        "CPUS_PER_WORKER": "0.5",
        "GPUS_PER_WORKER": "1",
        "JOBS": "2",
        "EVALUATION_TIMEOUT": "60",
        "LOG_LEVEL": "info",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"FACTOR_SEARCH_{name}", value)
    arguments = build_parser("serve").parse_args(["serve"])
    assert (arguments.host, arguments.port, arguments.database) == ("::1", 0, "sqlite:///x.db")
    policy = read_policy(arguments, hub=True)
    expected = Policy(
        (tmp_path, tmp_path / "a"), allow_hub=False, allow_remote_code=True, work_folder=tmp_path / "made"
    )
    assert policy == expected
    for name, value in coordinator_environment("sqlite:///x.db", "sqlite:///y.db").items():
        monkeypatch.setenv(name, value)
    parsed = coordinator_parser().parse_args(coordinator_command(arguments, policy)[4:])
    assert (parsed.database, parsed.dashboard_database) == ("sqlite:///x.db", "sqlite:///y.db")
    assert (parsed.ray_address, parsed.workers, parsed.jobs, parsed.log_level) == ("h:1", 3, 2, "info")
    assert (parsed.cpus_per_worker, parsed.gpus_per_worker, parsed.evaluation_timeout) == (0.5, 1.0, 60.0)
    assert Policy.from_arguments(parsed, hub=True) == policy


def test_the_working_folder_is_beside_an_sqlite_database(tmp_path: Path) -> None:
    def made(database: str) -> Path | None:
        return read_policy(build_parser("serve").parse_args(["serve", "--database", database]), hub=True).work_folder

    assert made(f"sqlite:///{tmp_path / 'x.db'}") == tmp_path / "x.work"
    assert made("postgresql://u@h/x") is None


def test_no_password_stands_among_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://u:geheim@h/x"
    arguments = build_parser("serve").parse_args(["serve", "--database", url])
    command = coordinator_command(arguments, read_policy(arguments, hub=True))
    assert "geheim" not in " ".join(command)
    assert coordinator_environment(url, None)["FACTOR_SEARCH_DATABASE"] == url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_at_a_signal_with_streams_open(number: int, tmp_path: Path, run: Run, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "a.txt").write_text("text")
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(SPEC | {"model": "model", "data": ["a.txt"]}))
    command = [sys.executable, "-m", "api", "serve", "--port", "0", "--no-coordinator"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    found = re.match(r"serving at (http://127\.0\.0\.1:\d+) .*dashboard at \1/dashboard", ready)
    assert found, ready
    url = found.group(1)
    job = run("submit", spec, "--url", url)[1].strip()
    assert httpx.get(f"{url}/dashboard").status_code == 200
    assert httpx.delete(f"{url}/api/studies/1").status_code == 403
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.append(httpx.get(f"{url}/v1/jobs/{job}/events", timeout=60).text))
    reader.start()
    time.sleep(1)
    started = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert time.monotonic() - started < 20, "the stream would last a minute"
    reader.join(10)
    assert "event: submitted" in texts[0]


def test_doctor(run: Run, url: str, tmp_path: Path) -> None:
    database = ("--database", f"sqlite:///{tmp_path / 'jobs.db'}")
    status, out, _ = run("doctor", *database, "--json")
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert (status, {name for name, finding in findings.items() if not finding["ok"]}) == (0, set())
    assert {"versions", "torch", "ray", "database", "disk", "cache", "server"} <= findings.keys()
    assert url in findings["server"]["detail"]


def test_doctor_finds_problems_and_makes_no_database(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("api.cli.doctor._ray", lambda address: "not looked at")
    assert "is not there yet" in run("doctor")[1]
    assert not list(tmp_path.glob("*.db"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: (0, 0, 1))
    bad = ["--database", "postgresql://u:geheim@127.0.0.1:1/x", "--url", "http://127.0.0.1:1"]
    status, out, _ = run("doctor", *bad)
    assert status == 1
    assert "geheim" not in out
    problems = [line.split()[1] for line in out.splitlines() if line.startswith("PROBLEM")]
    assert problems == ["database", "disk", "cache", "server"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_a_sentence_and_its_options(command: str, run: Run) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    usage, sentence, *_ = out.split("\n\n")
    assert usage.startswith(f"usage: factor-search {command}")
    assert re.fullmatch(r"[A-Z][^.]*\.", sentence), sentence


def test_commands_that_talk_to_a_server_do_not_load_torch() -> None:
    for word in ("submit", "jobs", "watch", "pause", "download"):
        code = f"import sys; from api.cli import build_parser; build_parser({word!r}); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_storage_is_listed_kept_deleted_and_pruned(
    run: Run, url: str, spec: Path, coordinator: FakeCoordinator
) -> None:
    assert "database" in run("storage", "list")[1]
    first, second, third = (run("submit", spec)[1].strip() for _ in range(3))
    lease = coordinator.claim()
    coordinator.generation(lease, 0)
    status, _, err = run("storage", "delete", first)
    assert (status, "is running" in err, err.count("\n")) == (1, True, 1)
    coordinator.finish(lease)
    run("cancel", second)
    assert run("storage", "keep", first[:20], "--name", "for the paper")[:2] == (
        0,
        f"{first} is kept as 'for the paper'\n",
    )
    listed = run("storage", "list")[1].splitlines()
    assert [line.split()[0] for line in listed[1:4]] == [third, second, first]
    assert listed[3].endswith("one (kept as for the paper)")
    assert "4 evaluations" in listed[4]
    told = json.loads(run("storage", "prune", "--older-than", "0d", "--dry-run", "--json")[1])
    assert ([item["id"] for item in told["items"]], told["dry_run"]) == ([second], True)
    assert "deleted 1 jobs and plans" in run("storage", "prune", "--older-than", "0d")[1]
    assert run("storage", "keep", first, "--no-longer")[0] == 0
    assert run("storage", "delete", first)[:2] == (0, f"{first} is deleted\n")
    shown = json.loads(run("storage", "list", "--json")[1])
    assert ([item["id"] for item in shown["items"]], shown["evaluations"]) == ([third], 0)
    assert run("storage", "delete", first)[0] == 1
    for age in ("", "d", "-1d", "nan", "1e99d", "5w"):
        assert run("storage", "prune", f"--older-than={age}")[0] == 2


def test_the_cache_is_listed_deleted_and_pruned(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTOR_SEARCH_CACHE", str(tmp_path / "cache"))
    for name, age_days in (("tokens/a.npy", 1), ("tokens/b.npy", 100), ("models/m.gguf", 100), ("else/x", 100)):
        file = tmp_path / "cache" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 1000)
        os.utime(file, (time.time() - age_days * 86_400,) * 2)
    kinds = json.loads(run("cache", "list", "--json")[1])["kinds"]
    assert (kinds["tokens"], kinds["bench"]) == ({"files": 2, "bytes": 2000}, {"files": 0, "bytes": 0})
    assert "tokens                2" in run("cache", "list")[1]
    assert "would delete 2 files, 2.0 KiB" in run("cache", "prune", "--older-than", "30d", "--dry-run")[1]
    _in_use(tmp_path / "cache" / "models" / "m.gguf")
    assert "deleted 1 files, 1000 B; 1 in use stay" in run("cache", "prune", "--older-than", "30d")[1]
    assert json.loads(run("cache", "delete", "tokens", "--json")[1]) == {"files": 1, "bytes": 1000, "in_use": 0}
    left = {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert left == {"m.gguf", "x"}
    assert run("cache", "delete", "else")[0] == 2

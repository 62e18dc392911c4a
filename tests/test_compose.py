"""Containers: no engine is needed to check that the files are valid, agree with each other and with the commands."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import start as ray_start

from api.cli import build_parser

ROOT = Path(__file__).parents[1]
VARIABLES = {"POSTGRES_PASSWORD": "secret", "RAY_AUTH_TOKEN": "secret", "MODELS_DIR": "./models", "DATA_DIR": "./data"}
EVALUATING = ("ray-head", "ray-worker", "api")
DOCKERFILE = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())


def interpolated(value: Any) -> Any:
    """What compose does with variables; a required one that .env.example does not name is a KeyError."""
    if isinstance(value, dict):
        return {key: interpolated(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [interpolated(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", lambda m: m[3] if m[2] == "-" else VARIABLES[m[1]], value)
    return value


def merged(base: Any, over: Any, key: str = "") -> Any:
    """What compose does with an overlay."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {k: merged(base[k], v, k) if k in base else v for k, v in over.items()}
    return base + over if isinstance(base, list) and key != "command" else over


def load(name: str) -> Any:
    return interpolated(yaml.safe_load((ROOT / name).read_text()))


BASE = load("docker-compose.yml")
MERGED = merged(BASE, load("docker-compose.gpu.yml"))
both = pytest.mark.parametrize("compose", [BASE, MERGED], ids=["base", "gpu"])


def valid(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_files_and_their_merger_are_valid(tmp_path: Path) -> None:
    for name, compose in (("base", BASE), ("merged", MERGED)):
        (tmp_path / f"{name}.json").write_text(json.dumps(compose))
    checked = valid(ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml", *tmp_path.iterdir())
    assert checked.returncode == 0, checked.stdout


def test_the_schema_refuses_a_wrong_word(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text("services: {api: {image: x, heathcheck: {}}}")
    assert valid(wrong).returncode == 1


def test_the_example_names_every_required_variable() -> None:
    example = (ROOT / ".env.example").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) == required == set(VARIABLES)
    assert not re.findall(r"^(?:POSTGRES_PASSWORD|RAY_AUTH_TOKEN)=.", example, re.MULTILINE), "no default secrets"


@both
def test_every_image_is_pinned(compose: Any) -> None:
    images = [service["image"] for service in compose["services"].values()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*", image) for image in images), images


@both
def test_every_service_has_limits_and_ends_in_order(compose: Any) -> None:
    for name, service in compose["services"].items():
        assert {"restart", "stop_grace_period", "logging", "shm_size"} <= set(service), name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert "healthcheck" in service or name == "api", name
        assert not service.get("privileged"), name
    assert "/readyz" in re.search(r"^HEALTHCHECK.*", DOCKERFILE, re.MULTILINE)[0]


@both
def test_nothing_is_published_beyond_loopback(compose: Any) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(ports) == {"api"}
    assert all(port.startswith("127.0.0.1:") for port in ports["api"])


@both
def test_the_same_image_and_paths_wherever_ray_runs(compose: Any) -> None:
    services = [compose["services"][name] for name in EVALUATING]
    for key in ("image", "build", "volumes", "init"):
        assert all(service[key] == services[0][key] for service in services), key
    targets = {v["target"]: v["read_only"] for v in services[0]["volumes"] if isinstance(v, dict)}
    assert targets == {"/models": True, "/data": True}
    named = {v.split(":")[1] for v in services[0]["volumes"] if isinstance(v, str)}
    assert named == set(re.findall(r"=(/(?:cache|made)\S*)", DOCKERFILE)), (
        "volumes are the folders that the image writes"
    )


@both
def test_shared_memory_holds_the_object_store(compose: Any) -> None:
    for name in EVALUATING:
        service = compose["services"][name]
        assert int(service["shm_size"].removesuffix("gb")) * 10**9 > int(
            service["environment"]["RAY_OBJECT_STORE_BYTES"]
        )


@both
def test_ray_commands_exist(compose: Any) -> None:
    for name in ("ray-head", "ray-worker"):
        command = compose["services"][name]["command"]
        assert command[:2] == ["ray", "start"]
        ray_start.make_context("start", command[2:])
    joining = re.search(r"^ray start (.*) &$", (ROOT / "docker/join-ray.sh").read_text(), re.MULTILINE)
    assert joining
    ray_start.make_context("start", shlex.split(joining[1].replace("$RAY_OBJECT_STORE_BYTES", "1")))


@both
def test_addresses_name_services(compose: Any) -> None:
    commands = " ".join(" ".join(service.get("command", ())) for service in compose["services"].values())
    assert set(re.findall(r"([\w-]+):6379", commands)) == {"ray-head"}
    assert set(re.findall(r"postgresql://factor_search@(\w+)/factor_search", commands)) == {"postgres"}


def test_the_gpu_command_differs_in_one_argument() -> None:
    base, gpu = BASE["services"]["api"]["command"], MERGED["services"]["api"]["command"]
    assert [*base, "--gpus-per-worker=1"] == gpu


def documented() -> list[str]:
    text = re.sub(r"\\\n\s*", " ", (ROOT / "docs/operations.md").read_text())
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return re.findall(r"^(?:[^#\n]* )?factor-search (.*)", blocks, re.MULTILINE)


@pytest.mark.parametrize(
    "command",
    [shlex.join(c["services"]["api"]["command"][3:]) for c in (BASE, MERGED)]
    + [shlex.join(json.loads(re.search(r"^CMD (\[.*)", DOCKERFILE, re.MULTILINE)[1])[1:]), *documented()],
)
def test_commands_exist(command: str) -> None:
    arguments = shlex.split(command, comments=True)
    build_parser(arguments[0]).parse_args(arguments)


def test_the_image_has_the_whole_package_and_nothing_unpinned() -> None:
    copied = {s for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for s in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied
    for install in re.findall(r"pip (?:install|wheel) [^&\n]*", DOCKERFILE):
        assert "--constraint constraints.txt" in install or "--no-deps" in install, install
    assert re.search(r"^USER (?!root|0)", DOCKERFILE, re.MULTILINE)
    assert "[dev]" not in DOCKERFILE


def test_the_image_has_what_a_service_can_use() -> None:
    """All extras but those of developers, and trackers, which are large and used by few."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [everything] = re.findall(r"\[(.*)\]", extras["all"][0])
    default = re.search(r'^ARG EXTRAS="(.*)"', DOCKERFILE, re.MULTILINE)[1].split()
    assert default == everything.split(",")
    assert all(
        load("docker-compose.yml")["services"][name]["build"]["args"]["EXTRAS"].split() == default
        for name in EVALUATING
    )
    command = re.search(r"^RUN python -c '(.*?)'\s+\$EXTRAS", DOCKERFILE, re.MULTILINE | re.DOTALL)[1].replace(
        "\\\n", ""
    )
    listed = subprocess.run(
        [sys.executable, "-c", command, *default, "trackers"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert {line for name in (*default, "trackers") for line in extras[name]} <= set(listed)


def test_scripts_are_bash_and_executable() -> None:
    for script in (ROOT / "docker").iterdir():
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o111, script

"""Every command and every snippet of the README and of docs/ runs, in a prepared folder and against a real server.

* sh blocks: ``factor-search`` and ``curl`` lines run. Those in PARSED and in CHECKED need a server that stays up,
  Docker, a cluster or minutes, and are checked for existence and arguments.
* json blocks are validated by the model they are for, and written to the file that the text before them names.
* python blocks are executed.

tests/documentation.py says what is replaced.
"""

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from api.cli import build_parser, main
from api.cli.commands import COMMANDS
from tests.documentation import (
    CANDIDATES,
    DATA,
    DOCUMENTS,
    ROOT,
    DocumentedService,
    checked,
    copied,
    documented_service,
    prepare,
    small,
    write_short_factors,
)

TUTORIAL = ROOT / "docs" / "tutorial.md"
"""Followed word for word by tests/test_tutorial.py."""
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page != TUTORIAL)]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TALKING = {
    "submit",
    "jobs",
    "plans",
    "watch",
    "pause",
    "resume",
    "cancel",
    "retry",
    "supply-checkpoint",
    "download",
    "storage",
}
"""Commands that need a server."""
SMALL_DATA = [argument for key, count in DOCUMENTS.items() for argument in ("--set", f"data.{key}={count}")]
NOT_INSTALLED = {"sglang"}
"""Engines whose commands the documentation has, and that nothing here runs."""
DRIVING = re.compile(r"--watch|^factor-search (watch|download)|\.wait\(|\.events\(", re.MULTILINE)
"""What waits for a result, and so for a coordinator."""


@dataclass
class Page:
    """One page being run: its folder, its names, and the server once something needs it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    stack: contextlib.ExitStack
    id: str = "no id yet"
    names: dict[str, Any] = field(default_factory=dict)
    server: DocumentedService | None = None

    def service(self) -> DocumentedService:
        if self.server is None:
            self.server = self.stack.enter_context(documented_service(self.folder))
            self.monkeypatch.setenv("FACTOR_SEARCH_URL", self.server.url)
        return self.server


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of one process only wait for each other where models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Reports with empty pictures, which would take two thirds of the time; tests of reports look at them."""
    with pytest.MonkeyPatch.context() as patch:

        def save(figure: Figure, out: Any, **options: Any) -> None:
            with contextlib.nullcontext(out) if hasattr(out, "write") else Path(out).open("wb") as stream:
                stream.write(b"<svg></svg>")

        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with everything that pages name, and with the results of the README's search."""
    folder = tmp_path_factory.mktemp("documented")
    prepare(folder)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        search = "run --model path/or/hub-id --data 'books/*.txt' --target-length 32768 --out results"
        options = ["--set", "space.initial_tokens=[0]", "--set", f"budget.candidates={CANDIDATES}", *SMALL_DATA]
        assert main([*shlex.split(small(search)), *options]) == 0
        write_short_factors(Path("results/factors.json"), Path("short_factors.json"))
        job = {"model": "path/or/hub-id", "data": DATA, "target_length": 256, "budget": CANDIDATES}
        Path("job.json").write_text(json.dumps(job | {"space": {"initial_tokens": [0]}}))
    return folder


@pytest.fixture
def page(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Page]:
    for name in [name for name in os.environ if name.startswith("FACTOR_SEARCH_") and name != "FACTOR_SEARCH_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(copied(prepared, tmp_path))
    with contextlib.ExitStack() as stack:
        yield Page(tmp_path, capsys, monkeypatch, stack)


@pytest.mark.parametrize("file", PAGES, ids=[str(file.relative_to(ROOT)) for file in PAGES])
def test_commands_and_snippets_run(file: Path, page: Page) -> None:
    text = file.read_text()
    for block in BLOCK.finditer(text):
        language, content = block[1], block[2]
        assert language in {"sh", "json", "python", "text", "nginx", "caddy"}, (
            f"{file}: a block of {language or 'no language'}"
        )
        if language == "sh":
            for line in lines(content):
                run_line(page, line)
        elif language == "json":
            validate(page, content, text[: block.start()])
        elif language == "python":
            execute(page, content)


def lines(block: str) -> list[str]:
    """The commands of a shell block."""
    joined = re.sub(r"\\\n\s*", " ", block)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def run_line(page: Page, line: str) -> None:
    program = line.split()[0]
    if program == "factor-search":
        run_command(page, line)
    elif program == "curl":
        run_curl(page, line)
    else:
        assert program in CHECKED, f"nothing runs or checks this line: {line}"
        CHECKED[program](line)


def run_command(page: Page, line: str) -> None:
    line, _, comment = line.partition("  # exit status ")
    command, _, target = small(line).partition(" > ")
    word, *arguments = shlex.split(re.sub(r"\bID\b", page.id, command))[1:]
    if word in PARSED or any("@HOST" in argument for argument in arguments):
        build_parser(word).parse_args([word, *arguments])
        return
    if word in TALKING | {"doctor"}:
        page.service()
    if DRIVING.search(command):
        page.service().drive()
    if word in ("run", "submit") and "--model" in arguments:
        arguments += [] if "--candidates" in arguments else ["--set", f"budget.candidates={CANDIDATES}"]
        arguments += SMALL_DATA
    page.capsys.readouterr()
    status = main([word, *arguments])
    printed = page.capsys.readouterr()
    assert status == int(comment or 0), f"{line}\n{printed.out}{printed.err}"
    if target:
        Path(target).write_text(printed.out)
    if word == "submit":
        page.id = printed.out.split()[0]


def run_curl(page: Page, line: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    command = shlex.split(line.replace("http://127.0.0.1:8400", page.service().url))
    answer = subprocess.run([*command, "--silent", "--show-error"], capture_output=True, text=True, timeout=30)
    assert answer.returncode == 0, f"{line}\n{answer.stdout}{answer.stderr}"


def validate(page: Page, content: str, before: str) -> None:
    """Check a JSON block, and write it to the file that its paragraph names: "Write `job.json`:"."""
    is_result = '"schema"' in content  # whose figures fit each other
    document = checked(json.loads(content if is_result else small(content)))
    named = re.search(r"`([\w-]+\.json)`[^`]*:\s*\Z", before)
    if named:
        (page.folder / named[1]).write_text(json.dumps(document))


def execute(page: Page, content: str) -> None:
    if "Client(" in content:
        content = content.replace("http://127.0.0.1:8400", page.service().url)
    if DRIVING.search(content):
        page.service().drive()
    exec(compile(small(content), "<snippet>", "exec"), page.names)


def check_make(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = line.split()[1:]
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), line


def check_pip(line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.fullmatch(r"pip install '\.(?:\[(.*)\])?'", line)
    assert wanted, line
    assert set((wanted[1] or "data").split(",")) <= set(extras), line


def check_python(line: str) -> None:
    wanted = re.fullmatch(r"python -m (\S+)((?: \S+)*)", line)
    assert wanted, line
    assert find_spec(wanted[1]), line
    if wanted[1] == "pytest":
        assert all((ROOT / name).exists() for name in wanted[2].split() if not name.startswith("-")), line


def check_docker(line: str) -> None:
    arguments = shlex.split(line)
    assert arguments[1] == "compose", line
    files = [value for flag, value in itertools.pairwise(arguments) if flag == "-f"]
    assert all((ROOT / file).exists() for file in files), line
    assert {"build", "run", "up", "exec", "stop", "start", "logs"} & set(arguments), line
    if "factor-search" in arguments:
        word, *rest = arguments[arguments.index("factor-search") + 1 :]
        build_parser(word).parse_args([word, *rest])


def check_ray(line: str) -> None:
    from ray.scripts.scripts import start

    assert line.startswith("ray start "), line
    start.make_context("start", shlex.split(line)[2:])


def check_sbatch(line: str) -> None:
    script, *arguments = shlex.split(line)[1:]
    assert (ROOT / script).exists(), line
    assert len(arguments) == 2, line


def check_kubectl(line: str) -> None:
    _program, word, flag, file = shlex.split(line)
    assert (word, flag) == ("apply", "-f"), line
    assert (ROOT / file).exists(), line


def check_nothing_more(line: str) -> None:
    """Exactly these lines: they set up a shell, or belong to another program."""
    assert line in {
        "source .venv/bin/activate",
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...",
        """sqlite3 factor-search.db "VACUUM INTO 'backup.db'\"""",
    }, line


PARSED = {"serve", "demo"}
"""Commands that stay up or take minutes: other tests run them, and here their arguments are parsed."""
CHECKED: dict[str, Callable[[str], None]] = {
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "docker": check_docker,
    "ray": check_ray,
    "sbatch": check_sbatch,
    "kubectl": check_kubectl,
    "source": check_nothing_more,
    "export": check_nothing_more,
    "sqlite3": check_nothing_more,
}
"""Programs that are not run here, and how their lines are checked."""


@pytest.mark.parametrize("file", PAGES, ids=[str(file.relative_to(ROOT)) for file in PAGES])
def test_links_files_and_modules_exist(file: Path) -> None:
    text = file.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (file.parent / target).exists(), target
    for name in re.findall(
        r"`((?:api|workers|storage|factor_search|tests|bench|docs|docker|examples)/[\w./-]+)`", text
    ):
        assert re.search(r"NAME|NNNN", name) or (ROOT / name).exists(), name
    for module in re.findall(r"`python -m ([\w.]+)", text):
        assert module.partition(".")[0] in NOT_INSTALLED or find_spec(module), module


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_an_index() -> None:
    linked = {
        (index.parent / target).resolve()
        for index in (ROOT / "README.md", ROOT / "docs" / "README.md")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", index.read_text())
    }
    assert {file for file in PAGES if file.name != "README.md"} <= linked


def test_every_command_is_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/command-line.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", reference.split("## ")[0], re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"`([a-z-]+)`", row)} == set(COMMANDS)


def test_every_field_is_in_the_reference() -> None:
    """Of a job, of a plan, and of every kind of stage."""
    from factor_search.plan.spec import PlanSpec
    from factor_search.spec import JobSpec

    text = "".join((ROOT / f"docs/reference/{name}.md").read_text() for name in ("job-specification", "plan"))
    text += (ROOT / "docs/explanation/strategies-and-objectives.md").read_text()
    strategies = ("EvolutionSpec", "CmaSpec", "TpeSpec", "Nsga2Spec", "RandomSpec", "KnownFactors")
    for schema in (JobSpec.model_json_schema(), PlanSpec.model_json_schema()):
        models = {"top": schema, **schema["$defs"]}
        for name, model in models.items():
            if name in strategies:
                continue  # `--help` and the OpenAPI page have the settings of each strategy
            missing = [key for key in model.get("properties", ()) if not re.search(rf'["`.]{key}["`]', text)]
            assert not missing, f"{name}: {missing}"

"""``factor-search demo``: the whole service on the shipped model, by one search or by all stages of a plan."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from api.cli import demo_plan
from api.cli.arguments import Commands, add_json_argument
from api.cli.download import save_plan, save_results
from api.cli.watch import watch
from api.cli.watch_plan import watch_plan
from api.client import Client, Job, Plan
from factor_search.errors import FactorSearchError, OutputError, SpecError
from factor_search.files.canonical_json import sha256_of
from factor_search.plan import report as plan_report
from factor_search.plan.spec import parse_plan
from factor_search.report.document import table
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files, standard_library

DATABASE = "jobs.db"
FOLDER, PROGRESSIVE_FOLDER = Path("demo-results"), Path("demo-progressive-results")
STOP_SECONDS = 20


class DemoError(FactorSearchError):
    """The demo's own server did not start."""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="a search, or a whole plan, on the shipped model",
        description="Start a server, submit a search to it, watch it, download what it found, stop the server. The "
        "shipped byte-level model is extended from 256 to 2,048 tokens, on modules of the standard library that it was "
        "not trained on. Takes about two minutes on two cores; interrupted, it goes on where it was. "
        "With --progressive it is extended to 8,192 tokens by stages instead: search, fine-tuning, a second search, "
        "readjusting, measurements, export; in less than twenty minutes.",
    )
    parser.add_argument("--progressive", action="store_true", help="extend to 8,192 tokens by stages")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: {FOLDER}, or {PROGRESSIVE_FOLDER}")
    parser.add_argument("--candidates", type=int, metavar="N", help="a shorter or longer search; not of stages")
    add_json_argument(parser)
    parser.set_defaults(run=lambda arguments: progressive(arguments) if arguments.progressive else demo(arguments))


def demo(arguments: argparse.Namespace) -> int:
    """The way of every job: serve, submit, watch, download."""
    spec, out = parse_spec(specification(arguments.candidates)), arguments.out or FOLDER
    document = spec.model_dump(mode="json")
    open_folder(out)
    with server(out) as url, Client(url) as client:
        job = submitted(client, document)
        say(f"job {job.id} submitted; the dashboard is at {url}/dashboard")
        status = watch(client, job.id, interrupted="stopped; the same command goes on where it was")
        if status != 0:
            return status
        save_results(client, job.id, out, force=True)
        report = client.jobs.report(job.id)
    print(json.dumps(report) if arguments.json else table(report))
    if not arguments.json:
        print(
            f"{out / 'factors.json'}  {out / 'report.html'}\n\n"
            "To see it on the dashboard again:\n"
            f"factor-search serve --database sqlite:///{out / DATABASE}\n"
            "To load the factors in plain transformers:\n"
            f"factor-search export --factors {out / 'factors.json'} --format huggingface --out extended"
        )
    return 0


def progressive(arguments: argparse.Namespace) -> int:
    """The way of every plan; its exit status says whether all that is claimed of it holds."""
    if arguments.candidates is not None:
        raise SpecError("--candidates goes with the demo of one search: stages have budgets of their own")
    plan, out = parse_plan(demo_plan.specification()), arguments.out or PROGRESSIVE_FOLDER
    document = plan.model_dump(mode="json", exclude_unset=True)
    open_folder(out)
    with server(out, standard_library()) as url, Client(url) as client:
        made = submitted_plan(client, document)
        say(f"plan {made.id} submitted; the dashboard is at {url}/dashboard")
        status = watch_plan(client, made.id)
        if status != 0:
            return status
        save_plan(client.plans, client.plans.get(made.id), out, force=True)
        report = client.plans.report(made.id)
    claims = demo_plan.claims(report)
    if arguments.json:
        print(json.dumps({**report, "claims": [vars(claim) for claim in claims]}))
    else:
        print(f"{plan_report.table(report)}\n\n{demo_plan.table(claims)}\n")
        print(f"{out / 'factors.json'}  {out / 'short_factors.json'}  {out / 'report.html'}")
    return 0 if all(claim.holds for claim in claims) else 1


def submitted_plan(client: Client, document: dict[str, object]) -> Plan:
    """The plan of this document: the one of an earlier run, which is taken up again wherever it stopped."""
    plan = client.plans.submit(document, f"demo-{sha256_of(document)}")
    if plan.state == "paused":
        return client.plans.resume(plan.id)
    if plan.state == "failed":
        return client.plans.retry(plan.id)
    return client.plans.submit(document, str(uuid.uuid4())) if plan.state == "cancelled" else plan


def submitted(client: Client, document: dict[str, object]) -> Job:
    """The job of this specification: the one of an earlier run, unless that ended without a result."""
    job = client.jobs.submit(document, f"demo-{sha256_of(document)}")
    if job.state == "paused":
        return client.jobs.resume(job.id)
    return client.jobs.submit(document, str(uuid.uuid4())) if job.state in ("failed", "cancelled") else job


def open_folder(out: Path) -> None:
    """Make the folder for the results.

    Raises:
        OutputError: it cannot be made, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / DATABASE).exists():
            raise OutputError(f"{out} holds something else: choose another --out")
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error.strerror or error}") from None


@contextlib.contextmanager
def server(out: Path, *roots: Path) -> Iterator[str]:
    """A server of our own on a free port of this machine, which may read these folders; gives its address."""
    say("starting a server with a Ray of its own ...")
    command = [sys.executable, "-m", "api", "serve", "--port", "0", "--database", f"sqlite:///{out / DATABASE}"]
    command += [argument for root in roots for argument in ("--root", str(root))]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FACTOR_SEARCH_")}
    ours |= {name: os.environ[name] for name in ("FACTOR_SEARCH_CACHE", "FACTOR_SEARCH_DEBUG") if name in os.environ}
    with (out / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=ours, start_new_session=True
        )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()  # "serving at URL (..."
        if not ready.startswith("serving at "):
            raise DemoError(f"the server did not start: {last_line(out / 'server.log')}")
        yield ready.split()[2]
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def last_line(log: Path) -> str:
    """What a process said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def say(text: str) -> None:
    """For people, not for pipes."""
    print(text, file=sys.stderr, flush=True)


def specification(candidates: int | None) -> dict[str, object]:
    """What the demo searches, as a user would write it."""
    return {
        "name": "demo",
        "model": {"id": str(CHECKPOINT), "device": "cpu"},
        "data": {
            "files": [str(file) for file in held_out_files()],
            "search_documents": 4,
            "validation_documents": 6,
            "held_out_documents": 16,
        },
        "target_length": 2048,
        "space": {"initial_tokens": [0]},
        "budget": {"candidates": 200 if candidates is None else candidates},
    }

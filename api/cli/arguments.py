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
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--attention", default="auto", help="attention implementation of transformers")
    parser.add_argument("--device", default="auto")


def model_spec(arguments: argparse.Namespace) -> ModelSpec:
    """The model that the arguments describe, validated like the one of a specification."""
    names = ("revision", "dtype", "attention", "device", "original_length")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    stand_in = {"data": ["-"], "target_length": 1}  # validates the model part as a job does, with the same messages
    job: JobSpec = parse_spec({"model": {"id": arguments.model, **given}, **stand_in})
    return job.model


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")

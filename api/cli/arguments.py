"""Arguments that several commands share."""

import argparse
from typing import Any

from factor_search.factors_file import FactorsFile
from factor_search.spec import JobSpec, ModelSpec, parse_spec

AGE_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0}
IGNORE_MEMORY = "start even if the estimate says that it needs far more memory than there is"
LONGEST_AGE_SECONDS = 36_500 * AGE_UNITS["d"]


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--model`` and the options that say which version of it is meant."""
    parser.add_argument(
        "--model", required=required, metavar="M", help="local checkpoint folder or GGUF file, or hub id"
    )
    parser.add_argument("--revision", metavar="R", help="hub revision: a branch, tag or commit")
    parser.add_argument(
        "--original-length",
        type=int,
        metavar="L",
        help="context length in tokens the model was trained for; overrides a wrong value in its configuration",
    )
    add_remote_code_argument(parser)


def add_remote_code_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--trust-remote-code``; None if it is not given, so that a specification keeps what it says."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        default=None,
        help="run the Python code that comes with the checkpoint; read it first",
    )


def add_no_hub_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-hub``."""
    parser.add_argument("--no-hub", action="store_true", help="neither download from nor upload to the hub")


def model_of_factors(arguments: argparse.Namespace, file: FactorsFile) -> dict[str, Any]:
    """The fields of the model that ``--model`` names, or else of the one that a factors file names."""
    model = {"id": file.model.id, "revision": file.model.revision}
    if arguments.model is not None:
        model = {"id": arguments.model}
    return model | {"trust_remote_code": bool(arguments.trust_remote_code)}


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add precision and placement."""
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], help="precision of the model")
    parser.add_argument("--attention", metavar="A", help="attention implementation of transformers")
    parser.add_argument("--device", metavar="D", help="torch device; default: a GPU if there is one")


def model_spec(arguments: argparse.Namespace, base: ModelSpec | None = None) -> ModelSpec:
    """The validated model that the arguments describe; they override the one of a specification."""
    names = {"model": "id", "revision": "revision", "original_length": "original_length"}
    names |= {name: name for name in ("dtype", "attention", "device", "trust_remote_code")}
    given = {key: getattr(arguments, name) for name, key in names.items() if getattr(arguments, name, None) is not None}
    described = (base.model_dump() if base else {}) | given
    job: JobSpec = parse_spec({"model": described, "data": ["-"], "target_length": 1})
    return job.model


def add_id_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``ID``."""
    parser.add_argument("id", metavar="ID", help="id of a job or plan, or the beginning of one")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def age(text: str) -> float:
    """The seconds of an age such as ``30d``, ``12h`` or ``90m``; a number alone counts days."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in AGE_UNITS else (text, "d")
    try:
        seconds = float(number) * AGE_UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_AGE_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age: a number with d, h or m, such as 30d")
    return seconds


def bytes_text(size: float) -> str:
    """A size with its unit, powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"

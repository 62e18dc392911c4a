"""``factor-search export``: factors for an inference engine."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.cli.arguments import add_json_argument, add_remote_code_argument, model_of_factors
from factor_search.errors import DataError, ModelError, OutputError, SpecError
from factor_search.export.registry import ENGINES, REFUSED, engine_named
from factor_search.export.verification.registry import installed_for
from factor_search.factors_file import read_factors
from factor_search.files.json_documents import read_json
from factor_search.measure.request import GivenDocuments, JobDocuments
from factor_search.spec import parse_spec
from factor_search.testbed.corpus import held_out_files

if TYPE_CHECKING:
    from factor_search.export.contract import Exported


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--factors", type=Path, required=True, metavar="F.json", help="a factors file")
    formats = "; ".join(f"{name}: {engine.writes}" for name, engine in ENGINES.items())
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        choices=[*ENGINES, *REFUSED],
        help=f"the engine's format ({formats})",
    )
    parser.add_argument("--model", metavar="M", help="the checkpoint; default: the one named in the factors file")
    add_remote_code_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="P",
        help="a folder or a file, as the format has it; ending in .json, only the part with the factors",
    )
    parser.add_argument(
        "--short-factors",
        type=Path,
        metavar="F.json",
        help="readjusted factors for inputs up to the original length; a key-value cache that grows beyond that length "
        "mixes keys rotated with different factors and is invalid",
    )
    parser.add_argument(
        "--nearest",
        action="store_true",
        help="write the nearest that the format can express, if it cannot express the factors themselves",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="D",
        help="documents on which to measure what the nearest costs; default: the held-out documents of the search, if "
        "its report.json is beside the factors file",
    )
    parser.add_argument("--documents", type=int, metavar="N", help="with --data: use the first N that are long enough")
    parser.add_argument(
        "--drop-initial-tokens", action="store_true", help="export as if no initial tokens kept the original RoPE"
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not load what was written, and do not let an installed engine score text with it",
    )
    add_json_argument(parser)
    parser.epilog = "A folder gets the configuration with the factors, and links to the weights instead of copies."
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, let the engine prove it if it is installed, and print the files' names."""
    from factor_search.interface import export_factors

    file = read_factors(arguments.factors)
    if arguments.drop_initial_tokens:
        file = file.model_copy(update={"initial_tokens": 0})
    engine_named(arguments.format)
    exported = export_factors(
        file,
        arguments.out,
        format=arguments.format,
        model=model_of_factors(arguments, file),
        short=read_factors(arguments.short_factors) if arguments.short_factors else None,
        nearest=arguments.nearest,
        measured_on=_documents(arguments),
        check=not arguments.no_check,
    )
    verifications = [] if arguments.no_check else _verify(arguments, exported)
    if arguments.json:
        described = {"files": [str(path) for path in exported.files], "command": exported.command}
        print(json.dumps(described | {"notes": list(exported.notes), "verified": verifications}))
        return 0
    print("\n".join(str(path) for path in exported.files))
    for line in [*exported.notes, *([f"load it with: {exported.command}"] if exported.command else [])]:
        print(line, file=sys.stderr)
    return 0


def _verify(arguments: argparse.Namespace, exported: "Exported") -> list[dict[str, Any]]:
    from factor_search.interface import verify_exported

    configuration_alone = exported.loaded.suffix == ".json" and ENGINES[arguments.format].document_name == "config.json"
    if configuration_alone or arguments.format == "huggingface" or not installed_for(arguments.format):
        return []
    names = ", ".join(scorer.name for scorer in installed_for(arguments.format))
    print(f"scoring text with {names} and transformers ...", file=sys.stderr, flush=True)
    try:
        verifications = verify_exported(
            exported, arguments.format, arguments.data or [str(file) for file in held_out_files()]
        )
    except DataError as error:
        print(f"not verified: {error}; give longer documents with --data", file=sys.stderr)
        return []
    except (ModelError, OutputError) as error:  # transformers does not read every model that an engine does
        print(f"not verified: {error}", file=sys.stderr)
        return []
    for verification in verifications:
        print(verification.table(), file=sys.stderr)
    return [verification.as_json() for verification in verifications]


def _documents(arguments: argparse.Namespace) -> GivenDocuments | JobDocuments | None:
    """Documents on which to measure what the nearest costs."""
    if arguments.data is not None:
        length = read_factors(arguments.factors).target_length
        return GivenDocuments(files=arguments.data, length=length, documents=arguments.documents)
    if arguments.documents is not None:
        raise SpecError("--documents is for the documents of --data: name some")
    report = arguments.factors.parent / "report.json"
    if not report.exists():
        return None
    try:
        return JobDocuments(spec=parse_spec(read_json(report, SpecError)["spec"], stored=True))
    except (SpecError, KeyError, TypeError):  # the report of something else
        return None

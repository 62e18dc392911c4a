"""``factor-search verify``: does an inference engine compute with the factors?"""

import argparse
import json
from pathlib import Path

from api.cli.arguments import add_json_argument, add_remote_code_argument, model_of_factors
from factor_search.export.verification.registry import SCORERS
from factor_search.factors_file import read_factors
from factor_search.testbed.corpus import held_out_files


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--factors", type=Path, required=True, metavar="F.json", help="a factors file")
    parser.add_argument("--engine", required=True, choices=list(SCORERS), help="an installed inference engine")
    parser.add_argument("--model", metavar="M", help="the checkpoint; default: the one named in the factors file")
    add_remote_code_argument(parser)
    parser.add_argument(
        "--exported",
        type=Path,
        metavar="P",
        help="the folder or file that was exported for the engine; default: export into a temporary folder",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="D",
        help="documents, of which the first that is long enough is scored; default: those of the demo",
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="tokens of text; default: a quarter more than the original length, up to the target length",
    )
    add_json_argument(parser)
    parser.epilog = (
        "Scores 32 positions of a text with the engine, and compares with transformers in float32 with the factors and "
        "without. The exit status is 1 if the engine computes something else, or if the text cannot tell."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score, compare and print."""
    from factor_search.export.verification.verify import Verdict
    from factor_search.interface import verify_factors

    file = read_factors(arguments.factors)
    verification = verify_factors(
        file,
        arguments.engine,
        arguments.data or [str(file) for file in held_out_files()],
        model=model_of_factors(arguments, file),
        exported=arguments.exported,
        length=arguments.length,
    )
    print(json.dumps(verification.as_json()) if arguments.json else verification.table())
    return 0 if verification.verdict in (Verdict.EQUAL, Verdict.CLOSE) else 1

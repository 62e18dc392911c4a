"""``factor-search demo``: a real search on the shipped model, from 256 to 2,048 tokens."""

import argparse
from pathlib import Path

from api.cli.arguments import Commands, add_json_argument
from api.cli.run import run
from factor_search.spec import parse_spec
from factor_search.testbed import CHECKPOINT
from factor_search.testbed.corpus import held_out_files


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="a search on the shipped model",
        description="Extend the shipped byte-level model from 256 to 2,048 tokens, on modules of the standard library "
        "that it was not trained on. Takes about two minutes on two cores.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-results"), metavar="DIR")
    parser.add_argument("--candidates", type=int, default=None, metavar="N", help="a shorter or longer search")
    add_json_argument(parser)
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo's specification."""
    code = run(parse_spec(specification(arguments.candidates)), arguments.out, arguments.json)
    if code == 0 and not arguments.json:
        print(
            "\nTo load them in plain transformers:\n"
            f"factor-search export --factors {arguments.out / 'factors.json'} --format huggingface --out extended"
        )
    return code


def specification(candidates: int | None) -> dict[str, object]:
    """What the demo searches, as a user would write it."""
    return {
        "name": "demo",
        "model": {"id": str(CHECKPOINT), "device": "cpu"},
        "data": {
            "files": [str(file) for file in held_out_files()],
            "search_documents": 2,
            "validation_documents": 6,
            "held_out_documents": 16,
        },
        "target_length": 2048,
        "space": {"initial_tokens": [0]},
        "budget": {"candidates": 300 if candidates is None else candidates},
    }

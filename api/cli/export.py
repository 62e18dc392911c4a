"""``factor-search export``: factors for an inference engine."""

import argparse
import json
from pathlib import Path

from api.cli.arguments import Commands, add_json_argument
from api.cli.inspect import EXPORT_FORMATS
from factor_search.export.huggingface import export_huggingface
from factor_search.factors_file import read_factors
from factor_search.model.loading import checkpoint_folder, load_config
from factor_search.spec import ModelSpec


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "export",
        help="write factors in an engine's format",
        description="Write a model folder whose configuration has the factors in it; weights are linked, not copied. "
        "With --out ending in .json, only the configuration.",
    )
    parser.add_argument("--factors", type=Path, required=True, metavar="F.json")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS)
    parser.add_argument("--model", metavar="M", help="the checkpoint; default: the one named in the factors file")
    parser.add_argument("--out", type=Path, required=True, metavar="P")
    parser.add_argument(
        "--short-factors",
        type=Path,
        metavar="F.json",
        help="readjusted factors for inputs up to the original length; a key-value cache that grows beyond it is wrong",
    )
    parser.add_argument(
        "--drop-initial-tokens", action="store_true", help="export as if no initial tokens kept the original RoPE"
    )
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export and name the files."""
    file = read_factors(arguments.factors)
    if arguments.drop_initial_tokens:
        file = file.model_copy(update={"initial_tokens": 0})
    spec = ModelSpec(id=arguments.model or file.model.id, revision=None if arguments.model else file.model.revision)
    config = load_config(spec)
    short = read_factors(arguments.short_factors) if arguments.short_factors else None
    written = export_huggingface(file, config, lambda: checkpoint_folder(spec), arguments.out, short)
    if arguments.json:
        print(json.dumps({"files": [str(path) for path in written]}))
    else:
        print("\n".join(str(path) for path in written))
    return 0

"""``factor-search export``: factors for an inference engine."""

import argparse
import json
from pathlib import Path

from api.cli.arguments import add_json_argument, add_remote_code_argument
from api.cli.inspect import EXPORT_FORMATS
from factor_search.factors_file import read_factors
from factor_search.spec import ModelSpec


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--factors", type=Path, required=True, metavar="F.json", help="a factors file")
    parser.add_argument("--format", required=True, choices=EXPORT_FORMATS, help="the engine's format")
    parser.add_argument("--model", metavar="M", help="the checkpoint; default: the one named in the factors file")
    add_remote_code_argument(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="P", help="a folder, or a file ending in .json for the configuration"
    )
    parser.add_argument(
        "--short-factors",
        type=Path,
        metavar="F.json",
        help="readjusted factors for inputs up to the original length; a key-value cache that grows beyond that length "
        "mixes keys rotated with different factors and is invalid",
    )
    parser.add_argument(
        "--drop-initial-tokens", action="store_true", help="export as if no initial tokens kept the original RoPE"
    )
    add_json_argument(parser)
    parser.epilog = "A folder gets the configuration with the factors, and links to the weights instead of copies."
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export and print the files' names."""
    from factor_search.export.huggingface import export_huggingface
    from factor_search.model.loading import checkpoint_folder, load_config

    file = read_factors(arguments.factors)
    if arguments.drop_initial_tokens:
        file = file.model_copy(update={"initial_tokens": 0})
    spec = ModelSpec(
        id=arguments.model or file.model.id,
        revision=None if arguments.model else file.model.revision,
        trust_remote_code=bool(arguments.trust_remote_code),
    )
    config = load_config(spec)
    short = read_factors(arguments.short_factors) if arguments.short_factors else None
    written = export_huggingface(file, config, lambda: checkpoint_folder(spec), arguments.out, short)
    if arguments.json:
        print(json.dumps({"files": [str(path) for path in written]}))
    else:
        print("\n".join(str(path) for path in written))
    return 0

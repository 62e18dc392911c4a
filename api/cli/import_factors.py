"""``factor-search import``: factors from a configuration, a published table, a list of numbers or a model file."""

import argparse
import json
from pathlib import Path

from api.cli.arguments import add_json_argument, add_model_arguments, model_spec
from factor_search.errors import SpecError
from factor_search.factors_file import FactorsFile
from factor_search.spec import ModelSpec


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a model folder, hub id or GGUF file, whose RoPE scaling is read; a config.json; a table with "
        "rescale_factors; or a list of numbers as JSON, CSV or .npy",
    )
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--target-length",
        type=int,
        metavar="L",
        help="context length in tokens that the factors are for; default: what SOURCE says. Up to the "
        "original length, the short factors of longrope are read",
    )
    parser.add_argument("--out", type=Path, metavar="F.json", help="the factors file to write")
    add_json_argument(parser)
    parser.epilog = (
        "Without --model the factors belong to the model that SOURCE describes, and the other options are about it."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, and write or print a factors file."""
    if arguments.out is None and not arguments.json:
        raise SpecError("nothing to do with the factors: give --out F.json, or --json to print them")
    if arguments.target_length is not None and arguments.target_length < 1:
        raise SpecError(f"--target-length is {arguments.target_length}: it is a number of tokens")
    from factor_search.export.reading import read_foreign

    described = model_spec(arguments, ModelSpec(id="-"))
    model = described if arguments.model else None
    origin = ModelSpec(id="-", trust_remote_code=described.trust_remote_code) if model else described
    file = read_foreign(arguments.source, model=model, target_length=arguments.target_length, origin=origin)
    if arguments.out is not None:
        file.write(arguments.out)
    if arguments.json:
        print(json.dumps(file.as_json()))
    else:
        print(f"{arguments.out}: {_summary(file)}")
    return 0


def _summary(file: FactorsFile) -> str:
    """What was read, in one line."""
    factors = file.rescale_factors
    lengths = f"{file.model.original_length:,} to {file.target_length:,} tokens"
    return (
        f"{len(factors)} rescale factors from {min(factors):g} to {max(factors):g}, attention factor "
        f"{file.attention_factor:g}, for {file.model.id} from {lengths}"
    )

"""``factor-search methods``: the closed forms for a model and target length."""

import argparse
import json

from api.cli.arguments import add_json_argument, add_model_arguments, model_spec
from factor_search.errors import SpecError
from factor_search.factors_file import FactorsModel, factors_file


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model_arguments(parser)
    parser.add_argument("--target-length", type=int, required=True, metavar="L", help="context length in tokens")
    parser.add_argument("--method", metavar="M", help="this one only; with --json, its factors file")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    from factor_search.methods import closed_form, closed_forms
    from factor_search.model.configuration import read_geometry
    from factor_search.model.loading import load_config

    spec = model_spec(arguments)
    geometry = read_geometry(load_config(spec), spec.original_length)
    target = arguments.target_length
    if target < geometry.original_length:
        raise SpecError(f"--target-length is {target}, below the model's original length of {geometry.original_length}")
    if arguments.method:
        chosen = {arguments.method: closed_form(arguments.method, geometry, target)}
    else:
        chosen = closed_forms(geometry, target)
    if arguments.json:
        model = FactorsModel.of(spec.id, spec.revision, geometry)
        files = {name: factors_file(factors, model, target).as_json() for name, factors in chosen.items()}
        print(json.dumps(files[arguments.method] if arguments.method else files))
        return 0
    print(f"{'pair':>5}{'wavelength':>12}" + "".join(f"{name:>14}" for name in chosen))
    for i, wavelength in enumerate(geometry.wavelengths):
        cells = "".join(f"{factors.rescale_factors[i]:>14.4f}" for factors in chosen.values())
        print(f"{i:>5}{wavelength:>12.4g}{cells}")
    print(f"{'attention':>17}" + "".join(f"{factors.attention_factor:>14.4f}" for factors in chosen.values()))
    return 0

"""``factor-search methods``: the closed forms for a model and target length."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence

from api.cli.arguments import add_json_argument, add_model_arguments, model_spec
from factor_search.errors import SpecError
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file

HEAD, COLUMN = 17, 18
"""Characters of the pair with its wavelength, and of a closed form."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model_arguments(parser)
    parser.add_argument("--target-length", type=int, required=True, metavar="L", help="context length in tokens")
    parser.add_argument("--method", metavar="M", help="this one only; with --json, its factors file")
    add_json_argument(parser)
    help_numbers = "with --json, also the numbers of YaRN or the base that give the factors, for engines without lists"
    parser.add_argument("--numbers", action="store_true", help=help_numbers)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    from factor_search.methods import closed_form, closed_forms, exact_numbers
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
    forms = {name: exact_numbers(one, geometry, target) if arguments.numbers else None for name, one in chosen.items()}
    if arguments.numbers and not arguments.json:
        raise SpecError("--numbers is for factors files: give --json too")
    if arguments.numbers and arguments.method and forms[arguments.method] is None:
        raise SpecError(
            f"{arguments.method} has no numbers of YaRN, nor a base, for this model: find the nearest with approximate"
        )
    if arguments.json:
        model = FactorsModel.of(spec.id, spec.revision, geometry)
        files = {name: factors_file(one, model, target, form=forms[name]).as_json() for name, one in chosen.items()}
        print(json.dumps(files[arguments.method] if arguments.method else files))
        return 0
    print("\n\n".join(_table(chosen, names, geometry.wavelengths) for names in _blocks(list(chosen))))
    return 0


def _blocks(names: list[str]) -> list[list[str]]:
    """As many columns beside each other as the terminal has room for; all of them where the output is no terminal."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    each = max(1, (room - HEAD) // COLUMN)
    return [names[start : start + each] for start in range(0, len(names), each)]


def _table(chosen: Mapping[str, Factors], names: Sequence[str], wavelengths: Sequence[float]) -> str:
    """Pairs in rows, closed forms in columns."""
    forms = [chosen[name] for name in names]
    lines = [f"{'pair':>5}{'wavelength':>12}" + "".join(f"{name:>{COLUMN}}" for name in names)]
    for i, wavelength in enumerate(wavelengths):
        lines.append(f"{i:>5}{wavelength:>12.4g}" + "".join(f"{one.rescale_factors[i]:>{COLUMN}.4f}" for one in forms))
    lines.append(f"{'attention':>{HEAD}}" + "".join(f"{one.attention_factor:>{COLUMN}.4f}" for one in forms))
    return "\n".join(lines)

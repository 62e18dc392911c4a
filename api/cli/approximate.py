"""``factor-search approximate``: the numbers of YaRN, or the base, that come nearest to found factors by loss."""

import argparse
from pathlib import Path
from typing import Any

from api.cli.arguments import add_json_argument, add_remote_code_argument, model_of_factors
from factor_search.errors import SpecError
from factor_search.factors_file import FactorsFile, read_factors
from factor_search.files.json_documents import read_json
from factor_search.spec import JobSpec, parse_spec, read_spec

CANDIDATES = 120
GIVEN = "given factors"
"""Their row in the table."""
COMPARED = ("none", "yarn")
"""Closed forms in the table, beside the factors themselves."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--factors", type=Path, required=True, metavar="F.json", help="the factors that were found")
    parser.add_argument(
        "--form", choices=["yarn", "base"], default="yarn", help="what the engine can read (default: yarn)"
    )
    parser.add_argument("--spec", type=Path, metavar="SPEC.json", help="take model and documents from a job")
    parser.add_argument("--model", metavar="M", help="default: the model in the factors file")
    parser.add_argument("--data", nargs="+", metavar="D", help="documents: files, globs or saved data sets")
    parser.add_argument(
        "--candidates", type=int, default=CANDIDATES, metavar="N", help=f"budget of the search (default: {CANDIDATES})"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_remote_code_argument(parser)
    add_json_argument(parser)
    parser.set_defaults(run=_run)
    parser.epilog = (
        "The table has the given factors as a row of their own: its difference to found is the price, in nats per "
        "token with its standard error. DIR/factors.json holds the numbers too, which export writes for engines that "
        "read no lists. Give --data, or --spec with the job that found the factors."
    )


def _run(arguments: argparse.Namespace) -> int:
    from api.cli.run import run

    status = run(specification(arguments), arguments.out, arguments.json)
    if status == 0 and not arguments.json:
        print(price(read_json(arguments.out / "report.json", SpecError)))
    return status


def price(report: dict[str, Any]) -> str:
    """Say how much worse the numbers are than the given factors, in a line."""
    row = next((row for row in report["results"] if row["is"] == GIVEN), None)
    if row is None or row["difference"] is None:
        return "the price is not known: the given factors have no finite loss here"
    if report["winner"] == GIVEN:
        return "the given factors have this form already: nothing is lost"
    error = row["difference_standard_error"]
    within = f" ± {error:.4f}" if error is not None else ""
    return f"price: {-row['difference']:+.4f}{within} nats per token more than the given factors, on held-out documents"


def specification(arguments: argparse.Namespace) -> JobSpec:
    """The search for the numbers.

    Raises:
        SpecError: neither documents nor a job are given, or both.
        FactorsError: the factors cannot be read.
    """
    if (arguments.data is None) == (arguments.spec is None):
        raise SpecError("give --data with documents, or --spec with a job that has them")
    file = read_factors(arguments.factors)
    base: dict[str, Any] = {"model": model_of_factors(arguments, file), "data": {"files": arguments.data}}
    if arguments.spec is not None:
        job = read_spec(arguments.spec).model_dump(mode="json")
        base = {name: job[name] for name in ("model", "data", "seed", "objective")}
        if arguments.model is not None:
            base["model"] |= {"id": arguments.model, "revision": None}
    scale = {"scale": file.scale} if file.target_length <= file.model.original_length else {}
    return parse_spec(
        base
        | {
            "name": f"{arguments.form} for {file.model.id}"[:100],
            "target_length": file.target_length,
            "space": {"form": arguments.form} | scale,
            "budget": arguments.candidates,
            "warm_start": {"factors": [known(file, str(arguments.factors))]},
            "baselines": list(COMPARED),
        }
    )


def known(file: FactorsFile, source: str) -> dict[str, Any]:
    """The factors as a start of the search and a row of its table."""
    return {
        "source": source,
        "rescale_factors": file.rescale_factors,
        "initial_tokens": file.initial_tokens,
        "attention_factor": file.attention_factor,
        "scale": file.scale,
        "rotary_dim": file.model.rotary_dim,
        "rope_theta": file.model.rope_theta,
        "compare_as": GIVEN,
    }

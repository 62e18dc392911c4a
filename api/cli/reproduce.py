"""``factor-search reproduce``: the figures of a publication, measured again."""

import argparse
import contextlib
import json
import sys
from dataclasses import replace

from api.cli.arguments import add_json_argument, add_no_hub_argument, add_remote_code_argument, model_spec
from factor_search.files.reading import reading_rules, under


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("publication", metavar="WHAT", help="a folder that publish wrote, or OWNER/NAME on the hub")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="D",
        help="files or globs among which the held-out documents are found by their hashes; not needed for a data set "
        "of the hub",
    )
    parser.add_argument("--model", metavar="M", help="your copy of the model; default: the one named, from the hub")
    parser.add_argument("--revision", metavar="R", help="of --model, on the hub")
    parser.add_argument("--device", metavar="D", help="torch device; default: a GPU if there is one")
    add_remote_code_argument(parser)
    add_no_hub_argument(parser)
    add_json_argument(parser)
    parser.epilog = "Exit status: 0 all figures are within their tolerance, 1 one is outside, or it cannot be measured."
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print claimed and measured figures."""
    from api.publishing.reproduction import claims_at, model_of, reproduce
    from factor_search.model.allocator import keep_freed_memory

    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        if arguments.no_hub:
            stack.enter_context(under(replace(reading_rules(), hub=False)))
        claims = claims_at(arguments.publication)
        if arguments.model is None and (arguments.revision or arguments.trust_remote_code):
            arguments.usage_error("--revision and --trust-remote-code go with --model")
        given = None if arguments.model is None else model_spec(arguments)
        model = model_of(claims, given)
        if arguments.device is not None:
            model = model.model_copy(update={"device": arguments.device})
        result = reproduce(claims, model, arguments.data, _announce)
    if arguments.json:
        print(json.dumps(result.as_json()))
    else:
        print(result.table())
    for key, (theirs, ours) in result.different.items():
        print(f"{key}: {theirs or 'unknown'} when published, {ours or 'unknown'} here", file=sys.stderr)
    return 0 if result.reproduced else 1


def _announce(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)

"""``factor-search evaluate``: perplexity of one set of factors, or how well they retrieve what is far away."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from api.cli.arguments import add_compute_arguments, add_json_argument, add_model_arguments, model_spec
from factor_search.errors import SpecError
from factor_search.factors_file import read_factors
from factor_search.measure.request import PARTS, TASKS, GivenDocuments, JobDocuments, MeasurementRequest
from factor_search.spec import RULER_TASKS, JobSpec, ModelSpec, NeedleSpec, RulerTask, read_spec

Value = TypeVar("Value")
TASKS_OF = {
    "lengths": ["passkey", "ruler"],
    "depths": ["passkey", "ruler"],
    "digits": ["needle", "passkey"],
    "seed": ["needle", "passkey", "ruler"],
    "stride": ["perplexity"],
    "ruler": ["ruler"],
    "chat": ["ruler"],
    "key_model": ["key-tokens"],
    "key_context": ["key-tokens"],
}
"""The tasks that an option belongs to."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_model_arguments(parser, required=False)
    parser.add_argument("--data", nargs="+", metavar="D", help="documents: files, globs or saved data sets")
    parser.add_argument("--length", type=int, metavar="L", help="context length in tokens")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--factors", type=Path, metavar="F.json", help="a factors file")
    which.add_argument(
        "--method", metavar="M", help="a closed form (see factor-search methods); default: the model as configured"
    )
    parser.add_argument("--documents", type=int, metavar="N", help="use the first N documents that are long enough")
    parser.add_argument("--stride", type=int, metavar="N", help="slide the window over whole documents by N tokens")
    parser.add_argument(
        "--task",
        default="perplexity",
        choices=TASKS,
        help="perplexity of all tokens; needle: perplexity of the answer to a question about a number hidden in each "
        "document; passkey: share of right answers, by length and depth; ruler: share of facts found in RULER's "
        "synthetic tasks; key-tokens: perplexity of tokens that need a long context (default: perplexity)",
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        metavar="L,L,...",
        help="with --task passkey or ruler: several lengths, with the same factors",
    )
    parser.add_argument(
        "--depths", type=int, metavar="N", help="with --task passkey or ruler: N depths from 0 to 1 (default: 5)"
    )
    parser.add_argument("--digits", type=int, metavar="N", help="of hidden numbers (default: needle 7, passkey 5)")
    parser.add_argument("--seed", type=int, metavar="N", help="of hidden numbers (default: 0)")
    ruler_help = f"with --task ruler: only these of {', '.join(RULER_TASKS)}"
    parser.add_argument("--ruler", type=_ruler_tasks, metavar="T,T,...", help=ruler_help)
    chat_help = "with --task ruler: ask in the chat template of the tokenizer"
    parser.add_argument("--chat", action="store_true", default=None, help=chat_help)
    key_help = "with --task key-tokens: the model that chooses them, which reads texts of the length"
    parser.add_argument("--key-model", metavar="M", help=key_help)
    near_help = "with --task key-tokens: tokens of the short context (default: 4096, at most half of the length)"
    parser.add_argument("--key-context", type=int, metavar="N", help=near_help)
    parser.add_argument("--column", default="text", help="column or JSON key of the text (default: text)")
    parser.add_argument("--split", default="validation", help="split of a saved data set (default: validation)")
    parser.add_argument("--spec", type=Path, metavar="SPEC.json", help="take model, documents and length from a job")
    parser.add_argument(
        "--part", default="held_out", choices=PARTS, help="with --spec: which of its documents (default: held_out)"
    )
    add_compute_arguments(parser)
    add_json_argument(parser)
    parser.epilog = (
        "Without --stride the first L tokens of each document are read. Give --model, --data and --length; or --spec "
        "and --part to measure on the documents of a job."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    _check_tasks(arguments)
    from factor_search.measure.measurement import measure
    from factor_search.model.allocator import keep_freed_memory

    keep_freed_memory()
    what = "documents" if arguments.task == "perplexity" else "samples"
    result = measure(_request(arguments), lambda lengths: _announce(lengths, what))
    print(json.dumps(result.as_json()) if arguments.json else result.table())
    return 0


def _announce(lengths: Sequence[int], what: str) -> None:
    print(f"evaluating {len(lengths)} {what} of up to {max(lengths):,} tokens ...", file=sys.stderr, flush=True)


def _ruler_tasks(text: str) -> list[RulerTask]:
    known, asked = {str(task): task for task in RULER_TASKS}, text.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(RULER_TASKS)}")
    return [known[name] for name in dict.fromkeys(asked)]


def _lengths(text: str) -> list[int]:
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, as in 256,512,1024") from None
    if lengths[0] < 2:
        raise argparse.ArgumentTypeError(f"{lengths[0]} is too short: a length is at least 2 tokens")
    return lengths


def _check_tasks(arguments: argparse.Namespace) -> None:
    """Refuse options that do not belong to the task.

    Raises:
        SpecError: naming the option.
    """
    for name, tasks in TASKS_OF.items():
        if getattr(arguments, name) is not None and arguments.task not in tasks:
            raise SpecError(f"--{name} goes with --task {' or '.join(tasks)}, not with {arguments.task}")
    if arguments.lengths and arguments.length is not None:
        raise SpecError("give either --length or --lengths")


def _request(arguments: argparse.Namespace) -> MeasurementRequest:
    spec = None if arguments.spec is None else read_spec(arguments.spec)
    optional = {name: getattr(arguments, name) for name in ("depths", "digits", "seed", "ruler", "chat", "key_context")}
    return _checked(
        MeasurementRequest,
        model=model_spec(arguments, spec.model if spec else None),
        documents=_given(arguments) if spec is None else _of_job(arguments, spec),
        task=arguments.task,
        factors=read_factors(arguments.factors) if arguments.factors else None,
        method=arguments.method,
        lengths=arguments.lengths or (),
        key_model=_key_model(arguments),
        **{name: value for name, value in optional.items() if value is not None},
    )


def _key_model(arguments: argparse.Namespace) -> ModelSpec | None:
    """The model that chooses key tokens; it computes like the other."""
    if arguments.key_model is None:
        return None
    names = {name: getattr(arguments, name) for name in ("dtype", "device", "attention", "trust_remote_code")}
    return ModelSpec(id=arguments.key_model, **{name: value for name, value in names.items() if value is not None})


def _checked(make: Callable[..., Value], **values: object) -> Value:
    """A value of a request; a field that it refuses is named like the option that set it."""
    try:
        return make(**values)
    except SpecError as error:
        field, space, rest = str(error).partition(" ")
        raise SpecError(f"--{field.replace('_', '-')}{space}{rest}") from None


def _given(arguments: argparse.Namespace) -> GivenDocuments:
    length = max(arguments.lengths or [0]) or arguments.length
    given = {"model": arguments.model, "data": arguments.data, "length": length}
    missing = [f"--{name}" for name, value in given.items() if not value]
    if missing:
        raise SpecError(f"{', '.join(missing)} missing: give --model, --data and --length, or --spec")
    return _checked(
        GivenDocuments,
        files=arguments.data,
        length=length,
        documents=arguments.documents,
        stride=arguments.stride,
        column=arguments.column,
        split=arguments.split,
    )


def _of_job(arguments: argparse.Namespace, spec: JobSpec) -> JobDocuments:
    said = ["data", "length", "documents", "stride", "seed"]
    if isinstance(spec.objective, NeedleSpec) and arguments.task == "needle":
        said.append("digits")
    useless = [f"--{name}" for name in said if getattr(arguments, name) is not None]
    if useless:
        raise SpecError(f"{', '.join(useless)} cannot be given with --spec, which says it already")
    return JobDocuments(spec=spec, part=arguments.part)

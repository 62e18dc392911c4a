"""``factor-search evaluate``: perplexity of one set of factors, or how they find what is far away."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.cli.arguments import Commands, add_compute_arguments, add_json_argument, add_model_arguments, model_spec
from factor_search.errors import SearchFailedError, SpecError
from factor_search.factors import Factors
from factor_search.factors_file import check_belongs, read_factors
from factor_search.measure.evaluation import OK
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.passkey import DIGITS, accuracy_by_cell, even_depths, passkey_accuracy, passkey_samples
from factor_search.measure.passkey import as_json as passkey_document
from factor_search.measure.passkey import table as passkey_table
from factor_search.methods import closed_form
from factor_search.model.allocator import keep_freed_memory
from factor_search.model.geometry import Geometry
from factor_search.model.injection import probe
from factor_search.model.loading import LoadedModel, load_model
from factor_search.spec import MEASURES, NeedleSpec, read_spec
from factor_search.text.documents import documents_from_files
from factor_search.text.needle import needle_samples
from factor_search.text.samples import (
    PARTS,
    Sample,
    SampleSet,
    check_vocabulary,
    distinct_tokens,
    first_samples,
    load_samples,
)
from factor_search.text.tokens import CachedTokenizer

TASKS = PERPLEXITY, NEEDLE, PASSKEY = "perplexity", "needle", "passkey"
DEPTHS = 5


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "evaluate",
        help="perplexity, or accuracy at finding a passkey, of given factors or of a closed form",
        description="Measure perplexity over the first L tokens of each document (with --stride: over whole documents, "
        "with a window of L tokens). --task needle hides a number in each document and measures the perplexity of the "
        "answer to a question for it; --task passkey counts right answers, by length and depth. Give --model, --data "
        "and --length; or --spec and --part to measure on the very documents of a job.",
    )
    add_model_arguments(parser, required=False)
    parser.add_argument("--data", nargs="+", metavar="D", help="files, globs or saved data sets")
    parser.add_argument("--length", type=int, metavar="L", help="tokens of context")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--factors", type=Path, metavar="F.json", help="a factors file")
    which.add_argument("--method", help="a closed form (see factor-search methods); default: the model as it is")
    parser.add_argument("--documents", type=int, metavar="N", help="use the first N long enough documents")
    parser.add_argument("--stride", type=int, help="slide the window by this many tokens")
    parser.add_argument("--task", default="perplexity", choices=TASKS, help="what to measure (default: perplexity)")
    parser.add_argument(
        "--lengths", type=_lengths, metavar="L,L,...", help="with --task passkey: several lengths, all with one factors"
    )
    parser.add_argument("--depths", type=int, metavar="N", help="with --task passkey: so many from 0 to 1 (default: 5)")
    parser.add_argument("--digits", type=int, metavar="N", help="of hidden numbers (default: needle 7, passkey 5)")
    parser.add_argument("--seed", type=int, metavar="N", help="of hidden numbers (default: 0)")
    parser.add_argument("--column", default="text", help="column or JSON key of the text")
    parser.add_argument("--split", default="validation", help="split of a saved data set")
    parser.add_argument("--spec", type=Path, metavar="SPEC.json", help="take model, documents and length from a job")
    parser.add_argument("--part", default="held_out", choices=PARTS, help="with --spec: which of its documents")
    add_compute_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Asked:
    """A model and documents, read."""

    loaded: LoadedModel
    documents: SampleSet
    length: int
    """Tokens of the window; with several lengths, the largest."""
    stride: int | None
    needle: NeedleSpec
    seed: int


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    keep_freed_memory()
    _check_options(arguments)
    asked = _from_job(arguments) if arguments.spec else _from_arguments(arguments)
    model = asked.loaded.model
    check_vocabulary(asked.documents, model.get_input_embeddings().num_embeddings)
    factors = _factors(arguments, asked.loaded.geometry, asked.length)
    if arguments.task == PASSKEY:
        return _passkey(arguments, asked, factors)
    samples = asked.documents
    if arguments.task == NEEDLE:
        tokenizer, options = CachedTokenizer(asked.loaded.tokenizer), asked.needle.model_dump(exclude={"kind"})
        samples = needle_samples(samples, tokenizer, length=asked.length, seed=asked.seed, **options)
    probe(model, asked.loaded.geometry)
    _announce(samples.samples, "documents" if arguments.task == PERPLEXITY else "samples")
    with LocalEvaluator(asked.loaded, asked.length, asked.stride) as evaluator:
        evaluation = evaluator.evaluate(factors, samples)
    if evaluation.outcome != OK:
        raise SearchFailedError(f"the evaluation ended as {evaluation.outcome.replace('_', ' ')}")
    summary = evaluation.summary
    error = None if len(evaluation.losses) == 1 else summary.standard_error
    if arguments.json:
        figures: dict[str, Any] = {"perplexity": summary.perplexity, "standard_error": error}
        if arguments.task == NEEDLE:
            figures = {"task": NEEDLE, "answer_perplexity": summary.perplexity, "standard_error": error}
        counts = {"tokens": summary.tokens, "documents": summary.documents}
        print(json.dumps({**figures, **counts, "factors": factors.as_json()}))
    else:
        plus_minus = "" if error is None else f" ± {error:.4f} (standard error)"
        print(
            f"{MEASURES[arguments.task]} {summary.perplexity:.6f}{plus_minus}, {summary.documents} documents, "
            f"{summary.tokens:,} tokens"
        )
    return 0


def _passkey(arguments: argparse.Namespace, asked: _Asked, factors: Factors) -> int:
    lengths = arguments.lengths or [asked.length]
    needles = passkey_samples(
        asked.documents,
        CachedTokenizer(asked.loaded.tokenizer),
        lengths=lengths,
        depths=even_depths(DEPTHS if arguments.depths is None else arguments.depths),
        digits=arguments.digits or DIGITS,
        seed=asked.seed,
    )
    probe(asked.loaded.model, asked.loaded.geometry)
    samples = [needle.sample for needle in needles]
    _announce(samples, "samples")
    cells = accuracy_by_cell(needles, passkey_accuracy(asked.loaded, factors, samples))
    if arguments.json:
        print(json.dumps({"task": PASSKEY, **passkey_document(cells), "factors": factors.as_json()}))
    else:
        print(passkey_table(cells))
    return 0


def _announce(samples: Sequence[Sample], what: str) -> None:
    longest = max(len(sample.tokens) for sample in samples)
    print(f"evaluating {len(samples)} {what} of up to {longest:,} tokens ...", file=sys.stderr, flush=True)


def _lengths(text: str) -> list[int]:
    """The argument of ``--lengths``."""
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, as in 256,512,1024") from None
    if lengths[0] < 2:
        raise argparse.ArgumentTypeError(f"{lengths[0]} is no length: it must be at least 2")
    return lengths


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what does not go with the task, or is out of range.

    Raises:
        SpecError: naming the option.
    """
    belongs = {"lengths": (PASSKEY,), "depths": (PASSKEY,), "digits": (NEEDLE, PASSKEY), "seed": (NEEDLE, PASSKEY)}
    belongs |= {"stride": (PERPLEXITY,)}
    for name, tasks in belongs.items():
        if getattr(arguments, name) is not None and arguments.task not in tasks:
            raise SpecError(f"--{name} goes with --task {' or '.join(tasks)}, not with {arguments.task}")
    if arguments.lengths and arguments.length is not None:
        raise SpecError("give either --length or --lengths")
    ranges = {"depths": (1, 1000), "digits": (2, 15), "seed": (0, 2**53 - 1)}
    for name, (least, most) in ranges.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise SpecError(f"--{name} is {value}: it must be between {least} and {most}")


def _from_arguments(arguments: argparse.Namespace) -> _Asked:
    length, stride = max(arguments.lengths or [0]) or arguments.length, arguments.stride
    given = {"model": arguments.model, "data": arguments.data, "length": length}
    missing = [f"--{name}" for name, value in given.items() if not value]
    if missing:
        raise SpecError(f"{', '.join(missing)} missing: give --model, --data and --length, or --spec")
    for name, value, least in (("length", length, 2), ("documents", arguments.documents, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise SpecError(f"--{name} is {value}: it must be at least {least}")
    if stride is not None and stride > length:
        raise SpecError(f"--stride is {stride}, beyond --length {length}")
    loaded = load_model(model_spec(arguments))
    documents = documents_from_files(arguments.data, arguments.column, arguments.split)
    tokenize = CachedTokenizer(loaded.tokenizer)
    samples = first_samples(documents, tokenize, length, arguments.documents, whole=stride is not None)
    needle = NeedleSpec() if arguments.digits is None else NeedleSpec(digits=arguments.digits)
    return _Asked(loaded, samples, length, stride, needle, arguments.seed or 0)


def _from_job(arguments: argparse.Namespace) -> _Asked:
    said = ["data", "length", "documents", "stride", "seed"]
    spec = read_spec(arguments.spec)
    if isinstance(spec.objective, NeedleSpec) and arguments.task == NEEDLE:
        said.append("digits")
    useless = [f"--{name}" for name in said if getattr(arguments, name) is not None]
    if useless:
        raise SpecError(f"{', '.join(useless)} cannot be given with --spec, which says it already")
    longest = max(arguments.lengths or [spec.target_length])
    if longest > spec.target_length:
        raise SpecError(f"--lengths goes up to {longest}, beyond the target length of {spec.target_length} tokens")
    loaded = load_model(model_spec(arguments, spec.model))
    stride = spec.stride if arguments.task == PERPLEXITY else None
    tokenize = CachedTokenizer(loaded.tokenizer)
    samples = load_samples(
        spec.data,
        tokenize,
        spec.target_length,
        seed=spec.seed,
        whole=stride is not None,
        distinct=distinct_tokens(spec.data, loaded.geometry.original_length),
    )
    if stride is not None and spec.tokens_scored is not None:
        samples = samples.cut(spec.tokens_scored)
    chosen: SampleSet = getattr(samples, arguments.part)
    needle = NeedleSpec() if arguments.digits is None else NeedleSpec(digits=arguments.digits)
    needle = spec.objective if isinstance(spec.objective, NeedleSpec) else needle
    return _Asked(loaded, chosen, spec.target_length, stride, needle, spec.seed)


def _factors(arguments: argparse.Namespace, geometry: Geometry, length: int) -> Factors:
    if arguments.factors:
        file = read_factors(arguments.factors)
        check_belongs(file, geometry)
        return file.factors
    if arguments.method:
        return closed_form(arguments.method, geometry, length)
    return geometry.configured_factors(length) or closed_form("none", geometry, length)

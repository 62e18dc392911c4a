"""``factor-search evaluate``: perplexity of one set of factors."""

import argparse
import json
import sys
from pathlib import Path

from api.cli.arguments import Commands, add_compute_arguments, add_json_argument, add_model_arguments, model_spec
from factor_search.allocator import keep_freed_memory
from factor_search.documents import documents_from_files
from factor_search.errors import SearchFailedError, SpecError
from factor_search.evaluation import OK, LocalEvaluator
from factor_search.factors import Factors
from factor_search.factors_file import check_belongs, read_factors
from factor_search.geometry import Geometry
from factor_search.injection import probe
from factor_search.methods import closed_form
from factor_search.models import LoadedModel, load_model
from factor_search.samples import PARTS, SampleSet, check_vocabulary, first_samples, load_samples
from factor_search.spec import read_spec
from factor_search.tokens import CachedTokenizer


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "evaluate",
        help="perplexity of given factors or of a closed form",
        description="Measure perplexity over the first L tokens of each document (with --stride: over whole documents, "
        "with a window of L tokens). Give --model, --data and --length; or --spec and --part to measure on the very "
        "documents of a job.",
    )
    add_model_arguments(parser, required=False)
    parser.add_argument("--data", nargs="+", metavar="D", help="files, globs or saved data sets")
    parser.add_argument("--length", type=int, metavar="L", help="tokens of context")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--factors", type=Path, metavar="F.json", help="a factors file")
    which.add_argument("--method", help="a closed form (see factor-search methods); default: the model as it is")
    parser.add_argument("--documents", type=int, metavar="N", help="use the first N long enough documents")
    parser.add_argument("--stride", type=int, help="slide the window by this many tokens")
    parser.add_argument("--column", default="text", help="column or JSON key of the text")
    parser.add_argument("--split", default="validation", help="split of a saved data set")
    parser.add_argument("--spec", type=Path, metavar="SPEC.json", help="take model, documents and length from a job")
    parser.add_argument("--part", default="held_out", choices=PARTS, help="with --spec: which of its documents")
    add_compute_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    keep_freed_memory()
    loaded, samples, length, stride = _from_job(arguments) if arguments.spec else _from_arguments(arguments)
    check_vocabulary(samples, loaded.model.get_input_embeddings().num_embeddings)
    probe(loaded.model, loaded.geometry)
    factors = _factors(arguments, loaded.geometry, length)
    count, longest = len(samples.samples), max(len(sample.tokens) for sample in samples.samples)
    print(f"evaluating {count} documents of up to {longest:,} tokens ...", file=sys.stderr, flush=True)
    with LocalEvaluator(loaded, length, stride) as evaluator:
        evaluation = evaluator.evaluate(factors, samples)
    if evaluation.outcome != OK:
        raise SearchFailedError(f"the evaluation ended as {evaluation.outcome.replace('_', ' ')}")
    summary = evaluation.summary
    error = None if len(evaluation.losses) == 1 else summary.standard_error
    if arguments.json:
        figures = {"perplexity": summary.perplexity, "standard_error": error}
        counts = {"tokens": summary.tokens, "documents": summary.documents}
        print(json.dumps({**figures, **counts, "factors": factors.as_json()}))
    else:
        plus_minus = "" if error is None else f" ± {error:.4f} (standard error)"
        print(
            f"perplexity {summary.perplexity:.6f}{plus_minus}, {summary.documents} documents, {summary.tokens:,} tokens"
        )
    return 0


def _from_arguments(arguments: argparse.Namespace) -> tuple[LoadedModel, SampleSet, int, int | None]:
    missing = [f"--{name}" for name in ("model", "data", "length") if not getattr(arguments, name)]
    if missing:
        raise SpecError(f"{', '.join(missing)} missing: give --model, --data and --length, or --spec")
    length, stride = arguments.length, arguments.stride
    for name, value, least in (("length", length, 2), ("documents", arguments.documents, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise SpecError(f"--{name} is {value}: it must be at least {least}")
    if stride is not None and stride > length:
        raise SpecError(f"--stride is {stride}, beyond --length {length}")
    loaded = load_model(model_spec(arguments))
    documents = documents_from_files(arguments.data, arguments.column, arguments.split)
    tokenize = CachedTokenizer(loaded.tokenizer)
    samples = first_samples(documents, tokenize, length, arguments.documents, whole=stride is not None)
    return loaded, samples, length, stride


def _from_job(arguments: argparse.Namespace) -> tuple[LoadedModel, SampleSet, int, int | None]:
    useless = [
        f"--{name}" for name in ("data", "length", "documents", "stride") if getattr(arguments, name) is not None
    ]
    if useless:
        raise SpecError(f"{', '.join(useless)} cannot be given with --spec, which says it already")
    spec = read_spec(arguments.spec)
    loaded = load_model(model_spec(arguments, spec.model))
    whole = spec.stride is not None
    tokenize = CachedTokenizer(loaded.tokenizer)
    samples = load_samples(spec.data, tokenize, spec.target_length, seed=spec.seed, whole=whole)
    chosen: SampleSet = getattr(samples, arguments.part)
    return loaded, chosen, spec.target_length, spec.stride


def _factors(arguments: argparse.Namespace, geometry: Geometry, length: int) -> Factors:
    if arguments.factors:
        file = read_factors(arguments.factors)
        check_belongs(file, geometry)
        return file.factors
    if arguments.method:
        return closed_form(arguments.method, geometry, length)
    return geometry.configured_factors(length) or closed_form("none", geometry, length)

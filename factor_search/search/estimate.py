"""Estimates tokens, time and memory of a search job before it starts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from factor_search.files.canonical_json import finite
from factor_search.measure.windows import sliding_windows
from factor_search.model.losses import rows_per_pass
from factor_search.model.memory import MARGIN, Memory, evaluation_memory, largest_length
from factor_search.model.size import ModelSize, Operations
from factor_search.model.speed import Speed
from factor_search.search.estimate_text import size_text
from factor_search.search.guard import OTHER_WINDOWS, SEARCH_WINDOWS
from factor_search.search.selection import FINALISTS
from factor_search.search.shares import USUAL_CANDIDATES, at_a_time, most_candidates, usual_share
from factor_search.search.short_texts import DOCUMENTS, windows_of
from factor_search.spec import JobSpec, NeedleSpec
from factor_search.text.samples import PARTS, Sample, Samples, SampleSet

ANSWER_TOKENS = 8
"""Usual tokens of a needle's answer."""
ASSUMED_WINDOWS = 4
"""Windows of the target length in a document of unknown length, where the window slides over whole documents."""
LOADED_BYTES = 5e8
"""Bytes of weights that are loaded in a second, and at the start of a file."""
DEQUANTISED = 2e7
"""Weights of a GGUF file that are converted in a second."""
START_SECONDS = 1.0
"""To check a model, and to load its tokenizer."""
READ_TOKENS = 2e5
"""Tokens that are read from documents in a second; what the cache has takes no time."""


@dataclass(frozen=True)
class Cost:
    """Of evaluating one candidate on some documents."""

    tokens: float
    """Tokens scored, as budgets and reports count them."""
    operations: Operations
    seconds: float | None

    def __add__(self, other: "Cost") -> "Cost":
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Cost(self.tokens + other.tokens, self.operations + other.operations, seconds)

    def each(self, count: float) -> "Cost":
        """The cost of as many evaluations, one after the other."""
        seconds = None if self.seconds is None else self.seconds * count
        return Cost(self.tokens * count, self.operations * count, seconds)

    def times(self, count: float, workers: float = 1.0) -> dict[str, Any]:
        """The cost of several evaluations as JSON."""
        seconds = None if self.seconds is None else self.seconds * count / workers
        return {"evaluations": round(count, 1), "tokens": round(self.tokens * count), "seconds": seconds}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the model and of what computes with it."""

    size: ModelSize | None
    """None if its configuration does not say."""
    speed: Speed | None
    available: int | None = None
    """Bytes of memory that a worker can use; None if that is not known."""
    workers: int = 1
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """Kind of device."""
        return "cpu" if self.speed is None else self.speed.device.partition(",")[0]

    def cost(self, passes: Sequence[tuple[int, int]], tokens: float) -> Cost:
        """The cost of forward passes, each with its tokens and the positions that are scored."""
        operations = Operations(0.0, 0.0)
        if self.size is not None:
            for length, scored in passes:
                operations += self.size.operations(length, scored)
        seconds = None if self.speed is None or self.size is None else self.speed.seconds(operations)
        return Cost(tokens, operations, seconds)

    def memory(self, tokens: int) -> Memory | None:
        """The memory of an evaluation in windows of so many tokens."""
        if self.size is None:
            return None
        rows = rows_per_pass(tokens, self.device)
        return evaluation_memory(self.size, tokens, rows=rows, device=self.device)


def estimate_search(
    spec: JobSpec,
    known: Known,
    methods: int,
    samples: Samples | None,
    elapsed: float | None = None,
    *,
    original_length: int,
) -> dict[str, Any]:
    """Estimate a search job.

    The search costs candidates x usual share x one full evaluation (:mod:`factor_search.search.shares`), unless its
    budget of tokens or seconds is reached before. Then the finalists and the closed forms are evaluated on the
    validation documents, and the winner and the closed forms on the held-out ones; short texts are compared with the
    untouched model, whose predictions are computed each time.

    Args:
        spec: the job.
        known: the model's size, and the speed.
        methods: closed forms that are compared with.
        samples: the documents; None if they were not read.
        elapsed: seconds in which workers started and loaded the model, once they have; None estimates the loading.
        original_length: of the model, in tokens.

    Returns:
        A JSON document; parts that are not known are null.
    """
    notes = list(known.notes)
    counts = {"search": spec.data.search_documents, "validation": spec.data.validation_documents}
    counts |= {"held_out": spec.data.held_out_documents}
    costs = {
        part: _part(spec, known, None if samples is None else getattr(samples, part), n) for part, n in counts.items()
    }
    evaluation = costs["search"]
    if spec.short_window is not None:
        windows = _windows(known, original_length, spec.target_length, SEARCH_WINDOWS)
        evaluation += windows.each(counts["search"])
    candidates, full, reason = _length_of_search(spec, evaluation)
    notes += [] if reason is None else [reason]
    workers = _speed_up(spec, known.workers)
    search = evaluation.times(full, workers) | {"candidates": round(candidates), "full_evaluations": round(full, 1)}
    del search["evaluations"]
    validation = costs["validation"].times(methods + FINALISTS, known.workers)
    held_out = costs["held_out"].times(methods + (1 if spec.short_window is None else 2), known.workers)
    short = min(original_length, spec.target_length)
    divergence = known.cost([(short, short - 1)] * 2, short - 1)
    parts = [search, validation, held_out]
    parts.append(divergence.times(methods * min(DOCUMENTS, counts["held_out"]), known.workers))
    if spec.short_window is not None:
        others = (methods + FINALISTS) * counts["validation"] + 2 * counts["held_out"]
        parts.append(_windows(known, short, spec.target_length, OTHER_WINDOWS).times(others, known.workers))
    if isinstance(spec.objective, NeedleSpec):
        plain = spec.model_copy(update={"objective": type(spec).model_fields["objective"].default})
        text = None if samples is None else samples.held_out_text
        parts.append(_part(plain, known, text, counts["held_out"]).times(methods + 1, known.workers))
    loading = elapsed
    if loading is None:
        loading = loading_seconds(known.size, 0 if samples else sum(counts.values()) * spec.target_length)
    return {
        "documents": None if samples is None else described(samples),
        "evaluation": _evaluation(evaluation),
        **fitting(spec.target_length, known),
        "search": search,
        "validation": validation,
        "held_out": held_out,
        "loading": {"seconds": loading},
        "total": added([*parts, {"tokens": 0, "seconds": loading}]),
        "speed": speed_shown(known, evaluation),
        "workers": known.workers,
        "notes": notes,
    }


def fitting(tokens: int, known: Known) -> dict[str, Any]:
    """Say whether an evaluation fits into memory.

    Returns:
        ``memory`` and ``fits``; if it does not, ``largest_length``, of the longest window below this one that would,
        and ``too_large``, which says in words what is too large. Each is null if unknown.
    """
    memory = known.memory(tokens)
    found = fit_of(memory, known)
    if memory is None or known.size is None or known.available is None or found["fits"] is not False:
        return found
    largest = largest_length(known.size, known.available, tokens, device=known.device)
    if memory.loaded > known.available:
        reason = f"the libraries and the weights alone need about {size_text(memory.loaded)}"
    elif largest is None:
        reason = "no shorter target_length would fit, since more windows are evaluated at once then"
    else:
        reason = f"the largest target_length that would fit is {largest:,} tokens"
    return found | {"largest_length": largest, "too_large": reason}


def fit_of(memory: Memory | None, known: Known) -> dict[str, Any]:
    """Say whether work of known memory fits; see :func:`fitting`."""
    found: dict[str, Any] = {"memory": None, "fits": None, "largest_length": None, "too_large": None}
    shown: dict[str, int | None] = dict.fromkeys(MEMORY)
    if memory is None:
        return found | {"memory": None if known.available is None else shown | {"available": known.available}}
    fits = None if known.available is None else memory.peak <= MARGIN * known.available
    shown = {"weights": memory.weights, "activations": memory.activations, "peak": memory.peak}
    return found | {"memory": shown | {"available": known.available}, "fits": fits}


MEMORY = ("weights", "activations", "peak")


def added(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tokens and seconds of several parts together; null where one of them is."""
    seconds = [part["seconds"] for part in parts]
    return {
        "tokens": sum(part["tokens"] for part in parts),
        "seconds": None if any(one is None for one in seconds) else math.fsum(seconds),
    }


def described(samples: Samples) -> dict[str, list[dict[str, Any]]]:
    """The documents of each part, with the tokens that are read of each."""
    return {
        part: [{"file": one.source, "tokens": len(one.tokens)} for one in getattr(samples, part).samples]
        for part in PARTS
    }


def speed_shown(known: Known, evaluation: Cost) -> dict[str, Any] | None:
    """The speed as JSON: tokens scored in a second by one worker, and where the figure is from."""
    if known.speed is None:
        return None
    rate = None if not evaluation.seconds else finite(evaluation.tokens / evaluation.seconds)
    speed = known.speed
    return {
        "device": speed.device,
        "tokens_per_second": rate,
        "calibrated": speed.calibrated,
        "source": speed.source,
    }


def _evaluation(cost: Cost) -> dict[str, Any]:
    operations = cost.operations.total or None
    return {"tokens": round(cost.tokens), "operations": operations, "seconds": cost.seconds}


def _part(spec: JobSpec, known: Known, samples: SampleSet | None, documents: int) -> Cost:
    """The cost of one candidate on one part of the documents."""
    if samples is not None:
        passes = [one for sample in samples.samples for one in _passes(sample, spec.target_length, spec.stride)]
        return known.cost([(length, positions) for length, positions, _ in passes], sum(one for *_, one in passes))
    length, windows, each = spec.target_length, 1.0, spec.target_length - 1.0
    positions = length - 1
    if isinstance(spec.objective, NeedleSpec):
        positions, documents, each = ANSWER_TOKENS, documents * spec.objective.repeats, float(ANSWER_TOKENS)
    elif spec.stride is not None:
        whole = spec.tokens_scored or ASSUMED_WINDOWS * length
        windows, each = 1 + max(whole - length, 0) / spec.stride, whole - 1.0
    one = known.cost([(length, positions)], each).each(documents)
    return Cost(one.tokens, one.operations * windows, None if one.seconds is None else one.seconds * windows)


def _windows(known: Known, length: int, target_length: int, most: int) -> Cost:
    """The cost of one candidate in the short windows of one document."""
    each = windows_of(target_length, length, most)
    return known.cost([(length, length - 1)] * each, each * (length - 1))


def _passes(sample: Sample, length: int, stride: int | None) -> Iterator[tuple[int, int, int]]:
    """The forward passes of a sample: tokens, positions with logits, and tokens scored."""
    for window in sliding_windows(len(sample.tokens), length, stride, sample.prefix):
        tokens = window.stop - window.start
        if sample.scored is None:
            yield tokens, tokens - 1, window.stop - window.scored
        elif inside := sum(window.scored <= position < window.stop for position in sample.scored):
            yield tokens, inside, inside


def _length_of_search(spec: JobSpec, evaluation: Cost) -> tuple[float, float, str | None]:
    """Candidates and full evaluations of a search, and what was assumed."""
    budget, candidates, assumed = spec.budget, most_candidates(spec), None
    limits = []
    if budget.tokens is not None:
        limits.append(budget.tokens / max(evaluation.tokens, 1.0))
    if budget.seconds is not None and evaluation.seconds:
        limits.append(budget.seconds / evaluation.seconds)
    if math.isinf(candidates) and not limits:
        candidates = USUAL_CANDIDATES
        assumed = f"the budget does not say how long the search is: {USUAL_CANDIDATES} candidates are assumed"
    full = min([candidates * usual_share(spec, candidates), *limits])
    if math.isinf(candidates) or full < candidates * usual_share(spec, candidates):
        candidates = full / usual_share(spec, full)
    return candidates, full, assumed


def _speed_up(spec: JobSpec, workers: int) -> float:
    """How many times faster a search is with several workers, which wait for each other at the end of a generation."""
    together = at_a_time(spec)
    return together / math.ceil(together / max(workers, 1))


def loading_seconds(size: ModelSize | None, unread: int = 0) -> float | None:
    """Return the seconds to start, to load a model and to read so many tokens of documents; None if it is unknown."""
    if size is None:
        return None
    weights = size.parameters * size.bytes_each / LOADED_BYTES
    if size.stored == "gguf":
        weights = size.parameters / DEQUANTISED
    return START_SECONDS + weights + unread / READ_TOKENS

"""Measures the figures of a publication again, on the same documents, and compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from api.publishing.card import FACTORS
from api.publishing.claims import DIFFERENCE, HELD_OUT, NAME, SHORT, TEXT, Claims, Figure, Tolerance, What, read_claims
from api.publishing.hub import downloaded
from api.publishing.privacy import HIDDEN
from factor_search.errors import DataError, FactorsError, OutputError, SearchFailedError, SpecError
from factor_search.factors_file import read_factors
from factor_search.measure.evaluation import OK, Evaluation
from factor_search.measure.statistics import paired_difference
from factor_search.report.document import FOUND
from factor_search.spec import ModelSpec, NeedleSpec

if TYPE_CHECKING:
    from factor_search.model.loading import LoadedModel
    from factor_search.text.samples import SampleSet

OWN_KERNELS = frozenset({"auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"})
"""Attention implementations that no code of the hub comes with."""
SHOWN = 5
Measured = Mapping[tuple[What, str], float]
Watch = Callable[[str], None]


class Verdict(StrEnum):
    """What the second measurement of a figure shows."""

    EQUAL = "equal"
    """To the last bit."""
    WITHIN = "within tolerance"
    OUTSIDE = "outside tolerance"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure, claimed and measured."""

    claimed: Figure
    measured: float
    off: float
    """How much more was measured, in nats per token."""
    tolerance: float
    """In nats per token."""

    @property
    def verdict(self) -> Verdict:
        """Whether the two are the same."""
        if self.measured == self.claimed.value:
            return Verdict.EQUAL
        return Verdict.WITHIN if abs(self.off) <= self.tolerance else Verdict.OUTSIDE  # NaN is outside


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Every claimed figure, measured again."""

    figures: Sequence[Compared]
    different: Mapping[str, tuple[str | None, str | None]]
    """What differs of model, device and releases: as claimed, and here."""

    @property
    def reproduced(self) -> bool:
        """Whether no figure is outside its tolerance."""
        return all(one.verdict != Verdict.OUTSIDE for one in self.figures)

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        figures = [
            {
                "what": one.claimed.what,
                "of": one.claimed.of,
                "claimed": one.claimed.value,
                "measured": one.measured,
                "difference_nats": one.off,
                "tolerance_nats": one.tolerance,
                "verdict": one.verdict,
            }
            for one in self.figures
        ]
        different = {key: {"claimed": theirs, "here": ours} for key, (theirs, ours) in self.different.items()}
        return {"reproduced": self.reproduced, "different": different, "figures": figures}

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'':40}{'claimed':>14}{'measured':>14}{'nats':>12}  verdict"]
        for one in self.figures:
            name = f"{one.claimed.what}, {one.claimed.of}"
            lines.append(
                f"{name:40}{one.claimed.value:14.6f}{one.measured:14.6f}{one.off:+12.1e}  {one.verdict}"
                + (f" ({one.tolerance:.1e})" if one.verdict != Verdict.EQUAL else "")
            )
        outside = sum(one.verdict == Verdict.OUTSIDE for one in self.figures)
        said = f"{outside} of {len(self.figures)} figures are outside their tolerance" if outside else "all reproduced"
        return "\n".join([*lines, said])


def claims_at(where: str) -> Claims:
    """The claims of a folder, or of a repository on the hub; its ``factors.json`` must be the one that they are of.

    Raises:
        OutputError: there are none.
        FactorsError: ``factors.json`` is another.
    """
    folder = Path(where)
    if folder.is_dir():
        file, factors = folder / NAME, folder / FACTORS
        if not file.is_file():
            raise OutputError(f"{folder} has no {NAME}: give a folder that publish wrote, or OWNER/NAME on the hub")
    else:
        file, factors = downloaded(where, NAME), downloaded(where, FACTORS)
    claims, found = read_claims(file), read_factors(factors)
    if found.as_json()["sha256"] != claims.factors_sha256 or found.factors != claims.candidates[FOUND].factors:
        raise FactorsError(f"{factors} is not the file that {NAME} was written for: one of them was changed")
    return claims


def model_of(claims: Claims, given: ModelSpec | None) -> ModelSpec:
    """The model on which to measure, with the precision and the attention of the claims.

    Args:
        claims: of anyone, so that they may not choose a file, or code of the hub.
        given: by the user; None is the one that the claims name on the hub.

    Raises:
        SpecError: the claims name none on the hub; or the attention is code of the hub.
    """
    from factor_search.model.checkpoint_files import check_hub_id, is_local

    model = claims.spec.model
    if given is None:
        if "/" not in model.id or is_local(model.id):
            raise SpecError(f"the figures are of a local model, {model.id[:200]!r}: give your copy of it with --model")
        check_hub_id(model.id)
    elif is_local(given.id):
        model = model.model_copy(update={"revision": None})
    if model.attention not in OWN_KERNELS and not (given and given.trust_remote_code):
        raise SpecError(
            f"attention {model.attention[:100]!r} is code of the hub: read it, then give --model and "
            "--trust-remote-code"
        )
    if given is None:
        return model.model_copy(update={"trust_remote_code": False, "device": "auto"})
    chosen = {"id": given.id, "trust_remote_code": given.trust_remote_code, "device": given.device}
    return model.model_copy(update=chosen | ({"revision": given.revision} if given.revision else {}))


def reproduce(
    claims: Claims, model: ModelSpec, files: Sequence[str] | None, watch: Watch = lambda text: None
) -> Reproduction:
    """Measure all claimed figures again.

    What the claims tolerate counts only as far as rounding explains it, since they come from anyone.

    Args:
        claims: of a publication.
        model: see :func:`model_of`.
        files: documents, among which the held-out ones are found by their hashes; None where they are on the hub.
        watch: called with what is done now.

    Raises:
        DataError: held-out documents are not among the files; says which.
        ModelError: the model cannot be loaded, or factors cannot act on it.
        FactorsError: the factors belong to another model, or short-context degradation cannot be measured on this one.
        SearchFailedError: an evaluation failed.
    """
    from factor_search.measure.evaluator import LocalEvaluator
    from factor_search.model.injection import probe
    from factor_search.model.loading import load_model

    if files is None and claims.spec.data.dataset is None:
        raise DataError(f"give the documents with --data: {_listed([one.name for one in claims.documents])}")
    watch(f"loading {model.id}")
    loaded = load_model(model)
    probe(loaded.model, loaded.geometry)
    watch("looking for the documents")
    text = held_out_text(claims, loaded, files)
    parts: dict[What, SampleSet] = {HELD_OUT: text}
    if isinstance(claims.spec.objective, NeedleSpec):
        parts = {HELD_OUT: _with_needles(claims, loaded, text), TEXT: text}
    found: dict[What, dict[str, Evaluation]] = {}
    with LocalEvaluator(loaded, claims.spec.target_length, claims.spec.stride) as evaluator:
        for part, samples in parts.items():
            wanted = dict.fromkeys([FOUND, *(one.of for one in claims.figures), claims.untouched or FOUND])
            for number, name in enumerate(wanted, start=1):
                watch(f"measuring {name} ({number} of {len(wanted)}) on {len(samples.samples)} documents")
                evaluation = evaluator.evaluate(claims.candidates[name].factors, samples)
                if evaluation.outcome != OK:
                    raise SearchFailedError(f"the evaluation of {name} ended as {evaluation.outcome.replace('_', ' ')}")
                found.setdefault(part, {})[name] = evaluation
    identity = loaded.identity | loaded.environment
    keys = list(dict.fromkeys([*claims.measured_with, *identity]))
    dtype, longest = identity["dtype"], max(len(sample.tokens) for sample in text.samples)
    different = {
        key: (claims.measured_with.get(key), identity.get(key))
        for key in keys
        if claims.measured_with.get(key) != identity.get(key)
    }
    explained = Tolerance.of(dtype, min(claims.spec.target_length, longest))
    tolerance = min((one.other if different else one.same) for one in (claims.tolerance, explained))
    figures = [
        _compared(one, _measured(one, claims, found, loaded.geometry.original_length), tolerance)
        for one in claims.figures
    ]
    return Reproduction(figures=figures, different=different)


def held_out_text(claims: Claims, loaded: "LoadedModel", files: Sequence[str] | None) -> "SampleSet":
    """Find the held-out documents by the hashes of their tokens.

    Raises:
        DataError: some are not among the files; says which, and which have other content.
    """
    from factor_search.text.documents import documents_from_files
    from factor_search.text.samples import SampleSet, documents_of, samples_of_addresses
    from factor_search.text.tokens import CachedTokenizer

    spec, seen = claims.spec, set[str]()
    data = spec.data
    documents = documents_of(data) if files is None else documents_from_files(files, data.column, data.split)

    def noted() -> Any:
        for document in documents:
            seen.add(PurePath(document.source).name)
            yield document

    samples = samples_of_addresses(
        noted(),
        CachedTokenizer(loaded.tokenizer),
        {one.sha256 for one in claims.documents},
        data,
        spec.target_length,
        whole=spec.stride is not None,
        scored=spec.tokens_scored,
    )
    missing = [one.name for one in claims.documents if one.sha256 not in samples]
    if missing:
        other = [name for name in missing if name.partition("@")[0] in seen]
        absent = [name for name in missing if name not in other]
        said = [f"other content than measured: {_listed(other)}"] * bool(other)
        said += [f"not found: {_listed(absent)}"] * bool(absent)
        raise DataError(
            f"{len(missing)} of {len(claims.documents)} held-out documents are not among the {len(seen)} of --data; "
            f"{'; '.join(said)}"
        )
    return SampleSet("held_out", tuple(samples[one.sha256] for one in claims.documents))


def _with_needles(claims: Claims, loaded: "LoadedModel", text: "SampleSet") -> "SampleSet":
    from factor_search.text.needle import needle_samples
    from factor_search.text.tokens import CachedTokenizer

    objective, spec = claims.spec.objective, claims.spec
    assert isinstance(objective, NeedleSpec)
    options = {"digits": objective.digits, "repeats": objective.repeats, "seed": spec.seed}
    return needle_samples(text, CachedTokenizer(loaded.tokenizer), length=spec.target_length, **options)


def _measured(
    figure: Figure,
    claims: Claims,
    found: Mapping[What, Mapping[str, Evaluation]],
    original_length: int,
) -> float:
    if figure.what in (HELD_OUT, TEXT):
        return found[figure.what][figure.of].summary.perplexity
    if figure.what == DIFFERENCE:
        one, winner = found[HELD_OUT][figure.of], found[HELD_OUT][FOUND]
        return paired_difference(one.losses, winner.losses, winner.tokens)[0]
    assert figure.what == SHORT
    text = found.get(TEXT, found[HELD_OUT])
    losses, reference = (text[name].losses_at.get(original_length) for name in (FOUND, claims.untouched or FOUND))
    if losses is None or reference is None:
        raise FactorsError(
            f"the claimed {SHORT} is not of this model: its original length is {original_length:,} tokens, for which "
            "there are no losses; give the model that was searched"
        )
    return paired_difference(losses, reference, [original_length - 1] * len(losses))[0]


def _compared(claimed: Figure, measured: float, tolerance: float) -> Compared:
    allowed = tolerance if claimed.is_perplexity else 2 * tolerance
    return Compared(claimed=claimed, measured=measured, off=claimed.off(measured), tolerance=allowed)


def _listed(names: Sequence[str]) -> str:
    if all(name == HIDDEN for name in names):
        return f"{len(names)} whose names were not published"
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

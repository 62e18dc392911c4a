"""The format of ``reproduce.json``: what a publication claims, and all that is needed to measure it again."""

import math
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.publishing.privacy import public_file, public_method
from api.publishing.results import Results, Row
from factor_search.errors import FactorsError, OutputError
from factor_search.export.verification.verify import EQUAL_MEAN, EXACT_TOKENS
from factor_search.factors import Factors
from factor_search.files.json_documents import explain, read_json
from factor_search.report.document import FOUND
from factor_search.spec import STORED, JobSpec, NeedleSpec

NAME = "reproduce.json"
SCHEMA = "factor-search/reproduce@1"
LARGEST_BYTES = 16 * 2**20
MOST_INITIAL_TOKENS = 2**31
What: TypeAlias = Literal["held-out", "plain text", "minus found", "short-context degradation"]
HELD_OUT: What = "held-out"
TEXT: What = "plain text"
DIFFERENCE: What = "minus found"
SHORT: What = "short-context degradation"
SAME_FLOAT32 = 1e-6
"""Nats per token by which a mean loss in float32 may differ between machines with one kind of device and the same
releases: sums of the same products in another order. Measured: 2e-8 (docs/how-to/publish-factors.md)."""
SAME_HALF = 1e-3
"""The same in bfloat16 and float16. A sum in another order may round an activation to the next value (2^-8 of it)."""
OTHER_HALF = 5e-3
"""The same between kinds of device, or releases, whose kernels round at other places."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


class Document(_Part):
    """A held-out document, or a piece of one."""

    name: str
    """The last part of its path, or ``hidden``."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the tokens of its plain text."""
    tokens: int = Field(gt=0)


class Candidate(_Part):
    """Factors that were measured."""

    rescale_factors: list[float]
    initial_tokens: int = Field(ge=0, le=MOST_INITIAL_TOKENS)
    attention_factor: float

    @property
    def factors(self) -> Factors:
        """As they are applied.

        Raises:
            FactorsError: they are not valid.
        """
        return Factors.of(self.rescale_factors, self.initial_tokens, self.attention_factor)


class Figure(_Part):
    """A claimed figure."""

    what: What
    """A perplexity, or a difference in nats per token."""
    of: str
    """Name of the candidate."""
    value: float = Field(allow_inf_nan=False)
    standard_error: float | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> "Figure":
        if self.is_perplexity and self.value <= 0:
            raise ValueError(f"{self.what} of {self.of[:100]} is {self.value}: a perplexity is above 0")
        return self

    @property
    def is_perplexity(self) -> bool:
        """Whether it is a perplexity; the others are differences in nats per token."""
        return self.what in (HELD_OUT, TEXT)

    def off(self, measured: float) -> float:
        """How much more was measured than claimed, in nats per token."""
        return math.log(measured) - math.log(self.value) if self.is_perplexity else measured - self.value


class Tolerance(_Part):
    """How much a loss may differ from what is claimed, in nats per token; a difference of two losses twice as much."""

    same: float = Field(gt=0, allow_inf_nan=False)
    """With the same kind of device and the same releases."""
    other: float = Field(gt=0, allow_inf_nan=False)
    """With others."""

    @classmethod
    def of(cls, dtype: str, length: int) -> "Tolerance":
        """What rounding explains in this precision, in windows of so many tokens.

        In float32 it is what :mod:`factor_search.export.verification.verify` allows between engines.
        """
        if dtype != "float32":
            return cls(same=SAME_HALF, other=OTHER_HALF)
        growth = max(1.0, length / EXACT_TOKENS)  # the rounding error of an angle is proportional to the position
        return cls(same=SAME_FLOAT32 * growth, other=EQUAL_MEAN * growth)


class Claims(_Part):
    """The content of ``reproduce.json``."""

    schema_: Literal["factor-search/reproduce@1"] = Field("factor-search/reproduce@1", alias="schema")
    spec: JobSpec
    """Of the search, without private paths."""
    measured_with: dict[str, str]
    """Identity of the model (hash of its files, or the commit on the hub), precision, attention, kind of device and
    releases."""
    factors_sha256: str
    """Of ``factors.json``."""
    documents: list[Document] = Field(min_length=1)
    candidates: dict[str, Candidate]
    untouched: str | None
    """The candidate that is the model as it was, for short-context degradation."""
    figures: list[Figure] = Field(min_length=1)
    tolerance: Tolerance
    files: dict[str, str | None] = {}
    """SHA-256 of the files that were published with it; null for large ones."""

    def as_json(self) -> dict[str, Any]:
        """The document."""
        return self.model_dump(mode="json", by_alias=True)


def claims_of(results: Results, spec: JobSpec, factors_sha256: str, *, hide: bool) -> Claims:
    """Collect what the results claim.

    Args:
        results: of the search.
        spec: its public specification.
        factors_sha256: of the published ``factors.json``.
        hide: whether the names of documents are left out.
    """
    report = results.report
    names = {row.name: public_method(row.name, report.closed_forms) for row in report.results}
    known = {**report.closed_forms, FOUND: results.factors.factors.as_json()}
    figures = [figure for row in report.results for figure in _figures(row, names[row.name])]
    short = report.short_context
    untouched = None if short is None else (FOUND if short.untouched == report.winner else names.get(short.untouched))
    if short is not None and untouched is not None:
        error = short.difference_standard_error
        figures.append(Figure(what=SHORT, of=FOUND, value=short.difference, standard_error=error))
    return Claims(
        spec=spec,
        measured_with=report.measured_with,
        factors_sha256=factors_sha256,
        documents=[
            Document(name=public_file(one.source, hide=hide), sha256=one.sha256, tokens=one.tokens)
            for one in report.measured_on
        ],
        candidates={public: Candidate.model_validate(known[name]) for name, public in names.items()},
        untouched=untouched,
        figures=figures,
        tolerance=Tolerance.of(report.measured_with["dtype"], spec.target_length),
    )


def _figures(row: Row, name: str) -> list[Figure]:
    claimed: tuple[tuple[What, float | None, float | None], ...] = (
        (HELD_OUT, row.held_out, row.standard_error),
        (TEXT, row.text_perplexity, row.text_standard_error),
        (DIFFERENCE, row.difference, row.difference_standard_error),
    )
    return [
        Figure(what=what, of=name, value=value, standard_error=error)
        for what, value, error in claimed
        if value is not None
    ]


def read_claims(file: Path) -> Claims:
    """Read ``reproduce.json``, which may come from anyone.

    Raises:
        OutputError: it cannot be read, or is not valid.
    """
    content = read_json(file, OutputError, most_bytes=LARGEST_BYTES)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise OutputError(f"{file} is not a {NAME} of this version ({SCHEMA}): give a folder that publish wrote")
    try:
        claims = Claims.model_validate(content, context=STORED)
        for candidate in claims.candidates.values():
            _ = candidate.factors
    except ValidationError as error:
        raise OutputError(f"{file} is not valid: {explain(error)}") from None
    except FactorsError as error:
        raise OutputError(f"{file} is not valid: {error}") from None
    missing = {figure.of for figure in claims.figures} | {claims.untouched or FOUND, FOUND}
    if missing := missing - set(claims.candidates):
        raise OutputError(f"{file} is not valid: it has no factors of {', '.join(sorted(missing))}"[:500])
    kinds = {figure.what for figure in claims.figures}
    if TEXT in kinds and not isinstance(claims.spec.objective, NeedleSpec):
        raise OutputError(f"{file} is not valid: only a search for a needle has figures of {TEXT}")
    if SHORT in kinds and claims.untouched is None:
        raise OutputError(f"{file} is not valid: {SHORT} has no candidate that it is measured against (untouched)")
    return claims

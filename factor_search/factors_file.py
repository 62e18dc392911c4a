"""The format of ``factors.json``: factors with their model, measured perplexities and provenance."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from factor_search.errors import FactorsError
from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.files.html import html_numbers, html_values
from factor_search.files.json_documents import explain, read_json, write_json
from factor_search.model.geometry import Geometry

SCHEMA = "factor-search/factors@1"
LARGEST_BYTES = 16 * 2**20
LEAST = 0.99
"""The smallest factor of a vector that extends the context; the smallest published is 0.998 (MiniCPM4)."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FactorsModel(_Part):
    """The model to which the factors belong."""

    id: str
    revision: str | None = None
    architecture: str
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    rotary_dim: int = Field(gt=0, lt=2**53, multiple_of=2)
    original_length: int = Field(gt=0, lt=2**53)
    base_rope_type: str

    @classmethod
    def of(cls, model_id: str, revision: str | None, geometry: Geometry) -> "FactorsModel":
        """Build the entry from a model's geometry."""
        return cls(
            id=model_id,
            revision=revision,
            architecture=geometry.architecture,
            rope_theta=geometry.rope_theta,
            rotary_dim=geometry.rotary_dim,
            original_length=geometry.original_length,
            base_rope_type=geometry.base_rope_type,
        )


class MeasuredPerplexity(_Part):
    """The perplexities of the factors by part of the documents; null where not measured."""

    search: Finite | None = None
    validation: Finite | None = None
    held_out: Finite | None = None
    held_out_baselines: dict[str, Finite] = {}


class Form(_Part):
    """The numbers of YaRN, or of a base alone, that give the factors: for engines that read no lists."""

    kind: Literal["yarn", "base"]
    factor: float = Field(ge=1, allow_inf_nan=False)
    beta_fast: float = Field(gt=0, allow_inf_nan=False)
    beta_slow: float = Field(gt=0, allow_inf_nan=False)
    attention_factor: float = Field(gt=0, allow_inf_nan=False)
    rope_theta: float = Field(gt=1, allow_inf_nan=False)


class Provenance(_Part):
    """The search that found the factors."""

    job: str
    strategy: str
    seed: int
    candidates: int
    tokens_evaluated: int
    data_sha256: str | None
    versions: dict[str, str]


class FactorsFile(_Part):
    """The document, in which ``sha256`` is the hash of everything else."""

    schema_: Literal["factor-search/factors@1"] = Field("factor-search/factors@1", alias="schema")
    model: FactorsModel
    target_length: int = Field(gt=0, lt=2**53)
    scale: Finite = Field(gt=0)
    rescale_factors: list[float]
    initial_tokens: int = Field(lt=2**53)
    attention_factor: float
    form: Form | None = None
    perplexity: MeasuredPerplexity = MeasuredPerplexity()
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "FactorsFile":
        pairs = self.model.rotary_dim // 2
        if len(self.rescale_factors) != pairs:
            raise ValueError(
                f"rescale_factors has {len(self.rescale_factors)} numbers, but rotary_dim {self.model.rotary_dim} "
                f"needs {pairs}"
            )
        try:
            factors = self.factors
        except FactorsError as error:
            raise ValueError(str(error)) from None
        # A model's own scaling may have factors below 1; published vectors for others go slightly below.
        extends = self.target_length >= self.model.original_length and self.model.base_rope_type == "default"
        for i, value in enumerate(factors.rescale_factors):
            if extends and value < LEAST:
                raise ValueError(
                    f"rescale_factors[{i}] is {value}: below 1 it would shorten the context, but the target length is "
                    "not below the original"
                )
        if not math.isclose(self.scale, self.target_length / self.model.original_length, rel_tol=1e-6):
            raise ValueError(
                f"scale is {self.scale}, but target_length / original_length is "
                f"{self.target_length / self.model.original_length}"
            )
        return self

    @property
    def factors(self) -> Factors:
        """The factors in the file."""
        return Factors.of(self.rescale_factors, self.initial_tokens, self.attention_factor)

    def _repr_html_(self) -> str:
        measured = self.perplexity.model_dump(exclude={"held_out_baselines"})
        values = {
            "model": f"{self.model.id} ({self.model.architecture})",
            "tokens": f"{self.model.original_length:,} to {self.target_length:,} (scale {self.scale:g})",
            "initial tokens": f"{self.initial_tokens}",
            "attention factor": f"{self.attention_factor:.6g}",
            **{f"perplexity, {part.replace('_', '-')}": f"{value:.4f}" for part, value in measured.items() if value},
            **{f"held-out, {name}": f"{value:.4f}" for name, value in self.perplexity.held_out_baselines.items()},
        }
        below = html_numbers(f"{len(self.rescale_factors)} factors", self.rescale_factors)
        return html_values("Rescale factors", values, below=below)

    def as_json(self) -> dict[str, Any]:
        """Return the document with its hash."""
        content = self.model_dump(mode="json", by_alias=True)
        if content["form"] is None:
            del content["form"]  # as in files from before this key existed
        return content | {"sha256": sha256_of(content)}

    def write(self, file: Path) -> None:
        """Write the document as indented JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        write_json(file, self.as_json())


def parse_factors(document: Any) -> FactorsFile:
    """Validate a factors document; ``sha256`` may be missing, but must match if it is present.

    Raises:
        FactorsError: the document is not valid; the message names the reason.
    """
    if not isinstance(document, dict):
        raise FactorsError("a factors file must be a JSON object")
    if document.get("schema") != SCHEMA:
        raise FactorsError(f"unknown schema {document.get('schema')!r}: this version reads {SCHEMA!r}")
    content = {key: value for key, value in document.items() if key != "sha256"}
    try:
        parsed = FactorsFile.model_validate(content)
    except ValidationError as error:
        raise FactorsError(f"the factors are not valid: {explain(error)}") from None
    if "sha256" in document and document["sha256"] != parsed.as_json()["sha256"]:
        raise FactorsError("the content does not match its sha256: the file was changed after it was written")
    return parsed


def read_factors(file: Path) -> FactorsFile:
    """Read and validate a factors file.

    Raises:
        FactorsError: the file cannot be read, is not JSON, or is not a valid factors file.
    """
    try:
        return parse_factors(read_json(file, FactorsError, most_bytes=LARGEST_BYTES))
    except FactorsError as error:
        raise FactorsError(str(error) if str(file) in str(error) else f"{file}: {error}") from None


def factors_file(
    factors: Factors,
    model: FactorsModel,
    target_length: int,
    perplexity: MeasuredPerplexity | None = None,
    provenance: Provenance | None = None,
    form: dict[str, Any] | None = None,
) -> FactorsFile:
    """Build the document of ``factors.json``.

    Raises:
        FactorsError: the factors are not valid for this model and length.
    """
    try:
        return FactorsFile(
            model=model,
            target_length=target_length,
            scale=target_length / model.original_length,
            rescale_factors=list(factors.rescale_factors),
            initial_tokens=factors.initial_tokens,
            attention_factor=factors.attention_factor,
            form=None if form is None else Form(**form),
            perplexity=perplexity or MeasuredPerplexity(),
            provenance=provenance,
        )
    except ValidationError as error:
        raise FactorsError(f"the factors are not valid: {explain(error)}") from None


def check_belongs(file: FactorsFile, geometry: Geometry) -> None:
    """Check that factors belong to a model with this rotary geometry.

    Raises:
        FactorsError: rotary dimensions or base differ.
    """
    for name in ("rotary_dim", "rope_theta"):
        theirs, ours = getattr(file.model, name), getattr(geometry, name)
        if theirs != ours:
            raise FactorsError(
                f"the factors are for {name} {theirs:g} ({file.model.id}), but {geometry.architecture} has {ours:g}: "
                "they belong to another model, or to one whose code rotates otherwise than its configuration says"
            )

"""What is searched: the model, the documents, the space of candidates and the objective."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from factor_search.spec.base import AtMost, AttentionFactor, Documents, Int, PositiveInt, Scale, Strict, Tokens
from factor_search.spec.named import Flag, Names, Text

INITIAL_TOKENS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
"""Choices for the number of initial tokens in the LongRoPE paper (2402.13753, table 4)."""


class ModelSpec(Strict):
    """Which model to search for, and how to run it."""

    id: Annotated[str, Names.MODEL] = Field(
        min_length=1, description="A local folder with a Hugging Face checkpoint, a local GGUF file, or a hub id."
    )
    revision: Annotated[str | None, Names.REVISION] = Field(None, description="Hub revision (branch, tag or commit).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the weights and the computation; auto is the checkpoint's own, and "
        "bfloat16 for a quantised GGUF file.",
    )
    attention: Annotated[str, Names.KERNEL] = Field(
        "auto", description="Attention implementation of transformers: auto, sdpa, eager, ..."
    )
    device: Text = Field("auto", description="A torch device; auto is a GPU if there is one.")
    trust_remote_code: Annotated[bool, Names.CODE] = Field(
        False, strict=True, description="Run Python code from the checkpoint; a service must allow it."
    )
    original_length: Tokens | None = Field(
        None,
        ge=8,
        description="Tokens of context the model was trained for; overrides a wrong value in its configuration.",
    )


def looks_local(model_id: str) -> bool:
    """Return whether an id can only be a path; ids on the hub are ``name`` or ``owner/name``, and GGUF files local."""
    return model_id.startswith((".", "/", "~")) or model_id.count("/") > 1 or model_id.lower().endswith(".gguf")


class DataSpec(Strict):
    """Which documents to use, and how many for search, validation and the held-out measurement."""

    files: Annotated[list[str] | None, Names.DOCUMENTS] = Field(
        None,
        fail_fast=True,
        description="Text, JSON, CSV or parquet files, also as .gz or .zst; saved data sets; or globs.",
    )
    dataset: Annotated[str | None, Names.DATA_SET] = Field(
        None, description="A data set on the Hugging Face hub, instead of files."
    )
    revision: Annotated[str | None, Names.REVISION] = Field(
        None,
        description="Revision of the hub data set (branch, tag or commit); a service replaces it by the commit.",
        exclude_if=lambda revision: revision is None,  # earlier versions had none
    )
    name: Text | None = Field(None, description="Configuration name of the hub data set.")
    split: Text = Field("validation", description="Split of the hub or saved data set.")
    column: Text = Field("text", description="Column or JSON key with the text of a document.")
    search_documents: Documents = Field(8, description="Documents on which the search compares candidates.")
    validation_documents: Documents = Field(4, description="Documents on which the winner is chosen.")
    held_out_documents: Documents = Field(8, description="Documents on which only the final figures are measured.")
    held_out_files: Annotated[list[str] | None, Names.DOCUMENTS] = Field(
        None, fail_fast=True, description="Take the held-out documents from these files instead."
    )
    cut_long_documents: Flag = Field(
        False,
        strict=True,
        description="Cut documents into consecutive pieces of the target length and count each piece as a document. "
        "Every piece begins with the tokenizer's prefix (BOS), which counts in its length. All pieces of one document "
        "are used for the same purpose: search, validation or held-out.",
    )
    least_tokens: Tokens | None = Field(
        None,
        description="Least number of tokens of a document (or piece), of which only the first target_length are read; "
        "null is the target length. Jobs of different target lengths with the same value use the same documents for "
        "the same purposes.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "DataSpec":
        if bool(self.files) == bool(self.dataset):
            raise ValueError("give either 'files' or 'dataset'")
        return self


EvenDimension = Annotated[int, Field(strict=True, ge=2, multiple_of=2), AtMost(100_000)]


class SpaceSpec(Strict):
    """Which candidates a search may propose."""

    form: Literal["yarn", "base"] | None = Field(
        None,
        description="yarn searches YaRN's numbers (factor, beta_fast, beta_slow, attention factor, base), base the "
        "base alone, for engines that read no lists; null searches a factor for each pair.",
    )
    initial_tokens: list[Annotated[Int, AtMost(2**27, "tokens")]] = Field(
        default=list(INITIAL_TOKENS),
        min_length=1,
        max_length=1000,
        description="Choices for the number of initial tokens.",
    )
    attention_factor: Literal["formula", "search"] | AttentionFactor = Field(
        "formula", description="formula is LongRoPE's, search includes it in the search, a number fixes it."
    )
    monotone: Flag = Field(True, strict=True, description="Require lambda_i <= lambda_{i+1}.")
    upper_bound: float | None = Field(
        None,
        strict=True,
        ge=1.0,
        le=1000.0,
        description="Largest lambda as a multiple of the scale; null is the paper's 1.25, or 8 for auto and cma, and "
        "in any case enough for the factors that the model is configured with.",
    )
    step: float = Field(0.01, strict=True, ge=1e-4, le=1, description="Step of the grid of lambda.")
    scale: Scale | None = Field(
        None,
        gt=1,
        description="Scale for the bounds, curves and formulas; null is target_length / original length. It is needed "
        "where target_length is not above the original length, to readjust factors of a longer window.",
    )
    critical_dimension: Literal["search"] | EvenDimension | None = Field(
        None,
        description="d_rcd of LongRoPE2: an even dimension, whose pair is i = d_rcd / 2. The pairs before it follow "
        "NTK, lambda_i = lambda_rcd^(2i / d_rcd), and the others are free. search tries every pair from half the "
        "theoretical critical pair to that pair; null leaves all pairs free.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_forms(cls, given: Any) -> Any:
        """No initial tokens, and the attention factor as engines have it."""
        if isinstance(given, dict) and given.get("form") is not None:
            return {"initial_tokens": [0], "attention_factor": "search" if given["form"] == "yarn" else 1.0} | given
        return given

    @model_validator(mode="after")
    def _form_alone(self) -> "SpaceSpec":
        if self.form is None:
            return self
        if self.initial_tokens != [0]:
            raise ValueError(f"form {self.form} has no initial tokens: leave 'initial_tokens' out")
        if self.form == "base" and self.attention_factor != 1.0:
            raise ValueError("form base has no attention factor: leave 'attention_factor' out")
        for name in ("monotone", "upper_bound", "step", "critical_dimension"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name!r} is about lists of factors: form {self.form} has none, leave it out")
        return self


class ShortWindowSpec(Strict):
    """A limit on the loss in short texts.

    It is the mean loss in windows of the original length in the documents, minus that of the untouched model.
    """

    at_most: float = Field(ge=0, le=10, allow_inf_nan=False, description="Nats per token.")


def with_searched_attention(given: Any) -> Any:
    """A job or search stage as given; with a limit on short texts, its attention factor is searched if it is not given.

    LongRoPE's and YaRN's formulas alone cost more in short texts than most limits allow.
    """
    if not isinstance(given, dict) or given.get("short_window") is None:
        return given
    space = given.get("space") or {}
    return given | {"space": {"attention_factor": "search"} | space} if isinstance(space, dict) else given


class PerplexitySpec(Strict):
    """The perplexity of all tokens of the documents."""

    kind: Literal["perplexity"] = "perplexity"
    stride: Tokens | None = Field(
        None,
        description="Score whole documents with a sliding window of the target length, which moves by this many "
        "tokens and begins with the tokenizer's prefix (BOS), unscored; null scores the first window only.",
    )
    tokens: Tokens | None = Field(
        None, description="With a stride, the number of tokens to score in each document; null scores all."
    )

    @model_validator(mode="after")
    def _tokens_with_stride(self) -> "PerplexitySpec":
        if self.tokens is not None and self.stride is None:
            raise ValueError("'tokens' goes with a 'stride': without one, only the first window is scored")
        return self


class NeedleSpec(Strict):
    """The perplexity of answers (LongRoPE2, 2502.20082).

    Each document contains a number and ends with a question for it.
    """

    kind: Literal["needle"] = "needle"
    digits: PositiveInt = Field(7, ge=2, le=15, description="Digits of the numbers.")
    repeats: PositiveInt = Field(
        1,
        le=64,
        description="Samples per document, with different numbers at different depths. Each counts as a document, "
        "also in standard errors.",
    )


ObjectiveSpec = Annotated[PerplexitySpec | NeedleSpec, Field(discriminator="kind")]
MEASURES = {"perplexity": "perplexity", "needle": "perplexity of answer tokens"}
"""What a search measures, in words, by the kind of objective."""

"""Answers of the REST interface that the web page draws and compares; other clients may use them too."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import EXAMPLE_ID


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Curve(_Value):
    """A closed form that a search compares with."""

    name: str = Field(examples=["yarn"])
    number: int | None = Field(
        description="The first candidate of the search that stands for it: the nearest in the search's space. Null if "
        "there is none yet."
    )
    rescale_factors: list[float] = Field(description="lambda_i of each rotary pair.")
    initial_tokens: int = Field(description="Leading positions that keep the model's own RoPE.")
    attention_factor: float = Field(description="Multiplies cos and sin.")


class About(_Value):
    """What a search is about, as recorded when it began."""

    target_length: int = Field(description="Tokens.")
    original_length: int | None = Field(description="Tokens; null if an earlier version began the search.")
    scale: float | None = Field(description="Target length / original length, unless the specification gives another.")
    critical_pair: float | None = Field(description="Half of the critical dimension.")
    wavelengths: list[float] = Field(description="Of each rotary pair, in tokens.")
    closed_forms: list[Curve]
    documents: dict[str, int] = Field(description="How many, by part.")
    study: str | None = Field(description="Path of its study on the dashboard; null where there is none.")


class WorkerPart(_Value):
    """What one worker has done for a job."""

    name: str
    evaluations: int
    seconds: float = Field(description="Spent computing them.")
    last_at: datetime = Field(description="When its last evaluation was recorded.")


class Course(_Value):
    """The course of a search: columns with one entry a candidate, in the order proposed."""

    about: About | None = Field(description="Only with `after` -1; null before the search has begun.")
    number: list[int] = Field(description="In the order proposed, from 0.")
    generation: list[int]
    candidate: list[str] = Field(
        description="The same for the same factors: one that is continued on more documents occurs again, and then "
        "includes the tokens of before."
    )
    documents: list[int] = Field(description="How many were evaluated so far.")
    tokens: list[int] = Field(description="Scored in them.")
    perplexity: list[float | None] = Field(description="Null unless the outcome is ok or pruned, and finite.")
    outcome: list[str] = Field(description="As of an evaluation; running or withdrawn where there is none.")
    next: int | None = Field(description="What to give as `after` for the next page; null where there are no more yet.")
    settled: int = Field(
        description="What to give as `after` later on to see what has changed: all candidates up to it have ended."
    )
    outcomes: dict[str, int] | None = Field(
        description="How many candidates of the whole search have each outcome. Null where there is a next page."
    )
    workers: list[WorkerPart] | None = Field(
        description="Of the whole job, the last one first. Null where there is a next page."
    )


class Download(_Value):
    """A format in which the factors of a job can be had."""

    format: str = Field(examples=["vllm"])
    title: str = Field(description="The engine's own name.", examples=["vLLM"])
    writes: str = Field(description="What it consists of.")
    document: str | None = Field(
        description="Name of the JSON document that `/factors?format=` answers with; null if the format is more than "
        "that.",
        examples=["vllm.json"],
    )
    export: str = Field(description="Command that writes it where the model is, from the downloaded factors.")
    load: str = Field(description="Command that loads what was written.")


class Downloads(_Value):
    """The formats in which the factors of a job can be had, once it is finished."""

    formats: list[Download]


class Compared(_Value):
    """A job among those compared."""

    id: str = Field(examples=[EXAMPLE_ID])
    name: str
    state: str
    model: str = Field(description="As in the specification.")
    target_length: int
    objective: str
    strategy: str
    candidates: int | None = Field(description="Evaluated so far; null before there is one.")
    tokens: int | None = Field(description="Scored during the search.")
    seconds: float | None = Field(description="Of evaluation during the search.")
    best_perplexity: float | None = Field(description="On the search documents, which differ between jobs.")
    held_out: float | None = Field(description="Perplexity on the held-out documents; null before it is finished.")
    standard_error: float | None = Field(description="Of that, over documents.")
    winner: str | None = Field(description="What it is the perplexity of.")


class Pair(_Value):
    """The difference of two jobs' losses on the held-out documents that they share."""

    first: str = Field(description="Id of a job.", examples=[EXAMPLE_ID])
    second: str = Field(description="Id of the other.", examples=[EXAMPLE_ID])
    documents: list[str] = Field(description="Sources of the shared documents.")
    difference: float | None = Field(
        description="Mean over the shared documents of the second's loss minus the first's, nats per token; above 0 "
        "the first is better. Null if they share none."
    )
    standard_error: float | None = Field(description="Of the difference, over documents; null for a single one.")
    verified: bool = Field(
        description="Whether the same factors had the same losses on these documents in both jobs, so that the texts "
        "are the same. Otherwise sources and numbers of tokens agree, which is all that is known."
    )
    note: str | None = Field(description="Why there is no difference.")


class Comparison(_Value):
    """Jobs side by side."""

    jobs: list[Compared]
    pairs: list[Pair] = Field(description="Each job with each other.")

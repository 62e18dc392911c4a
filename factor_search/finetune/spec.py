"""The specification of a fine-tuning; unknown keys are errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from factor_search.errors import SpecError
from factor_search.files.canonical_json import sha256_of
from factor_search.spec import AtMost, Count, Int, PositiveFloat, PositiveInt, Steps, Tokens
from factor_search.spec.named import Flag, Text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FullSpec(_Strict):
    """Trains all weights."""

    kind: Literal["full"] = "full"


class LoraSpec(_Strict):
    """Trains low-rank adapters (2106.09685) instead of matrices, and merges them into the matrices at the end."""

    kind: Literal["lora"] = "lora"
    rank: Count = Field(16, description="r: rank of each adapter.")
    alpha: Annotated[PositiveFloat, AtMost(1e6)] = Field(
        32.0, description="The product of an adapter is multiplied by alpha / rank."
    )
    targets: list[Annotated[Text, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Ends of the names of the layers with an adapter, such as q_proj; null is every linear layer "
        "except the output layer.",
    )
    train_norms: Flag = Field(True, strict=True, description="Also train the weights of norms.")
    train_embeddings: Flag = Field(
        True,
        strict=True,
        description="Also train the token embeddings, and the output layer where it shares their weights.",
    )


MethodSpec = Annotated[FullSpec | LoraSpec, Field(discriminator="kind")]


class FinetuneSpec(_Strict):
    """One fine-tuning: the training data, the number of steps, and the weights that are trained."""

    data_form: Literal["full", "pose", "segments"] = Field(
        "pose",
        description="full: sequences of the target length. pose: sequences of the training length whose position ids "
        "skip, so that every distance up to the target length occurs (PoSE, 2309.10400). segments: pieces of a text of "
        "the target length, at their true positions (2310.14633).",
    )
    chunks: Count = Field(2, description="Number of chunks (pose) or segments of a sequence.")
    train_length: Tokens | None = Field(
        None, ge=2, description="Tokens of a sequence; null is the target length for full, else the original length."
    )
    steps: Steps = Field(400, description="Updates of the weights.")
    batch_size: Count = Field(1, description="Sequences per pass through the model.")
    gradient_accumulation: Count = Field(1, description="Passes per update.")
    batch_tokens: Annotated[PositiveInt, AtMost(2**40, "tokens")] | None = Field(
        None, description="Least number of tokens per update, instead of gradient_accumulation."
    )
    learning_rate: Annotated[PositiveFloat, AtMost(100.0)] = Field(
        2e-5, description="Learning rate of AdamW after the warm-up."
    )
    warmup_steps: Annotated[Int, AtMost(10**8, "steps")] = Field(
        20, description="Steps over which the learning rate rises linearly."
    )
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Learning rate after the warm-up; cosine falls to 0 at the end."
    )
    weight_decay: float = Field(
        0.0, strict=True, ge=0, lt=1, description="Weight decay of matrices; norms, biases and embeddings have none."
    )
    max_grad_norm: Annotated[PositiveFloat, AtMost(1e9)] = Field(
        1.0, description="Gradients with a larger norm are scaled down to it."
    )
    method: MethodSpec = Field(FullSpec(), description="full, lora, or an object with the settings of either.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the computation. Trained weights are kept in float32, and written in the precision "
        "of the checkpoint. auto is bfloat16 on a GPU that supports it.",
    )
    gradient_checkpointing: Flag = Field(
        False,
        strict=True,
        description="Compute activations again in the backward pass: it takes less memory and a third more time.",
    )
    mixed_window: float | None = Field(
        None,
        strict=True,
        gt=0,
        lt=1,
        description="Share of the passes with sequences of the original length and the model's own RoPE (LongRoPE2, "
        "2502.20082); null is none.",
    )
    drop_initial_tokens: Flag = Field(
        False,
        strict=True,
        description="Train with the initial tokens, but leave them out of the written configuration, which cannot "
        "express them. If false, factors with initial tokens are refused.",
    )
    checkpoint_every: Steps = Field(100, description="Steps between two checkpoints of the training.")
    seed: Int = Field(0, description="Seed of the sequences, the initial weights of adapters and dropout.")

    @field_validator("method", mode="before", json_schema_input_type=MethodSpec | str)
    @classmethod
    def _method_short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_batch_size(self) -> "FinetuneSpec":
        if self.batch_tokens is not None and self.gradient_accumulation != 1:
            raise ValueError("give either 'batch_tokens' or 'gradient_accumulation'")
        if self.train_length is not None and self.data_form != "full" and self.chunks > self.train_length:
            raise ValueError(f"{self.chunks} chunks do not fit into a train_length of {self.train_length} tokens")
        return self

    def sequence_length(self, original_length: int, target_length: int) -> int:
        """Return the number of tokens of a sequence.

        Raises:
            SpecError: the number is above the target length, or too small for the chunks.
        """
        length = self.train_length or (target_length if self.data_form == "full" else original_length)
        if length > target_length:
            raise SpecError(f"train_length is {length} tokens, beyond the target length of {target_length}")
        if self.data_form != "full" and self.chunks > length:
            raise SpecError(f"{self.chunks} chunks do not fit into sequences of {length} tokens")
        return length

    def document_tokens(self, original_length: int, target_length: int) -> int:
        """Return the least number of tokens of a document for training.

        Raises:
            SpecError: see :meth:`sequence_length`.
        """
        length = self.sequence_length(original_length, target_length)
        return target_length if self.data_form == "segments" else length

    def passes(self, length: int) -> int:
        """Return the number of passes per update, for sequences of ``length`` tokens."""
        if self.batch_tokens is None:
            return self.gradient_accumulation
        return -(-self.batch_tokens // (self.batch_size * length))

    @property
    def sha256(self) -> str:
        """The identity of the training: a hash of everything but the number of steps between checkpoints."""
        return sha256_of(self.model_dump(mode="json", exclude={"checkpoint_every"}))

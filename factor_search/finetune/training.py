"""The training loop: AdamW steps with checkpoints, resumed from the last one."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from factor_search.errors import FinetuneError, LossNotFiniteError, UnsupportedModelError
from factor_search.factors import Factors
from factor_search.finetune.checkpoints import Checkpoints, Progress
from factor_search.finetune.gradients import add_gradients
from factor_search.finetune.rate import learning_rate
from factor_search.finetune.sequences import NO_TARGET, Sequences
from factor_search.finetune.spec import FinetuneSpec
from factor_search.finetune.weights import Weights
from factor_search.model.injection import Injector

BETAS = (0.9, 0.95)
"""The betas of AdamW, as in position interpolation (2306.15595) and YaRN (2309.00071)."""


@dataclass(frozen=True)
class TrainingStep:
    """The progress of a training after one step."""

    step: int
    """Steps finished so far."""
    loss: float
    """Mean loss over the targets of the step before its update, nats per token."""
    learning_rate: float
    tokens: int
    """Tokens read so far."""
    seconds: float
    """Seconds of training so far, including those before interruptions."""


OnStep = Callable[[TrainingStep], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that the steps of a training share."""

    model: PreTrainedModel
    """The model, ready for training."""
    weights: Weights
    """The weights that are trained."""
    injector: Injector
    """The entered injector of the model."""
    factors: Factors
    """The factors for batches with rescaled RoPE."""
    sequences: Sequences
    spec: FinetuneSpec
    precision: torch.dtype
    """Precision of the computation."""


def train(training: Training, checkpoints: Checkpoints, on_step: OnStep) -> Progress:
    """Train from the last checkpoint, or from the beginning, to the last step.

    The random numbers of a step depend only on the seed and the number of the step. So on a CPU, with the same number
    of threads, a resumed training gives bit for bit the result of an undisturbed one.

    Args:
        training: the model, its data and the settings.
        checkpoints: the checkpoints to resume from and to write.
        on_step: called after each step, and after its checkpoint if it has one; it may end the training by raising.

    Raises:
        LossNotFiniteError: a loss or its gradient is NaN or infinite; the weights are those before that step.
        FinetuneError: there is not enough memory.
        CheckpointError: the last checkpoint belongs to another training, or is broken.
        OutputError: a checkpoint cannot be written.
    """
    spec, weights = training.spec, training.weights
    optimiser = torch.optim.AdamW(weights.groups(spec.weight_decay), lr=spec.learning_rate, betas=BETAS)
    progress = checkpoints.resume(weights.trained, optimiser)
    earlier, start = progress.seconds, time.perf_counter()
    for step in range(progress.steps, spec.steps):
        torch.manual_seed(int(np.random.SeedSequence([spec.seed, step]).generate_state(1, np.uint64)[0]))  # for dropout
        rate = learning_rate(spec, step)
        try:
            loss, tokens = _update(training, optimiser, step, rate)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise FinetuneError(_out_of_memory(training.sequences, spec)) from error
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
            raise FinetuneError(_out_of_memory(training.sequences, spec)) from error
        progress.losses.append(loss)
        progress.tokens += tokens
        progress.seconds = earlier + time.perf_counter() - start
        done = progress.steps
        if done % spec.checkpoint_every == 0 or done == spec.steps:
            checkpoints.save(progress, weights.trained, optimiser)
        on_step(TrainingStep(done, loss, rate, progress.tokens, progress.seconds))
    return progress


def _update(training: Training, optimiser: torch.optim.Optimizer, step: int, rate: float) -> tuple[float, int]:
    """Run one step, and return its mean loss and the number of tokens it read."""
    batches = training.sequences.step(step)
    targets = sum(int((batch.targets != NO_TARGET).sum()) for batch in batches)
    optimiser.zero_grad(set_to_none=True)
    losses = [
        add_gradients(
            training.model,
            training.injector,
            training.factors,
            batch,
            weight=1 / targets,
            precision=training.precision,
        )
        for batch in batches
    ]
    loss = math.fsum(losses) / targets if all(map(math.isfinite, losses)) else math.nan
    norm = torch.nn.utils.clip_grad_norm_(training.weights.trained.values(), training.spec.max_grad_norm)
    if math.isnan(loss) or not norm.isfinite():
        what = "loss" if math.isnan(loss) else "gradient"
        raise LossNotFiniteError(
            f"the {what} of step {step + 1} is not finite, at a learning rate of {rate:g}: lower learning_rate, raise "
            "warmup_steps, or compute in float32"
        )
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    return loss, sum(batch.input_ids.size for batch in batches)


def computation(spec: FinetuneSpec, device: torch.device) -> torch.dtype:
    """Return the precision of the computation on a device."""
    if spec.precision == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if capable else torch.float32
    return torch.bfloat16 if spec.precision == "bfloat16" else torch.float32


@contextmanager
def activations_recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Let layers store only their inputs within this context, and compute activations again in the backward pass.

    Raises:
        UnsupportedModelError: the architecture has no gradient checkpointing.
    """
    if not model.supports_gradient_checkpointing:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no gradient checkpointing: set gradient_checkpointing to false"
        )
    # transformers 5 renamed these methods. Reentrant checkpointing gives no gradients if the embeddings are frozen.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()
        model.disable_input_require_grads()


def _out_of_memory(sequences: Sequences, spec: FinetuneSpec) -> str:
    advice = ["a smaller batch_size"] if spec.batch_size > 1 else []
    advice += [] if spec.gradient_checkpointing else ["gradient_checkpointing"]
    advice += [] if spec.method.kind == "lora" else ["method 'lora'"]
    advice += [] if spec.data_form == "pose" else ["data_form 'pose'"]
    return (
        f"{spec.batch_size} x {sequences.length} tokens need more memory than is available: try "
        f"{', '.join(advice) or 'a shorter train_length'}"
    )

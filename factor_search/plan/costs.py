"""What stages of a plan cost, put together from forward passes, training steps and loading."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from factor_search.finetune.spec import FinetuneSpec, LoraSpec
from factor_search.methods import USUAL, closed_forms
from factor_search.model.geometry import Geometry
from factor_search.model.memory import Memory, training_memory
from factor_search.model.size import ModelSize, Operations
from factor_search.model.speed import TRAINING
from factor_search.search.estimate import Known, added, estimate_search, fit_of, fitting, loading_seconds, speed_shown
from factor_search.search.estimate_text import size_text
from factor_search.search.problem import OTHERS_COMPARED
from factor_search.spec import DataSpec, JobSpec, ModelSpec

NONE: dict[str, Any] = dict.fromkeys(
    ("evaluation", "memory", "fits", "largest_length", "too_large", "search", "validation")
)
RECOMPUTED = 4.0
"""Operations of a training step in forward passes, where activations are computed again in the backward pass."""
UPDATE_OPERATIONS = 60.0
"""Of an update of a weight by AdamW and the clipping before it: few, but each waits for memory."""
NORMS_AND_ADAPTERS = 0.02
"""Share of the weights that LoRA trains beside embeddings."""


@dataclass(frozen=True, kw_only=True)
class PlanCosts:
    """What the estimate of a stage needs to know of its plan."""

    model: ModelSpec
    data: DataSpec
    geometry: Geometry
    lengths: Mapping[str, int]
    """Target length in tokens of each search, by name."""
    longest: int
    """Tokens that every document has."""
    known: Callable[[int, ModelSpec], Known]
    """Size and speed of a model for windows of so many tokens."""

    def forms(self, target_length: int) -> int:
        """The number of closed forms that a report compares with by default."""
        return sum(name in USUAL for name in closed_forms(self.geometry, target_length)) + OTHERS_COMPARED

    def search_forms(self, target_length: int, baselines: list[str] | str | None) -> int:
        """The number of closed forms that the report of a search compares with."""
        if baselines == "all":
            return len(closed_forms(self.geometry, target_length))
        return len(baselines) if baselines else self.forms(target_length)

    def search(self, job: JobSpec, methods: int) -> dict[str, Any]:
        """The cost of a search; its documents have been read before."""
        known, length = self.known(job.target_length, job.model), self.geometry.original_length
        found = estimate_search(job, known, methods, None, original_length=length)
        del found["documents"]
        return found

    def passes(self, counts: Mapping[int, float], *, loads: int = 1, all_workers: bool = False) -> dict[str, Any]:
        """The cost of forward passes that score all tokens, after the model was loaded.

        Args:
            counts: how many there are, by their tokens.
            loads: how many models are loaded.
            all_workers: whether all workers share them; else one worker does all.
        """
        longest = max(counts, default=1)
        known = self.known(longest, self.model)
        workers = known.workers if all_workers else 1
        parts, operations = [], Operations(0.0, 0.0)
        for tokens, count in counts.items():
            cost = known.cost([(tokens, tokens - 1)], tokens - 1)
            operations += cost.operations * count
            parts.append({key: cost.times(count, workers)[key] for key in ("tokens", "seconds")})
        loading = loading_seconds(known.size)
        parts.append({"tokens": 0, "seconds": None if loading is None else loads * loading})
        return {
            **NONE,
            **fitting(longest, known),
            "held_out": added(parts[:-1]) | {"operations": operations.total},
            "loading": {"seconds": parts[-1]["seconds"]},
            "total": added(parts),
            "speed": speed_shown(known, known.cost([(longest, longest - 1)], longest - 1)),
            "workers": workers,
            "notes": list(known.notes),
        }

    def training(self, settings: FinetuneSpec, target_length: int) -> dict[str, Any]:
        """The cost of a fine-tuning: steps x passes x sequences, each three forward passes; four if recomputed.

        Weights are trained in float32, and so is the computation on a CPU.
        """
        original = self.geometry.original_length
        length = settings.sequence_length(original, target_length)
        precision = self.model.model_copy(update={"dtype": "float32"})
        known = self.known(length, precision if settings.precision != "bfloat16" else self.model)
        sequences = settings.steps * settings.passes(length) * settings.batch_size
        short = (settings.mixed_window or 0.0) * sequences
        times = RECOMPUTED if settings.gradient_checkpointing else TRAINING
        parts, operations = [], Operations(0.0, 0.0)
        for tokens, count in ((length, sequences - short), (min(original, length), short)):
            cost = known.cost([(tokens, tokens)], tokens)
            operations += cost.operations * (times * count)
            parts.append({"tokens": round(tokens * count)})
        if known.size is not None:
            trained = _trained(settings, known.size)
            operations += Operations(UPDATE_OPERATIONS * known.size.parameters * trained * settings.steps, 0.0)
            memory = training_memory(
                known.size,
                length,
                settings.batch_size,
                trained=trained,
                recomputed=settings.gradient_checkpointing,
                device=known.device,
            )
        seconds = None if known.speed is None or known.size is None else known.speed.seconds(operations)
        tokens_read = sum(part["tokens"] for part in parts)
        return {
            "steps": settings.steps,
            "tokens": tokens_read,
            "operations": operations.total or None,
            "seconds": seconds,
            **_training_fits(None if known.size is None else memory, known, settings, length),
            "notes": list(known.notes),
        }


def _trained(settings: FinetuneSpec, size: ModelSize) -> float:
    """The share of the weights that are trained."""
    if not isinstance(settings.method, LoraSpec):
        return 1.0
    embeddings = size.vocabulary * size.hidden / size.parameters if settings.method.train_embeddings else 0.0
    return min(NORMS_AND_ADAPTERS + embeddings, 1.0)


def _training_fits(memory: Memory | None, known: Known, settings: FinetuneSpec, length: int) -> dict[str, Any]:
    """Say whether a training on sequences of so many tokens fits into memory, and if not, what would need less."""
    found = fit_of(memory, known)
    if memory is None or known.available is None or found["fits"] is not False:
        return found
    is_lora = isinstance(settings.method, LoraSpec)
    if memory.loaded > known.available:
        what = "the weights alone" if is_lora else "weights, gradients and moments of AdamW alone"
        reason = f"the libraries and {what} need about {size_text(memory.loaded)}"
        less = [] if is_lora else ["method lora"]
    else:
        reason = f"its sequences have {length:,} tokens"
        less = [] if settings.batch_size == 1 else ["a smaller batch_size"]
        less += [] if settings.gradient_checkpointing else ["gradient_checkpointing"]
    return found | {"too_large": reason + (f"; less is needed with {' or '.join(less)}" if less else "")}

"""The learning rate of each step."""

import math

from factor_search.finetune.spec import FinetuneSpec


def learning_rate(spec: FinetuneSpec, step: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then constant or half a cosine to 0."""
    rising = min(1.0, (step + 1) / spec.warmup_steps) if spec.warmup_steps else 1.0
    if spec.schedule == "constant" or step < spec.warmup_steps:
        return spec.learning_rate * rising
    share = (step - spec.warmup_steps) / (spec.steps - spec.warmup_steps)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

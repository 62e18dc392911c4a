"""Plans named by one word: the stages of the LongRoPE papers."""

from collections.abc import Callable

from factor_search.finetune.spec import FinetuneSpec
from factor_search.plan.kinds.contract import Stage
from factor_search.plan.kinds.evaluate import EvaluateStage
from factor_search.plan.kinds.export import ExportStage
from factor_search.plan.kinds.finetune import FinetuneStage
from factor_search.plan.kinds.readjust import ReadjustStage
from factor_search.plan.kinds.search import SearchStage
from factor_search.spec import NeedleSpec, SpaceSpec

LAST_STRETCH = 4
"""The target as a multiple of the middle length; the paper extends by 8 without fine-tuning."""
MIXED_WINDOW = 0.5
"""Share of short sequences, read with the model's own RoPE; the paper mixes both kinds about equally."""


def longrope(target_length: int, middle_length: int | None, seed: int) -> list[Stage]:
    """LongRoPE (2402.13753, sec. 3.3): search and fine-tune at a middle length, search again, readjust."""
    return [
        SearchStage(target_length=middle_length or max(target_length // LAST_STRETCH, 1)),
        FinetuneStage(settings=FinetuneSpec(seed=seed)),
        SearchStage(target_length=target_length),
        ReadjustStage(),
        EvaluateStage(),
        ExportStage(),
    ]


def longrope2(target_length: int, middle_length: int | None, seed: int) -> list[Stage]:
    """LongRoPE2 (2502.20082): search the critical dimension by needles, fine-tune with mixed windows."""
    space = SpaceSpec(initial_tokens=[0], critical_dimension="search")
    return [
        SearchStage(target_length=target_length, objective=NeedleSpec(), space=space),
        FinetuneStage(settings=FinetuneSpec(mixed_window=MIXED_WINDOW, seed=seed)),
        EvaluateStage(),
        ExportStage(),
    ]


RECIPES: dict[str, Callable[[int, int | None, int], list[Stage]]] = {"longrope": longrope, "longrope2": longrope2}

"""Tasks of lm-evaluation-harness on a model with factors in force, where that package is installed."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from factor_search.errors import SearchFailedError, SpecError, one_line
from factor_search.factors import Factors
from factor_search.model.injection import Injector
from factor_search.model.loading import LoadedModel
from factor_search.plan.task_names import check_task_names


def check_installed() -> None:
    """Refuse what needs the package where it is not.

    Raises:
        SpecError: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SpecError("harness tasks need the package lm_eval: pip install lm-eval, or leave 'harness' out")


def run_harness(loaded: LoadedModel, factors: Factors, tasks: Sequence[str]) -> dict[str, Any]:
    """Figures by task, as the harness names them: each metric, and its standard error.

    Raises:
        SpecError: the package is not installed, or a task is not one that it has registered.
        SearchFailedError: it fails, for whatever reason of its own.
    """
    check_installed()
    check_task_names(tasks)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        known = TaskManager()
        check_task_names(tasks, known.all_tasks)
        with Injector(loaded.model, loaded.geometry) as injector, injector.using([factors]):
            wrapped = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
            found = simple_evaluate(model=wrapped, tasks=list(tasks), task_manager=known)
    except SpecError:
        raise
    except Exception as error:  # whatever the harness and its tasks raise
        raise SearchFailedError(f"lm-evaluation-harness fails on {', '.join(tasks)}: {one_line(error)}") from error
    return {
        task: {metric: value for metric, value in values.items() if isinstance(value, int | float)}
        for task, values in found["results"].items()
    }

"""What one worker does for a stage of a plan, in this process, going on from whatever the folder holds of it."""

import shutil
from pathlib import Path

from factor_search.export.huggingface import export_huggingface
from factor_search.factors_file import parse_factors
from factor_search.model.loading import checkpoint_folder, load_config
from factor_search.plan.figures import Heard
from factor_search.plan.handing_in import hand_in
from factor_search.plan.measuring import climb, evaluate_ladder, measure, with_ladder
from factor_search.plan.tuning import tune
from factor_search.plan.work import EvaluateWork, ExportWork, FinetuneWork, Outcome

__all__ = ["climb", "evaluate_ladder", "hand_in", "measure", "perform", "with_ladder"]
MODEL, FACTORS, SHORT_FACTORS = "model", "factors.json", "short_factors.json"
"""What an export leaves in its folder."""


def perform(work: FinetuneWork | EvaluateWork | ExportWork, folder: Path, heard: Heard = lambda told: None) -> Outcome:
    """Do a stage's work, but for an evaluation's ladder (see :func:`evaluate_ladder`).

    Run again after an interruption it goes on from what the folder holds, and ends as if undisturbed; on a CPU bit for
    bit.

    Args:
        work: what to do.
        folder: of this work alone, made if need be.
        heard: of progress; what it raises passes through.

    Raises:
        FactorSearchError: the work cannot be done, saying why.
    """
    if isinstance(work, FinetuneWork):
        return tune(work, folder, heard)
    if isinstance(work, EvaluateWork):
        return measure(work, folder, heard)
    return _export(work, folder)


def _export(work: ExportWork, folder: Path) -> Outcome:
    """Write the model folder beside its final place, and move it there when it is whole."""
    file, short = parse_factors(work.factors), parse_factors(work.short) if work.short else None
    config = load_config(work.model)
    final, unfinished = folder / MODEL, folder / f".{MODEL}"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        export_huggingface(file, config, lambda: checkpoint_folder(work.model), unfinished, short)
        unfinished.rename(final)
    file.write(folder / FACTORS)
    if short is not None:
        short.write(folder / SHORT_FACTORS)
    files = sorted(item.name for item in final.iterdir())
    return Outcome(
        model=work.model.model_copy(update={"id": str(final.resolve()), "revision": None}),
        report={"profile": "static" if short is None else "switching", "files": files},
    )

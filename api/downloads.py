"""The ways to have the factors of a job, with the commands that write and load them."""

import shlex
from pathlib import Path

from api.page_schemas import Download, Downloads
from api.problems import RefusedError
from factor_search.export.registry import ENGINES
from factor_search.files.gguf import is_gguf
from factor_search.spec import ModelSpec
from storage.jobs import SEARCHES, Job


def downloads(job: Job) -> Downloads:
    """Every format of the factors of a job.

    Raises:
        RefusedError: the job is not a search.
    """
    if job.kind not in SEARCHES:
        raise RefusedError(409, f"job {job.id} is not a search, so it has no factors")
    spec = job.parse_spec()
    return Downloads(formats=[_download(name, spec.model, spec.target_length) for name in ENGINES])


def _download(name: str, model: ModelSpec, target_length: int) -> Download:
    engine = ENGINES[name]
    words = ["factor-search", "export", "--factors", "factors.json", "--format", name, "--out", engine.out_name]
    if engine.model_name is not None and not (is_gguf(model.id) and is_gguf(engine.model_name)):
        words += ["--model", engine.model_name]
    return Download(
        format=name,
        title=engine.title,
        writes=engine.writes,
        document=engine.document_name,
        export=shlex.join(words),
        load=engine.load_command(model, target_length, Path(engine.out_name)),
    )

"""What a fine-tuning leaves: a checkpoint that plain transformers loads, and ``finetune.json`` beside it."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from factor_search.errors import CheckpointError, OutputError, one_line
from factor_search.export.huggingface import export_huggingface, huggingface_config
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.files.json_documents import read_json, write_json
from factor_search.finetune.checkpoints import check_identity, to_disk
from factor_search.finetune.spec import FinetuneSpec
from factor_search.model.loading import LoadedModel, quietly
from factor_search.version import versions

SCHEMA = "factor-search/finetune@1"
MODEL, RECORD, CHECKPOINTS = "model", "finetune.json", "checkpoints"
"""What stands in the folder of a fine-tuning; the last until it is finished."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A finished fine-tuning."""

    model: Path
    """Folder of the checkpoint, for ``AutoModelForCausalLM.from_pretrained``."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean loss of the step before its update in nats per token), steps counted from 1."""
    tokens: int
    """Tokens read in training."""
    seconds: float
    """Seconds of training, those before interruptions included."""
    documents: int
    """Documents that sequences were taken from."""
    left_out: int
    """Documents that were too short."""


def exported_factors(
    loaded: LoadedModel, factors: Factors, target_length: int, *, drop_initial_tokens: bool
) -> FactorsFile:
    """The factors as the configuration of the result will hold them.

    Raises:
        ExportError: a configuration cannot hold them: they keep initial tokens and these are not to be dropped, or the
            model's RoPE type cannot be replaced by longrope.
        FactorsError: they do not fit the model.
    """
    if drop_initial_tokens:
        factors = Factors(factors.rescale_factors, 0, factors.attention_factor)
    model = FactorsModel.of(loaded.spec.id, loaded.spec.revision, loaded.geometry)
    file = factors_file(factors, model, target_length)
    huggingface_config(file, loaded.model.config)
    return file


def write_model(loaded: LoadedModel, file: FactorsFile, folder: Path) -> None:
    """Write weights, tokenizer and a configuration with the factors, and put the folder in place when it is whole.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
            saved, whole = Path(staging, "saved"), Path(staging, "whole")
            with quietly():
                loaded.model.save_pretrained(saved)
                loaded.tokenizer.save_pretrained(saved)
            export_huggingface(file, loaded.model.config, lambda: saved, whole)  # links the weights
            for item in whole.iterdir():
                if item.is_symlink():  # where the file system has no hard links; what it points to is about to go
                    item.resolve().replace(item)
                to_disk(item)
            if folder.exists():  # of a run that ended before its record was written
                shutil.rmtree(folder)
            whole.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {folder}: {one_line(error)}") from None


def write_record(
    folder: Path,
    loaded: LoadedModel,
    factors: Factors,
    target_length: int,
    spec: FinetuneSpec,
    identity: Mapping[str, str],
    result: FinetuneResult,
) -> None:
    """Write ``finetune.json``; a folder that has one is finished.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(
        folder / RECORD,
        {
            "schema": SCHEMA,
            "spec": spec.model_dump(mode="json"),
            "model": {"id": loaded.spec.id, "revision": loaded.spec.revision, **loaded.identity},
            "target_length": target_length,
            "factors": factors.as_json(),
            "identity": dict(identity),
            "documents": result.documents,
            "left_out_documents": result.left_out,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "losses": [list(pair) for pair in result.losses],
            "versions": versions(),
        },
    )


def finished_result(folder: Path, identity: Mapping[str, str]) -> FinetuneResult | None:
    """What the same fine-tuning has left there before, if it came to its end.

    Raises:
        CheckpointError: the folder holds another one's result, or its record cannot be read.
    """
    file = folder / RECORD
    if not file.exists():
        return None
    record: dict[str, Any] = read_json(file, CheckpointError)
    try:
        check_identity(str(file), record["identity"], identity)
        if not (folder / MODEL).is_dir():  # taken away since: train again
            return None
        return FinetuneResult(
            model=folder / MODEL,
            losses=tuple((step, loss) for step, loss in record["losses"]),
            tokens=record["tokens"],
            seconds=record["seconds"],
            documents=record["documents"],
            left_out=record["left_out_documents"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{file} is not the record of a fine-tuning: choose another folder") from None

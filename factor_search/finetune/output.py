"""Writes the result of a fine-tuning: a checkpoint that transformers loads, and ``finetune.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from factor_search.errors import CheckpointError, OutputError, one_line
from factor_search.export.huggingface import export_huggingface, huggingface_config
from factor_search.export.verification.plain import PlainCheck
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.files.atomic import move_folder, partial_folder
from factor_search.files.json_documents import read_json, write_json
from factor_search.finetune.checkpoints import check_identity, identity_in
from factor_search.finetune.sequences import Sequences
from factor_search.finetune.spec import FinetuneSpec
from factor_search.model.loading import LoadedModel, quietly
from factor_search.version import versions

SCHEMA = "factor-search/finetune@1"
MODEL, RECORD, CHECKPOINTS = "model", "finetune.json", "checkpoints"
"""Contents of the folder of a fine-tuning; the checkpoints are removed at the end."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The result of a finished fine-tuning."""

    model: Path
    """Folder of the checkpoint, for ``AutoModelForCausalLM.from_pretrained``."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean loss of the step before its update in nats per token); steps are counted from 1."""
    tokens: int
    """Tokens read in training."""
    seconds: float
    """Seconds of training, including those before interruptions."""
    documents: int
    """Documents that were trained on."""
    left_out: int
    """Documents that were too short."""


def exported_factors(
    loaded: LoadedModel, factors: Factors, target_length: int, *, drop_initial_tokens: bool
) -> FactorsFile:
    """Return the factors as the configuration of the result will contain them.

    Raises:
        ExportError: a configuration cannot express the factors: they keep initial tokens, which may not be dropped, or
            the model's RoPE type cannot be replaced by longrope.
        FactorsError: the factors do not belong to the model.
    """
    if drop_initial_tokens:
        factors = Factors(factors.rescale_factors, 0, factors.attention_factor)
    model = FactorsModel.of(loaded.spec.id, loaded.spec.revision, loaded.geometry)
    file = factors_file(factors, model, target_length)
    huggingface_config(file, loaded.model.config)
    return file


def write_model(loaded: LoadedModel, file: FactorsFile, folder: Path) -> None:
    """Write weights, tokenizer and a configuration with the factors atomically into a folder.

    Raises:
        ExportError: loaded again, the model computes something else.
        OutputError: the folder cannot be written.
    """
    try:
        with partial_folder(folder) as staging:
            saved, whole = staging / "saved", staging / "whole"
            with quietly():
                loaded.model.save_pretrained(saved)
                loaded.tokenizer.save_pretrained(saved)
            check = PlainCheck(lambda: loaded, file)
            export_huggingface(file, loaded.model.config, lambda: saved, whole, check=check)  # links the weights
            for item in whole.iterdir():
                if item.is_symlink():  # on a file system without hard links; its target is about to be removed
                    item.resolve().replace(item)
            move_folder(whole, folder)  # it replaces what a run left that ended before it wrote its record
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
    """Write ``finetune.json``, which marks the fine-tuning as finished.

    Raises:
        OutputError: the file cannot be written.
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


def began_without_prefix(folder: Path, sequences: Sequences) -> bool:
    """Return whether a folder contains a training on sequences without a prefix, as earlier versions began them."""
    file = folder / RECORD
    if file.exists():
        record = read_json(file, CheckpointError, own=True)
    else:
        record = {"identity": identity_in(folder / CHECKPOINTS)}
    found = record.get("identity") if isinstance(record, dict) else None
    return isinstance(found, dict) and found.get("data") == sequences.sha256


def finished_result(folder: Path, identity: Mapping[str, str]) -> FinetuneResult | None:
    """Return the result of the same fine-tuning in a folder, or None if it is not finished.

    Raises:
        CheckpointError: the folder contains the result of another fine-tuning, or its record cannot be read.
    """
    file = folder / RECORD
    if not file.exists():
        return None
    record: dict[str, Any] = read_json(file, CheckpointError, own=True)
    try:
        check_identity(str(file), record["identity"], identity)
        if not (folder / MODEL).is_dir():  # the model was removed: train again
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

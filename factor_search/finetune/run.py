"""Runs one fine-tuning, from a loaded model to a checkpoint with a longer context window."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from factor_search.errors import ModelError
from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.finetune.checkpoints import Checkpoints
from factor_search.finetune.output import (
    CHECKPOINTS,
    MODEL,
    FinetuneResult,
    began_without_prefix,
    exported_factors,
    finished_result,
    write_model,
    write_record,
)
from factor_search.finetune.sequences import Sequences
from factor_search.finetune.spec import FinetuneSpec
from factor_search.finetune.training import OnStep, Training, activations_recomputed, computation, train
from factor_search.finetune.weights import trainable
from factor_search.model.injection import Injector, probe
from factor_search.model.loading import LoadedModel
from factor_search.text.tokens import CachedTokenizer, TokenIds

_changed: "WeakSet[PreTrainedModel]" = WeakSet()
"""Models whose weights differ from their checkpoint."""


def finetune(
    loaded: LoadedModel,
    documents: Sequence[TokenIds],
    factors: Factors,
    target_length: int,
    spec: FinetuneSpec,
    folder: Path,
    progress: OnStep = lambda step: None,
) -> FinetuneResult:
    """Train a model with the given factors, and write a checkpoint with the factors in its configuration.

    If the function is called again with the same arguments, it continues from the last checkpoint, or returns the
    result at once if the training is finished. On a CPU, the result of an interrupted run is bit for bit that of an
    undisturbed run.

    Args:
        loaded: a freshly loaded model. Its weights are trained in place, and cannot be used after an error.
        documents: token ids, one array of int64 of shape (tokens,) per document.
        factors: the factors to train with, including their initial tokens.
        target_length: target context length in tokens.
        spec: the settings of the training.
        folder: a folder for this fine-tuning only. It will contain ``model/`` and ``finetune.json``, and during the
            training ``checkpoints/``.
        progress: called after each step; it may end the training by raising an exception.

    Raises:
        SpecError: the specification does not fit the model or the lengths.
        DataError: no document is long enough, or the tokens belong to another tokenizer.
        FactorsError, ExportError: the factors do not fit the model, or a configuration cannot express them.
        UnsupportedModelError: factors have no effect on the model, or it does not support the specification.
        ModelError: the model was already trained since it was loaded.
        CheckpointError: the folder contains another fine-tuning, or a broken checkpoint.
        FinetuneError: a loss is not finite, there is not enough memory, or a package is missing.
        OutputError: the folder cannot be written.
    """
    model, geometry = loaded.model, loaded.geometry
    file = exported_factors(loaded, factors, target_length, drop_initial_tokens=spec.drop_initial_tokens)
    lengths = geometry.original_length, target_length
    prefix = CachedTokenizer(loaded.tokenizer).prefix
    sequences = Sequences(documents, spec, *lengths, prefix)
    if prefix and began_without_prefix(folder, earlier := Sequences(documents, spec, *lengths)):
        sequences = earlier
    sequences.check_vocabulary(model.get_input_embeddings().num_embeddings)
    identity = {
        "specification": spec.sha256,
        "model": sha256_of(loaded.identity),
        "data": sequences.sha256,
        "factors": factors.sha256,
        "lengths": sha256_of(lengths),
    }
    finished = finished_result(folder, identity)
    if finished:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # a kill may have left some
        return finished
    if model in _changed:
        raise ModelError(f"the weights of {loaded.spec.id} were trained before: load the model again")
    probe(model, geometry)
    precision = computation(spec, model.device)
    checkpoints = Checkpoints(folder / CHECKPOINTS, identity)
    gpus = [model.device] if model.device.type == "cuda" else []
    recomputed = activations_recomputed(model) if spec.gradient_checkpointing else nullcontext()
    with recomputed, Injector(model, geometry) as injector, torch.random.fork_rng(gpus):
        torch.manual_seed(spec.seed)  # for the initial weights of adapters
        _changed.add(model)
        with trainable(model, spec, precision) as weights:
            training = Training(
                model=model,
                weights=weights,
                injector=injector,
                factors=factors,
                sequences=sequences,
                spec=spec,
                precision=precision,
            )
            state = train(training, checkpoints, progress)
    loaded.files.check_unchanged()
    write_model(loaded, file, folder / MODEL)
    result = FinetuneResult(
        model=folder / MODEL,
        losses=tuple(enumerate(state.losses, start=1)),
        tokens=state.tokens,
        seconds=state.seconds,
        documents=len(documents) - sequences.left_out,
        left_out=sequences.left_out,
    )
    write_record(folder, loaded, factors, target_length, spec, identity, result)
    checkpoints.remove()
    return result

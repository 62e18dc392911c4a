"""The documents that are left for training: no stage searches or measures on them or on a piece of them."""

from factor_search.errors import DataError
from factor_search.finetune.spec import FinetuneSpec
from factor_search.model.geometry import Geometry
from factor_search.spec import DataSpec
from factor_search.text.documents import documents_from_files
from factor_search.text.samples import Tokenize, distinct_tokens, documents_of, load_samples
from factor_search.text.tokens import TokenIds

ENOUGH = 4
"""Times the tokens that a training reads: more documents than that are not looked for."""


def training_documents(
    data: DataSpec,
    training_files: list[str] | None,
    tokenize: Tokenize,
    geometry: Geometry,
    target_length: int,
    settings: FinetuneSpec,
    *,
    seed: int,
) -> list[TokenIds]:
    """Token ids of the documents to train on, in the order of their source.

    A document is left out if it holds, anywhere, the beginning of one that is searched or measured on: its tokens
    within the original length, except the first few. This excludes copies, and other pieces of the same document.

    Args:
        data: where the documents of the plan are, and how they are split.
        training_files: where those to train on are; None is the same place.
        tokenize: text to token ids.
        geometry: of the model.
        target_length: of the training, in tokens.
        settings: of the training.
        seed: of the split.

    Raises:
        DataError: documents cannot be read, or none is left.
        SpecError: the training's lengths do not fit.
    """
    original = geometry.original_length
    distinct = distinct_tokens(data, geometry.original_length) or original
    split = load_samples(data, tokenize, distinct, seed=seed, distinct=distinct)
    parts = (split.search, split.validation, split.held_out)
    # In another document, the first tokens may be joined with the text before them.
    used = [_as_bytes(one.tokens[distinct // 8 :]) for part in parts for one in part.samples]
    needed = max(settings.document_tokens(original, target_length), distinct)
    length = settings.sequence_length(original, target_length)
    enough = ENOUGH * settings.steps * settings.passes(length) * settings.batch_size * length
    source = (
        documents_of(data) if training_files is None else documents_from_files(training_files, data.column, data.split)
    )
    found: list[TokenIds] = []
    total = known = short = 0
    for document in source:
        tokens = tokenize(document.text)
        content = _as_bytes(tokens)
        if len(tokens) < needed:
            short += 1
        elif any(beginning in content for beginning in used):
            known += 1
        else:
            found.append(tokens)
            total += len(tokens)
            if total >= enough:
                break
    if not found:
        raise DataError(
            f"no document is left to fine-tune on: {known} are used in searches or measurements, {short} have fewer "
            f"than the {needed} tokens needed; add documents, give training_files, or lower data.*_documents"
        )
    return found


def _as_bytes(tokens: TokenIds) -> bytes:
    return tokens.astype("<i4").tobytes()

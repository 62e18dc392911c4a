"""The documents that are left for training: none that plays a part in any stage, nor a piece of one."""

from factor_search.errors import DataError
from factor_search.job import distinct_tokens
from factor_search.model.geometry import Geometry
from factor_search.plan.work import FinetuneWork
from factor_search.text.documents import documents_from_files
from factor_search.text.samples import Tokenize, documents_of, load_samples
from factor_search.text.tokens import TokenIds

ENOUGH = 4
"""Times the tokens that a training reads: more documents than that are not looked for."""


def training_documents(
    work: FinetuneWork, tokenize: Tokenize, geometry: Geometry, target_length: int
) -> list[TokenIds]:
    """Token ids of the documents to train on, in the order of their source.

    A document is left out if it holds, anywhere, the beginning of one that plays a part: its tokens within the original
    length, but for the first few. So neither are other pieces of it trained on, nor copies.

    Args:
        work: where documents are, which of them play a part, and how the model is trained.
        tokenize: text to token ids.
        geometry: of the model.
        target_length: of the training.

    Raises:
        DataError: documents cannot be read, or none is left.
        SpecError: the training's lengths do not fit.
    """
    settings, original = work.settings, geometry.original_length
    distinct = distinct_tokens(work.data, geometry) or original
    dealt = load_samples(work.data, tokenize, distinct, seed=work.seed, distinct=distinct)
    parts = (dealt.search, dealt.validation, dealt.held_out)
    # The first tokens may be joined otherwise with what stands before them elsewhere.
    playing = [_as_bytes(one.tokens[distinct // 8 :]) for part in parts for one in part.samples]
    needed = max(settings.document_tokens(original, target_length), distinct)
    length = settings.sequence_length(original, target_length)
    enough = ENOUGH * settings.steps * settings.passes(length) * settings.batch_size * length
    source = (
        documents_of(work.data)
        if work.training_files is None
        else documents_from_files(work.training_files, work.data.column, work.data.split)
    )
    found: list[TokenIds] = []
    total = known = short = 0
    for document in source:
        tokens = tokenize(document.text)
        content = _as_bytes(tokens)
        if len(tokens) < needed:
            short += 1
        elif any(beginning in content for beginning in playing):
            known += 1
        else:
            found.append(tokens)
            total += len(tokens)
            if total >= enough:
                break
    if not found:
        raise DataError(
            f"no document is left to fine-tune on: {known} play a part in searches or measurements, {short} have fewer "
            f"than the {needed} tokens needed; add documents, give training_files, or lower data.*_documents"
        )
    return found


def _as_bytes(tokens: TokenIds) -> bytes:
    return tokens.astype("<i4").tobytes()

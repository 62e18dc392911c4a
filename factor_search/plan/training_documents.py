"""The documents that are left for training: none that plays a part in any stage, nor a piece of one."""

from factor_search.documents import documents_from_files
from factor_search.errors import DataError
from factor_search.geometry import Geometry
from factor_search.job import distinct_tokens
from factor_search.plan.work import FinetuneWork
from factor_search.samples import Tokenize, documents_of, load_samples, pieces_of, token_hash
from factor_search.tokens import TokenIds

ENOUGH = 4
"""Times the tokens that a training reads: more documents than that are not looked for."""


def training_documents(
    work: FinetuneWork, tokenize: Tokenize, geometry: Geometry, target_length: int
) -> list[TokenIds]:
    """Token ids of the documents to train on, in the order of their source.

    A document is left out if it, or one of the pieces it would be cut into, begins like one that plays a part: with the
    same tokens within the original length.

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
    playing = {one.sha256 for part in (dealt.search, dealt.validation, dealt.held_out) for one in part.samples}
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
        if len(tokens) < needed:
            short += 1
        elif _beginnings(work, document.source, tokens, distinct) & playing:
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


def _beginnings(work: FinetuneWork, source: str, tokens: TokenIds, distinct: int) -> set[str]:
    """Hashes of the first tokens of a document, and of each piece that it could have been cut into."""
    pieces = pieces_of(source, tokens, work.data.least_tokens or len(tokens), cut=work.data.cut_long_documents)
    return {token_hash(one[:distinct]) for one in [tokens, *(piece.tokens for piece in pieces)]}

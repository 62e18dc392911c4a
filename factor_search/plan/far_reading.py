"""What shows whether a model reads far: passkeys, RULER's tasks, and key tokens, on documents of a plan."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from factor_search.errors import DataError, OutputError
from factor_search.factors import Factors
from factor_search.spec import RULER_TASKS, Documents, ModelSpec, PositiveInt, RulerTask, Strict, Tokens
from factor_search.spec.named import Flag
from factor_search.text.samples import SampleSet, check_vocabulary

if TYPE_CHECKING:
    from factor_search.model.loading import LoadedModel

LENGTHS = "In tokens; null is those of the ladder."
FIRST = "The first so many held-out documents; null is all."


class PasskeySpec(Strict):
    """Passkey retrieval (2305.16300): every document at every length and depth."""

    lengths: list[Tokens] | None = Field(None, min_length=1, max_length=32, description=LENGTHS)
    depths: PositiveInt = Field(5, le=1000, description="How many, evenly from the beginning to the end.")
    digits: PositiveInt = Field(5, ge=2, le=15, description="Of the passkeys.")
    documents: Documents | None = Field(None, description=FIRST)


class RulerSpec(Strict):
    """The synthetic tasks of RULER (2404.06654), made from the documents."""

    tasks: list[RulerTask] = Field([*RULER_TASKS], min_length=1, max_length=len(RULER_TASKS))
    lengths: list[Tokens] | None = Field(None, min_length=1, max_length=32, description=LENGTHS)
    depths: PositiveInt = Field(3, le=1000, description="How many, where one fact is asked for.")
    documents: Documents | None = Field(None, description=FIRST)
    chat: Flag = Field(False, description="Ask in the chat template of the tokenizer.")


class KeyTokensSpec(Strict):
    """Perplexity of key tokens (LongPPL, 2410.23771)."""

    model: ModelSpec = Field(description="Chooses the tokens; reads texts of the target length, same tokenizer.")
    context: Tokens | None = Field(
        None, ge=2, description="Tokens of the short context; null is 4,096, or half of the target if that is fewer."
    )


OnStep = Callable[[int, int], None]


def passkeys(
    asked: PasskeySpec,
    ladder: Sequence[int],
    loaded: "LoadedModel",
    factors: Factors,
    held_out: SampleSet,
    *,
    seed: int,
    record: Path,
    identity: str,
    on_step: OnStep,
) -> dict[str, Any] | None:
    """Accuracy by length and depth; of the ladder's lengths, at those that a passkey fits into. None if none does.

    Args:
        asked: for what.
        ladder: lengths in tokens if ``asked`` gives none.
        loaded: the model.
        factors: in force at every length.
        held_out: the documents.
        seed: of the passkeys.
        record: file that keeps what is measured.
        identity: of everything that it depends on besides the model.
        on_step: called with the number of cells done and of all.
    """
    from factor_search.measure.passkey_grid import fits, passkey_grid

    documents = SampleSet(held_out.part, held_out.samples[: asked.documents])
    lengths = asked.lengths or [length for length in ladder if fits(loaded, documents, length, asked.digits)]
    if not lengths:
        return None
    return passkey_grid(
        loaded,
        factors,
        documents,
        lengths=lengths,
        depths=asked.depths,
        digits=asked.digits,
        seed=seed,
        record=record,
        identity=identity,
        on_cell=on_step,
    )


def ruler(
    asked: RulerSpec,
    ladder: Sequence[int],
    loaded: "LoadedModel",
    factors: Factors,
    held_out: SampleSet,
    *,
    seed: int,
    record: Path,
    identity: str,
    on_step: OnStep,
) -> dict[str, Any] | None:
    """Share of facts found by task, length and depth, of the ladder's lengths at those that all tasks fit into.

    Args: as of :func:`passkeys`.
    """
    from factor_search.files.canonical_json import canonical_json
    from factor_search.files.json_documents import read_json, write_json
    from factor_search.measure.passkey import even_depths
    from factor_search.measure.ruler import Answer, answers, as_json, scores
    from factor_search.text.ruler import Question, questions
    from factor_search.text.tokens import CachedTokenizer

    tokenizer = CachedTokenizer(loaded.tokenizer)
    samples, depths = held_out.samples[: asked.documents], even_depths(asked.depths)

    def made(length: int) -> list[Question]:
        return questions(
            samples, tokenizer, tasks=asked.tasks, lengths=[length], depths=depths, seed=seed, chat=asked.chat
        )

    every: list[Question] = []
    for length in sorted(set(asked.lengths or ladder)):
        try:
            every += made(length)
        except DataError:
            if asked.lengths:
                raise
    if not every:
        return None
    whole = canonical_json([loaded.identity | loaded.environment, identity])
    kept: list[Answer] = []
    if record.exists():
        document = read_json(record, OutputError, own=True)
        if document["identity"] == whole:
            kept = [Answer(one["text"], tuple(one["found"])) for one in document["answers"]]
    for number in range(len(kept), len(every)):
        kept += answers(loaded, factors, every[number : number + 1], tokenizer.text)
        loaded.files.check_unchanged()
        write_json(record, {"identity": whole, "answers": [vars(one) for one in kept]})
        on_step(len(kept), len(every))
    return as_json(scores(every, kept))


def key_tokens(asked: KeyTokensSpec, tokenizer: object, held_out: SampleSet) -> SampleSet:
    """The documents with the tokens that the named model chooses as the scored ones.

    Args:
        asked: for what.
        tokenizer: of the model that is measured.
        held_out: the documents.

    Raises:
        DataError: there are none, or the models do not agree on tokens.
        ModelError: the named model cannot be loaded.
    """
    from factor_search.measure.key_tokens import check_same_tokens, with_key_tokens
    from factor_search.model.loading import load_model
    from factor_search.text.tokens import CachedTokenizer

    chooser = load_model(asked.model)
    check_vocabulary(held_out, chooser.model.get_input_embeddings().num_embeddings)
    check_same_tokens(held_out, CachedTokenizer(tokenizer), CachedTokenizer(chooser.tokenizer))
    return with_key_tokens(held_out, chooser, asked.context)


def key_token_perplexity(
    loaded: "LoadedModel", candidates: dict[str, Factors], documents: SampleSet, length: int, record: Path
) -> dict[str, Any]:
    """Compare candidates on key tokens.

    Args:
        loaded: the model.
        candidates: by name; the others are compared with the first.
        documents: with their key tokens as the scored ones.
        length: target in tokens.
        record: file that keeps the evaluations.

    Returns:
        A JSON document with the number of ``documents`` and ``tokens``, and a row for each candidate.
    """
    from factor_search.measure.evaluator import LocalEvaluator
    from factor_search.measure.figures import compared, figures
    from factor_search.measure.ledger import Ledger, RecordedEvaluator

    with Ledger(record) as ledger, LocalEvaluator(loaded, length) as local:
        found = list(RecordedEvaluator(local, ledger).evaluate_all(list(candidates.values()), documents))
    tokens = [len(sample.scored or ()) for sample in documents.samples]
    rows = [
        {"name": name, **(figures(one.losses, tokens) or {"perplexity": None})}
        | compared(one.losses, found[0].losses, tokens)
        for name, one in zip(candidates, found, strict=True)
    ]
    return {"documents": len(tokens), "tokens": sum(tokens), "rows": rows}

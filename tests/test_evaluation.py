from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from factor_search.factors import Factors
from factor_search.measure.evaluation import DIVERGED, OK, OUT_OF_MEMORY, PRUNED, evaluation_key
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.ledger import Ledger, RecordedEvaluator
from factor_search.measure.race import Race
from factor_search.measure.windows import sliding_windows
from factor_search.model.loading import LoadedModel, load_model
from factor_search.model.losses import token_losses
from factor_search.spec import ModelSpec, parse_spec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text.documents import Document
from factor_search.text.samples import Sample, SampleSet, first_samples
from factor_search.text.tokens import CachedTokenizer

LOSSES = "factor_search.measure.evaluator.token_losses"
FACTORS = Factors.of([1.0 + 0.5 * i for i in range(8)], attention_factor=1.1)


def sample_set(seed: int = 0, count: int = 3) -> SampleSet:
    rng = np.random.default_rng(seed)
    return SampleSet("search", tuple(Sample(str(n), rng.integers(0, 257, 128), f"{seed}-{n}") for n in range(count)))


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(ModelSpec(id=str(checkpoint)))


def test_losses_and_their_ladder(loaded: LoadedModel) -> None:
    samples = sample_set()
    with LocalEvaluator(loaded, 128) as evaluator:
        result = evaluator.evaluate(FACTORS, samples)
        with evaluator._injector.using([FACTORS]):
            expected = [
                token_losses(loaded.model, torch.from_numpy(s.tokens)[None])[0].double() for s in samples.samples
            ]
    assert result.outcome == OK
    assert result.tokens == (127,) * 3
    assert result.losses == pytest.approx([losses.mean().item() for losses in expected], rel=1e-12)
    assert list(result.losses_at) == [64, 128]
    assert result.losses_at[64] == pytest.approx([losses[:63].mean().item() for losses in expected], rel=1e-12)
    assert result.losses_at[128] == result.losses


def test_a_prefix_of_a_sample_has_the_loss_of_a_shorter_sample(loaded: LoadedModel) -> None:
    samples = sample_set()
    short = SampleSet("search", tuple(replace(s, tokens=s.tokens[:64]) for s in samples.samples))
    with LocalEvaluator(loaded, 128) as evaluator:
        long = evaluator.evaluate(FACTORS, samples)
    with LocalEvaluator(loaded, 64) as evaluator:
        assert evaluator.evaluate(FACTORS, short).losses == pytest.approx(long.losses_at[64], rel=1e-5)


def test_the_key_changes_with_everything_the_losses_depend_on(loaded: LoadedModel) -> None:
    def key(
        model: LoadedModel = loaded,
        length: int = 128,
        stride: int | None = None,
        factors: Factors = FACTORS,
        samples: SampleSet = sample_set(),  # noqa: B008
    ) -> str:
        return LocalEvaluator(model, length, stride).key(factors, samples)

    keys = [
        key(),
        key(model=replace(loaded, content="other weights")),
        key(model=replace(loaded, geometry=replace(loaded.geometry, original_length=32))),
        key(length=127),
        key(stride=64),
        key(factors=replace(FACTORS, initial_tokens=1)),
        key(factors=replace(FACTORS, attention_factor=1.2)),
        key(factors=Factors.of([1.0] * 8, attention_factor=1.1)),
        key(samples=sample_set(seed=1)),
        key(samples=sample_set(count=2)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_keys_of_plain_samples_are_those_of_earlier_versions() -> None:
    """Made by the version before samples could say which of their tokens are scored."""
    documents = [Document("a", "a plain document " * 9), Document("b", "another one " * 20)]
    samples = first_samples(documents, CachedTokenizer(byte_tokenizer(64)), 128, 2)
    factors = Factors.of([1.0, 1.5, 2.0, 4.0], 2, 1.1)
    identity = {"model": "content", "dtype": "float32", "attention": "sdpa"}
    assert samples.sha256 == "145a1a4ecc65d316217860ccfd43d2430d9a01b1497779482ceb1ef8d077b456"
    keys = {
        (None, None): "2464359366ec87dcc59e3303240b455403a6b36bf8a3cf93513070ae8a66fcbd",
        (32, None): "b79fd33388260ef0229ecc0ef20e94df2dd46a37d7ca55d88f20b44f1263e002",
        (None, 1): "296e8789ba28479c28199d45963990d6cf6278efbe8ca3c80b82d4d7d5ee8278",
    }
    for (stride, count), key in keys.items():
        assert evaluation_key(identity, 64, 128, stride, factors, samples, count) == key
    document = {"model": "m", "data": "d", "target_length": 128}
    searches = {None: "64717cca5eb07d6e7965b5acd43840adfe8f18a43c7b0bce8bc1c10db84e30d3"}
    searches[32] = "2fa29190d6f4bff7eae52686b6a4dc9c27c5e017e72219aaae47ee54193f595c"
    for stride, identity_of_search in searches.items():
        objective = {"kind": "perplexity", "stride": stride}
        assert parse_spec(document | {"objective": objective}).sha256 == identity_of_search


@pytest.mark.parametrize(("prefix", "stride"), [(1, 16), (1, 32), (2, 16), (3, 30)])
def test_every_sliding_window_begins_with_the_prefix(loaded: LoadedModel, prefix: int, stride: int) -> None:
    """Compared with forward passes of transformers over each window."""
    sample = replace(sample_set(count=1).samples[0], prefix=prefix)
    samples = SampleSet("search", (sample,))
    with LocalEvaluator(loaded, 32, stride) as evaluator:
        evaluation = evaluator.evaluate(Factors.of([1.0] * 8), samples)
    tokens, losses, scored = sample.tokens.tolist(), [], prefix
    for start in range(0, len(tokens), stride):
        window = tokens[:prefix] + tokens[start + prefix : start + 32]
        ids = torch.tensor([window])
        with torch.inference_mode():
            logits = loaded.model(ids).logits[0].double().log_softmax(-1)
        first = max(scored - start, prefix)
        losses += [-logits[at - 1, window[at]].item() for at in range(first, len(window))]
        scored = start + len(window)
        if scored >= len(tokens):
            break
    assert evaluation.tokens == (len(losses),)
    assert evaluation.losses[0] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_keys_tell_windows_with_a_prefix_from_those_of_earlier_versions() -> None:
    factors, identity = Factors.of([1.0, 2.0]), {"model": "m"}

    def key(prefix: int, stride: int | None) -> str:
        samples = SampleSet("search", tuple(replace(one, prefix=prefix) for one in sample_set().samples))
        return evaluation_key(identity, 64, 128, stride, factors, samples)

    assert key(1, None) == key(0, None), "the first window is the same as before"
    assert len({key(prefix, stride) for prefix in (0, 1, 2) for stride in (None, 16)}) == 5


def scoring(samples: SampleSet, *scored: tuple[int, ...] | None) -> SampleSet:
    return SampleSet(samples.part, tuple(replace(s, scored=at) for s, at in zip(samples.samples, scored, strict=True)))


@pytest.mark.parametrize("rows", [1, 3])
def test_losses_of_scored_tokens_only(loaded: LoadedModel, rows: int) -> None:
    plain = sample_set()
    some = scoring(plain, (5, 100, 127), (1,), (100, 101))
    with LocalEvaluator(loaded, 128) as evaluator:
        evaluator._rows_per_pass = rows  # as on a GPU
        result = evaluator.evaluate(FACTORS, some)
        with evaluator._injector.using([FACTORS]):
            every = [token_losses(loaded.model, torch.from_numpy(s.tokens)[None])[0].double() for s in plain.samples]
    expected = [
        losses[[t - 1 for t in s.scored or ()]].mean().item() for losses, s in zip(every, some.samples, strict=True)
    ]
    assert result.losses == pytest.approx(expected, rel=1e-5)
    assert result.tokens == (3, 1, 2)
    assert result.losses_at == {}
    assert result.loss == pytest.approx(np.average(expected, weights=[3, 1, 2]), rel=1e-5)


def test_scored_and_plain_samples_side_by_side(loaded: LoadedModel) -> None:
    with LocalEvaluator(loaded, 128) as evaluator:
        evaluator._rows_per_pass = 3
        every = tuple(range(1, 128))
        mixed, plain = (
            evaluator.evaluate(FACTORS, scoring(sample_set(), *at)) for at in ((None, every, None), [None] * 3)
        )
    assert mixed.losses == pytest.approx(plain.losses, rel=1e-5)
    assert mixed.tokens == plain.tokens
    assert mixed.losses_at == {}, "not of some documents only"


def test_scored_tokens_under_a_sliding_window(loaded: LoadedModel) -> None:
    """Each is predicted in the window that it counts in; windows without any are not run."""
    (sample,) = sample_set(count=1).samples
    scored = (10, 60, 100, 127)
    passes = []
    handle = loaded.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    with LocalEvaluator(loaded, 32, stride=16) as evaluator:
        result = evaluator.evaluate(FACTORS, SampleSet("x", (replace(sample, scored=scored),)))
        handle.remove()
        losses = {}
        with evaluator._injector.using([FACTORS]):
            for w in sliding_windows(128, 32, 16):
                row = token_losses(loaded.model, torch.from_numpy(sample.tokens[w.start : w.stop])[None])[0].double()
                losses |= {t: row[t - w.start - 1].item() for t in scored if w.scored <= t < w.stop}
    assert set(losses) == set(scored)
    assert result.losses == pytest.approx([np.mean(list(losses.values()))], rel=1e-5)
    assert len(passes) == 4 < len(sliding_windows(128, 32, 16))


def test_a_window_without_any_scored_token_is_refused(loaded: LoadedModel) -> None:
    with LocalEvaluator(loaded, 64) as evaluator, pytest.raises(ValueError, match="no scored token of 0 is within"):
        evaluator.evaluate(FACTORS, scoring(sample_set(count=1), (100,)))


def test_a_race_over_scored_samples_continues_where_it_was(loaded: LoadedModel) -> None:
    samples = scoring(sample_set(), (5, 100), (1,), (100, 101))
    with LocalEvaluator(loaded, 128) as evaluator:
        whole = evaluator.evaluate(FACTORS, samples)
        first = evaluator.evaluate(FACTORS, samples, race=Race(documents=1))
        assert (first.outcome, len(first.losses)) == (PRUNED, 1)
        continued = evaluator.evaluate(FACTORS, samples, race=Race(documents=3), known=first)
    assert (continued.losses, continued.tokens, continued.key) == (whole.losses, whole.tokens, whole.key)


def test_the_key_says_which_tokens_are_scored(loaded: LoadedModel) -> None:
    plain, evaluator = sample_set(count=1), LocalEvaluator(loaded, 128)
    sets = [plain, scoring(plain, (5,)), scoring(plain, (5, 6)), scoring(plain, (6,))]
    for address in (lambda samples: evaluator.key(FACTORS, samples), lambda samples: samples.sha256):
        assert len({address(samples) for samples in sets}) == 4


def test_divergence_is_an_outcome(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, lambda model, ids: torch.full((1, 127), float("nan")))
    with LocalEvaluator(loaded, 128) as evaluator:
        result = evaluator.evaluate(FACTORS, sample_set())
    assert (result.outcome, result.losses, result.loss) == (DIVERGED, (), float("inf"))


def test_lack_of_memory_is_an_outcome_and_tried_again_by_the_next_process(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched, LocalEvaluator(loaded, 128) as evaluator:
        patched.setattr(LOSSES, lambda model, ids: torch.empty(2**52))  # a real refusal
        with Ledger(tmp_path / "evaluations.jsonl") as ledger:
            recorded = RecordedEvaluator(evaluator, ledger)
            assert next(recorded.evaluate_all([FACTORS], sample_set())).outcome == OUT_OF_MEMORY
            assert ledger.get(recorded.key(FACTORS, sample_set())) is not None
    for _ in range(2):
        with Ledger(tmp_path / "evaluations.jsonl") as ledger, LocalEvaluator(loaded, 128) as evaluator:
            assert next(RecordedEvaluator(evaluator, ledger).evaluate_all([FACTORS], sample_set())).outcome == OK
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 2


def test_other_runtime_errors_are_not_hidden(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, ids: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(LOSSES, fail)
    with LocalEvaluator(loaded, 128) as evaluator, pytest.raises(RuntimeError, match="a bug"):
        evaluator.evaluate(FACTORS, sample_set())

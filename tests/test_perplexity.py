import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factor_search.measure.statistics import paired_difference, summarise
from factor_search.measure.windows import sliding_windows
from factor_search.model.losses import _cross_entropy, predict, token_losses
from tests.families import FAMILIES, tiny_model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_equals_the_models_own_loss(model_type: str) -> None:
    """The head is the model's own: soft-capping, logit scale and projections included."""
    model = tiny_model(model_type)
    tokens = torch.randint(3, 97, (1, 50), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(input_ids=tokens, labels=tokens).loss.item()
    ours = token_losses(model, tokens, chunk_tokens=7)
    assert ours.shape == (1, 49)
    assert ours.double().mean().item() == pytest.approx(expected, rel=1e-5)
    assert "forward" not in model.get_decoder().__dict__


def test_equals_a_loop_over_prefixes_in_float64() -> None:
    model = tiny_model("gemma2")
    tokens = torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(3))
    ours = token_losses(model, tokens, chunk_tokens=7)
    precise = tiny_model("gemma2").double()
    for row in range(2):
        for t in range(1, 24):
            with torch.inference_mode():
                logits = precise(input_ids=tokens[row : row + 1, :t], use_cache=False).logits[0, -1]
            expected = -torch.log_softmax(logits, -1)[tokens[row, t]].item()
            assert ours[row, t - 1].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_chunking_does_not_change_the_result_and_the_decoder_runs_once() -> None:
    model = tiny_model("llama")
    tokens = torch.randint(3, 97, (3, 40))
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    chunked = token_losses(model, tokens, chunk_tokens=1)
    handle.remove()
    assert calls == [1]
    torch.testing.assert_close(chunked, token_losses(model, tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_losses_of_some_tokens_equal_those_from_all_logits(model_type: str) -> None:
    model = tiny_model(model_type)
    tokens = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].double()
        greedy = logits.argmax(-1)
        tokens[0, 30] = greedy[0, 29]  # else hardly any is the most likely one
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].double()
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    positions = [1, 2, 17, 30, 38, 39]
    columns = [position - 1 for position in positions]
    predicted = predict(model, tokens, positions, chunk_tokens=4)
    torch.testing.assert_close(predicted.losses.double(), expected[:, columns], rtol=1e-5, atol=1e-5)
    assert predicted.hits.tolist() == (logits.argmax(-1) == tokens[:, 1:])[:, columns].tolist()
    assert predicted.hits[0, 3]
    assert "forward" not in model.get_decoder().__dict__


def test_the_output_layer_sees_only_what_predicts_a_scored_token() -> None:
    model = tiny_model("llama")
    seen, decoded = [], []
    handles = [
        model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1])),
        model.model.layers[0].register_forward_hook(lambda *_: decoded.append(1)),
    ]
    predict(model, torch.randint(3, 97, (1, 60)), [3, 50, 51, 58, 59], chunk_tokens=2)
    for handle in handles:
        handle.remove()
    assert (seen, decoded) == ([2, 2, 1], [1])


def test_extreme_logits() -> None:
    """Losses near zero, losses that overflow exp, and masked words of probability zero."""
    logits = torch.tensor([[50.0, -50.0, 0.0], [-300.0, 300.0, 0.0], [1.0, float("-inf"), 1.0], [1.0, 2.0, 3.0]])
    targets = torch.tensor([0, 0, 2, 1])
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(_cross_entropy(logits, targets).double(), expected, rtol=1e-6, atol=1e-6)
    assert _cross_entropy(torch.tensor([[float("nan"), 1.0]]), torch.tensor([1])).isnan().all()
    halves = _cross_entropy(logits.bfloat16(), targets).double()
    torch.testing.assert_close(halves, expected, rtol=1e-6, atol=1e-6)


def test_logits_of_one_chunk_at_most() -> None:
    model = tiny_model("llama")
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1]))
    token_losses(model, torch.randint(3, 97, (1, 60)), chunk_tokens=7)
    handle.remove()
    assert max(seen) == 7
    assert sum(seen) == 59


@given(st.integers(2, 200), st.integers(2, 64), st.data())
def test_sliding_windows_score_every_token_once_with_enough_context(
    tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    scored: list[int] = []
    for w in sliding_windows(tokens, window, stride):
        assert 0 <= w.start < w.scored < w.stop <= min(tokens, w.start + window)
        scored.extend(range(w.scored, w.stop))
        if w.start:
            assert w.scored - w.start == max(window - stride, 1)
    if stride < window:
        assert scored == list(range(1, tokens))
    else:  # non-overlapping windows cannot predict the first token of each
        assert scored == [t for t in range(1, tokens) if t % window]


@given(st.integers(2, 200), st.integers(4, 64), st.integers(1, 3), st.data())
def test_sliding_windows_leave_the_prefix_unscored(tokens: int, window: int, prefix: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    scored: list[int] = []
    for w in sliding_windows(tokens, window, stride, prefix):
        assert w.stop - w.start <= window, "the prefix counts in the window"
        assert w.scored - w.start >= prefix
        scored.extend(range(w.scored, w.stop))
    assert len(set(scored)) == len(scored)
    if stride <= window - prefix:
        assert scored == list(range(prefix, tokens))
    if prefix == 1:  # as many as without one
        assert scored == [t for w in sliding_windows(tokens, window, stride) for t in range(w.scored, w.stop)]


def test_sliding_window_losses_are_those_of_a_naive_loop() -> None:
    model = tiny_model("llama")
    tokens = torch.randint(3, 97, (1, 53))
    total = 0.0
    for w in sliding_windows(53, 16, 6):
        total += token_losses(model, tokens[:, w.start : w.stop])[0, w.scored - w.start - 1 :].double().sum().item()
    expected = token_losses(model, tokens[:, :16]).double().sum().item()
    position = 16
    while position < 53:
        stop = min(position + 6, 53)
        start = (position - 10) // 6 * 6
        window = tokens[:, start : min(start + 16, 53)]
        expected += token_losses(model, window)[0, position - start - 1 : stop - start - 1].double().sum().item()
        position = stop
    assert total == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("stride", [0, 17])
def test_impossible_strides(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        sliding_windows(50, 16, stride)


def test_summary_against_numpy() -> None:
    losses = [1.0, 1.5, 2.0, 1.2]
    summary = summarise(losses, [10] * 4)
    assert summary.perplexity == pytest.approx(math.exp(np.mean(losses)))
    error = np.std(losses, ddof=1) / 2
    assert summary.standard_error == pytest.approx(summary.perplexity * error)
    assert (summary.tokens, summary.documents) == (40, 4)
    assert math.isnan(summarise([1.0], [10]).standard_error)


def test_summary_weighs_documents_by_tokens() -> None:
    assert summarise([1.0, 3.0], [30, 10]).loss == pytest.approx(1.5)


def test_paired_difference_is_tighter_than_the_documents_spread() -> None:
    mean, error = paired_difference([1.1, 2.1, 3.1], [1.0, 2.0, 2.9], [10] * 3)
    assert mean == pytest.approx(0.4 / 3)
    assert error == pytest.approx(np.std([0.1, 0.1, 0.2], ddof=1) / math.sqrt(3))
    assert math.isnan(paired_difference([1.0], [2.0], [5])[1])


def test_paired_difference_is_the_difference_of_the_summaries() -> None:
    """Also where documents differ in length, as under a sliding window."""
    losses, reference, tokens = [1.0, 3.0, 2.0], [1.2, 2.9, 2.5], [1000, 10, 400]
    mean, _ = paired_difference(losses, reference, tokens)
    assert mean == pytest.approx(summarise(losses, tokens).loss - summarise(reference, tokens).loss)

"""Needles in documents, on tokenizers of several kinds."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from factor_search.errors import DataError
from factor_search.measure.passkey import PASSKEY, even_depths, passkey_samples
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text.needle import (
    MAGIC_NUMBER,
    Needle,
    Prompt,
    continued,
    needle_samples,
    place_needle,
    spread_depths,
)
from factor_search.text.samples import Sample, SampleSet, sample_of
from factor_search.text.tokens import CachedTokenizer

WORDS = ("river", "stone", "Über", "night", "silent", "garden", "0815", "walks", "naïve", "世界")
TRAINING = [" ".join(WORDS), MAGIC_NUMBER.needle, MAGIC_NUMBER.question, PASSKEY.opening, "12 345 6789 10"] * 3


def with_start(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    return tokenizer


def byte_pairs() -> PreTrainedTokenizerFast:
    """As GPT-2 and Llama 3: merges over bytes, a space belongs to the word after it."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def with_a_space_of_its_own() -> PreTrainedTokenizerFast:
    """As Llama 2: whatever it is given begins with a space that is not in the text, digits stand alone."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    digits = ["▁", *"0123456789"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *fallback], initial_alphabet=digits)
    split = pre_tokenizers.Split("▁", "merged_with_next")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Digits(individual_digits=True)])
    backend.train_from_iterator(TRAINING, trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


TOKENIZERS = {
    "bytes": CachedTokenizer(byte_tokenizer(64)),
    "bytes with a first token": CachedTokenizer(with_start(byte_tokenizer(64))),
    "byte pairs": CachedTokenizer(byte_pairs()),
    "a space of its own": CachedTokenizer(with_a_space_of_its_own()),
}


def document(tokenizer: CachedTokenizer, seed: int = 0, sentence: int = 7, words: int = 2000) -> Sample:
    """Sentences of so many words."""
    rng = np.random.default_rng(seed)
    chosen = [WORDS[i] + "." * (n % sentence == sentence - 1) for n, i in enumerate(rng.integers(0, len(WORDS), words))]
    return sample_of(f"document {seed}", tokenizer(" ".join(chosen)))


def place(name: str = "bytes", seed: int = 0, prompt: Prompt = MAGIC_NUMBER, **options: object) -> Needle:
    tokenizer = TOKENIZERS[name]
    defaults: dict[str, object] = {"length": 700, "depth": 0.4, "digits": 7, "seed": 0}
    return place_needle(document(tokenizer, seed), tokenizer, prompt, **(defaults | options))  # type: ignore[arg-type]


def answer_of(name: str, sample: Sample) -> str:
    assert sample.scored is not None
    return TOKENIZERS[name].text(sample.tokens[list(sample.scored)])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.sampled_from([MAGIC_NUMBER, PASSKEY]),
    st.integers(300, 1200),
    st.floats(0, 1),
    st.integers(2, 15),
    st.integers(0, 3),
)
def test_a_needle_is_where_and_what_it_should_be(
    name: str, prompt: Prompt, length: int, depth: float, digits: int, seed: int
) -> None:
    tokenizer = TOKENIZERS[name]
    text = document(tokenizer, seed)
    needle = place_needle(text, tokenizer, prompt, length=length, depth=depth, digits=digits, seed=seed)
    tokens, scored = needle.sample.tokens, needle.sample.scored
    assert len(tokens) == length
    assert len(str(needle.number)) == digits
    assert scored is not None
    assert scored == tuple(range(length - len(scored), length)), "the answer ends the sample"
    assert answer_of(name, needle.sample).strip() == str(needle.number)
    hidden = tokenizer.text(tokens[needle.start : needle.stop])
    assert hidden.strip() == prompt.needle.format(number=needle.number).strip()
    answer = tokens[list(scored)].tolist()
    inside = tokens[needle.start : needle.stop].tolist()
    assert any(inside[at : at + len(answer)] == answer for at in range(len(inside))), "it can be copied token by token"
    question = tokenizer.text(tokens[: scored[0]])
    assert question.endswith(prompt.question)

    prefix = len(tokenizer.prefix)
    assert tokens[:prefix].tolist() == tokenizer.prefix
    opening = len(tokenizer.ids(prompt.opening)) if prompt.opening else 0
    before = tokens[prefix + opening : needle.start]
    asked = len(continued(tokenizer, ".", prompt.question))
    after = tokens[needle.stop : length - len(scored) - asked]
    room = len(before) + len(after)
    np.testing.assert_array_equal(np.concatenate([before, after]), text.tokens[prefix : prefix + room])
    assert abs(len(before) - depth * room) <= min(128, room // 20) + 0.5


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), st.floats(0.2, 0.8))
def test_it_stands_between_sentences_where_one_ends_near(name: str, depth: float) -> None:
    tokenizer, length = TOKENIZERS[name], 2500
    text = document(tokenizer, sentence=2)
    needle = place_needle(text, tokenizer, MAGIC_NUMBER, length=length, depth=depth, digits=7, seed=0)
    assert tokenizer.text(needle.sample.tokens[: needle.start]).rstrip().endswith(".")


def test_numbers_are_a_function_of_seed_document_depth_and_length() -> None:
    again, first = place(), place()
    assert first == again
    np.testing.assert_array_equal(first.sample.tokens, again.sample.tokens)
    tokenizer = TOKENIZERS["bytes"]
    text = document(tokenizer)
    longer = replace(text, tokens=text.tokens[:-3], source="elsewhere", sha256="of more than is used")
    elsewhere = place_needle(longer, tokenizer, MAGIC_NUMBER, length=700, depth=0.4, digits=7, seed=0)
    assert elsewhere.number == first.number, "neither where it is read nor what comes after the sample matters"
    others = [place(seed=n).number for n in range(1, 30)] + [place(depth=n / 31).number for n in range(30)]
    others += [place(length=n).number for n in range(600, 630)]
    options = {"length": 700, "depth": 0.4, "digits": 7}
    others += [place_needle(text, tokenizer, MAGIC_NUMBER, seed=n, **options).number for n in range(1, 30)]  # type: ignore[arg-type]
    assert len({first.number, *others}) == 1 + len(others)
    leading = [int(str(number)[0]) for number in others]
    assert set(leading) == set(range(1, 10))


def test_numbers_of_other_token_counts_still_fill_the_length() -> None:
    """Merges make some numbers shorter."""
    counts = set()
    for seed in range(40):
        needle = place("byte pairs", seed=seed, digits=4)
        assert len(needle.sample.tokens) == 700
        counts.add(len(needle.sample.scored or ()))
    assert len(counts) > 1


def test_a_tokenizer_that_begins_with_a_space_gives_it_to_no_part() -> None:
    name = "a space of its own"
    tokenizer = TOKENIZERS[name]
    assert tokenizer.text(np.array(tokenizer.ids("9"))) == "9"
    (space, nine) = tokenizer.ids("9")
    assert continued(tokenizer, "is", "9") == [nine], "the space is of the tokenizer, not of the text"
    assert continued(tokenizer, "is", " 9") == [space, nine]
    text = tokenizer.text(place(name).sample.tokens)
    number = place(name).number
    assert MAGIC_NUMBER.needle.format(number=number) in text
    assert text.endswith(f"{MAGIC_NUMBER.question} {number}")


def test_a_piece_from_the_middle_of_a_document_gets_the_first_token_too() -> None:
    tokenizer = TOKENIZERS["bytes with a first token"]
    whole = document(tokenizer)
    piece = sample_of("piece", whole.tokens[100:900])
    needle = place_needle(piece, tokenizer, PASSKEY, length=700, depth=0.5, digits=7, seed=0)
    opening = tokenizer.ids(PASSKEY.opening)
    expected = [*tokenizer.prefix, *opening, *piece.tokens[:50].tolist()]
    assert needle.sample.tokens[: len(expected)].tolist() == expected
    assert needle.sample.tokens.tolist().count(256) == 1


def test_too_short_says_what_is_needed() -> None:
    tokenizer = TOKENIZERS["bytes"]
    options = {"depth": 0.5, "digits": 7, "seed": 0}
    text = document(tokenizer)
    with pytest.raises(DataError, match=r"50 tokens are too few .* must be at least 111"):
        place_needle(text, tokenizer, MAGIC_NUMBER, length=50, **options)  # type: ignore[arg-type]
    assert len(place_needle(text, tokenizer, MAGIC_NUMBER, length=111, **options).sample.tokens) == 111  # type: ignore[arg-type]
    short = sample_of("short", text.tokens[:100])
    with pytest.raises(DataError, match="short has 100 tokens, but a sample of 400 with a needle needs 290"):
        place_needle(short, tokenizer, MAGIC_NUMBER, length=400, **options)  # type: ignore[arg-type]
    enough = sample_of("enough", text.tokens[:290])
    assert len(place_needle(enough, tokenizer, MAGIC_NUMBER, length=400, **options).sample.tokens) == 400  # type: ignore[arg-type]


@given(st.integers(1, 300))
def test_depths_are_spread_evenly_and_so_are_the_first_of_them(count: int) -> None:
    depths = spread_depths(count)
    assert sorted(depths) == pytest.approx([(k + 0.5) / count for k in range(count)])
    first = sorted(depths[: max(count // 2, 1)])
    gaps = np.diff([0.0, *first, 1.0])
    assert gaps.max() <= 4 / len(first)


def test_every_document_has_a_depth_of_its_own_and_repeats_have_others() -> None:
    tokenizer = TOKENIZERS["bytes"]
    documents = SampleSet("search", tuple(document(tokenizer, n) for n in range(3)))
    options = {"length": 600, "digits": 7, "seed": 5}
    samples = needle_samples(documents, tokenizer, repeats=2, **options)  # type: ignore[arg-type]
    assert (samples.part, len(samples.samples)) == ("search", 6)
    assert [sample.source for sample in samples.samples] == [f"document {n}" for n in (0, 1, 2, 0, 1, 2)]
    assert len({answer_of("bytes", sample) for sample in samples.samples}) == 6
    at = [bytes(sample.tokens[:600].astype(np.uint8)).index(b"magic number") / 600 for sample in samples.samples]
    assert np.argsort(at).tolist() == np.argsort(spread_depths(6)).tolist()


def test_passkeys_at_all_depths_and_lengths() -> None:
    tokenizer = TOKENIZERS["byte pairs"]
    documents = SampleSet("evaluation", tuple(document(tokenizer, n) for n in range(2)))
    needles = passkey_samples(documents, tokenizer, lengths=[500, 800], depths=even_depths(3))
    places = [(len(needle.sample.tokens), needle.depth, needle.sample.source) for needle in needles]
    sources = ("document 0", "document 1")
    assert places == [(n, depth, source) for n in (500, 800) for depth in (0.0, 0.5, 1.0) for source in sources]
    alone = passkey_samples(documents, tokenizer, lengths=[500], depths=[0.5])
    assert alone == needles[2:4], "a cell does not depend on the others"
    assert even_depths(1) == [0.5]
    assert tokenizer.text(needles[0].sample.tokens).startswith(PASSKEY.opening)


@dataclass
class Merging:
    """Joins whatever two texts meet, so that none continues another."""

    prefix: tuple[int, ...] = ()

    def ids(self, text: str) -> list[int]:
        return [len(text), *text.encode()]


def test_where_two_texts_are_joined_each_is_tokenised_alone() -> None:
    assert continued(Merging(), "ab", "c") == [1, 99]  # type: ignore[arg-type]

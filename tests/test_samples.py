import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from factor_search.errors import DataError
from factor_search.spec import DataSpec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.text import documents, tokens
from factor_search.text.documents import Document, documents_from_files, documents_from_hub
from factor_search.text.samples import PARTS, Samples, first_samples, load_samples, sample_of
from factor_search.text.tokens import CachedTokenizer

TOKENIZE = CachedTokenizer(byte_tokenizer(64))


def data_spec(files: object, counts: tuple[int, int, int] = (2, 3, 4), **more: object) -> DataSpec:
    names = ("search_documents", "validation_documents", "held_out_documents")
    return DataSpec.model_validate({"files": files, **dict(zip(names, counts, strict=True)), **more})


def sources(samples: Samples) -> list[set[str]]:
    return [{sample.source for sample in getattr(samples, part).samples} for part in PARTS]


def test_parts_are_disjoint_complete_and_depend_on_the_seed_alone(texts: Path) -> None:
    spec = data_spec([str(texts / "*.txt")])
    first, again = (load_samples(spec, TOKENIZE, 128, seed=3) for _ in range(2))
    other = load_samples(spec, TOKENIZE, 128, seed=4)
    parts = sources(first)
    assert [len(part) for part in parts] == [2, 3, 4]
    assert len(set.union(*parts)) == 9
    assert first == again
    assert first.sha256 == again.sha256 != other.sha256
    for sample in first.search.samples:
        assert bytes(sample.tokens.astype(np.uint8)) == Path(sample.source).read_bytes()[:128]


def test_text_json_lines_parquet_and_saved_data_sets_give_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    contents = [f"{n} " * 50 for n in range(4)]
    (tmp_path / "t").mkdir()
    for number, text in enumerate(contents):
        (tmp_path / "t" / f"{number}.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in contents) + "\n\n")
    table = datasets.Dataset.from_dict({"body": contents})
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "splits")
    for name in ("t/*.txt", "rows.jsonl", "rows.parquet", "saved", "splits"):
        documents = list(documents_from_files([str(tmp_path / name)], column="body"))
        assert [document.text for document in documents] == contents, name
        assert len({document.source for document in documents}) == 4


def test_a_named_data_set_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub here; tests/test_what_is_read.py asks a hub."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "validation.jsonl").write_text("\n".join(json.dumps({"text": f"{n} " * 99}) for n in range(9)))
    build = datasets.load_dataset_builder

    def from_folder(dataset: str, name: str | None, revision: str | None) -> Any:
        assert (dataset, name, revision) == ("owner/name", "en", "v1")
        return build(str(tmp_path))

    monkeypatch.setattr("datasets.load_dataset_builder", from_folder)
    monkeypatch.setattr("factor_search.text.data_sets._check_builder", lambda builder, dataset: None)
    of: dict[str, Any] = {"dataset": "owner/name", "name": "en", "revision": "v1"}
    spec = DataSpec(**of, search_documents=2, validation_documents=2, held_out_documents=2)
    samples = load_samples(spec, TOKENIZE, 128, seed=0)
    assert all(sample.source.startswith("owner/name/validation#") for sample in samples.search.samples)
    with pytest.raises(DataError, match="cannot read split 'train'"):
        list(documents_from_hub("owner/name", "en", "train", "text", "v1"))
    with pytest.raises(DataError, match="no column 'body', only text"):
        list(documents_from_hub("owner/name", "en", "validation", "body", "v1"))
    monkeypatch.undo()
    with pytest.raises(DataError, match="cannot read split 'validation' of data set no/such-data-set"):
        list(documents_from_hub("no/such-data-set", None, "validation", "text"))


def test_too_few_says_which_lengths_exist(texts: Path) -> None:
    lengths = sorted((len(file.read_bytes()) for file in texts.glob("*.txt")), reverse=True)
    enough = sum(length >= 500 for length in lengths)
    with pytest.raises(DataError, match=f"{enough} of the 9 documents needed .* 12 read: {lengths[0]}, {lengths[1]}"):
        load_samples(data_spec([str(texts / "*.txt")]), TOKENIZE, 500, seed=0)


def test_repeated_documents_do_not_count(texts: Path, tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text((texts / "00.txt").read_text())
    with pytest.raises(DataError, match="8 repeat another"):
        load_samples(data_spec([str(tmp_path / "*.txt")]), TOKENIZE, 128, seed=0)


def test_held_out_files_of_their_own(texts: Path, tmp_path: Path) -> None:
    spec = data_spec([str(texts / "0*.txt")], (2, 2, 2), held_out_files=[str(texts / "*.txt")])
    samples = load_samples(spec, TOKENIZE, 128, seed=0)
    search, validation, held_out = sources(samples)
    assert len(held_out) == 2
    assert not held_out & (search | validation), "even where the files overlap"


@settings(max_examples=30, deadline=None)
@given(
    st.integers(3, 6),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    st.integers(0, 5),
)
def test_pieces_of_a_document_stay_in_one_part(count: int, counts: tuple[int, int, int], seed: int) -> None:
    lines = [json.dumps({"text": " ".join(f"{n}-{k}" for k in range(150))}) for n in range(count)]
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("\n".join(lines))
        samples = load_samples(data_spec([str(file)], counts, cut_long_documents=True), TOKENIZE, 100, seed=seed)
    parts = sources(samples)
    assert tuple(len(part) for part in parts) == counts
    files = [{source.split("@")[0] for source in part} for part in parts]
    assert len(set.union(*files)) == sum(map(len, files))


def test_no_part_sees_a_piece_or_a_beginning_of_another(tmp_path: Path) -> None:
    common = "the same tail in every file " * 20
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number}" * 128 + common)
    spec = data_spec([str(tmp_path / "*.txt")], (1, 1, 1), cut_long_documents=True)
    samples = load_samples(spec, TOKENIZE, 128, seed=0)
    pieces = [sample.sha256 for part in PARTS for sample in getattr(samples, part).samples]
    assert len(pieces) == len(set(pieces))
    (tmp_path / "more").mkdir()
    for number in range(3):
        (tmp_path / "more" / f"{number}.txt").write_text(common + str(number))
    with pytest.raises(DataError, match="2 repeat another"):
        load_samples(data_spec([str(tmp_path / "more" / "*.txt")], (1, 1, 1)), TOKENIZE, 128, seed=0, whole=True)


def test_tokens_are_cached_and_a_damaged_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTOR_SEARCH_CACHE", str(tmp_path))
    tokenizer = byte_tokenizer(64)
    calls: list[str] = []

    class Counting:
        bos_token_id = None
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, text: str, **options: object) -> object:
            calls.append(text)
            return tokenizer(text, **options)

    for _ in range(2):
        assert CachedTokenizer(Counting())("hello").tolist() == list(b"hello")
    assert calls.count("hello") == 1
    (entry,) = (tmp_path / "tokens").iterdir()
    entry.write_bytes(b"damaged")
    assert CachedTokenizer(Counting())("hello").tolist() == list(b"hello")


def test_the_token_that_a_tokenizer_puts_first_is_kept() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(64)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> <|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 256)]
    )
    assert CachedTokenizer(tokenizer)("ab").tolist() == [256, 256, 97, 98]
    assert CachedTokenizer(byte_tokenizer(64))("ab").tolist() == [97, 98]


def with_first_tokens(count: int) -> CachedTokenizer:
    """A tokenizer that puts so many tokens (256) before every text, as those of Llama and Gemma put one."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(64)
    single = " ".join(["<|endoftext|>"] * count + ["$A"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<|endoftext|>", 256)]
    )
    return CachedTokenizer(tokenizer)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(12, 90), st.integers(0, 4))
def test_every_piece_begins_with_the_prefix_and_no_text_is_lost(count: int, length: int, seed: int) -> None:
    from tempfile import TemporaryDirectory

    rng = np.random.default_rng(seed)
    texts = ["".join(map(chr, rng.integers(97, 123, 400))) for _ in range(3)]
    with TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            Path(folder, f"{number}.txt").write_text(text)
        spec = data_spec([f"{folder}/*.txt"], (2, 2, 2), cut_long_documents=True)
        samples = load_samples(spec, with_first_tokens(count), length, seed=seed)
    every = [one for part in PARTS for one in getattr(samples, part).samples]
    assert len(every) == 6
    room = length - count
    for one in every:
        assert (len(one.tokens), one.prefix, one.first_scored) == (length, count, count)
        assert one.tokens[:count].tolist() == [256] * count
        name, start = one.source.split("@")
        text = texts[int(Path(name).stem)]
        assert int(start) % room == 0
        assert bytes(one.tokens[count:].tolist()).decode() == text[int(start) : int(start) + room]


def test_a_length_that_only_the_prefix_fills_is_refused() -> None:
    with pytest.raises(DataError, match="2 tokens are too few"):
        first_samples([Document("a", "a" * 20)], with_first_tokens(2), 2, 1)


def test_first_samples_keeps_the_order_and_skips_short_ones() -> None:
    documents = [Document("short", "x"), Document("b", "b" * 20), Document("a", "a" * 20), Document("c", "c" * 20)]
    chosen = first_samples(documents, TOKENIZE, 10, 2)
    assert [sample.source for sample in chosen.samples] == ["b", "a"]
    assert len(first_samples(documents, TOKENIZE, 10, None).samples) == 3


def test_a_unicode_round_trip_through_the_byte_tokenizer() -> None:
    tokenizer = byte_tokenizer(64)
    text = "Grüße, 世界 🌍\n\t\x00 end"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def code_lines() -> list[str]:
    files = sorted(Path(documents.__file__).parent.glob("*.py"))
    return [line for file in files for line in file.read_text().splitlines(keepends=True)]


def trained(kind: str) -> Any:
    """A small tokenizer of a usual kind, trained on the code of this package."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    settings: dict[str, Any] = {"vocab_size": 600, "show_progress": False}
    if kind == "unigram":
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer: Any = trainers.UnigramTrainer(**settings, unk_token="?", special_tokens=["?"])
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        if kind == "byte-level BPE":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            settings["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**settings)
    tokenizer.train_from_iterator(code_lines(), trainer)
    if kind == "BPE of whole texts":  # as of Llama 2: spaces become letters, and no words are split off
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Replace("▁", " ")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE of whole texts", "unigram"])
def test_the_first_tokens_of_a_long_text_are_those_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LONG_TEXT", 1)
    monkeypatch.setattr(tokens, "MARGIN", 64)
    tokenizer, read = CachedTokenizer(trained(kind)), []

    def tokenize(text: str) -> tokens.TokenIds:
        read.append(len(text))
        return np.array(tokenizer.ids(text))

    random = np.random.default_rng(0)
    lines = code_lines()
    for _ in range(40):
        text = "".join(lines[i] for i in random.integers(len(lines), size=300))
        count = int(random.integers(1, 500))
        everything = tokenizer.ids(text)
        first = tokens.first_tokens(tokenize, text, count).tolist()
        assert len(first) >= count
        assert first == everything[: len(first)]
        assert tokens.first_tokens(tokenize, text, 10**6).tolist() == everything
    assert min(read) < 2000, "the end is not read"


def test_a_very_long_document_is_tokenised_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LONG_TEXT", 2**16)
    longest = []

    class Noting:
        prefix = TOKENIZE.prefix

        def __call__(self, text: str) -> tokens.TokenIds:
            longest.append(len(text))
            return TOKENIZE(text)

    tokenize, text = Noting(), "a long document " * 2**14
    (sample,) = first_samples([Document("a", text)], tokenize, 100, 1).samples
    assert bytes(sample.tokens.astype(np.uint8)).decode() == text[:100]
    assert max(longest) <= tokens.LONG_TEXT < len(text)
    (sample,) = first_samples([Document("a", text)], tokenize, 100, 1, whole=True).samples
    assert len(sample.tokens) == len(text)


@pytest.mark.parametrize("scored", [(), (0, 1), (3, 2), (2, 2), (1, 10), (-1,)])
def test_scored_positions_that_cannot_be(scored: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend within 1 to 9"):
        sample_of("a", np.arange(10), scored)


def test_the_address_says_which_tokens_are_scored() -> None:
    plain, some = sample_of("a", np.arange(4)), sample_of("a", np.arange(4), (2, 3))
    assert plain.address == plain.sha256 == some.sha256 != some.address
    assert plain != some
    everything = sample_of("a", np.arange(4), (1, 2, 3))
    assert everything.address != plain.address, "computed in another way, and so with other last digits"

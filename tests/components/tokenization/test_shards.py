"""What is written is read back; positions and segments equal those of a loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.tokenization.config import TokenShardsConfig
from components.tokenization.shard_writer import SplitWriter
from components.tokenization.shards import ShardIndex, TokenShards, source_dtype, token_dtype, write_index
from components.tokenization.words import WordTable
from infra.errors import DamagedArtifactError

LENGTH = 16
VOCAB = 70_000
SOURCES = ("a", "二", "c")


NUMBERS = np.arange(VOCAB)
WORDS = WordTable(starts_word_V=(NUMBERS >= 5) & (NUMBERS % 3 > 0), ends_sentence_V=(NUMBERS >= 5) & (NUMBERS % 5 == 0))


def make_shards(
    folder: Path,
    documents: list[list[int]],
    chunk: int = 5,
    window: int = 1000,
    words: WordTable | None = WORDS,
    **more: Any,
) -> SplitWriter:
    told = {"sequence_length": LENGTH, "max_sequences_per_file": 4, "pack_window_documents": window, **more}
    writer = SplitWriter(folder, "train", TokenShardsConfig.model_validate(told), VOCAB, SOURCES, 0, words)
    for start in range(0, len(documents), chunk):
        part = documents[start : start + chunk]
        tokens = np.array([token for document in part for token in document], dtype=np.uint32)
        lengths = np.array([len(document) for document in part])
        writer.add(tokens, lengths, np.full(len(part), 10), np.array([source_of(document) for document in part]))
    split = writer.close()
    index = ShardIndex(
        sequence_length=LENGTH,
        vocab_size=VOCAB,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        mask_token_id=4,
        sources=SOURCES,
        has_sentences=words is not None,
        splits={"train": split},
    )
    write_index(folder, index)
    return writer


def source_of(document: list[int]) -> int:
    return document[1] % len(SOURCES)


def some_documents(count: int) -> list[list[int]]:
    draw = np.random.default_rng(3)
    return [[2, *draw.integers(5, VOCAB, size=draw.integers(1, 30)).tolist(), 3] for _ in range(count)]


def test_counts_and_tokens_come_back(tmp_path: Path) -> None:
    documents = some_documents(60)
    writer = make_shards(tmp_path, documents)
    shards = TokenShards(tmp_path, "train")
    flat = [token for document in documents for token in document]
    assert len(shards.split.files) > 1 and shards.split.files[0].num_sequences == 4
    assert shards.split.num_tokens == len(flat) and shards.split.num_documents == 60
    assert shards.split.num_text_tokens == len(flat) - 120 and shards.split.num_text_bytes == 600
    tokens_NL = shards.tokens(np.arange(len(shards)))
    assert sorted(tokens_NL[tokens_NL != 0].tolist()) == sorted(flat)
    assert writer.unigram_counts.tolist() == np.bincount(flat, minlength=VOCAB).tolist()
    assert writer.num_cut_documents == sum(len(document) > LENGTH for document in documents)


def test_positions_and_segments_equal_a_loop(tmp_path: Path) -> None:
    make_shards(tmp_path, some_documents(40))
    shards = TokenShards(tmp_path, "train")
    indices = np.array([len(shards) - 1, 0, 3])
    segments_BL, positions_BL = shards.segments(indices), shards.positions(indices)
    for row, index in enumerate(indices.tolist()):
        segments, positions = [], []
        for number, length in enumerate(shards.document_lengths(index), start=1):
            segments += [number] * length
            positions += range(length)
        padding = LENGTH - len(segments)
        assert segments_BL[row].tolist() == segments + [0] * padding
        assert positions_BL[row].tolist() == positions + list(range(padding))
        assert shards.targets(indices)[row].tolist() == [True] * len(segments) + [False] * padding


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
@pytest.mark.parametrize("window", [{}, {"window": 20}, {"pack_window_tokens": 100}, {"pack_window_tokens": 1}])
def test_bytes_do_not_depend_on_how_documents_arrive(tmp_path: Path, window: dict[str, int], packing: str) -> None:
    documents = some_documents(50)
    for chunk in (1, 7, 50):
        (tmp_path / str(chunk)).mkdir()
        make_shards(tmp_path / str(chunk), documents, chunk, packing=packing, **window)
    for path in (tmp_path / "1").iterdir():
        for other in ("7", "50"):
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes()


def test_a_window_ends_with_the_document_that_fills_it(tmp_path: Path) -> None:
    """5 and 6 tokens make a window of 10, so 5 and 4 of the next do not share a sequence of 16 with them."""
    documents = [[2, *range(5, 5 + n - 2), 3] for n in (5, 6, 5, 4, 7)]
    make_shards(tmp_path, documents, pack_window_tokens=10)
    shards = TokenShards(tmp_path, "train")
    assert [shards.document_lengths(index) for index in range(len(shards))] == [[5, 6], [5, 4, 7]]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_rest_of_more_documents_than_a_window_has_is_concatenated_with_the_next(window: int, tmp_path: Path) -> None:
    documents = [[2, 5 + number, 3] for number in range(40)]
    make_shards(tmp_path, documents, packing="concatenate", window=window)
    shards = TokenShards(tmp_path, "train")
    found = shards.tokens(np.arange(len(shards))).ravel().tolist()
    assert found[:120] == [token for document in documents for token in document] and not any(found[120:])


def test_concatenation_keeps_the_order_over_windows_and_counts_what_it_cuts(tmp_path: Path) -> None:
    documents = some_documents(60)
    flat = [token for document in documents for token in document]
    ends = np.cumsum([len(document) for document in documents])
    begins = ends - [len(document) for document in documents]
    for window in (1, 30, 1 << 20):
        folder = tmp_path / str(window)
        folder.mkdir()
        writer = make_shards(folder, documents, packing="concatenate", pack_window_tokens=window)
        shards = TokenShards(folder, "train")
        assert len(shards) == -(-len(flat) // LENGTH)
        indices = np.arange(len(shards))
        tokens_NL = shards.tokens(indices)
        assert tokens_NL.ravel().tolist() == flat + [0] * (tokens_NL.size - len(flat))
        assert (shards.segments(indices).ravel()[: len(flat)] > 0).all()
        pieces = [length for index in indices.tolist() for length in shards.document_lengths(index)]
        cuts = sorted({*ends.tolist(), *range(LENGTH, len(flat), LENGTH)})
        assert pieces == np.diff([0, *cuts]).tolist()
        is_cut = begins // LENGTH != (ends - 1) // LENGTH
        sizes = ends - begins
        assert writer.num_cut_documents == is_cut.sum()
        assert writer.num_cut_tokens == sizes[is_cut].sum()
        assert writer.num_avoidably_cut_documents == (is_cut & (sizes <= LENGTH)).sum() > 0
        sources = [source for index in indices.tolist() for source in shards.document_sources(index)]
        owner = np.searchsorted(ends, np.array(cuts) - 1, side="right")
        assert sources == [source_of(documents[index]) for index in owner.tolist()]


def test_best_fit_cuts_nothing_that_fits_and_places_reconcile(tmp_path: Path) -> None:
    documents = some_documents(60)
    writer = make_shards(tmp_path, documents)
    shards = TokenShards(tmp_path, "train")
    assert writer.num_avoidably_cut_documents == 0
    assert writer.num_cut_tokens == sum(len(document) for document in documents if len(document) > LENGTH)
    padding = int((shards.segments(np.arange(len(shards))) == 0).sum())
    assert shards.split.num_tokens + padding == len(shards) * LENGTH


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_sentences_are_those_of_a_loop_and_end_with_their_document(tmp_path: Path, packing: str) -> None:
    make_shards(tmp_path, some_documents(80), packing=packing)
    shards = TokenShards(tmp_path, "train")
    indices = np.arange(len(shards))
    expected = np.zeros((len(shards), LENGTH), dtype=bool)
    for index, tokens in enumerate(shards.tokens(indices).tolist()):
        at = 0
        for length in shards.document_lengths(index):
            expected[index, at] = True
            for place in range(at + 1, at + length):
                last, this = tokens[place - 1], tokens[place]
                after_end = last >= 5 and last % 5 == 0
                begins = this >= 5 and this % 3 > 0 and this % 5 > 0
                expected[index, place] = after_end and begins
            at += length
    assert (shards.sentence_starts(indices) == expected).all()
    assert expected.sum() > 2 * len(shards)


def test_without_a_word_table_there_are_no_sentences(tmp_path: Path) -> None:
    make_shards(tmp_path, some_documents(5), words=None)
    shards = TokenShards(tmp_path, "train")
    assert not shards.index.has_sentences
    assert shards.tokens(np.array([0])).shape == (1, LENGTH)
    with pytest.raises(KeyError, match="sentence_lengths"):
        shards.sentence_starts(np.array([0]))


MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from components.tokenization.config import TokenShardsConfig
from components.tokenization.shard_writer import SplitWriter

config = TokenShardsConfig(pack_window_tokens=1 << 18, pack_window_documents=1 << 14)
writer = SplitWriter(Path(sys.argv[1]), "train", config, 500, ("a",), 0)
draw = np.random.default_rng(0)
for _ in range(int(sys.argv[2])):
    lengths = draw.integers(3, 60, size=8192)
    tokens = draw.integers(5, 500, size=int(lengths.sum())).astype(np.uint32)
    writer.add(tokens, lengths, lengths, np.zeros_like(lengths))
writer.close()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """6 and 60 windows of 0.5 MB: 30 MB of tokens more, and 5 MB of peak at most."""
    peaks = []
    for number in (6, 60):
        (tmp_path / str(number)).mkdir()
        command = [sys.executable, "-c", MEMORY, str(tmp_path / str(number)), str(number)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 5 * 1024, peaks


def test_each_piece_of_a_document_has_its_source(tmp_path: Path) -> None:
    documents = some_documents(60)
    make_shards(tmp_path, documents, window=20)
    shards = TokenShards(tmp_path, "train")
    assert shards.index.sources == SOURCES
    texts = {tuple(document[at : at + LENGTH]): document for document in documents for at in (0, LENGTH)}
    for index in range(len(shards)):
        tokens, found = shards.tokens(np.array([index]))[0].tolist(), shards.document_sources(index)
        ends = np.cumsum(shards.document_lengths(index)).tolist()
        pieces = [
            tuple(tokens[end - length : end]) for end, length in zip(ends, shards.document_lengths(index), strict=True)
        ]
        assert found == [source_of(texts[piece]) for piece in pieces]
    assert sum(counts.num_documents for counts in shards.split.by_source) == 60
    for source, counts in enumerate(shards.split.by_source):
        mine = [document for document in documents if source_of(document) == source]
        assert counts.num_documents == len(mine) > 0
        assert counts.num_text_tokens == sum(map(len, mine)) - 2 * len(mine) and counts.num_text_bytes == 10 * len(mine)


def test_shards_of_format_1_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, some_documents(5))
    index = json.loads((tmp_path / "shards.json").read_text())
    del index["sources"], index["splits"]["train"]["by_source"]
    index["splits"]["train"] |= {"num_text_tokens": 1, "num_text_bytes": 1}
    (tmp_path / "shards.json").write_text(json.dumps(index | {"format_version": 1}))
    with pytest.raises(DamagedArtifactError, match=r"format 1 \(this code reads 3\)"):
        TokenShards(tmp_path, "train")


def test_the_smallest_type_holds_the_vocabulary() -> None:
    assert [str(token_dtype(size)) for size in (8192, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]
    assert [str(source_dtype(size)) for size in (1, 256, 257, 65_537)] == ["uint8", "uint8", "uint16", "uint32"]


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, some_documents(5))
    with pytest.raises(DamagedArtifactError, match="wanted test"):
        TokenShards(tmp_path, "test")
    text = (tmp_path / "shards.json").read_text()
    (tmp_path / "shards.json").write_text(text.replace('"num_sequences": 4', '"num_sequences": 3'))
    with pytest.raises(DamagedArtifactError, match="not what its index says"):
        TokenShards(tmp_path, "train")
    (tmp_path / "shards.json").write_text(text[:40])
    with pytest.raises(DamagedArtifactError, match="not a token shard index"):
        TokenShards(tmp_path, "train")

"""What is written is read back; positions and segments equal those of a loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.tokenization.config import TokenShardsConfig
from components.tokenization.shard_writer import SplitWriter
from components.tokenization.shards import ShardIndex, TokenShards, source_dtype, token_dtype, write_index
from infra.errors import DamagedArtifactError

LENGTH = 16
VOCAB = 70_000
SOURCES = ("a", "二", "c")


def make_shards(folder: Path, documents: list[list[int]], chunk: int = 5, window: int = 1000) -> SplitWriter:
    config = TokenShardsConfig(sequence_length=LENGTH, max_sequences_per_file=4, pack_window_documents=window)
    writer = SplitWriter(folder, "train", config, VOCAB, SOURCES, 0)
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


def test_bytes_do_not_depend_on_how_documents_arrive_and_windows_bound_packing(tmp_path: Path) -> None:
    documents = some_documents(50)
    for name, chunk, window in (("a", 5, 1000), ("b", 50, 1000), ("c", 7, 20), ("d", 50, 20)):
        (tmp_path / name).mkdir()
        make_shards(tmp_path / name, documents, chunk, window)
    for same, other in (("a", "b"), ("c", "d")):
        for path in (tmp_path / same).iterdir():
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes()


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
    with pytest.raises(DamagedArtifactError, match=r"format 1 \(this code reads 2\)"):
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

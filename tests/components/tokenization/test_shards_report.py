"""The data report of token shards says what the shards say, and shows texts and tokens as text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from components.corpus.merge import CORPUS_SCHEMA
from components.corpus.normalise import text_id
from components.tokenization.config import TokenShardsConfig
from components.tokenization.report import make_report
from components.tokenization.shard_writer import SplitWriter
from components.tokenization.shards import ShardIndex, TokenShards, write_index
from components.tokenization.shards_report import write_report
from components.tokenization.special import SpecialTokens, save_for_transformers
from components.tokenization.step import REPORT_NAME
from components.tokenization.training import train
from tests.pages import Page

EVIL = "<script>alert(1)</script>"
SOURCES = ("s", "<i>二</i>", "nothing")
TEXTS = [f"{EVIL} number {i} 第{i}篇 " + "word " * (i % 40) for i in range(90)]


def tokenizer(folder: Path) -> Path:
    """The artifact of a tokenizer trained on a corpus of `TEXTS`."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    columns = {
        "id": list(map(text_id, TEXTS)),
        "text": TEXTS,
        "source": [SOURCES[i % 2] for i in range(len(TEXTS))],
        "num_bytes": [len(text.encode()) for text in TEXTS],
        "language": ["en" if i % 3 else "<b>" for i in range(len(TEXTS))],
        **dict.fromkeys(("original_id", "license"), [None] * len(TEXTS)),
    }
    table = pa.table({name: columns[name] for name in CORPUS_SCHEMA.names}, schema=CORPUS_SCHEMA)
    for split in ("train", "validation"):
        pq.write_table(table, corpus / f"{split}-00000.parquet")
    artifact = folder / "tokenizer artifact"
    artifact.mkdir()
    library = train("byte_bpe", lambda: iter([TEXTS]), 400, 2)
    save_for_transformers(library, str(artifact / "tokenizer"), SpecialTokens())
    report = make_report(artifact / "tokenizer", corpus)
    (artifact / REPORT_NAME).write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    return artifact


def made(folder: Path, artifact: Path, train_texts: list[str]) -> tuple[Page, dict[str, SplitWriter], TokenShards]:
    folder.mkdir()
    library = Tokenizer.from_file(str(artifact / "tokenizer" / "tokenizer.json"))
    config = TokenShardsConfig(sequence_length=32)
    size = library.get_vocab_size()
    writers = {name: SplitWriter(folder, name, config, size, SOURCES, 0) for name in ("train", "validation")}
    for name, texts in (("train", train_texts), ("validation", TEXTS[:7])):
        ids = [library.encode(text).ids for text in texts]
        lengths = np.array(list(map(len, ids)), dtype=np.int64)
        tokens = np.array([id_ for of in ids for id_ in of], dtype=np.int64)
        num_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        writers[name].add(tokens, lengths, num_bytes, np.arange(len(texts)) % 2)
    index = ShardIndex(
        sequence_length=32,
        vocab_size=size,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        mask_token_id=4,
        sources=SOURCES,
        has_sentences=False,
        splits={name: writer.close() for name, writer in writers.items()},
    )
    write_index(folder, index)
    write_report(folder / "data_report.html", config, writers, {"s": 2.0}, artifact)
    return Page(folder / "data_report.html"), writers, TokenShards(folder, "train")


def test_the_numbers_are_those_of_the_shards(tmp_path: Path) -> None:
    artifact = tokenizer(tmp_path)
    page, writers, shards = made(tmp_path / "one", artifact, TEXTS)
    rows = page.numbers("What an epoch is")["train"]
    segments = shards.segments(np.arange(len(shards)))
    padding = int((segments == 0).sum())
    assert rows["documents"] == "90" and rows["sequences"] == str(len(shards)) and rows["padding"] == str(padding)
    assert int(rows["places"].replace(",", "")) == segments.size
    assert int(rows["special tokens"]) == 180
    assert int(rows["text tokens"].replace(",", "")) == segments.size - padding - 180
    pieces = [len(shards.document_lengths(number)) for number in range(len(shards))]
    counted = page.numbers("Documents in a sequence")["train"]
    assert counted["sequences"] == str(len(shards)) and counted["most"] == str(max(pieces))
    assert counted["mean"] == f"{np.mean(pieces):.2f}".rstrip("0").rstrip(".")
    lengths = page.numbers("Lengths of documents")["train"]
    assert lengths["documents"] == "90" and float(lengths["mean"]) == round((segments.size - padding) / 90, 2)
    cut = page.numbers("Cuts")["train"]
    assert int(cut["documents cut"]) == writers["train"].num_cut_documents > 0
    assert page.numbers("train")["s"]["documents"] == "45" and page.numbers("train")["s"]["weight"] == "2"
    assert page.numbers("train")["nothing"]["bytes a token"] == "–"
    assert page.numbers("By language, most text first")["<b>"]["documents"] == "30"
    assert made(tmp_path / "two", artifact, TEXTS)[0].text == page.text
    assert (tmp_path / "one" / "data_report.html").read_bytes() == (tmp_path / "two" / "data_report.html").read_bytes()


def test_texts_and_tokens_are_shown_as_text(tmp_path: Path) -> None:
    page, _, _ = made(tmp_path / "one", tokenizer(tmp_path), TEXTS)
    page.assert_harmless()
    assert f"<s>{EVIL} number" in page.text and "<i>二</i>" in page.text
    page, _, _ = made(tmp_path / "none", tmp_path / "tokenizer artifact", [])
    assert page.numbers("What an epoch is")["train"]["places"] == "0"

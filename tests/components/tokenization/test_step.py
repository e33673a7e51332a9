"""The tokenizer and token shard steps on a corpus made by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.corpus.normalise import text_id
from components.tokenization.config import TokenizerConfig, TokenShardsConfig
from components.tokenization.encoding import encode, encode_tasks, num_copies
from components.tokenization.shards import TokenShards
from components.tokenization.special import read_special_ids
from components.tokenization.step import make_token_shards, train_tokenizer
from components.tokenization.training_texts import TrainingTexts
from infra.errors import DataError
from infra.journal.step import Artifact, StepContext
from infra.storage.raw import resolve
from infra.tracking.client import StepTracker

Make = Callable[..., StepContext]


@pytest.fixture
def make_context(tmp_path: Path) -> Make:
    def make(name: str) -> StepContext:
        output, work = tmp_path / name / "output", tmp_path / name / "work"
        output.mkdir(parents=True)
        work.mkdir()
        return StepContext(step=name, key="0" * 32, output=output, work=work, raw={}, tracker=StepTracker(step=name))

    return make


def artifact(name: str, path: Path) -> Artifact:
    return Artifact(step=name, key="0" * 32, path=path, metrics={})


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, count in (("train", 300), ("validation", 30)):
        texts = [f"{split} document {i} 第{i}篇 " + "word " * (i % 60) + "end" for i in range(count)]
        table = pa.table(
            {
                "id": [text_id(text) for text in texts],
                "text": texts,
                "source": ["s" if i % 3 else "一" for i in range(count)],
                "num_bytes": [len(text.encode()) for text in texts],
                "weight": [2.0 if i < 100 else 0.5 if i < 200 else 1.0 for i in range(count)],
            }
        )
        pq.write_table(table, folder / f"{split}-00000.parquet", row_group_size=64)
    return artifact("corpus", folder)


def test_training_texts_are_the_lowest_ids(corpus: Artifact) -> None:
    everything = [text for batch in TrainingTexts(corpus.path, None) for text in batch]
    some = TrainingTexts(corpus.path, 40)
    chosen = [text for batch in some for text in batch]
    assert len(everything) == 300 and some.num_documents == len(chosen) == 40
    assert set(chosen) == set(sorted(everything, key=text_id)[:40])


def test_copies_follow_the_weight() -> None:
    ids = [text_id(str(number)) for number in range(2000)]
    assert {num_copies(id_, 2.0) for id_ in ids} == {2}
    assert abs(sum(num_copies(id_, 1.25) for id_ in ids) / 2000 - 1.25) < 0.04


def test_steps_make_shards_that_hold_every_document_and_nothing_else(
    corpus: Artifact, make_context: Make, ray_cluster: Mapping[str, float]
) -> None:
    contexts = {name: make_context(name) for name in ("tokenizer", "one", "two")}
    trained = train_tokenizer(TokenizerConfig(vocab_size=500), {"corpus": corpus}, contexts["tokenizer"])
    tokenizer = artifact("tokenizer", contexts["tokenizer"].output)
    inputs = {"corpus": corpus, "tokenizer": tokenizer}
    config = TokenShardsConfig(sequence_length=32, max_sequences_per_file=100)
    one, two = (make_token_shards(config, inputs, contexts[name]) for name in ("one", "two"))
    assert one.metrics == two.metrics
    for path in contexts["one"].output.iterdir():
        assert path.read_bytes() == (contexts["two"].output / path.name).read_bytes(), path.name

    expected = []
    num_bytes = 0
    num_documents = 0
    bytes_by_source: Counter[str] = Counter()
    for task in encode_tasks(corpus.path, "train"):
        table = encode(task, str(tokenizer.path / "tokenizer" / "tokenizer.json"))
        for row in table.to_pylist():
            expected += row["tokens"] * row["copies"]
            num_bytes += row["num_bytes"] * row["copies"]
            num_documents += row["copies"]
            bytes_by_source[row["source"]] += row["num_bytes"] * row["copies"]
            assert row["tokens"][0] == 2 and row["tokens"][-1] == 3
    shards = TokenShards(contexts["one"].output, "train")
    tokens_NL = shards.tokens(np.arange(len(shards)))
    assert sorted(tokens_NL[shards.segments(np.arange(len(shards))) > 0].tolist()) == sorted(expected)
    assert shards.split.num_text_bytes == num_bytes
    assert shards.index.sources == ("一", "s")
    assert [counts.num_text_bytes for counts in shards.split.by_source] == [bytes_by_source[n] for n in ("一", "s")]
    assert one.metrics["num_packed_documents"] == num_documents == shards.split.num_documents
    assert 200 + 100 + 20 < num_documents < 200 + 100 + 80
    assert one.metrics["num_tokens"] == len(expected) and one.metrics["num_cut_documents"] > 0
    assert TokenShards(contexts["one"].output, "validation").split.num_documents == 30
    counts = np.load(contexts["one"].output / "unigram_counts.npy")
    assert counts.tolist() == np.bincount(expected, minlength=trained.metrics["vocab_size"]).tolist()


def test_an_existing_tokenizer_makes_shards_with_its_own_special_tokens(
    corpus: Artifact, make_context: Make, make_style: Callable[[str], Path], ray_cluster: Mapping[str, float]
) -> None:
    folder = make_style("gpt2")
    files = resolve(f"{folder}/*token*.json", "text", "tokenizer.path")
    contexts = {name: make_context(name) for name in ("tokenizer", "shards")}
    context = replace(contexts["tokenizer"], raw={"existing": files})
    config = TokenizerConfig(kind="existing", path=str(folder))
    output = train_tokenizer(config, {"corpus": corpus}, context)
    assert output.metrics["num_added_tokens"] == 2 and "num_training_documents" not in output.metrics
    report = json.loads((context.output / "tokenizer_report.json").read_text())
    assert sorted(report["added_tokens"]) == ["<mask>", "<pad>"]
    assert output.metrics["held_out_bytes_per_token"] == report["held_out"]["all"]["bytes_per_token"]
    inputs = {"corpus": corpus, "tokenizer": artifact("tokenizer", context.output)}
    make_token_shards(TokenShardsConfig(sequence_length=32), inputs, contexts["shards"])
    shards = TokenShards(contexts["shards"].output, "train")
    ids = read_special_ids(context.output / "tokenizer")
    assert (shards.index.pad_token_id, shards.index.eos_token_id) == (ids.pad, ids.eos) and ids.bos == ids.eos
    rows = np.arange(len(shards))
    assert set(shards.tokens(rows)[shards.segments(rows) == 0].tolist()) == {ids.pad}
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="has changed since the run was planned"):
        train_tokenizer(config, {"corpus": corpus}, context)


def test_special_tokens_in_a_text_are_plain_characters(tmp_path: Path, make_context: Make) -> None:
    texts = ["a text with </s> and <mask> in it", "another plain text"] * 20
    columns = {"id": [text_id(t) for t in texts], "text": texts, "num_bytes": [len(t) for t in texts]}
    table = pa.table({**columns, "source": ["s"] * len(texts)})
    (tmp_path / "c").mkdir()
    pq.write_table(table, tmp_path / "c/train-00000.parquet")
    context = make_context("tokenizer")
    train_tokenizer(TokenizerConfig(vocab_size=300), {"corpus": artifact("corpus", tmp_path / "c")}, context)
    (task,) = encode_tasks(tmp_path / "c", "train")
    tokens = encode(task, str(context.output / "tokenizer/tokenizer.json")).column("tokens").to_pylist()
    assert all(row.count(3) == 1 and 4 not in row for row in tokens)

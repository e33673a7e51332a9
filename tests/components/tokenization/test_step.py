"""The tokenizer and token shard steps on a corpus made by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from components.corpus.merge import CORPUS_SCHEMA
from components.corpus.normalise import text_digest, text_id
from components.tokenization.config import TokenizerConfig, TokenShardsConfig
from components.tokenization.encoding import EncodeTask, Encoding, documents, encode_tasks, num_copies, write_token_unit
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
        tracker, units = StepTracker(step=name), tmp_path / "units"
        return StepContext(step=name, key="0" * 32, output=output, work=work, raw={}, units=units, tracker=tracker)

    return make


def artifact(name: str, path: Path) -> Artifact:
    return Artifact(step=name, key="0" * 32, path=path, metrics={})


WEIGHTS = {"一": 0.5, "s": 2.0}


def write_corpus(folder: Path, splits: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]) -> None:
    """A corpus of splits, of units by key, of (text, source); as `corpus/merge.py` writes it, two row groups a unit."""
    folder.mkdir(exist_ok=True)
    told = [{"name": name, "weight": weight, "num_rows_kept": 1} for name, weight in WEIGHTS.items()]
    (folder / "sources.json").write_text(json.dumps(told))
    for split, units in splits.items():
        path = folder / f"{split}-00000.parquet"
        with pq.ParquetWriter(path, CORPUS_SCHEMA) as writer:
            for documents in units.values():
                texts, sources = zip(*documents, strict=True)
                columns = {
                    "id": [text_id(text) for text in texts],
                    "text": texts,
                    "source": sources,
                    "num_bytes": [len(text.encode()) for text in texts],
                    **dict.fromkeys(("language", "original_id", "license"), [""] * len(texts)),
                }
                table = pa.table({name: columns[name] for name in CORPUS_SCHEMA.names}, schema=CORPUS_SCHEMA)
                writer.write_table(table, row_group_size=-(-len(texts) // 2))
            groups = [(key, 2 if len(documents) > 1 else 1) for key, documents in units.items()]
            writer.add_key_value_metadata({"units": json.dumps(groups)})


def numbered(split: str, first: int, count: int) -> list[tuple[str, str]]:
    return [
        (f"{split} document {i} 第{i}篇 " + "word " * (i % 60) + "end", "s" if i % 3 else "一")
        for i in range(first, first + count)
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    units = {"a": numbered("train", 0, 100), "b": numbered("train", 100, 200)}
    write_corpus(tmp_path / "corpus", {"train": units, "validation": {"a": numbered("validation", 0, 30)}})
    return artifact("corpus", tmp_path / "corpus")


def test_training_texts_are_the_lowest_ids(corpus: Artifact) -> None:
    everything = [text for batch in TrainingTexts(corpus.path, None) for text in batch]
    some = TrainingTexts(corpus.path, 40)
    chosen = [text for batch in some for text in batch]
    assert len(everything) == 300 and some.num_documents == len(chosen) == 40
    assert set(chosen) == set(sorted(everything, key=text_id)[:40])


def test_copies_follow_the_weight() -> None:
    ids = [text_digest(str(number)) for number in range(2000)]
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

    library = Tokenizer.from_file(str(tokenizer.path / "tokenizer" / "tokenizer.json"))
    expected = []
    num_bytes = 0
    num_documents = 0
    bytes_by_source: Counter[str] = Counter()
    for text, source in [*numbered("train", 0, 100), *numbered("train", 100, 200)]:
        number = num_copies(text_digest(text), WEIGHTS[source])
        tokens = library.encode(text).ids
        expected += tokens * number
        num_bytes += len(text.encode()) * number
        num_documents += number
        bytes_by_source[source] += len(text.encode()) * number
        assert tokens[0] == 2 and tokens[-1] == 3
    shards = TokenShards(contexts["one"].output, "train")
    tokens_NL = shards.tokens(np.arange(len(shards)))
    assert sorted(tokens_NL[shards.segments(np.arange(len(shards))) > 0].tolist()) == sorted(expected)
    assert shards.split.num_text_bytes == num_bytes
    assert shards.index.sources == ("一", "s")
    assert [counts.num_text_bytes for counts in shards.split.by_source] == [bytes_by_source[n] for n in ("一", "s")]
    assert one.metrics["num_packed_documents"] == num_documents == shards.split.num_documents
    assert 400 + 30 < num_documents < 400 + 70
    assert one.metrics["num_tokens"] == len(expected) and one.metrics["num_cut_documents"] > 0
    assert one.metrics["num_padding_tokens"] == len(shards) * 32 - len(expected)
    assert 0 < one.metrics["padding_fraction"] == one.metrics["num_padding_tokens"] / (len(shards) * 32) < 0.05
    assert one.metrics["num_avoidably_cut_documents"] == 0 < one.metrics["num_cut_tokens"]
    assert shards.index.has_sentences and shards.sentence_starts(np.arange(len(shards)))[:, 0].all()
    assert TokenShards(contexts["one"].output, "validation").split.num_documents == 30
    counts = np.load(contexts["one"].output / "unigram_counts.npy")
    assert counts.tolist() == np.bincount(expected, minlength=trained.metrics["vocab_size"]).tolist()


def test_only_new_documents_are_tokenized(
    corpus: Artifact, make_context: Make, ray_cluster: Mapping[str, float], tmp_path: Path
) -> None:
    """A unit that is there is taken, also where a document of it has gone; one that lacks a document is made again."""
    context = make_context("tokenizer")
    train_tokenizer(TokenizerConfig(vocab_size=500), {"corpus": corpus}, context)
    tokenizer = artifact("tokenizer", context.output)

    def shards(name: str, units: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[int, Path]:
        write_corpus(tmp_path / name, {"train": units, "validation": {"a": numbered("validation", 0, 30)}})
        made = make_context(f"{name} shards")
        inputs = {"corpus": artifact("corpus", tmp_path / name), "tokenizer": tokenizer}
        output = make_token_shards(TokenShardsConfig(sequence_length=32), inputs, made)
        assert output.measured["num_units"] == len(units) + 1 == len(output.units["tokens"])
        return int(output.measured["num_units_made"]), made.output

    one, two, three = numbered("train", 0, 40), numbered("train", 40, 40), numbered("train", 80, 5)
    assert shards("first", {"a": one, "b": two})[0] == 3
    number, grown = shards("grown", {"a": one[1:], "c": three, "b": two})
    assert number == 1
    assert shards("again", {"a": one[1:], "c": three, "b": two})[0] == 0
    assert shards("back", {"a": one, "b": [*two, *numbered("train", 200, 1)]})[0] == 1
    for path in (tmp_path / "units").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-9])  # damage is seen, and mended
    number, mended = shards("mended", {"a": one[1:], "c": three, "b": two})
    assert number == 4
    for path in grown.iterdir():
        assert path.read_bytes() == (mended / path.name).read_bytes()


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


def trained(corpus: Path, make_context: Make) -> Encoding:
    context = make_context("tokenizer")
    train_tokenizer(TokenizerConfig(vocab_size=300), {"corpus": artifact("corpus", corpus)}, context)
    folder = context.output / "tokenizer"
    return Encoding(tokenizer_path=str(folder / "tokenizer.json"), special=read_special_ids(folder), vocab_size=300)


def test_special_tokens_in_a_text_are_plain_characters(tmp_path: Path, make_context: Make) -> None:
    texts = [
        f"{start} {number}" for start in ("a text with </s> and <mask> in it", "plain text") for number in range(20)
    ]
    write_corpus(tmp_path / "c", {"train": {"u": [(text, "s") for text in texts]}})
    encoding = trained(tmp_path / "c", make_context)
    (task,) = encode_tasks(tmp_path / "c", "train", encoding)
    write_token_unit(task, encoding, tmp_path / "unit.arrow")
    found = documents(task, tmp_path / "unit.arrow", WEIGHTS)
    assert found is not None
    tokens = pa.concat_tables(found).column("tokens").to_pylist()
    assert all(row.count(3) == 1 and 4 not in row for row in tokens)


@pytest.fixture
def unit(tmp_path: Path, make_context: Make) -> tuple[EncodeTask, Encoding, Path]:
    """Of 30 documents in three row groups, made from a corpus of 40."""
    corpus = tmp_path / "c"
    write_corpus(corpus, {"train": {"u": [(f"text {number}", "s") for number in range(40)]}})
    encoding = trained(corpus, make_context)
    (path,) = corpus.glob("train-*.parquet")
    pq.write_table(pq.read_table(path), path, row_group_size=10)
    task = EncodeTask(key="0" * 32, split="train", path=str(path), first_group=1, num_groups=3, num_bytes=1)
    write_token_unit(task, encoding, tmp_path / "unit.arrow")
    return task, encoding, tmp_path / "unit.arrow"


def test_a_batch_of_texts_is_of_one_row_group(unit: tuple[EncodeTask, Encoding, Path]) -> None:
    """A unit of one compressed file may have any number of them, of 32 MiB of text each."""
    task, _, path = unit
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        assert [len(reader.get_batch(number)) for number in range(reader.num_record_batches)] == [10, 10, 10]
        ids = [id_.hex() for id_ in reader.read_all().column("id").to_pylist()]
    assert ids == pq.read_table(task.path).column("id").to_pylist()[10:]


def test_documents_that_have_gone_are_passed_over(unit: tuple[EncodeTask, Encoding, Path]) -> None:
    task, encoding, path = unit
    whole = replace(task, first_group=0, num_groups=1)
    table = pq.read_table(task.path)
    left = [*range(11, 17), *range(18, 20), *range(30, 39)]  # without a whole batch, and ends and a middle of others
    pq.write_table(table.take(left), task.path)
    found = documents(whole, path, WEIGHTS)
    assert found is not None
    tables = list(found)
    assert [len(some) for some in tables] == [8, 0, 9]
    told = pa.concat_tables(tables)
    tokenizer = Tokenizer.from_file(encoding.tokenizer_path)
    assert told.column("tokens").to_pylist() == [tokenizer.encode(f"text {number}").ids for number in left]
    assert told.column("num_bytes").to_pylist() == [len(f"text {number}") for number in left]


def test_a_document_that_a_unit_lacks_is_told(unit: tuple[EncodeTask, Encoding, Path]) -> None:
    task, _, path = unit
    assert documents(replace(task, first_group=0, num_groups=1), path, WEIGHTS) is None

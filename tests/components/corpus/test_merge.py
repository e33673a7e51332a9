"""The merge keeps the first of equal texts, counts every row, and writes the same bytes however rows arrive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.corpus import writer
from components.corpus.config import CorpusConfig, SourceConfig
from components.corpus.documents import ReadTask, examine
from components.corpus.merge import CorpusMerger, SourceFile
from components.corpus.normalise import text_digest
from components.corpus.rejects import RejectLog
from components.corpus.writer import ParquetSink
from infra.errors import DataError, FromzeroError
from infra.storage.raw import RawFile


def merged(
    output: Path, config: CorpusConfig, raw: list[RawFile], evaluation: list[str], slice_rows: int = 10_000
) -> tuple[CorpusMerger, dict[str, int]]:
    output.mkdir()
    files = [SourceFile(source=index, file=file) for index, file in enumerate(raw)]
    merger = CorpusMerger(output, config, files, [text_digest(text) for text in evaluation])
    for index, file in enumerate(raw):
        task = ReadTask(
            index=index,
            file=file,
            collapse_whitespace=True,
            filters=config.filters,
            sample_fraction=config.sample_fraction,
        )
        for table in examine(task):
            for start in range(0, len(table), slice_rows):
                merger.add(table.slice(start, slice_rows))
    return merger, merger.close()


def read(output: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def test_first_of_equal_texts_stays_and_evaluation_texts_never_enter(tmp_path: Path, files: SimpleNamespace) -> None:
    raw = [
        files.write(
            tmp_path / "a.txt", b"one\ntwo  words\n\nsecret test\n" + b"\n".join(b"n%d" % i for i in range(60))
        ),
        files.write(tmp_path / "b.jsonl", files.jsonl([{"text": "two words"}, {"text": "three"}, 4, {"text": "x1"}])),
    ]
    config = CorpusConfig(
        sources=[{"path": "a"}, {"path": "b", "weight": 2}],
        filters=[{"name": "min_letter_fraction", "fraction": 0.6}],
        validation_fraction=0.3,
    )
    merger, metrics = merged(tmp_path / "out", config, raw, ["secret  test"])
    documents = read(tmp_path / "out", "[tv]*-*.parquet")
    texts = {row["text"]: row for row in documents}
    assert texts["two words"]["source"] == "source0" and texts["three"]["weight"] == 2
    assert "secret test" not in texts and len(texts) == len(documents) == metrics["num_documents_kept"]
    assert metrics["num_documents_in"] == 68
    assert {k: v for k, v in metrics.items() if k.startswith("dropped")} == {
        "dropped_duplicate": 1,
        "dropped_empty_text": 1,
        "dropped_in_evaluation_set": 1,
        "dropped_min_letter_fraction": 61,
        "dropped_not_an_object": 1,
    }
    dropped = {(row["source"], row["row"], row["reason"]) for row in read(tmp_path / "out", "dropped.parquet")}
    assert ("source1", 1, "duplicate") in dropped and ("source0", 4, "in_evaluation_set") in dropped
    assert merger.num_in == {0: 64, 1: 4}


def test_bytes_do_not_depend_on_how_rows_arrive(
    tmp_path: Path, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GROUP_ROWS", 16)
    monkeypatch.setattr(writer, "GROUP_BYTES", 100)
    monkeypatch.setattr(writer, "FILE_GROUPS", 3)
    raw = [files.write(tmp_path / "a.txt", b"\n".join(b"text %d" % (i * i) for i in range(500)))]
    config = CorpusConfig(sources=[{"path": "a"}])
    for name, slice_rows in (("whole", 10_000), ("slices", 7)):
        merged(tmp_path / name, config, raw, [], slice_rows)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) > 5 and names == sorted(path.name for path in (tmp_path / "slices").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "slices" / name).read_bytes()


def test_a_small_corpus_still_gets_a_validation_document(tmp_path: Path, files: SimpleNamespace) -> None:
    raw = [files.write(tmp_path / "a.txt", b"one\ntwo\nthree\n")]
    _, metrics = merged(tmp_path / "out", CorpusConfig(sources=[{"path": "a"}], validation_fraction=1e-6), raw, [])
    assert (metrics["num_train_documents"], metrics["num_validation_documents"]) == (2, 1)
    assert len(read(tmp_path / "out", "train-*")) == 2 and len(read(tmp_path / "out", "validation-*")) == 1


def test_an_empty_corpus_says_why(tmp_path: Path, files: SimpleNamespace) -> None:
    raw = [files.write(tmp_path / "a.jsonl", files.jsonl([{"body": "x"}, {"body": "y"}]))]
    with pytest.raises(DataError, match=r"0 of 2 rows are left.*text_missing 2.*text_column \(text\)"):
        merged(tmp_path / "out", CorpusConfig(sources=[{"path": "a"}]), raw, [])


def test_sampling_is_counted_and_nested(tmp_path: Path, files: SimpleNamespace) -> None:
    raw = [files.write(tmp_path / "a.txt", b"\n".join(b"text %d" % i for i in range(1000)))]
    kept = {}
    for fraction in (0.2, 0.5):
        config = CorpusConfig(sources=[{"path": "a"}], sample_fraction=fraction)
        _, metrics = merged(tmp_path / str(fraction), config, raw, [])
        kept[fraction] = {row["text"] for row in read(tmp_path / str(fraction), "[tv]*-*.parquet")}
        assert metrics["dropped_not_sampled"] == 1000 - len(kept[fraction])
        assert abs(len(kept[fraction]) / 1000 - fraction) < 0.06
    assert kept[0.2] < kept[0.5]


def test_rejects_are_all_counted_and_some_kept(tmp_path: Path) -> None:
    log = RejectLog(max_kept_per_reason=2)
    for row in range(5):
        log.add("s", "/data/a.txt", row, "empty_text", "x" * 1000)
    log.write(tmp_path / "r.parquet")
    table = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["row"] for row in table] == [0, 1] and len(table[0]["excerpt"]) == 200
    log.reconcile(8, 3)
    with pytest.raises(FromzeroError, match="8 rows in are not 2 kept and 5 dropped"):
        log.reconcile(8, 2)


def test_a_sink_without_rows_writes_an_empty_file(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, "train", pa.schema({"num_bytes": pa.int64()}))
    sink.close()
    assert pq.read_table(tmp_path / "train-00000.parquet").num_rows == 0


@pytest.mark.parametrize("name", [".", "..", ".a", "a/b", "a b"])
def test_a_source_after_which_no_metric_could_be_named_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        SourceConfig.model_validate({"path": "x.txt", "name": name})

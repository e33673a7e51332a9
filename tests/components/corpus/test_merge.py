"""The merge keeps the first of equal texts, counts every row, and writes the same bytes however rows arrive."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.corpus import documents, merge
from components.corpus.config import CorpusConfig, SourceConfig
from components.corpus.decontamination import build_index
from components.corpus.distributed import equal_pairs
from components.corpus.documents import Rules, write_unit
from components.corpus.duplicates import cluster
from components.corpus.merge import CorpusMerger, MadeUnit
from components.corpus.normalise import text_id
from components.corpus.rejects import RejectLog
from components.corpus.units import units_of
from infra.errors import DataError, FromzeroError
from infra.storage.raw import RawFile
from infra.storage.units import UnitStore

NOTHING = np.zeros(0, dtype=np.int64)


def merged(
    output: Path, config: CorpusConfig, raw: list[RawFile], evaluation: list[str], unit_bytes: int = 1 << 25
) -> tuple[CorpusMerger, dict[str, int]]:
    output.mkdir()
    store = UnitStore(folder=output.parent / f"{output.name}_units")
    index = build_index({"set": {text_id(text): text for text in evaluation}}, config.decontamination)
    units: list[MadeUnit] = []
    for position, file in enumerate(raw):
        before = 0
        for unit in units_of(file, unit_bytes=unit_bytes):
            key = f"{len(units):032x}"
            rules = Rules.of(config, config.sources[position])
            path = store.put(key, partial(write_unit, unit, rules, index))
            facts = documents.read_facts(path)
            units.append(MadeUnit(key=key, path=path, source=position, file=file, rows_before=before, facts=facts))
            before += facts.num_rows
    first = np.cumsum([0, *(unit.facts.num_kept for unit in units)])
    pairs = equal_pairs("equal", [unit.path for unit in units], first, NOTHING, store)
    merger = CorpusMerger(
        output, config, units, cluster(*pairs, np.ones(len(pairs[0]))), cluster(NOTHING, NOTHING, np.zeros(0))
    )
    return merger, merger.write()


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
    assert texts["two words"]["source"] == "source0" and texts["three"]["source"] == "source1"
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
    assert merger.num_kept == {0: 2, 1: 1}


def test_documents_do_not_depend_on_where_files_are_cut(
    tmp_path: Path, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of rejects and of duplicates are counted from the start of the file, however it is cut."""
    monkeypatch.setattr(documents, "GROUP_ROWS", 16)
    monkeypatch.setattr(merge, "FILE_UNITS", 3)
    lines = [b"text %d" % (i * 7 % 400) if i % 50 else b"" for i in range(500)]
    raw = [files.write(tmp_path / "a.txt", b"\n".join(lines))]
    config = CorpusConfig(sources=[{"path": "a"}])
    found = {}
    for name, unit_bytes in (("whole", 1 << 20), ("cut", 700)):
        _, metrics = merged(tmp_path / name, config, raw, [], unit_bytes)
        dropped = [(row["row"], row["reason"]) for row in read(tmp_path / name, "dropped.parquet")]
        documents_found = [read(tmp_path / name, f"{split}-*") for split in ("train", "validation")]
        found[name] = metrics, documents_found, sorted(dropped)
    assert found["whole"] == found["cut"]
    assert len(list((tmp_path / "cut").glob("train-*"))) > 1
    assert (51, "empty_text") in found["cut"][2] and len(found["cut"][2]) == 500 - found["cut"][0]["num_documents_kept"]


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


def test_all_rows_of_evaluation_sets_are_listed(
    tmp_path: Path, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_KEPT_PER_REASON", 2)
    texts = [f"secret number {number}" for number in range(5)]
    lines = [*texts, *[""] * 5, "something else", "and another"]
    raw = [files.write(tmp_path / "a.txt", "\n".join(lines).encode())]
    config = CorpusConfig(sources=[{"path": "a"}], validation_fraction=0.5)
    _, metrics = merged(tmp_path / "out", config, raw, texts)
    rows = Counter(row["reason"] for row in read(tmp_path / "out", "dropped.parquet"))
    assert rows == {"in_evaluation_set": 5, "empty_text": 2}
    assert metrics["dropped_in_evaluation_set"] == metrics["dropped_empty_text"] == 5


@pytest.mark.parametrize("name", [".", "..", ".a", "a/b", "a b"])
def test_a_source_after_which_no_metric_could_be_named_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        SourceConfig.model_validate({"path": "x.txt", "name": name})

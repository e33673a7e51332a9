"""The sample that a tokenizer is trained on: the lowest ids, up to a bound, whatever the files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.corpus.normalise import text_id
from components.tokenization.training_texts import TrainingTexts


def write(folder: Path, texts: list[str], files: int = 1, group: int = 50) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(files):
        part = texts[number::files]
        sizes = [len(text.encode()) for text in part]
        table = pa.table({"id": [text_id(text) for text in part], "text": part, "num_bytes": sizes})
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=group)
    return folder


def chosen(texts: TrainingTexts) -> list[str]:
    return sorted((text for batch in texts for text in batch), key=text_id)


TEXTS = [f"text number {i} 第{i}篇 " + "é" * (i % 40) for i in range(2000)]


@pytest.mark.parametrize(("documents", "size"), [(1, None), (700, None), (None, 9_999), (300, 20_001), (150, 20_001)])
def test_the_sample_is_what_sorting_everything_gives(documents: int | None, size: int | None, tmp_path: Path) -> None:
    sample = TrainingTexts(write(tmp_path / "c", TEXTS, files=3), documents, size)
    wanted: list[str] = []
    left = size
    for text in sorted(TEXTS, key=text_id)[:documents]:
        if left is not None and len(text.encode()) >= left:
            wanted.append(text.encode()[:left].decode(errors="ignore"))
            left = 0
            break
        wanted.append(text)
        left = None if left is None else left - len(text.encode())
    found = [text for batch in sample for text in batch]
    assert sorted(found) == sorted(wanted)
    assert sample.num_documents == len(wanted)
    assert sample.num_bytes == (size if left == 0 else sum(len(text.encode()) for text in wanted))


def test_more_documents_refine_the_sample(tmp_path: Path) -> None:
    few = chosen(TrainingTexts(write(tmp_path / "few", TEXTS[:1000]), 200))
    many = chosen(TrainingTexts(write(tmp_path / "many", TEXTS), 200))
    kept = set(few) & set(many)
    assert 60 <= len(kept) <= 140  # half of the new sample is of the old texts, all of which were in the old sample
    assert kept == set(many) & set(TEXTS[:1000])


def test_files_and_row_groups_change_nothing(tmp_path: Path) -> None:
    one = TrainingTexts(write(tmp_path / "one", TEXTS), None, 30_000)
    other = TrainingTexts(write(tmp_path / "other", TEXTS, files=7, group=3), None, 30_000)
    assert sorted(text for batch in one for text in batch) == sorted(text for batch in other for text in batch)


def test_a_document_longer_than_the_bound_is_cut(tmp_path: Path) -> None:
    sample = TrainingTexts(write(tmp_path / "c", ["漢" * 100_000]), None, 70_001)
    assert [text for batch in sample for text in batch] == [["漢" * 23_333]][0]
    assert (sample.num_documents, sample.num_bytes) == (1, 70_001)


def test_a_corpus_under_the_bound_is_taken_whole(tmp_path: Path) -> None:
    sample = TrainingTexts(write(tmp_path / "c", TEXTS), 2000, 1 << 30)
    assert [text for batch in sample for text in batch] == TEXTS
    assert (sample.num_documents, sample.num_bytes) == (2000, sum(len(text.encode()) for text in TEXTS))


def test_an_empty_split_gives_nothing(tmp_path: Path) -> None:
    sample = TrainingTexts(write(tmp_path / "c", []), None, 100)
    assert list(sample) == [] and sample.num_documents == 0

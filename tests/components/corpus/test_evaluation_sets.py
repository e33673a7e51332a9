"""A model is judged only where its text was compared with what it is judged on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.corpus import evaluation_sets
from components.corpus.decontamination import DecontaminationConfig, read_sets
from components.corpus.normalise import text_id
from infra.errors import DataError


def write_task(folder: Path, validation: list[str], test: list[str]) -> Path:
    folder.mkdir()
    for split, texts in (("validation", validation), ("test", test)):
        pq.write_table(pa.table({"id": [text_id(text) for text in texts], "text": texts}), folder / f"{split}.parquet")
    return folder


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path / "task", ["one", "two"], ["three", "四"])


def made(folder: Path, task: Path, config: DecontaminationConfig | None) -> Path:
    """The folder of a model whose corpus was compared with `task`; told twice over, as by shards and a training."""
    for name in ("corpus", "shards", "model"):
        (folder / name).mkdir(parents=True)
    evaluation_sets.write(folder / "corpus", config, read_sets(task))
    evaluation_sets.carry(folder / "corpus", folder / "shards")
    evaluation_sets.carry(folder / "shards", folder / "model")
    return folder / "model"


def test_a_model_of_a_corpus_that_was_checked_is_taken(tmp_path: Path, task: Path) -> None:
    model = made(tmp_path / "a", task, DecontaminationConfig())
    evaluation_sets.require_checked(model, task, "finetune")
    told = json.loads((model / evaluation_sets.FILE_NAME).read_text())
    assert told["sets"]["task.test"]["num_texts"] == 2 and told["ngram_words"] == 13


def test_one_of_a_corpus_that_was_not_checked_is_refused(tmp_path: Path, task: Path) -> None:
    model = made(tmp_path / "a", task, None)
    with pytest.raises(
        DataError, match=r"finetune: .*not compared with task.validation and task.test.*decontamination"
    ):
        evaluation_sets.require_checked(model, task, "finetune")


def test_other_evaluation_texts_are_refused_and_named(tmp_path: Path, task: Path) -> None:
    model = made(tmp_path / "a", task, DecontaminationConfig())
    other = write_task(tmp_path / "other", ["two", "one"], ["three", "new"])
    with pytest.raises(DataError, match=r"not compared with task.test \(other rows now\)"):
        evaluation_sets.require_checked(model, other, "prompt")


def test_one_that_starts_from_elsewhere_and_one_that_tells_nothing_are_refused(tmp_path: Path, task: Path) -> None:
    (tmp_path / "bert").mkdir()
    evaluation_sets.write_unknown(tmp_path / "bert", "bert-base")
    with pytest.raises(DataError, match=r"it starts from bert-base.*prompt.allow_unchecked_model=true"):
        evaluation_sets.require_checked(tmp_path / "bert", task, "prompt")
    (tmp_path / "silent").mkdir()
    with pytest.raises(DataError, match="not compared"):
        evaluation_sets.require_checked(tmp_path / "silent", task, "prompt")

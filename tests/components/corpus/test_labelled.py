"""A task's splits: no text in two of them, no row unaccounted for, one result whatever the paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.corpus.config import CorpusConfig, TaskConfig
from components.corpus.normalise import text_id
from components.corpus.step import make_task
from infra.errors import DataError
from infra.journal.step import Step, StepContext
from infra.journal.worker import Job, run_job
from infra.storage.raw import resolve
from infra.storage.store import Store
from infra.tracking.client import StepTracker

Make = Callable[..., StepContext]


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(path / f"{name}.parquet").to_pylist()


def dataset(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"text number {i}", "label": "奇" if i % 2 else "偶"} for i in range(start, start + count)]


def test_a_split_by_hash_has_the_asked_shares_and_does_not_depend_on_order_or_paths(
    tmp_path: Path, files: SimpleNamespace, make_context: Make
) -> None:
    data = dataset(1000)
    one = make_context("one", train=(files.write(tmp_path / "a.jsonl", files.jsonl(data)),))
    two = make_context("two", train=(files.write(tmp_path / "elsewhere/b.parquet", files.parquet(data[::-1])),))
    outputs = [make_task(TaskConfig(train="x"), {}, context) for context in (one, two)]
    assert outputs[0].metrics == outputs[1].metrics
    assert outputs[0].metrics["num_documents_kept"] == 1000
    for name, share in (("train", 800), ("validation", 100), ("test", 100)):
        assert (one.output / f"{name}.parquet").read_bytes() == (two.output / f"{name}.parquet").read_bytes()
        split = rows(one.output, name)
        assert abs(len(split) - share) < 50
        assert [row["id"] for row in split] == sorted(text_id(row["text"]) for row in split)
    assert json.loads((one.output / "labels.json").read_text()) == ["偶", "奇"]


def test_a_text_lives_in_one_split_and_every_drop_is_counted(
    tmp_path: Path, files: SimpleNamespace, make_context: Make
) -> None:
    extra = [
        {"text": "text  number 0", "label": "偶"},
        {"text": "text number 500", "label": "偶"},
        {"text": "no label"},
        {"text": " ", "label": "偶"},
        {"text": "\ud800", "label": "偶"},
    ]
    train = (json.dumps(extra[-1]) + "\n").encode() + files.jsonl([*dataset(100), *extra[:-1]])
    test = files.jsonl([*dataset(20, 500), {"text": "odd one", "label": "unknown"}])
    context = make_context(
        "task",
        train=(files.write(tmp_path / "train.jsonl", train),),
        test=(files.write(tmp_path / "test.jsonl", test),),
    )
    metrics = make_task(TaskConfig(train="x", test="x"), {}, context).metrics
    dropped = {name: value for name, value in metrics.items() if name.startswith("dropped_")}
    assert dropped == {
        "dropped_duplicate": 1,
        "dropped_empty_text": 1,
        "dropped_in_other_split": 1,
        "dropped_label_missing": 1,
        "dropped_label_not_in_task": 1,
        "dropped_text_not_unicode": 1,
    }
    assert metrics["num_documents_in"] == 126 == metrics["num_documents_kept"] + 6
    assert metrics["num_test"] == 20
    ids = [row["id"] for name in ("train", "validation", "test") for row in rows(context.output, name)]
    assert len(ids) == len(set(ids)) == 120
    rejects = rows(context.output, "rejects")
    assert {(row["reason"], row["row"], row["file"]) for row in rejects} >= {
        ("label_not_in_task", 21, "test.jsonl"),
        ("in_other_split", 103, "train.jsonl"),
    }


def test_the_manifest_of_a_task_has_the_rows_of_each_file_rejects_included(
    tmp_path: Path, files: SimpleNamespace
) -> None:
    """A file that two sources name counts in each."""
    uneven = files.uneven(tmp_path / "raw")
    raw = {
        "train": resolve(str(tmp_path / "raw"), None, "test"),
        "test": (uneven["b.csv"][0],),
    }
    task = Step(name="task", function="components.corpus.step:make_task", config=TaskConfig(train="x"), raw=raw)
    job = Job(
        step=task,
        key="0" * 32,
        identity={},
        definitions={},
        inputs={},
        root=Store.open(str(tmp_path / "root")).root,
        tracker=StepTracker(step="task"),
        environment={},
    )
    manifest = run_job(job)
    assert isinstance(manifest, dict), manifest
    found = {name: {Path(f["path"]).name: f["num_rows"] for f in entries} for name, entries in manifest["raw"].items()}
    assert found == {"train": {name: count for name, (_, count) in uneven.items()}, "test": {"b.csv": 54}}
    assert manifest["metrics"]["num_documents_in"] == sum(found["train"].values()) + 54


def test_given_labels_drop_rows_with_others(tmp_path: Path, files: SimpleNamespace, make_context: Make) -> None:
    data = [*dataset(200), {"text": "third", "label": "c"}]
    context = make_context("task", train=(files.write(tmp_path / "a.jsonl", files.jsonl(data)),))
    metrics = make_task(TaskConfig(train="x", labels=("偶", "奇")), {}, context).metrics
    assert metrics["dropped_label_not_in_task"] == 1


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        ([{"text": f"t{i}", "label": "a"} for i in range(50)], {}, "number of labels in the training rows: 1 "),
        ([{"text": f"t{i}", "label": str(i)} for i in range(50)], {"max_labels": 5}, "a task has 2 to 5"),
        ([{"text": f"t{i}", "kind": "a"} for i in range(50)], {}, "no row is left.*label_missing 50"),
        (dataset(50), {"labels": ("偶", "奇", "缺")}, "no training row has the label 缺"),
        (dataset(50), {"train_fraction": 0.9, "validation_fraction": 0.1}, "no row is left for test"),
    ],
)
def test_unusable_tasks_are_refused(
    data: list[Any], config: dict[str, Any], message: str, tmp_path: Path, files: SimpleNamespace, make_context: Make
) -> None:
    context = make_context("task", train=(files.write(tmp_path / "a.jsonl", files.jsonl(data)),))
    with pytest.raises(DataError, match=message):
        make_task(TaskConfig(train="x", **config), {}, context)


def test_all_bad_files_are_named_at_once(tmp_path: Path, files: SimpleNamespace, make_context: Make) -> None:
    bad = [files.write(tmp_path / name, data) for name, data in (("a.csv", b"x\n1\n"), ("b.jsonl", b"\xff\n" * 10))]
    with pytest.raises(DataError, match=r"(?s)a\.csv.*\n.*b\.jsonl: not UTF-8 at byte 0"):
        make_task(TaskConfig(train="x"), {}, make_context("task", train=tuple(bad)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskConfig(train="x", train_fraction=0.9, validation_fraction=0.2), "sum to more than 1"),
        (lambda: TaskConfig(train="x", labels=("a",)), "a task needs 2 or more"),
        (lambda: CorpusConfig(sources=()), "at least 1 item"),
        (lambda: CorpusConfig(sources=[{"path": "a", "name": "s"}, {"path": "b", "name": "s"}]), "share a name"),
        (lambda: CorpusConfig(sources=[{"path": "a"}], filters=[{"name": "min_chars"}]), "min_characters"),
    ],
)
def test_wrong_configs_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()

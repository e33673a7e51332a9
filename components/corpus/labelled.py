"""Labelled rows: read, cleaned, deduplicated across splits, split by content hash where no files are given.

In one process: labelled sets are small (62,705 rows in 3 s), and their texts are held in memory, some 100 bytes a row
beside the text. A text belongs to one split: test before validation before training, so that nothing that is reported
on was learned from; within a split the first row by (file digest, row) stays.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.config import TaskConfig
from components.corpus.documents import prepare, raise_file_errors
from components.corpus.normalise import unit_interval
from components.corpus.readers import read_rows
from components.corpus.rejects import RejectLog
from components.corpus.rows import Columns, Reason, Row
from components.corpus.units import Unit
from infra.errors import DataError, FromzeroError
from infra.storage.raw import RawFile

SPLITS = ("train", "validation", "test")
TASK_SCHEMA = pa.schema({"id": pa.string(), "text": pa.string(), "label": pa.string()})
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, slots=True)
class _Example:
    digest: bytes
    row: Row
    source: str
    file: str


def make_splits(
    config: TaskConfig, raw: Mapping[str, Sequence[RawFile]], output: Path, progress: Progress
) -> tuple[dict[str, float | int | str | None], dict[str, list[int]]]:
    """Writes the files of a task into `output`.

    Returns:
        Counts (num_documents_in, num_documents_kept, num_labels, num_train, num_validation, num_test,
        majority_fraction: share of the test rows with the most frequent training label, dropped_<reason>); and the rows
        of each file of `raw`, rejects included, by source.

    Raises:
        DataError: a file cannot be used, a split is empty, or the labels cannot be a task's.
    """
    rejects = RejectLog()
    num_rows, examples = _read(config, raw, rejects, progress)
    num_in = sum(map(sum, num_rows.values()))
    splits = _assign(config, raw, examples)
    splits = _deduplicate(splits, rejects)
    labels, splits = _check_labels(config, splits, rejects)
    num_kept = sum(map(len, splits.values()))
    rejects.reconcile(num_in, num_kept)
    rejects.write(output / "rejects.parquet")
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        raise DataError(
            f"task: no row is left for {', '.join(empty)} ({num_in} rows in, {num_kept} kept; dropped: "
            f"{rejects.summary()}); give more rows, raise sample_fraction ({config.sample_fraction}), or set "
            f"train_fraction ({config.train_fraction}) and validation_fraction ({config.validation_fraction}) so that "
            "each split gets some"
        )
    for name, rows in splits.items():
        _write(output / f"{name}.parquet", rows)
    (output / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
    majority = Counter(example.row.label for example in splits["train"]).most_common()
    top = min((label for label, count in majority if count == majority[0][1]), default="")
    metrics: dict[str, float | int | str | None] = {
        "num_documents_in": num_in,
        "num_documents_kept": num_kept,
        "num_labels": len(labels),
        **{f"num_{name}": len(splits[name]) for name in SPLITS},
        "majority_fraction": sum(e.row.label == top for e in splits["test"]) / len(splits["test"]),
        **rejects.metrics(),
    }
    return metrics, num_rows


def evaluation_digests(task: Path) -> set[bytes]:
    """The digests of the validation and test texts of a task's folder."""
    names = ("validation.parquet", "test.parquet")
    ids = (id_ for name in names for id_ in pq.read_table(task / name, columns=["id"]).column("id").to_pylist())
    return {bytes.fromhex(id_) for id_ in ids}


def _read(
    config: TaskConfig, raw: Mapping[str, Sequence[RawFile]], rejects: RejectLog, progress: Progress
) -> tuple[dict[str, list[int]], dict[str, list[_Example]]]:
    """The rows of each file, and those of them that can be used, by source."""
    num_rows: dict[str, list[int]] = {name: [] for name in raw}
    examples: dict[str, list[_Example]] = {name: [] for name in raw}
    errors: list[FromzeroError] = []
    total = sum(map(len, raw.values()))
    done = 0
    for source, files in raw.items():
        for file in files:
            num_rows[source].append(0)
            try:
                for row, digest in _rows(config, file):
                    num_rows[source][-1] += 1
                    if row.reason is None:
                        examples[source].append(_Example(digest, row, source, file.path))
                    else:
                        rejects.add(source, file.path, row.number, row.reason, row.text)
            except FromzeroError as error:
                errors.append(error)
            done += 1
            progress(done, total, "files")
    raise_file_errors(errors)
    return num_rows, examples


def _rows(config: TaskConfig, file: RawFile) -> Iterator[tuple[Row, bytes]]:
    allowed = None if config.labels is None else frozenset(config.labels)
    columns = Columns(text=config.text_column, label=config.label_column)
    for raw in read_rows(Unit(file=file), columns, config.limits("task")):
        row, digest = prepare(raw, sample_fraction=config.sample_fraction)
        if row.reason is None and not row.label:
            row = Row(row.number, row.text, reason=Reason.NO_LABEL)
        if row.reason is None and allowed is not None and row.label not in allowed:
            row = Row(row.number, f"{row.label}: {row.text}", reason=Reason.LABEL_NOT_IN_TASK)
        yield row, digest


def _assign(
    config: TaskConfig, raw: Mapping[str, Sequence[RawFile]], examples: Mapping[str, list[_Example]]
) -> dict[str, list[_Example]]:
    """Gives each example its split. Splits without files take their share of the training rows, by content hash."""
    splits: dict[str, list[_Example]] = {name: list(examples.get(name, ())) for name in SPLITS if name != "train"}
    shares = {
        "validation": 0.0 if "validation" in raw else config.validation_fraction,
        "test": 0.0 if "test" in raw else max(0.0, 1 - config.train_fraction - config.validation_fraction),
    }
    splits["train"] = []
    for example in examples["train"]:
        place = unit_interval(example.digest, "task_split")
        if place < shares["test"]:
            splits["test"].append(example)
        elif place < shares["test"] + shares["validation"]:
            splits["validation"].append(example)
        else:
            splits["train"].append(example)
    return splits


def _deduplicate(splits: Mapping[str, list[_Example]], rejects: RejectLog) -> dict[str, list[_Example]]:
    owner: dict[bytes, str] = {}
    kept: dict[str, list[_Example]] = {}
    for name in reversed(SPLITS):
        kept[name] = []
        for example in splits[name]:
            first = owner.get(example.digest)
            if first is None:
                owner[example.digest] = name
                kept[name].append(example)
            else:
                reason = Reason.DUPLICATE if first == name else Reason.IN_OTHER_SPLIT
                rejects.add(example.source, example.file, example.row.number, reason, example.row.text)
    return kept


def _check_labels(
    config: TaskConfig, splits: Mapping[str, list[_Example]], rejects: RejectLog
) -> tuple[list[str], dict[str, list[_Example]]]:
    """The sorted labels, and the splits without the rows whose label is not among them.

    Raises:
        DataError: too few or too many labels, or one without training rows.
    """
    found = {example.row.label for example in splits["train"]}
    labels = sorted(found) if config.labels is None else sorted(config.labels)
    absent = [label for label in labels if label not in found]
    if len(labels) < 2 or len(labels) > config.max_labels:
        raise DataError(
            f"task.label_column {config.label_column}: number of labels in the training rows: {len(labels)} "
            f"({', '.join(labels[:5]) or 'no row is left'}{', ...' if len(labels) > 5 else ''}); a task has 2 to "
            f"{config.max_labels}; dropped: {rejects.summary()}"
        )
    if absent:
        raise DataError(f"task.labels: no training row has the label {', '.join(absent)}; check its spelling")
    kept: dict[str, list[_Example]] = {}
    for name, examples in splits.items():
        kept[name] = [example for example in examples if example.row.label in found]
        for example in examples:
            if example.row.label not in found:
                text = f"{example.row.label}: {example.row.text}"
                rejects.add(example.source, example.file, example.row.number, Reason.LABEL_NOT_IN_TASK, text)
    return labels, kept


def _write(path: Path, examples: list[_Example]) -> None:
    ordered = sorted(examples, key=lambda example: example.digest)
    columns = [
        [example.digest.hex() for example in ordered],
        [example.row.text for example in ordered],
        [example.row.label for example in ordered],
    ]
    arrays = [pa.array(values, pa.string()) for values in columns]
    pq.write_table(pa.table(arrays, schema=TASK_SCHEMA), path, compression="zstd", row_group_size=1 << 14)

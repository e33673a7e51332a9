"""The steps `task` (labelled data) and `corpus` (text to pretrain on)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.corpus.config import CorpusConfig, TaskConfig
from infra.errors import FromzeroError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.tracking.records import FileRecord

if TYPE_CHECKING:
    from components.corpus.merge import CorpusMerger, SourceFile

logger = logging.getLogger(__name__)


def make_task(config: TaskConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Reads labelled rows, cleans, drops duplicates, splits.

    Args:
        config: columns, fractions, labels.
        inputs: none.
        context: `raw["train"]`, and where given `raw["validation"]` and `raw["test"]`.

    Returns:
        Files labels.json, train.parquet, validation.parquet, test.parquet (columns id, text, label; ordered by id)
        and rejects.parquet.

    Raises:
        DataError: a file cannot be used, a split is empty, or there are fewer than two labels.
    """
    from components.corpus.labelled import make_splits

    started = time.monotonic()
    metrics, num_rows = make_splits(config, context.raw, context.output, context.tracker.progress)
    return StepOutput(
        metrics=metrics,
        num_rows=num_rows,
        measured={"seconds": time.monotonic() - started},
        records=(FileRecord(path="labels.json"), FileRecord(path="rejects.parquet")),
    )


def make_corpus(config: CorpusConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Reads text, cleans, filters, drops duplicates and evaluation texts, splits.

    Args:
        config: sources, filters, fractions.
        inputs: `task`, whose validation and test texts never enter.
        context: `raw[name]` for each of `config.source_names()`.

    Returns:
        Files train-*.parquet and validation-*.parquet (columns id, text, source, num_bytes, and weight if any differs
        from 1; ordered by source, file digest, row), dropped.parquet, sources.json.

    Raises:
        DataError: files that cannot be used, each on its line, or an empty corpus.
        StorageError: a file cannot be read.
    """
    from components.corpus.distributed import examined_tables
    from components.corpus.documents import ReadTask, file_errors, raise_file_errors
    from components.corpus.labelled import evaluation_digests
    from components.corpus.merge import CorpusMerger, SourceFile

    started = time.monotonic()
    names = config.source_names()
    files = [SourceFile(source=i, file=file) for i, name in enumerate(names) for file in context.raw[name]]
    tasks = [
        ReadTask(
            index=index,
            file=item.file,
            columns=config.sources[item.source].columns,
            limits=config.limits("corpus"),
            document=config.sources[item.source].document,
            collapse_whitespace=config.collapse_whitespace,
            filters=config.filters,
            sample_fraction=config.sample_fraction,
        )
        for index, item in enumerate(files)
    ]
    merger = CorpusMerger(context.output, config, files, evaluation_digests(inputs["task"].path))
    errors: list[FromzeroError] = []
    reported = 0.0
    for table in examined_tables(tasks):
        found = file_errors(table)
        errors.extend(found)
        if not errors:
            merger.add(table)
        if time.monotonic() - reported >= 1:
            reported = time.monotonic()
            num_files = int(table.column("file")[0].as_py())
            context.tracker.progress(num_files, len(files), "files", note=f"{merger.num_in.total()} rows")
    raise_file_errors(errors)
    metrics = merger.close()
    context.tracker.progress(len(files), len(files), "files")
    _write_sources(context.output / "sources.json", config, files, merger)
    seconds = time.monotonic() - started
    logger.info("corpus: %d of %d documents kept", metrics["num_documents_kept"], metrics["num_documents_in"])
    return StepOutput(
        metrics=metrics,
        num_rows={name: _num_rows(position, files, merger) for position, name in enumerate(names)},
        measured={"seconds": seconds, "documents_per_second": metrics["num_documents_in"] / seconds},
        records=(FileRecord(path="sources.json"), FileRecord(path="dropped.parquet")),
    )


def _num_rows(source: int, files: list[SourceFile], merger: CorpusMerger) -> list[int]:
    """Rows of each file of the source at position `source`."""
    return [merger.num_in[index] for index, file in enumerate(files) if file.source == source]


def _write_sources(path: Path, config: CorpusConfig, files: list[SourceFile], merger: CorpusMerger) -> None:
    report = [
        {
            "name": name,
            "license": source.license,
            "weight": source.weight,
            "num_rows_in": sum(_num_rows(position, files, merger)),
            "num_rows_kept": merger.num_kept[position],
            "num_bytes_kept": merger.num_bytes_kept[position],
            "files": [
                {"digest": f.file.digest, "num_bytes": f.file.num_bytes, "format": f.file.format}
                for f in files
                if f.source == position
            ],
        }
        for position, (name, source) in enumerate(zip(config.source_names(), config.sources, strict=True))
    ]
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")

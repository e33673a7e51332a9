"""One unit of raw text into examined documents: cleaned, named by content, filtered, compared with evaluation sets.

Pure but for the file that it writes; the same in Ray Data's workers and in tests. The result of a unit is one Parquet
file: first the documents that are kept, in row groups of at most 16,384 rows or 32 MiB of text, then what there is to
show of the rows that are dropped. What the file says of itself (`UnitFacts`) is in its footer, so that a corpus of
units that are there already reads footers and little else. About 12 MB/s on one core without filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from components.corpus.cleaning import CleaningConfig, CleaningCounts, clean_texts
from components.corpus.config import CorpusConfig, NearDuplicatesConfig, SourceConfig
from components.corpus.decontamination import EvaluationIndex, overlaps
from components.corpus.filters import FilterConfig
from components.corpus.filters.batch import TextBatch
from components.corpus.minhash import band_shape, bands
from components.corpus.ngrams import ngrams, words
from components.corpus.normalise import ID_BYTES, clean, cleaned_digest, collapsed_digest, is_unicode, unit_interval
from components.corpus.readers import read_batches
from components.corpus.rejects import ALL_KEPT, MAX_KEPT_PER_REASON
from components.corpus.rows import Columns, Document, ReadLimits, Reason, Row, RowBatch, excerpt
from components.corpus.units import Unit
from infra.errors import DataError, FromzeroError, StorageError

FACTS = b"fromzero"
GROUP_ROWS = 1 << 14
GROUP_BYTES = 1 << 25
UNIT_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "digest": pa.binary(ID_BYTES),
        "place": pa.float64(),  # where in [0, 1) its hash puts it: which split it is in
        "text": pa.large_string(),
        "num_bytes": pa.int64(),
        "language": pa.string(),
        "original_id": pa.string(),
        "license": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What is done to the rows of a source."""

    columns: Columns
    document: Document
    limits: ReadLimits
    collapse_whitespace: bool
    cleaning: CleaningConfig
    filters: tuple[FilterConfig, ...]
    identify_language: bool
    sample_fraction: float
    near_duplicates: NearDuplicatesConfig | None

    @classmethod
    def of(cls, config: CorpusConfig, source: SourceConfig) -> Rules:
        """Those of one source of a corpus."""
        return cls(
            columns=source.columns,
            document=source.document,
            limits=config.limits("corpus"),
            collapse_whitespace=config.collapse_whitespace,
            cleaning=config.cleaning,
            identify_language=config.identify_language,
            filters=config.filters if source.filters is None else source.filters,
            sample_fraction=config.sample_fraction,
            near_duplicates=config.near_duplicates,
        )

    def canonical(self) -> dict[str, Any]:
        """All of it that changes a result, as JSON: part of the key of a unit."""
        near = self.near_duplicates
        return {
            "columns": [self.columns.text, self.columns.id, self.columns.license],
            "document": self.document,
            "max_document_bytes": self.limits.max_document_bytes,
            "collapse_whitespace": self.collapse_whitespace,
            "cleaning": self.cleaning.model_dump(mode="json"),
            "filters": [filter_.model_dump(mode="json") for filter_ in self.filters],
            "identify_language": self.identify_language,
            "sample_fraction": self.sample_fraction,
            "near_duplicates": near.model_dump(mode="json") if near else None,
        }


class UnitFacts(BaseModel):
    """What the file of a unit says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int
    """Rows read, good or rejected."""
    num_kept: int
    num_bytes_kept: int
    """UTF-8 bytes of the texts that are kept."""
    num_kept_groups: int
    """Row groups of the documents that are kept; the dropped ones follow."""
    dropped: dict[str, int]
    """Rows by reason."""
    cleaned: dict[str, int]
    """Texts that each cleaner changed."""
    languages: dict[str, int]
    """Documents kept by language, where it was identified."""


def prepare(row: Row, *, collapse_whitespace: bool = True, sample_fraction: float = 1.0) -> tuple[Row, bytes]:
    """`row` with cleaned text, or with the reason why it cannot be used, and the digest that names its text."""
    if row.reason is not None:
        return row, bytes(ID_BYTES)
    text, digest = row.text, bytes(ID_BYTES)
    reason: str | None = None
    if not is_unicode(text):
        reason = Reason.NOT_UNICODE
    else:
        text = clean(text, collapse_whitespace=collapse_whitespace)
        digest, reason = _named(text, collapse_whitespace, sample_fraction)
    text = text if reason is None else excerpt(text)
    return Row(row.number, text, row.label, reason=reason, id=row.id, license=row.license), digest


def _named(text: str, collapse_whitespace: bool, sample_fraction: float) -> tuple[bytes, str | None]:
    """The digest of a cleaned text, and why it is not used."""
    if not text:
        return bytes(ID_BYTES), Reason.EMPTY
    digest = collapsed_digest(text) if collapse_whitespace else cleaned_digest(text)
    sampled = sample_fraction >= 1 or unit_interval(digest, "sample") < sample_fraction
    return digest, None if sampled else Reason.NOT_SAMPLED


def write_unit(unit: Unit, rules: Rules, evaluation: EvaluationIndex, path: Path) -> UnitFacts:
    """Reads and examines one unit, and writes the file of what came of it.

    Args:
        unit: what to read.
        rules: how.
        evaluation: the texts that no document may overlap with.
        path: the file.

    Raises:
        DataError: the file as a whole cannot be used.
        StorageError: it cannot be read.
    """
    schema = _schema(rules)
    held: list[pa.Table] = []
    held_rows = held_bytes = num_rows = num_kept = num_bytes = num_groups = 0
    dropped: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    cleaned = CleaningCounts()
    shown: list[pa.Table] = []
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=["language"]) as writer:

        def flush() -> None:
            nonlocal held, held_rows, held_bytes, num_groups
            writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=GROUP_ROWS)
            held, held_rows, held_bytes = [], 0, 0
            num_groups += 1

        for batch in read_batches(unit, rules.columns, rules.limits, rules.document):
            table, changed = examine(batch, rules, evaluation, schema)
            cleaned += changed
            num_rows += len(table)
            kept = table.filter(table.column("reason").is_null())
            if len(kept) < len(table):
                shown.append(_to_show(table.filter(table.column("reason").is_valid()), dropped))
            if rules.identify_language:
                languages.update(kept.column("language").to_pylist())
            while len(kept):
                part = kept.slice(0, GROUP_ROWS - held_rows)
                kept = kept.slice(len(part))
                size = int(part.column("num_bytes").to_numpy().sum())
                held.append(part)
                held_rows, held_bytes = held_rows + len(part), held_bytes + size
                num_kept, num_bytes = num_kept + len(part), num_bytes + size
                if held_rows >= GROUP_ROWS or held_bytes >= GROUP_BYTES:
                    flush()
        if held:
            flush()
        if shown:
            writer.write_table(pa.concat_tables(shown).combine_chunks())
        facts = UnitFacts(
            num_rows=num_rows,
            num_kept=num_kept,
            num_bytes_kept=num_bytes,
            num_kept_groups=num_groups,
            dropped=dict(sorted(dropped.items())),
            cleaned={name: count for name, count in cleaned.as_dict().items() if count},
            languages=dict(sorted(languages.items())),
        )
        writer.add_key_value_metadata({FACTS.decode(): facts.model_dump_json()})
    return facts


def read_facts(path: Path) -> UnitFacts:
    """What the file of a unit says of itself."""
    return UnitFacts.model_validate_json(pq.read_metadata(path).metadata[FACTS])


def read_kept(path: Path, columns: list[str], groups: list[int] | None = None) -> pa.Table:
    """Columns of the documents that a unit keeps, in order.

    Args:
        path: of the unit.
        columns: their names.
        groups: only these of its row groups.
    """
    with pq.ParquetFile(path) as parquet:
        facts = UnitFacts.model_validate_json(parquet.metadata.metadata[FACTS])
        chosen = list(range(facts.num_kept_groups)) if groups is None else groups
        return parquet.read_row_groups(chosen, columns=columns, use_threads=False)


def read_dropped(path: Path) -> pa.Table:
    """What there is to show of the rows that a unit drops."""
    with pq.ParquetFile(path) as parquet:
        facts = UnitFacts.model_validate_json(parquet.metadata.metadata[FACTS])
        groups = list(range(facts.num_kept_groups, parquet.metadata.num_row_groups))
        return parquet.read_row_groups(groups, columns=["row", "digest", "text", "reason", "detail"])


def _schema(rules: Rules) -> pa.Schema:
    if rules.near_duplicates is None:
        return UNIT_SCHEMA
    num_bands, _ = band_shape(rules.near_duplicates.similarity)
    return UNIT_SCHEMA.append(pa.field("bands", pa.list_(pa.int64(), num_bands)))


def _to_show(table: pa.Table, dropped: Counter[str]) -> pa.Table:
    """Counts dropped rows, and gives those of them that are kept to be looked at."""
    chosen: list[int] = []
    for position, reason in enumerate(table.column("reason").to_pylist()):
        dropped[reason] += 1
        if dropped[reason] <= MAX_KEPT_PER_REASON or reason in ALL_KEPT:
            chosen.append(position)
    return table.take(pa.array(chosen, pa.int64()))


def examine(
    batch: RowBatch, rules: Rules, evaluation: EvaluationIndex, schema: pa.Schema
) -> tuple[pa.Table, CleaningCounts]:
    """The rows of `batch`, in order, as a table of `schema`, those to drop with their reason and an excerpt; and how
    many texts each cleaner changed."""
    texts, reasons = list(batch.texts), list(batch.reasons)
    details: list[str | None] = [None] * len(batch)
    digests = [bytes(ID_BYTES)] * len(batch)
    for position, reason in enumerate(reasons):
        if reason is None and not is_unicode(texts[position]):
            reasons[position] = Reason.NOT_UNICODE
    alive = [position for position, reason in enumerate(reasons) if reason is None]
    cleaned, changed = clean_texts(
        [texts[position] for position in alive], rules.cleaning, collapse_whitespace=rules.collapse_whitespace
    )
    for position, text in zip(alive, cleaned, strict=True):
        texts[position] = text
        digests[position], reasons[position] = _named(text, rules.collapse_whitespace, rules.sample_fraction)
        if reasons[position] is None and digests[position] in evaluation.digests:
            reasons[position] = Reason.IN_EVALUATION_SET
    found_languages = [""] * len(texts)
    for filter_ in rules.filters:
        alive = [position for position, reason in enumerate(reasons) if reason is None]
        kept = filter_.keeps(TextBatch([texts[position] for position in alive]))
        for place in np.flatnonzero(~kept).tolist():
            reasons[alive[place]] = filter_.name
    alive = [position for position, reason in enumerate(reasons) if reason is None]
    band_rows = np.zeros((0, 0), dtype=np.int64)
    if alive and (evaluation.grams or rules.near_duplicates):
        found = words([texts[position] for position in alive])
        overlap = overlaps(evaluation, found)
        for place in np.flatnonzero(overlap >= 0).tolist():
            reasons[alive[place]] = Reason.OVERLAPS_EVALUATION
            details[alive[place]] = evaluation.names[overlap[place]]
        if rules.near_duplicates:
            of = ngrams(found, rules.near_duplicates.ngram_words)
            band_rows = bands(of, rules.near_duplicates.similarity)
    if rules.identify_language and alive:
        from components.corpus.language import languages

        codes, _ = languages([texts[position] for position in alive])
        for position, code in zip(alive, codes, strict=True):
            found_languages[position] = code
    texts = [text if reason is None else excerpt(text) for text, reason in zip(texts, reasons, strict=True)]
    columns: dict[str, Any] = {
        "row": batch.numbers,
        "digest": digests,
        "place": [unit_interval(digest, "corpus_split") for digest in digests],
        "text": texts,
        "num_bytes": [len(text) if text.isascii() else len(text.encode()) for text in texts],
        "language": found_languages,
        "original_id": batch.ids,
        "license": batch.licenses,
        "reason": reasons,
        "detail": details,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in UNIT_SCHEMA]
    if rules.near_duplicates:
        size = schema.field("bands").type.list_size
        flat = np.zeros((len(texts), size), dtype=np.int64)
        if alive:
            flat[alive] = band_rows
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), size))
    return pa.table(arrays, schema=schema), changed


def texts_of(path: Path, rows: list[int]) -> Iterator[str]:
    """The texts of the documents `rows` (positions among those kept, in order) of a unit; other row groups are not
    read."""
    with pq.ParquetFile(path) as parquet:
        before = 0
        waiting = list(rows)
        for group in range(parquet.metadata.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            here = [row - before for row in waiting if row < before + size]
            if here:
                column = parquet.read_row_group(group, columns=["text"], use_threads=False).column("text")
                yield from column.take(pa.array(here, pa.int64())).to_pylist()
                waiting = waiting[len(here) :]
            if not waiting:
                return
            before += size


def raise_file_errors(errors: list[FromzeroError]) -> None:
    """Raises what was found wrong with whole files, a line each; storage errors first, for they may pass.

    Raises:
        StorageError: a file cannot be read.
        DataError: a file cannot be used.
    """
    storage = [error for error in errors if isinstance(error, StorageError)]
    if storage:
        raise StorageError("\n".join(dict.fromkeys(map(str, storage))))
    if errors:
        raise DataError("\n".join(dict.fromkeys(map(str, errors))))

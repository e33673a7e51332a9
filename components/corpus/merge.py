"""Units of a corpus into its files: what is a duplicate goes, documents are split by hash, counts are told.

Documents are numbered in the order of the corpus: source, digest of the file, place in it. One process holds 40 bytes a
document (digest, split, fate: 4 GB for 100 million); texts pass by a row group at a time in a few threads, at 100 MB/s
each. The files are a pure function of the units: files end where 64 MiB of text, or 256 units, are reached, and a row
group holds documents of one unit alone, so that whoever works on them can keep results by unit.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.config import CorpusConfig
from components.corpus.documents import UnitFacts, read_dropped, read_kept
from components.corpus.duplicates import Clusters, of_largest
from components.corpus.rejects import RejectLog
from components.corpus.rows import Reason, excerpt
from components.corpus.statistics import EXACT, KEPT, NEAR, DocumentStatistics
from infra.errors import DataError
from infra.storage.raw import RawFile

UNITS_IN_FILE = b"units"
"""Under this name a file tells its units, in order, and how many row groups each has."""
FILE_BYTES = 1 << 26
FILE_UNITS = 256
MAX_SHOWN_CLUSTERS = 10_000
SPLITS = ("train", "validation")
CORPUS_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.large_string(),
        "source": pa.string(),
        "num_bytes": pa.int64(),
        "language": pa.string(),
        "original_id": pa.string(),
        "license": pa.string(),
    }
)
DUPLICATE_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "kept_id": pa.string(),
        "similarity": pa.float32(),  # 1 for equal texts, unless what was equal went as a near-duplicate
        "source": pa.string(),
        "text": pa.large_string(),
        "kept_text": pa.large_string(),
    }
)
_READ = ["row", "digest", "text", "num_bytes", "language", "original_id", "license"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeUnit:
    """A unit with its file."""

    key: str
    path: Path
    source: int
    """Position of its source in the config."""
    file: RawFile
    rows_before: int
    """Rows of its raw file that come before it."""
    facts: UnitFacts


class CorpusMerger:
    """Makes the files of a corpus.

    Args:
        output: their folder.
        config: of the corpus.
        units: in the order of the corpus.
        equal: documents of the same text.
        near: of those that are left, documents of nearly the same.
    """

    def __init__(
        self, output: Path, config: CorpusConfig, units: Sequence[MadeUnit], equal: Clusters, near: Clusters
    ) -> None:
        self.rejects = RejectLog()
        self.num_kept: Counter[int] = Counter()
        """Documents by position of their source, as below."""
        self.num_bytes_kept: Counter[int] = Counter()
        self.dropped: dict[int, Counter[str]] = {position: Counter() for position in range(len(config.sources))}
        self._output, self._config, self._units = output, config, units
        self._names = config.source_names()
        counts = [unit.facts.num_kept for unit in units]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._fate = np.zeros(int(self._first[-1]), dtype=np.uint8)
        self._fate[equal.document_D] = EXACT
        self._fate[near.document_D] = NEAR
        self._pairs: list[tuple[int, int, float]] = []
        for clusters in (near, equal):
            shown = np.union1d(np.arange(min(MAX_SHOWN_CLUSTERS, len(clusters.document_D))), of_largest(clusters))
            columns = (clusters.document_D[shown], clusters.kept_D[shown], clusters.similarity_D[shown])
            self._pairs += zip(*(column.tolist() for column in columns), strict=True)
        wanted = {document for one, other, _ in self._pairs for document in (one, other)}
        self._wanted = np.array(sorted(wanted), dtype=np.int64)
        self.looked_at: dict[int, tuple[str, str, str]] = {}
        """Id, source and excerpt of the documents in `duplicates.parquet`, by their number."""
        self.statistics = DocumentStatistics()
        self._held_out = np.zeros(0, dtype=bool)

    def write(self) -> dict[str, int]:
        """Writes the files, and returns the counts that are metrics.

        Raises:
            DataError: fewer than two documents are left.
            FromzeroError: rows in are not rows kept and dropped.
        """
        self._held_out = self._split()
        for unit in self._units:
            self._tell_dropped(unit)
        groups = list(self._groups())
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            written = list(pool.map(self._write_files, range(len(groups)), groups))
        totals: Counter[tuple[Any, ...]] = Counter()
        for counts, log, looked_at, statistics in written:
            totals.update(counts)
            self.statistics.merge(statistics)
            self.rejects.merge(log)
            self.looked_at |= looked_at
        for (what, of, *reason), count in totals.items():
            if what == "kept":
                self.num_kept[of] += count
            elif what == "kept_bytes":
                self.num_bytes_kept[of] += count
            elif what == "dropped":
                self.dropped[of][reason[0]] += count
        for split in SPLITS:
            if not list(self._output.glob(f"{split}-*.parquet")):
                pq.write_table(CORPUS_SCHEMA.empty_table(), self._output / f"{split}-00000.parquet")
        self._write_duplicates()
        self.rejects.write(self._output / "dropped.parquet")
        num_in = sum(unit.facts.num_rows for unit in self._units)
        self.rejects.reconcile(num_in, self.num_kept.total())
        for position, name in enumerate(self._names):
            rows = sum(unit.facts.num_rows for unit in self._units if unit.source == position)
            RejectLog.check(name, rows, self.num_kept[position], self.dropped[position])
        return {
            "num_documents_in": num_in,
            "num_documents_kept": self.num_kept.total(),
            "num_train_documents": totals["documents", "train"],
            "num_validation_documents": totals["documents", "validation"],
            "num_bytes": self.num_bytes_kept.total(),
            "num_train_bytes": totals["bytes", "train"],
            "num_validation_bytes": totals["bytes", "validation"],
            **self.rejects.metrics(),
        }

    def _split(self) -> npt.NDArray[np.bool_]:
        """Which documents are held out, by the hash of each; where chance left a split empty, those of the lowest."""
        columns = [read_kept(unit.path, ["place"]).column("place").to_numpy() for unit in self._units]
        place_D = np.concatenate([np.zeros(0), *columns])
        held_out = place_D < self._config.validation_fraction
        alive = np.flatnonzero(self._fate == KEPT)
        if len(alive) < 2:
            for unit in self._units:
                self._tell_dropped(unit)
            num_in = sum(unit.facts.num_rows for unit in self._units)
            columns_named = ", ".join(sorted({source.text_column for source in self._config.sources}))
            raise DataError(
                f"corpus.sources: {len(alive)} of {num_in} rows are left as documents, and a training and a validation "
                f"split need one each; dropped: {self.rejects.summary()}; check text_column ({columns_named}) and "
                "filters"
            )
        if held_out[alive].all() or not held_out[alive].any():
            wanted = min(max(1, round(self._config.validation_fraction * len(alive))), len(alive) - 1)
            lowest = alive[np.argsort(place_D[alive], kind="stable")[:wanted]]
            held_out = np.zeros(len(place_D), dtype=bool)
            held_out[lowest] = True
        return held_out

    def _tell_dropped(self, unit: MadeUnit) -> None:
        """Puts what a unit dropped on record."""
        if not unit.facts.dropped:
            return
        table = read_dropped(unit.path)
        source, name = self._names[unit.source], unit.file.path
        shown: Counter[str] = Counter()
        columns = (table.column(column).to_pylist() for column in ("row", "reason", "text", "detail"))
        for row, reason, text, detail in zip(*columns, strict=True):
            shown[reason] += 1
            self.rejects.add(source, name, unit.rows_before + row, reason, text, detail)
        for reason, count in unit.facts.dropped.items():
            self.rejects.counts[reason] += count - shown[reason]
        self.dropped[unit.source].update(unit.facts.dropped)

    def _groups(self) -> Any:
        """Ranges of units that share files."""
        begin, num_bytes = 0, 0
        for position, unit in enumerate(self._units):
            num_bytes += unit.facts.num_bytes_kept
            if num_bytes >= FILE_BYTES or position + 1 - begin >= FILE_UNITS:
                yield begin, position + 1
                begin, num_bytes = position + 1, 0
        if begin < len(self._units):
            yield begin, len(self._units)

    def _write_files(
        self, number: int, group: tuple[int, int]
    ) -> tuple[Counter[tuple[Any, ...]], RejectLog, dict[int, tuple[str, str, str]], DocumentStatistics]:
        """The files of a range of units: counts, the duplicates dropped, and the documents of clusters to look at."""
        totals: Counter[tuple[Any, ...]] = Counter()
        log, statistics = RejectLog(), DocumentStatistics()
        looked_at: dict[int, tuple[str, str, str]] = {}
        writers: dict[str, pq.ParquetWriter] = {}
        in_file: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
        for position in range(*group):
            unit = self._units[position]
            source = self._names[unit.source]
            first = int(self._first[position])
            num_groups: Counter[str] = Counter()
            for row_group in range(unit.facts.num_kept_groups):
                table = read_kept(unit.path, _READ, [row_group])
                numbers = np.arange(first, first + len(table))
                first += len(table)
                fate = self._fate[numbers]
                self._look(table, numbers, source, looked_at)
                statistics.add(table, fate, source)
                for place in np.flatnonzero(fate != KEPT).tolist():
                    reason = Reason.DUPLICATE if fate[place] == EXACT else Reason.NEAR_DUPLICATE
                    text = table.column("text")[place].as_py()
                    row = unit.rows_before + table.column("row")[place].as_py()
                    log.add(source, unit.file.path, row, reason, text)
                    totals["dropped", unit.source, reason] += 1
                for split in SPLITS:
                    chosen = (fate == KEPT) & (self._held_out[numbers] == (split == "validation"))
                    if not chosen.any():
                        continue
                    documents = self._documents(table.filter(pa.array(chosen)), source, unit)
                    if split not in writers:
                        path = self._output / f"{split}-{number:05d}.parquet"
                        writers[split] = pq.ParquetWriter(path, CORPUS_SCHEMA, compression="zstd", compression_level=1)
                    writers[split].write_table(documents, row_group_size=len(documents))
                    num_groups[split] += 1
                    num_bytes = int(np.sum(documents.column("num_bytes").to_numpy()))
                    totals["documents", split] += len(documents)
                    totals["bytes", split] += num_bytes
                    totals["kept", unit.source] += len(documents)
                    totals["kept_bytes", unit.source] += num_bytes
            for split, count in num_groups.items():
                in_file[split].append((unit.key, count))
        for split, writer in writers.items():
            writer.add_key_value_metadata({UNITS_IN_FILE.decode(): json.dumps(in_file[split])})
            writer.close()
        return totals, log, looked_at, statistics

    def _look(
        self, table: pa.Table, numbers: npt.NDArray[np.int64], source: str, found: dict[int, tuple[str, str, str]]
    ) -> None:
        places = np.searchsorted(self._wanted, [numbers[0], numbers[-1] + 1]) if len(numbers) else [0, 0]
        for document in self._wanted[places[0] : places[1]].tolist():
            row = document - int(numbers[0])
            text = table.column("text")[row].as_py()
            found[document] = (table.column("digest")[row].as_py().hex(), source, excerpt(text))

    def _documents(self, table: pa.Table, source: str, unit: MadeUnit) -> pa.Table:
        stated = self._config.sources[unit.source].license
        license_ = table.column("license")
        columns = {
            "id": pa.array([digest.hex() for digest in table.column("digest").to_pylist()]),
            "source": pa.array([source] * len(table), pa.string()),
            "license": license_.fill_null(stated) if stated is not None else license_,
        }
        chosen = [columns.get(name, table.column(name) if name in _READ else None) for name in CORPUS_SCHEMA.names]
        return pa.table(chosen, schema=CORPUS_SCHEMA)

    def _write_duplicates(self) -> None:
        """The clusters, to be looked at."""
        rows = []
        for document, kept, similarity in self._pairs:
            id_, source, text = self.looked_at[document]
            kept_id, _, kept_text = self.looked_at[kept]
            rows.append(
                dict(zip(DUPLICATE_SCHEMA.names, (id_, kept_id, similarity, source, text, kept_text), strict=True))
            )
        rows.sort(key=lambda row: (row["kept_id"], row["id"]))
        table = pa.Table.from_pylist(rows, DUPLICATE_SCHEMA)
        pq.write_table(table, self._output / "duplicates.parquet", compression="zstd")

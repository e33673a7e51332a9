"""One pass over examined rows, in order, that drops duplicates, splits by content hash, writes and counts.

Exact deduplication keeps the digest of every kept document in one process: a set of 16-byte strings takes about 110
bytes a document, 1.1 GB for 10 million. A hash shuffle would spread that over a cluster, and costs 6 to 9 s to start
(Ray 2.60) however little there is to do. Use another way beyond some 50 million documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.config import CorpusConfig
from components.corpus.normalise import unit_interval
from components.corpus.rejects import RejectLog
from components.corpus.rows import Reason
from components.corpus.writer import ParquetSink
from infra.errors import DataError
from infra.storage.raw import RawFile

CORPUS_SCHEMA = pa.schema(
    {"id": pa.string(), "text": pa.string(), "source": pa.string(), "num_bytes": pa.int64(), "weight": pa.float64()}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A raw file and the position of its source in the config."""

    source: int
    file: RawFile


class CorpusMerger:
    """Takes examined tables in the order (source, file digest, row); the first of equal texts survives."""

    def __init__(
        self, output: Path, config: CorpusConfig, files: Sequence[SourceFile], evaluation: Collection[bytes]
    ) -> None:
        self.rejects = RejectLog()
        self.num_in: Counter[int] = Counter()
        """Rows by position of their file; the two below by that of their source."""
        self.num_kept: Counter[int] = Counter()
        self.num_bytes_kept: Counter[int] = Counter()
        self._output, self._config, self._files = output, config, files
        self._names = config.source_names()
        self._evaluation = frozenset(evaluation)
        self._seen: set[bytes] = set()
        weighted = any(source.weight != 1 for source in config.sources)
        self._schema = CORPUS_SCHEMA if weighted else CORPUS_SCHEMA.remove(CORPUS_SCHEMA.names.index("weight"))
        self._sinks = {name: ParquetSink(output, name, self._schema) for name in ("train", "validation")}

    def add(self, table: pa.Table) -> None:
        """Takes one table of `EXAMINED_SCHEMA`."""
        digests = table.column("digest").to_pylist()
        files = table.column("file").to_pylist()
        reasons = table.column("reason").to_pylist()
        sizes = table.column("num_bytes").to_pylist()
        chosen: dict[str, list[int]] = {"train": [], "validation": []}
        for row, digest in enumerate(digests):
            source = self._files[files[row]].source
            self.num_in[files[row]] += 1
            reason = reasons[row]
            if reason is None and digest in self._evaluation:
                reason = Reason.IN_EVALUATION_SET
            elif reason is None and digest in self._seen:
                reason = Reason.DUPLICATE
            if reason is not None:
                self._reject(table, row, files[row], reason)
                continue
            self._seen.add(digest)
            self.num_kept[source] += 1
            self.num_bytes_kept[source] += sizes[row]
            held_out = unit_interval(digest, "corpus_split") < self._config.validation_fraction
            chosen["validation" if held_out else "train"].append(row)
        for split, rows in chosen.items():
            if rows:
                self._sinks[split].add(self._documents(table.take(rows)))

    def _reject(self, table: pa.Table, row: int, file: int, reason: str) -> None:
        source_file = self._files[file]
        text = table.column("text")[row].as_py()
        number = table.column("row")[row].as_py()
        self.rejects.add(self._names[source_file.source], source_file.file.path, number, reason, text)

    def _documents(self, table: pa.Table) -> pa.Table:
        sources = [self._files[file].source for file in table.column("file").to_pylist()]
        columns = {
            "id": pa.array([digest.hex() for digest in table.column("digest").to_pylist()]),
            "text": table.column("text").cast(pa.string()),
            "source": pa.array([self._names[source] for source in sources]),
            "num_bytes": table.column("num_bytes"),
            "weight": pa.array([self._config.sources[source].weight for source in sources], pa.float64()),
        }
        return pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)

    def close(self) -> dict[str, int]:
        """Finishes the files, and returns the counts that are metrics.

        Raises:
            DataError: fewer than two documents are left.
            FromzeroError: rows in are not rows kept and dropped.
        """
        for sink in self._sinks.values():
            sink.close()
        self.rejects.write(self._output / "dropped.parquet")
        num_in, num_kept = self.num_in.total(), self.num_kept.total()
        self.rejects.reconcile(num_in, num_kept)
        if num_kept < 2:
            raise DataError(
                f"corpus.sources: {num_kept} of {num_in} rows are left as documents, and a training and a validation "
                f"split need one each; dropped: {self.rejects.summary()}; "
                f"check text_column ({', '.join(sorted({s.text_column for s in self._config.sources}))}) and filters"
            )
        if not all(sink.num_rows for sink in self._sinks.values()):
            self._split_by_rank()
        return {
            "num_documents_in": num_in,
            "num_documents_kept": num_kept,
            "num_train_documents": self._sinks["train"].num_rows,
            "num_validation_documents": self._sinks["validation"].num_rows,
            "num_bytes": self.num_bytes_kept.total(),
            "num_train_bytes": self._sinks["train"].num_bytes,
            "num_validation_bytes": self._sinks["validation"].num_bytes,
            **self.rejects.metrics(),
        }

    def _split_by_rank(self) -> None:
        """Splits again where chance left a split empty (few documents: they fit in memory): lowest hashes out."""
        paths = [path for sink in self._sinks.values() for path in sink.paths]
        table = pa.concat_tables([pq.read_table(path, schema=self._schema) for path in paths])
        for path in paths:
            path.unlink()
        places = [unit_interval(bytes.fromhex(id_), "corpus_split") for id_ in table.column("id").to_pylist()]
        wanted = min(max(1, round(self._config.validation_fraction * len(table))), len(table) - 1)
        held_out = set(sorted(range(len(table)), key=places.__getitem__)[:wanted])
        self._sinks = {name: ParquetSink(self._output, name, self._schema) for name in ("train", "validation")}
        for name, sink in self._sinks.items():
            sink.add(table.take([row for row in range(len(table)) if (row in held_out) == (name == "validation")]))
            sink.close()

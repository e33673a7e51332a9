"""The sink of dropped rows: all are counted, and the first 10,000 of each reason are kept to be looked at.

Both artifacts, `task` and `corpus`, write it, with the columns source, file (its name without folders, so that the same
data in two places give the same bytes), row, reason, excerpt.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.rows import excerpt
from infra.errors import FromzeroError

MAX_KEPT_PER_REASON = 10_000
REJECT_SCHEMA = pa.schema(
    {"source": pa.string(), "file": pa.string(), "row": pa.int64(), "reason": pa.string(), "excerpt": pa.string()}
)


class RejectLog:
    """Counts dropped rows by reason and keeps some of each."""

    def __init__(self, max_kept_per_reason: int = MAX_KEPT_PER_REASON) -> None:
        self.counts: Counter[str] = Counter()
        self._max_kept = max_kept_per_reason
        self._rows: list[dict[str, str | int]] = []

    def add(self, source: str, file: str, row: int, reason: str, text: str) -> None:
        """Counts one row; `text` is cut to an excerpt."""
        self.counts[str(reason)] += 1
        if self.counts[str(reason)] <= self._max_kept:
            name = Path(file).name
            self._rows.append(
                {"source": source, "file": name, "row": row, "reason": str(reason), "excerpt": excerpt(text)}
            )

    def write(self, path: Path) -> None:
        """Writes what is kept, as Parquet."""
        pq.write_table(pa.Table.from_pylist(self._rows, REJECT_SCHEMA), path, compression="zstd")

    def metrics(self) -> dict[str, int]:
        """`dropped_<reason>` for each reason met, in alphabetical order."""
        return {f"dropped_{reason}": count for reason, count in sorted(self.counts.items())}

    def summary(self) -> str:
        """The reasons and their counts, for a message."""
        return ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common()) or "none"

    def reconcile(self, num_in: int, num_kept: int) -> None:
        """Checks that every row is accounted for.

        Raises:
            FromzeroError: it is not: a bug of ours.
        """
        num_dropped = sum(self.counts.values())
        if num_in != num_kept + num_dropped:
            raise FromzeroError(
                f"{num_in} rows in are not {num_kept} kept and {num_dropped} dropped ({self.summary()}); "
                "this is a bug: please report it"
            )

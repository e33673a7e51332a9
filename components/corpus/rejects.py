"""The sink of dropped rows: all are counted, and the first 10,000 of each reason are kept to be looked at.

Both artifacts, `task` and `corpus`, write it, with the columns source, file (its name without folders, so that the same
data in two places give the same bytes), row, reason, excerpt, detail (the evaluation text that a document overlaps
with). Of documents in an evaluation set, or that overlap with one, all are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.rows import Reason, excerpt
from infra.errors import FromzeroError

MAX_KEPT_PER_REASON = 10_000
REJECT_SCHEMA = pa.schema(
    {"source": pa.string(), "file": pa.string(), "row": pa.int64(), "reason": pa.string(), "excerpt": pa.string()}
).append(pa.field("detail", pa.string()))
ALL_KEPT = (Reason.IN_EVALUATION_SET, Reason.OVERLAPS_EVALUATION)


class RejectLog:
    """Counts dropped rows by reason and keeps some of each."""

    def __init__(self, max_kept_per_reason: int = MAX_KEPT_PER_REASON) -> None:
        self.counts: Counter[str] = Counter()
        self._max_kept = max_kept_per_reason
        self._rows: list[dict[str, str | int | None]] = []

    def add(self, source: str, file: str, row: int, reason: str, text: str, detail: str | None = None) -> None:
        """Counts one row; `text` is cut to an excerpt."""
        self.counts[str(reason)] += 1
        if self.counts[str(reason)] <= self._max_kept or reason in ALL_KEPT:
            self._rows.append(
                {
                    "source": source,
                    "file": Path(file).name,
                    "row": row,
                    "reason": str(reason),
                    "excerpt": excerpt(text),
                    "detail": detail,
                }
            )

    def merge(self, other: RejectLog) -> None:
        """Takes what another log has, after its own."""
        room = {reason: self._max_kept - count for reason, count in self.counts.items()}
        for row in other._rows:
            reason = str(row["reason"])
            room[reason] = room.get(reason, self._max_kept) - 1
            if room[reason] >= 0 or reason in ALL_KEPT:
                self._rows.append(row)
        self.counts.update(other.counts)

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
        self.check("", num_in, num_kept, self.counts)

    @staticmethod
    def check(source: str, num_in: int, num_kept: int, dropped: Mapping[str, int]) -> None:
        """The same for one source.

        Raises:
            FromzeroError: it is not: a bug of ours.
        """
        num_dropped = sum(dropped.values())
        if num_in != num_kept + num_dropped:
            raise FromzeroError(
                f"{source + ': ' if source else ''}{num_in} rows in are not {num_kept} kept and {num_dropped} dropped "
                f"({', '.join(f'{reason} {count}' for reason, count in dropped.items()) or 'none'}); "
                "this is a bug: please report it"
            )

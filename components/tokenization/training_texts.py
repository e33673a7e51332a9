"""The texts that a tokenizer is trained on: the training split, or the documents of it with the lowest ids.

Ids are hashes, so the lowest ones are a sample that more documents refine instead of redrawing it, the same for any
order and number of files. It is bounded in documents and in bytes. Which ids are low enough is found without holding
them: a first pass counts documents and bytes by the first 20 bits of the id (16 MB, whatever the corpus), a second
looks at the one of these 1,048,576 parts in which a bound is reached. Not for a corpus whose ids are no hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BATCH_DOCUMENTS = 1024
PREFIX_DIGITS = 5
"""Hexadecimal digits of an id that the first pass counts by."""
IntArray = npt.NDArray[np.int64]


class TrainingTexts:
    """Batches of texts, in the order of the corpus, afresh at each iteration; holds one batch at a time.

    With a bound in bytes the document that reaches it is cut there, so that it holds exactly, to the character.

    Args:
        corpus: its files have the columns `id`, `text` and `num_bytes`.
        max_documents: the most documents; None for all.
        max_bytes: the most UTF-8 bytes of text; None for all.
        split: `train` or `validation`.
    """

    def __init__(
        self, corpus: Path, max_documents: int | None = None, max_bytes: int | None = None, split: str = "train"
    ) -> None:
        self._paths = sorted(corpus.glob(f"{split}-*.parquet"))
        self._highest_id: str | None = None
        self._bytes_of_last: int | None = None
        counts = self._count()
        self.num_documents, self.num_bytes = (int(column.sum()) for column in counts)
        most_documents = self.num_documents if max_documents is None else max_documents
        most_bytes = self.num_bytes if max_bytes is None else max_bytes
        if self.num_documents > most_documents or self.num_bytes > most_bytes:
            self._bound(counts, most_documents, most_bytes)

    def __iter__(self) -> Iterator[list[str]]:
        for batch in self.batches():
            yield batch["text"]

    def batches(self, columns: Sequence[str] = ()) -> Iterator[dict[str, list[str]]]:
        """Batches of texts and of further columns of strings; a column that a file lacks is of empty strings."""
        for batch in self._batches(["text", "id", *columns]):
            if self._highest_id is not None:
                batch = batch.filter(pc.less_equal(batch.column("id"), self._highest_id))
            if not len(batch):
                continue
            found = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            if self._bytes_of_last is not None and self._highest_id in found["id"]:
                place = found["id"].index(self._highest_id)
                found["text"][place] = found["text"][place].encode()[: self._bytes_of_last].decode(errors="ignore")
            yield found | {name: [""] * len(batch) for name in columns if name not in found}

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for path in self._paths:
            with pq.ParquetFile(path, pre_buffer=False) as parquet:
                known = [name for name in columns if name in parquet.schema_arrow.names]
                for group in range(parquet.num_row_groups):  # all at once would hold several
                    yield from parquet.iter_batches(BATCH_DOCUMENTS, [group], known, use_threads=False)

    def _count(self) -> tuple[IntArray, IntArray]:
        """Documents and bytes of text by the first digits of the id."""
        documents_P = np.zeros(16**PREFIX_DIGITS, dtype=np.int64)
        bytes_P = np.zeros_like(documents_P)
        for batch in self._batches(["id", "num_bytes"]):
            prefixes = _prefixes(batch.column("id"))
            np.add.at(documents_P, prefixes, 1)
            np.add.at(bytes_P, prefixes, batch.column("num_bytes").to_numpy())
        return documents_P, bytes_P

    def _bound(self, counts: tuple[IntArray, IntArray], most_documents: int, most_bytes: int) -> None:
        """Finds the last document of the sample."""
        totals = [np.cumsum(column) for column in counts]
        # The part in which the first document lies that is one too many, or that reaches the bytes.
        part = int(
            min(np.searchsorted(totals[0], most_documents, "left"), np.searchsorted(totals[1], most_bytes, "left"))
        )
        num_documents, num_bytes = (
            int(total[part] - column[part]) for total, column in zip(totals, counts, strict=True)
        )
        within: list[tuple[str, int]] = []
        for batch in self._batches(["id", "num_bytes"]):
            chosen = batch.filter(pa.array(_prefixes(batch.column("id")) == part))
            within += zip(chosen.column("id").to_pylist(), chosen.column("num_bytes").to_pylist(), strict=True)
        for id_, size in sorted(within):
            self._highest_id = id_
            num_documents += 1
            if num_bytes + size > most_bytes:
                self._bytes_of_last = most_bytes - num_bytes
                num_bytes = most_bytes
                break
            num_bytes += size
            if num_documents == most_documents or num_bytes == most_bytes:
                break
        self.num_documents, self.num_bytes = num_documents, num_bytes


def _prefixes(ids: pa.Array) -> IntArray:
    """The number that the first digits of each id are."""
    digits = pc.utf8_slice_codeunits(ids, 0, PREFIX_DIGITS).to_numpy(zero_copy_only=False).astype(f"S{PREFIX_DIGITS}")
    codes = digits.view(np.uint8).reshape(len(digits), PREFIX_DIGITS).astype(np.int64)
    values = np.where(codes >= ord("a"), codes - ord("a") + 10, codes - ord("0"))
    prefixes: IntArray = values @ (16 ** np.arange(PREFIX_DIGITS - 1, -1, -1, dtype=np.int64))
    return prefixes

"""The texts that a tokenizer is trained on: the training split, or the documents of it with the lowest ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

BATCH_DOCUMENTS = 1024


class TrainingTexts:
    """Batches of texts, in the order of the corpus, afresh at each iteration; holds one batch at a time.

    Ids are hashes, so the lowest ones are a sample that more documents refine instead of redrawing it.
    """

    def __init__(self, corpus: Path, max_documents: int | None) -> None:
        self._paths = sorted(corpus.glob("train-*.parquet"))
        self.num_documents = sum(pq.read_metadata(path).num_rows for path in self._paths)
        self._highest_id: str | None = None
        if max_documents is not None and max_documents < self.num_documents:
            ids = np.concatenate([pq.read_table(path, columns=["id"]).column("id").to_numpy() for path in self._paths])
            self._highest_id = str(np.sort(ids)[max_documents - 1])
            self.num_documents = max_documents

    def __iter__(self) -> Iterator[list[str]]:
        columns = ["text"] if self._highest_id is None else ["text", "id"]
        for path in self._paths:
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(batch_size=BATCH_DOCUMENTS, columns=columns):
                    texts = batch.column("text").to_pylist()
                    if self._highest_id is not None:
                        ids = batch.column("id").to_pylist()
                        texts = [text for text, id_ in zip(texts, ids, strict=True) if id_ <= self._highest_id]
                    if texts:
                        yield texts

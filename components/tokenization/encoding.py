"""One row group of a corpus file into token lists. Pure; the same in Ray Data's workers and in tests.

It uses the tokenizers library alone: importing transformers would cost each worker 1 to 5 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.corpus.normalise import unit_interval

BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeTask:
    """One row group to tokenize."""

    split: str
    path: str
    row_group: int


def encode_tasks(corpus: Path, split: str) -> list[EncodeTask]:
    """The row groups of a split, in order."""
    tasks: list[EncodeTask] = []
    for path in sorted(corpus.glob(f"{split}-*.parquet")):
        groups = pq.read_metadata(path).num_row_groups
        tasks.extend(EncodeTask(split=split, path=str(path), row_group=group) for group in range(groups))
    return tasks


def source_names(corpus: Path) -> tuple[str, ...]:
    """The sources that have a document in either split, in the order in which these first name them."""
    names: dict[str, None] = {}
    for split in ("train", "validation"):
        for path in sorted(corpus.glob(f"{split}-*.parquet")):
            names |= dict.fromkeys(pc.unique(pq.read_table(path, columns=["source"]).column("source")).to_pylist())
    return tuple(names)


@lru_cache(maxsize=1)
def load_tokenizer(path: str) -> Any:
    """The tokenizer in `path` (tokenizer.json), for text in which `</s>` is five characters and not the end."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def num_copies(id_: str, weight: float) -> int:
    """How often a training document of `weight` is packed: its whole part, and once more for a share chosen by hash."""
    whole = int(weight)
    rest = weight - whole
    return whole + int(rest > 0 and unit_interval(bytes.fromhex(id_), "copies") < rest)


def encode(task: EncodeTask, tokenizer_path: str) -> pa.Table:
    """A row a document: `tokens` (list of uint32, special ones included), `num_bytes`, `source` and `copies`."""
    tokenizer = load_tokenizer(tokenizer_path)
    with pq.ParquetFile(task.path) as parquet:
        table = parquet.read_row_group(task.row_group)
    flat: list[np.ndarray[Any, np.dtype[np.uint32]]] = [np.zeros(0, dtype=np.uint32)]
    lengths: list[int] = []
    for batch in table.to_batches(max_chunksize=BATCH_DOCUMENTS):
        for encoding in tokenizer.encode_batch_fast(batch.column("text").to_pylist(), add_special_tokens=True):
            ids = encoding.ids
            lengths.append(len(ids))
            flat.append(np.array(ids, dtype=np.uint32))
    copies = [1] * len(table)
    if task.split == "train" and "weight" in table.column_names:
        ids_and_weights = zip(table.column("id").to_pylist(), table.column("weight").to_pylist(), strict=True)
        copies = [num_copies(id_, weight) for id_, weight in ids_and_weights]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(flat)))
    kept = {name: table.column(name) for name in ("num_bytes", "source")}
    return pa.table({"tokens": tokens, **kept, "copies": pa.array(copies, pa.int32())})

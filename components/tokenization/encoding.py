"""One unit of a corpus into token lists, kept by content so that it is tokenized once. Pure but for the file it writes.

A token unit holds the documents of one unit of the corpus (`corpus/merge.py`: some row groups of one file) in one
split, with their ids. A document that goes from the corpus later is passed over, so only what is new is ever tokenized.
It uses the tokenizers library alone: importing transformers would cost each worker 1 to 5 s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.corpus.merge import UNITS_IN_FILE
from components.corpus.normalise import ID_BYTES, unit_interval
from components.tokenization.encoder import load_encoder
from components.tokenization.shards import token_dtype
from components.tokenization.special import SpecialIds
from infra.journal.code import code_digests
from infra.journal.key import digest

UNITS = "tokens"
"""The kind of units that it makes."""
SUFFIX = ".arrow"
BATCH_DOCUMENTS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeTask:
    """Documents of one unit of the corpus to tokenize."""

    key: str
    """Of the token unit."""
    split: str
    path: str
    first_group: int
    """Row groups of the file."""
    num_groups: int
    num_bytes: int
    """About so many, of text and more."""

    def read(self, columns: list[str]) -> pa.Table:
        """Columns of its documents."""
        groups = list(range(self.first_group, self.first_group + self.num_groups))
        with pq.ParquetFile(self.path) as parquet:
            return parquet.read_row_groups(groups, columns=columns, use_threads=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How texts are tokenized. Can be pickled into workers."""

    tokenizer_path: str
    """tokenizer.json."""
    special: SpecialIds
    vocab_size: int

    def fingerprint(self) -> str:
        """32 hex characters over all that makes the tokens of a text what they are."""
        with Path(self.tokenizer_path).open("rb") as stream:
            tokenizer = hashlib.file_digest(stream, "sha256").hexdigest()
        library = ".".join(version("tokenizers").split(".")[:2])
        special = [self.special.bos, self.special.eos]
        code = code_digests("components.tokenization.encoder")
        return digest({"tokenizer": tokenizer, "library": library, "special": special, "code": code})


def encode_tasks(corpus: Path, split: str, encoding: Encoding) -> list[EncodeTask]:
    """The documents of a split by unit, in order."""
    fingerprint = encoding.fingerprint()
    tasks: list[EncodeTask] = []
    for path in sorted(corpus.glob(f"{split}-*.parquet")):
        metadata = pq.read_metadata(path)
        group = 0
        for unit, num_groups in json.loads((metadata.metadata or {}).get(UNITS_IN_FILE, b"[]")):
            num_bytes = sum(metadata.row_group(group + i).total_byte_size for i in range(num_groups))
            tasks.append(
                EncodeTask(
                    key=digest({"encoding": fingerprint, "unit": unit, "split": split}),
                    split=split,
                    path=str(path),
                    first_group=group,
                    num_groups=num_groups,
                    num_bytes=num_bytes,
                )
            )
            group += num_groups
    return tasks


def write_token_unit(task: EncodeTask, encoding: Encoding, path: Path) -> None:
    """Tokenizes; writes an Arrow file with a row a document: `id` (16 bytes) and `tokens` (special ones included)."""
    schema = token_unit_schema(encoding.vocab_size)
    with pq.ParquetFile(task.path) as parquet, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for group in range(task.first_group, task.first_group + task.num_groups):
            # One by one: a batch would else hold several, and a row group of long texts is 32 MiB.
            for batch in parquet.iter_batches(BATCH_DOCUMENTS, [group], ["id", "text"], use_threads=False):
                out.write_batch(_encoded(batch, encoding, schema))


def token_unit_schema(vocab_size: int) -> pa.Schema:
    """Of the file of a token unit."""
    return pa.schema({"id": pa.binary(ID_BYTES), "tokens": pa.large_list(token_dtype(vocab_size))})


def _encoded(batch: pa.RecordBatch, encoding: Encoding, schema: pa.Schema) -> pa.RecordBatch:
    flat, length_T = load_encoder(encoding.tokenizer_path).encode(batch.column("text"))
    dtype = schema.field("tokens").type.value_type.to_pandas_dtype()
    end_T = np.cumsum(length_T + 2)
    tokens = np.empty(int(end_T[-1]) if len(end_T) else 0, dtype=dtype)
    inner = np.ones(len(tokens), dtype=bool)
    inner[end_T - 1] = inner[end_T - length_T - 2] = False
    tokens[end_T - length_T - 2] = encoding.special.bos
    tokens[end_T - 1] = encoding.special.eos
    tokens[inner] = flat
    lists = pa.LargeListArray.from_arrays(pa.array(np.append(0, end_T), pa.int64()), pa.array(tokens))
    return pa.record_batch([id_bytes(batch.column("id")), lists], schema=schema)


def id_bytes(column: pa.Array | pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    """Ids of 32 hex characters as 16 bytes."""
    text = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    binary = bytes.fromhex("".join(text.to_pylist()))
    return pa.Array.from_buffers(pa.binary(ID_BYTES), len(text), [None, pa.py_buffer(binary)])


def find_rows(path: Path, wanted: pa.FixedSizeBinaryArray) -> npt.NDArray[np.int64] | None:
    """Rows of a token unit that hold the documents `wanted` (ids, in the order in which they are there).

    Returns:
        Ascending numbers; None if a document is missing.
    """
    with pa.memory_map(str(path)) as source:  # of a map only the ids are read
        rows = pc.index_in(wanted, value_set=pa.ipc.open_file(source).read_all().column("id").combine_chunks())
    return None if rows.null_count else rows.to_numpy().astype(np.int64)


def num_copies(id_: bytes, weight: float) -> int:
    """How often a training document of `weight` is packed: its whole part, and once more for a share chosen by hash."""
    whole = int(weight)
    rest = weight - whole
    return whole + int(rest > 0 and unit_interval(id_, "copies") < rest)


def source_weights(corpus: Path) -> dict[str, float]:
    """The weight of each source that has a document, in the order of the config."""
    told: list[dict[str, Any]] = json.loads((corpus / "sources.json").read_text("utf-8"))
    return {source["name"]: source["weight"] for source in told if source["num_rows_kept"]}


def copies(ids: pa.FixedSizeBinaryArray, sources: pa.ChunkedArray, weights: dict[str, float]) -> pa.Array:
    """How often each training document is packed."""
    if all(weight == 1 for weight in weights.values()):
        return pa.array(np.ones(len(ids), dtype=np.int32))
    pairs = zip(ids, sources, strict=True)
    return pa.array((num_copies(id_.as_py(), weights[source.as_py()]) for id_, source in pairs), pa.int32())


def documents(task: EncodeTask, path: Path, weights: dict[str, float]) -> Iterator[pa.Table] | None:
    """The documents of a task for `SplitWriter.add_table`: tokens, num_bytes, source, copies; None where the token unit
    at `path` lacks one of them. Some at a time: a compressed file is one unit, of any size."""
    told = task.read(["id", "num_bytes", "source"])
    ids = id_bytes(told.column("id"))
    rows = find_rows(path, ids)
    if rows is None:
        return None
    weighted = weights if task.split == "train" else dict.fromkeys(weights, 1.0)
    number = copies(ids, told.column("source"), weighted)
    return _with_tokens(told.drop_columns("id").append_column("copies", number), path, rows)


def _with_tokens(told: pa.Table, path: Path, rows: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """`told`, whose documents are `rows` of the token unit, with the column `tokens`, a batch of the unit at a time."""
    start = first = 0
    with pa.OSFile(str(path)) as source:  # a map would hold every page that was read
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            tokens = reader.get_batch(number).column("tokens")
            num_rows = len(tokens)
            last = int(np.searchsorted(rows, start + num_rows))
            if last - first < num_rows:
                tokens = tokens.take(pa.array(rows[first:last] - start))
            yield told.slice(first, last - first).append_column("tokens", pa.chunked_array([tokens]))
            start, first = start + num_rows, last

"""Token shards: fixed-length packed sequences in Arrow files that are mapped, never read whole.

Shapes: N sequences, L `sequence_length`, B a batch.

A shard is one Arrow IPC file without compression, with the columns

    tokens            fixed_size_list<uint16 or uint32>[L]   the documents one after another, then padding
    document_lengths  list<uint32>                           tokens of each document; their sum is L minus padding
    document_sources  list<uint8, 16 or 32>                  number of the source of each document
    targets           fixed_size_list<bool>[L]               only where not every token is a target

`shards.json` beside them has counts, and makes sequence `i` of a split a pure function of the folder. Sources are
numbered as its `sources` names them: a byte a document, 4 % of the tokens of glosses and nothing of longer texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from infra.errors import DamagedArtifactError

FORMAT_VERSION = 2
INDEX_NAME = "shards.json"
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardFile(_Frozen):
    """One Arrow file of a split."""

    path: str
    num_sequences: int


class SourceCounts(_Frozen):
    """What one source has in one split."""

    num_documents: int
    num_text_tokens: int
    """Tokens without padding and special tokens."""
    num_text_bytes: int
    """UTF-8 bytes of the text that the text tokens stand for: what bits per byte divides by."""


class SplitIndex(_Frozen):
    """The files and counts of one split."""

    files: tuple[ShardFile, ...]
    num_sequences: int
    num_documents: int
    num_tokens: int
    """Tokens without padding, special tokens counted."""
    by_source: tuple[SourceCounts, ...]
    """In the order of `ShardIndex.sources`."""
    num_target_tokens: int | None = None
    """Tokens that are targets, where the shards have the column `targets`."""

    @property
    def num_text_tokens(self) -> int:
        """Tokens without padding and special tokens."""
        return sum(counts.num_text_tokens for counts in self.by_source)

    @property
    def num_text_bytes(self) -> int:
        """UTF-8 bytes of the text that the text tokens stand for."""
        return sum(counts.num_text_bytes for counts in self.by_source)


class ShardIndex(_Frozen):
    """`shards.json`."""

    format_version: int = FORMAT_VERSION
    sequence_length: int
    vocab_size: int
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    mask_token_id: int
    sources: tuple[str, ...]
    """Names of the sources of the documents; a document has the position of its source."""
    splits: dict[str, SplitIndex]


def token_dtype(vocab_size: int) -> pa.DataType:
    """The smallest unsigned integer that holds the vocabulary (Arrow has no use for 8 bits here)."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def source_dtype(num_sources: int) -> pa.DataType:
    """The smallest unsigned integer that holds the numbers of the sources."""
    return pa.uint8() if num_sources <= 1 << 8 else pa.uint16() if num_sources <= 1 << 16 else pa.uint32()


def write_shard(
    path: Path,
    tokens_NL: npt.NDArray[Any],
    document_lengths: Sequence[Sequence[int]],
    vocab_size: int,
    targets_NL: BoolArray | None = None,
    *,
    document_sources: Sequence[Sequence[int]] | None = None,
    num_sources: int = 1,
) -> ShardFile:
    """Writes one shard; returns its entry, with `path` relative to its folder.

    Args:
        path: the new file.
        tokens_NL: token ids, padding included.
        document_lengths: N lists.
        vocab_size: decides the integer type.
        targets_NL: which tokens are targets; without it, all are.
        document_sources: N lists as long as those of `document_lengths`; without it, all are of the first source.
        num_sources: decides their integer type.
    """
    sequence_length = int(tokens_NL.shape[1])
    document_sources = document_sources or [[0] * len(lengths) for lengths in document_lengths]
    dtype = token_dtype(vocab_size)
    flat = pa.array(np.ascontiguousarray(tokens_NL, dtype=dtype.to_pandas_dtype()).reshape(-1))
    columns: dict[str, pa.Array] = {
        "tokens": pa.FixedSizeListArray.from_arrays(flat, sequence_length),
        "document_lengths": pa.array(document_lengths, pa.list_(pa.uint32())),
        "document_sources": pa.array(document_sources, pa.list_(source_dtype(num_sources))),
    }
    if targets_NL is not None:
        columns["targets"] = pa.FixedSizeListArray.from_arrays(pa.array(targets_NL.reshape(-1)), sequence_length)
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))
    return ShardFile(path=path.name, num_sequences=len(table))


class TokenShards:
    """One split of a folder of token shards, mapped into memory.

    Raises:
        DamagedArtifactError: the folder has no readable index, another format version, or files of other lengths.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.index = _read_index(folder, split)
        self.split = self.index.splits[split]
        self._tables = [pa.ipc.open_file(pa.memory_map(str(folder / f.path))).read_all() for f in self.split.files]
        sizes = [len(table) for table in self._tables]
        if sizes != [file.num_sequences for file in self.split.files]:
            raise DamagedArtifactError(f"{folder}: split {split} has {sizes} sequences a file, not what its index says")
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._tokens = [self._flat(table, "tokens") for table in self._tables]
        self._targets = [
            self._flat(table, "targets") if "targets" in table.column_names else None for table in self._tables
        ]

    def __len__(self) -> int:
        return self.split.num_sequences

    def _flat(self, table: pa.Table, name: str) -> npt.NDArray[Any]:
        chunks = [chunk.flatten() for chunk in table.column(name).chunks]
        flat = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], pa.uint16())])
        values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
        return values.reshape(len(table), self.index.sequence_length)

    def _locate(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])

    def tokens(self, indices: IntArray) -> IntArray:
        """Token ids of the sequences `indices` [B], as int64 [B, L]."""
        rows = [self._tokens[file][row] for file, row in map(self._locate, indices.tolist())]
        return np.stack(rows).astype(np.int64)

    def targets(self, indices: IntArray) -> BoolArray:
        """Which tokens are targets [B, L]; without that column, all that are not padding."""
        if self._targets and self._targets[0] is not None:
            located = map(self._locate, indices.tolist())
            return np.stack([np.asarray(self._targets[file])[row] for file, row in located]).astype(bool)
        return self.segments(indices) > 0

    def document_lengths(self, index: int) -> list[int]:
        """Tokens of each document in sequence `index`."""
        file, row = self._locate(index)
        lengths: list[int] = self._tables[file].column("document_lengths")[row].as_py()
        return lengths

    def document_sources(self, index: int) -> list[int]:
        """Number of the source of each document in sequence `index`."""
        file, row = self._locate(index)
        sources: list[int] = self._tables[file].column("document_sources")[row].as_py()
        return sources

    def segments(self, indices: IntArray) -> IntArray:
        """Number of the document each token lies in, from 1; 0 is padding. int64 [B, L]."""
        out = np.zeros((len(indices), self.index.sequence_length), dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            lengths = self.document_lengths(index)
            numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            out[row, : len(numbers)] = numbers
        return out

    def positions(self, indices: IntArray) -> IntArray:
        """Position of each token in its document, from 0; padding too counts from 0. int64 [B, L]."""
        segments_BL = self.segments(indices)
        steps_L = np.arange(segments_BL.shape[1])
        starts_BL = np.zeros_like(segments_BL)
        changed_BL = np.diff(segments_BL, axis=1) != 0
        starts_BL[:, 1:] = np.where(changed_BL, steps_L[1:], 0)
        positions_BL: IntArray = steps_L[None, :] - np.maximum.accumulate(starts_BL, axis=1)
        return positions_BL


def _read_index(folder: Path, split: str) -> ShardIndex:
    """The index; its version is looked at first, because another version has other fields."""
    try:
        content = json.loads((folder / INDEX_NAME).read_bytes())
        version, splits = content["format_version"], sorted(content["splits"])
        index = ShardIndex.model_validate(content) if version == FORMAT_VERSION else None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedArtifactError(f"{folder / INDEX_NAME}: not a token shard index: {error}") from error
    if index is None or split not in splits:
        raise DamagedArtifactError(
            f"{folder}: format {version} (this code reads {FORMAT_VERSION}), splits {splits} (wanted {split})"
        )
    return index


def write_index(folder: Path, index: ShardIndex) -> None:
    """Writes `shards.json`."""
    (folder / INDEX_NAME).write_text(json.dumps(index.model_dump(mode="json"), indent=1) + "\n")

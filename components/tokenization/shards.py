"""Token shards: fixed-length packed sequences in Arrow files that are mapped, never read whole.

Shapes: N sequences, L `sequence_length`, B a batch.

A shard is one Arrow IPC file without compression, with the columns

    tokens            fixed_size_list<uint16 or uint32>[L]   the documents one after another, then padding
    document_lengths  list<uint32>                           tokens of each document; their sum is L minus padding
    document_sources  list<uint8, 16 or 32>                  number of the source of each document
    sentence_lengths  list<uint32>                           tokens of each sentence; their sum is L minus padding
    targets           fixed_size_list<bool>[L]               only where not every token is a target

in record batches as they were packed. A document here is a piece of one where it was cut (packing.py). A sentence ends
with its document at the latest; <s> belongs to the sentence after it, </s> to the one before (words.py). Shards have
no sentences where nobody can tell the words of their tokenizer, and where they are prompts.

`shards.json` beside them has counts, and makes sequence `i` of a split a pure function of the folder. Sources are
numbered as its `sources` names them: a byte a document, 2 % of what glosses take and nothing of longer texts. Sentences
take 4 bytes each, 10 % of glosses and 8 % of sentences of 25 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from components.tokenization.packing import Ragged
from infra.errors import DamagedArtifactError

FORMAT_VERSION = 3
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
    has_sentences: bool
    """Whether the shards have the column `sentence_lengths`."""
    splits: dict[str, SplitIndex]


def token_dtype(vocab_size: int) -> pa.DataType:
    """The smallest unsigned integer that holds the vocabulary (Arrow has no use for 8 bits here)."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def source_dtype(num_sources: int) -> pa.DataType:
    """The smallest unsigned integer that holds the numbers of the sources."""
    return pa.uint8() if num_sources <= 1 << 8 else pa.uint16() if num_sources <= 1 << 16 else pa.uint32()


def record_batch(
    tokens_NL: npt.NDArray[Any],
    document_lengths: Ragged,
    vocab_size: int,
    targets_NL: BoolArray | None = None,
    *,
    document_sources: Ragged | None = None,
    num_sources: int = 1,
    sentence_lengths: Ragged | None = None,
) -> pa.RecordBatch:
    """Sequences as they stand in a shard.

    Args:
        tokens_NL: token ids, padding included.
        document_lengths: of each sequence.
        vocab_size: decides the integer type of tokens.
        targets_NL: which tokens are targets; without it, all are.
        document_sources: as many as `document_lengths`; without it, all are of the first source.
        num_sources: decides their integer type.
        sentence_lengths: of each sequence; without it, the shard has no sentences.
    """
    sequence_length = int(tokens_NL.shape[1])
    if document_sources is None:
        zeros = np.zeros(len(document_lengths.values), dtype=np.int64)
        document_sources = Ragged(values=zeros, offsets=document_lengths.offsets)
    dtype = token_dtype(vocab_size)
    flat = pa.array(np.ascontiguousarray(tokens_NL, dtype=dtype.to_pandas_dtype()).reshape(-1))
    columns: dict[str, pa.Array] = {
        "tokens": pa.FixedSizeListArray.from_arrays(flat, sequence_length),
        "document_lengths": _list_array(document_lengths, pa.uint32()),
        "document_sources": _list_array(document_sources, source_dtype(num_sources)),
    }
    if sentence_lengths is not None:
        columns["sentence_lengths"] = _list_array(sentence_lengths, pa.uint32())
    if targets_NL is not None:
        columns["targets"] = pa.FixedSizeListArray.from_arrays(pa.array(targets_NL.reshape(-1)), sequence_length)
    return pa.RecordBatch.from_pydict(columns)


def _list_array(lists: Ragged, dtype: pa.DataType) -> pa.ListArray:
    values = pa.array(lists.values.astype(dtype.to_pandas_dtype()), dtype)
    return pa.ListArray.from_arrays(pa.array(lists.offsets.astype(np.int32)), values)


def write_shard(path: Path, batch: pa.RecordBatch) -> ShardFile:
    """Writes a shard of one batch; returns its entry, with `path` relative to its folder."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return ShardFile(path=path.name, num_sequences=len(batch))


class TokenShards:
    """One split of a folder of token shards, mapped into memory.

    Raises:
        DamagedArtifactError: the folder has no readable index, another format version, or files of other lengths.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.index = _read_index(folder, split)
        self.split = self.index.splits[split]
        self._batches: list[pa.RecordBatch] = []
        sizes: list[int] = []
        for file in self.split.files:
            reader = pa.ipc.open_file(pa.memory_map(str(folder / file.path)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            self._batches += batches
            sizes.append(sum(map(len, batches)))
        if sizes != [file.num_sequences for file in self.split.files]:
            raise DamagedArtifactError(f"{folder}: split {split} has {sizes} sequences a file, not what its index says")
        self._starts = np.cumsum([0, *map(len, self._batches)]).astype(np.int64)
        self._tokens = [self._flat(batch, "tokens") for batch in self._batches]
        self._targets = [
            self._flat(batch, "targets") if "targets" in batch.schema.names else None for batch in self._batches
        ]
        self._lists: dict[tuple[str, int], Ragged] = {}

    def __len__(self) -> int:
        return self.split.num_sequences

    def _flat(self, batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = batch.column(name).flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(batch), self.index.sequence_length)

    def _located(self, indices: IntArray) -> Iterator[tuple[int, int]]:
        """The batch of each sequence, and its row there."""
        batches_B = np.searchsorted(self._starts, indices, side="right") - 1
        return zip(batches_B.tolist(), (indices - self._starts[batches_B]).tolist(), strict=True)

    def _list(self, name: str, number: int, row: int) -> npt.NDArray[Any]:
        """A row of a column of lists; a view of the file."""
        lists = self._lists.get((name, number))
        if lists is None:
            column = self._batches[number].column(name)
            lists = Ragged(values=column.values.to_numpy(), offsets=column.offsets.to_numpy())
            self._lists[name, number] = lists
        found: npt.NDArray[Any] = lists.values[lists.offsets[row] : lists.offsets[row + 1]]
        return found

    def tokens(self, indices: IntArray) -> IntArray:
        """Token ids of the sequences `indices` [B], as int64 [B, L]."""
        return np.stack([self._tokens[number][row] for number, row in self._located(indices)]).astype(np.int64)

    def targets(self, indices: IntArray) -> BoolArray:
        """Which tokens are targets [B, L]; without that column, all that are not padding."""
        if self._targets and self._targets[0] is not None:
            rows = [np.asarray(self._targets[number])[row] for number, row in self._located(indices)]
            return np.stack(rows).astype(bool)
        return self.segments(indices) > 0

    def document_lengths(self, index: int) -> list[int]:
        """Tokens of each document in sequence `index`."""
        ((number, row),) = self._located(np.array([index]))
        lengths: list[int] = self._list("document_lengths", number, row).tolist()
        return lengths

    def document_sources(self, index: int) -> list[int]:
        """Number of the source of each document in sequence `index`."""
        ((number, row),) = self._located(np.array([index]))
        sources: list[int] = self._list("document_sources", number, row).tolist()
        return sources

    def segments(self, indices: IntArray) -> IntArray:
        """Number of the document each token lies in, from 1; 0 is padding. int64 [B, L]."""
        out = np.zeros((len(indices), self.index.sequence_length), dtype=np.int64)
        for row_L, (number, row) in zip(out, self._located(indices), strict=True):
            lengths = self._list("document_lengths", number, row)
            numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            row_L[: len(numbers)] = numbers
        return out

    def sentence_starts(self, indices: IntArray) -> BoolArray:
        """Which tokens begin a sentence [B, L]; where `index.has_sentences`."""
        out = np.zeros((len(indices), self.index.sequence_length), dtype=bool)
        for row_L, (number, row) in zip(out, self._located(indices), strict=True):
            lengths = self._list("sentence_lengths", number, row).astype(np.int64)
            row_L[np.cumsum(lengths) - lengths] = True
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

"""Token lists in, packed shard files out: one split at a time, in windows that bound memory.

A window of 1,048,576 documents of 21 tokens takes 44 MB of tokens and some 100 bytes a document while it is packed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.tokenization.config import TokenShardsConfig
from components.tokenization.packing import fill, lengths_by_sequence, pack
from components.tokenization.shards import ShardFile, SplitIndex, token_dtype, write_shard
from components.tokenization.special import NUM_SPECIAL_PER_DOCUMENT, PAD_ID

IntArray = npt.NDArray[np.int64]


class SplitWriter:
    """Packs the documents of one split and writes its files."""

    def __init__(self, folder: Path, split: str, config: TokenShardsConfig, vocab_size: int) -> None:
        self.num_cut_documents = 0
        self.unigram_counts: IntArray = np.zeros(vocab_size, dtype=np.int64)
        self._folder, self._split, self._config, self._vocab_size = folder, split, config, vocab_size
        self._dtype = token_dtype(vocab_size).to_pandas_dtype()
        self._tokens: list[npt.NDArray[np.integer]] = []
        self._lengths: list[IntArray] = []
        self._held_documents = 0
        self._rows = np.zeros((0, config.sequence_length), dtype=self._dtype)
        self._row_lengths: list[list[int]] = []
        self._files: list[ShardFile] = []
        self._num_documents = 0
        self._num_tokens = 0
        self._num_text_bytes = 0

    def add_table(self, table: pa.Table) -> None:
        """Takes a table of `encoding.encode`; a document with n copies enters n times, one with 0 not at all."""
        tokens = table.column("tokens").combine_chunks()
        lengths = pc.list_value_length(tokens).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = tokens.flatten().to_numpy(zero_copy_only=False)
        num_bytes = table.column("num_bytes").to_numpy()
        copies = table.column("copies").to_numpy()
        if (copies != 1).any():
            rows = np.repeat(np.arange(len(lengths)), copies)
            starts = (np.cumsum(lengths) - lengths)[rows]
            lengths, num_bytes = lengths[rows], num_bytes[rows]
            within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            flat = flat[np.repeat(starts, lengths) + within]
        self.add(flat, lengths, int(num_bytes.sum()))

    def add(self, tokens: npt.NDArray[np.integer], lengths: IntArray, num_bytes: int) -> None:
        """Takes documents: their tokens one after another, their lengths, and the UTF-8 bytes of all their texts."""
        self._num_text_bytes += num_bytes
        while len(lengths):
            count = min(len(lengths), self._config.pack_window_documents - self._held_documents)
            num_tokens = int(lengths[:count].sum())
            self._tokens.append(tokens[:num_tokens].astype(self._dtype))
            self._lengths.append(lengths[:count])
            self._held_documents += count
            if self._held_documents >= self._config.pack_window_documents:
                self._pack()
            tokens, lengths = tokens[num_tokens:], lengths[count:]

    def close(self) -> SplitIndex:
        """Writes what is left, and returns the counts."""
        if self._held_documents:
            self._pack()
        if len(self._rows) or not self._files:
            self._write(len(self._rows))
        return SplitIndex(
            files=tuple(self._files),
            num_sequences=sum(file.num_sequences for file in self._files),
            num_documents=self._num_documents,
            num_tokens=self._num_tokens,
            num_text_tokens=self._num_tokens - NUM_SPECIAL_PER_DOCUMENT * self._num_documents,
            num_text_bytes=self._num_text_bytes,
        )

    def _pack(self) -> None:
        tokens, lengths = np.concatenate(self._tokens), np.concatenate(self._lengths)
        self._tokens, self._lengths, self._held_documents = [], [], 0
        packing = pack(lengths, self._config.sequence_length)
        offsets = np.cumsum(lengths) - lengths
        rows_NL = fill(packing, tokens, offsets, self._config.sequence_length, PAD_ID)
        self.unigram_counts += np.bincount(tokens, minlength=self._vocab_size)
        self.num_cut_documents += packing.num_cut_documents
        self._num_documents += len(lengths)
        self._num_tokens += len(tokens)
        self._rows = np.concatenate([self._rows, rows_NL])
        self._row_lengths.extend(lengths_by_sequence(packing))
        while len(self._rows) >= self._config.max_sequences_per_file:
            self._write(self._config.max_sequences_per_file)

    def _write(self, count: int) -> None:
        path = self._folder / f"{self._split}-{len(self._files):05d}.arrow"
        self._files.append(write_shard(path, self._rows[:count], self._row_lengths[:count], self._vocab_size))
        self._rows, self._row_lengths = self._rows[count:], self._row_lengths[count:]

"""Token lists in, packed shard files out: one split at a time, in windows that bound memory.

A window of 1,048,576 documents of 21 tokens takes 44 MB of tokens and some 110 bytes a document while it is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.tokenization.config import TokenShardsConfig
from components.tokenization.packing import by_sequence, fill, pack
from components.tokenization.shards import ShardFile, SourceCounts, SplitIndex, token_dtype, write_shard
from components.tokenization.special import NUM_SPECIAL_PER_DOCUMENT

IntArray = npt.NDArray[np.int64]


class SplitWriter:
    """Packs the documents of one split and writes its files.

    Args:
        folder: of the files.
        split: their prefix.
        config: length and file size.
        vocab_size: decides the integer type of tokens.
        sources: names of all sources; documents have their position.
        pad_token_id: fills what is free at the end of a sequence.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        config: TokenShardsConfig,
        vocab_size: int,
        sources: Sequence[str],
        pad_token_id: int,
    ) -> None:
        self._pad_token_id = pad_token_id
        self.num_cut_documents = 0
        self.unigram_counts: IntArray = np.zeros(vocab_size, dtype=np.int64)
        self._folder, self._split, self._config, self._vocab_size = folder, split, config, vocab_size
        self._dtype = token_dtype(vocab_size).to_pandas_dtype()
        self._tokens: list[npt.NDArray[np.integer]] = []
        self._lengths: list[IntArray] = []
        self._sources: list[IntArray] = []
        self._names = pa.array(sources, pa.string())
        self._held_documents = 0
        self._rows = np.zeros((0, config.sequence_length), dtype=self._dtype)
        self._row_lengths: list[list[int]] = []
        self._row_sources: list[list[int]] = []
        self._files: list[ShardFile] = []
        self._counts_3S: IntArray = np.zeros((3, len(sources)), dtype=np.int64)
        """Documents, tokens and bytes of text of each source."""

    def add_table(self, table: pa.Table) -> None:
        """Takes a table of `encoding.encode`; a document with n copies enters n times, one with 0 not at all."""
        tokens = table.column("tokens").combine_chunks()
        lengths = pc.list_value_length(tokens).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = tokens.flatten().to_numpy(zero_copy_only=False)
        num_bytes = table.column("num_bytes").to_numpy()
        sources = pc.index_in(table.column("source"), value_set=self._names).to_numpy().astype(np.int64)
        copies = table.column("copies").to_numpy()
        if (copies != 1).any():
            rows = np.repeat(np.arange(len(lengths)), copies)
            starts = (np.cumsum(lengths) - lengths)[rows]
            lengths, num_bytes, sources = lengths[rows], num_bytes[rows], sources[rows]
            within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            flat = flat[np.repeat(starts, lengths) + within]
        self.add(flat, lengths, num_bytes, sources)

    def add(self, tokens: npt.NDArray[np.integer], lengths: IntArray, num_bytes: IntArray, sources: IntArray) -> None:
        """Takes documents: their tokens one after another, and of each its length, UTF-8 bytes of text, and source."""
        for row, weights in enumerate((np.ones_like(lengths), lengths, num_bytes)):
            np.add.at(self._counts_3S[row], sources, weights)
        while len(lengths):
            count = min(len(lengths), self._config.pack_window_documents - self._held_documents)
            num_tokens = int(lengths[:count].sum())
            self._tokens.append(tokens[:num_tokens].astype(self._dtype))
            self._lengths.append(lengths[:count])
            self._sources.append(sources[:count])
            self._held_documents += count
            if self._held_documents >= self._config.pack_window_documents:
                self._pack()
            tokens, lengths, sources = tokens[num_tokens:], lengths[count:], sources[count:]

    def close(self) -> SplitIndex:
        """Writes what is left, and returns the counts."""
        if self._held_documents:
            self._pack()
        if len(self._rows) or not self._files:
            self._write(len(self._rows))
        return SplitIndex(
            files=tuple(self._files),
            num_sequences=sum(file.num_sequences for file in self._files),
            num_documents=int(self._counts_3S[0].sum()),
            num_tokens=int(self._counts_3S[1].sum()),
            by_source=tuple(
                SourceCounts(
                    num_documents=num_documents,
                    num_text_tokens=num_tokens - NUM_SPECIAL_PER_DOCUMENT * num_documents,
                    num_text_bytes=num_bytes,
                )
                for num_documents, num_tokens, num_bytes in self._counts_3S.T.tolist()
            ),
        )

    def _pack(self) -> None:
        tokens, lengths = np.concatenate(self._tokens), np.concatenate(self._lengths)
        sources = np.concatenate(self._sources)
        self._tokens, self._lengths, self._sources, self._held_documents = [], [], [], 0
        packing = pack(lengths, self._config.sequence_length)
        offsets = np.cumsum(lengths) - lengths
        rows_NL = fill(packing, tokens, offsets, self._config.sequence_length, self._pad_token_id)
        self.unigram_counts += np.bincount(tokens, minlength=self._vocab_size)
        self.num_cut_documents += packing.num_cut_documents
        self._rows = np.concatenate([self._rows, rows_NL])
        self._row_lengths.extend(by_sequence(packing, packing.length_P))
        self._row_sources.extend(by_sequence(packing, sources[packing.document_P]))
        while len(self._rows) >= self._config.max_sequences_per_file:
            self._write(self._config.max_sequences_per_file)

    def _write(self, count: int) -> None:
        path = self._folder / f"{self._split}-{len(self._files):05d}.arrow"
        self._files.append(
            write_shard(
                path,
                self._rows[:count],
                self._row_lengths[:count],
                self._vocab_size,
                document_sources=self._row_sources[:count],
                num_sources=len(self._names),
            )
        )
        self._rows = self._rows[count:]
        self._row_lengths, self._row_sources = self._row_lengths[count:], self._row_sources[count:]

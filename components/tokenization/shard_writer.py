"""Token lists in, packed shard files out: one split at a time, in windows that bound memory.

A window of 2**24 tokens goes to its file when it is packed, so memory does not grow with the corpus. 30 M tokens in
documents of 20, 500 and 5,000 take a CPU second for each 18, 44 and 40 M of them, a third to a half of it for sentences
(sequences of 128, uint16, on a busy machine).

Shapes: S sources, V vocabulary, N sequences, L `sequence_length`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.corpus.statistics import LengthHistogram
from components.tokenization.config import TokenShardsConfig
from components.tokenization.packing import Packing, concatenate, fill, pack
from components.tokenization.shards import ShardFile, SourceCounts, SplitIndex, record_batch, token_dtype
from components.tokenization.special import NUM_SPECIAL_PER_DOCUMENT
from components.tokenization.words import WordTable, sentence_lengths

IntArray = npt.NDArray[np.int64]
COUNTED_TOKENS = 1 << 18
"""Tokens that are counted at once: numpy counts in 8 bytes a token, which fit a cache."""


class SplitWriter:
    """Packs the documents of one split and writes its files.

    Args:
        folder: of the files.
        split: their prefix.
        config: length, way of packing, window and file size.
        vocab_size: decides the integer type of tokens.
        sources: names of all sources; documents have their position.
        pad_token_id: fills what is free at the end of a sequence.
        words: says where sentences end; without it, the shards have none.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        config: TokenShardsConfig,
        vocab_size: int,
        sources: Sequence[str],
        pad_token_id: int,
        words: WordTable | None = None,
    ) -> None:
        self._pad_token_id = pad_token_id
        self.num_cut_documents = 0
        """Documents that lie in more than one sequence."""
        self.num_cut_tokens = 0
        """Tokens of these documents, all pieces together."""
        self.num_avoidably_cut_documents = 0
        """Those of them that are no longer than a sequence: none by best fit."""
        self.document_lengths = LengthHistogram()
        """Tokens of documents, before they are cut."""
        self.sequence_documents = LengthHistogram()
        """Documents, or pieces of them, of sequences."""
        self.unigram_counts: IntArray = np.zeros(vocab_size, dtype=np.int64)
        self._config, self._vocab_size, self._words = config, vocab_size, words
        self._dtype = token_dtype(vocab_size).to_pandas_dtype()
        self._names = pa.array(sources, pa.string())
        self._counts_3S: IntArray = np.zeros((3, len(sources)), dtype=np.int64)
        """Documents, tokens and bytes of text of each source."""
        self._tokens: list[npt.NDArray[Any]] = []
        self._lengths: list[IntArray] = []
        self._sources: list[IntArray] = []
        self._held_documents = self._held_tokens = 0
        self._files = _Files(folder, split, config.max_sequences_per_file)

    def add_table(self, table: pa.Table) -> None:
        """Takes a table of `encoding.documents`; a document with n copies enters n times, one with 0 not at all."""
        for batch in table.to_batches():
            self._add_batch(batch)

    def _add_batch(self, batch: pa.RecordBatch) -> None:
        tokens = batch.column("tokens")
        lengths = pc.list_value_length(tokens).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = tokens.flatten().to_numpy(zero_copy_only=False)
        num_bytes = batch.column("num_bytes").to_numpy()
        sources = pc.index_in(batch.column("source"), value_set=self._names).to_numpy().astype(np.int64)
        copies = batch.column("copies").to_numpy()
        if (copies != 1).any():
            rows = np.repeat(np.arange(len(lengths)), copies)
            starts = (np.cumsum(lengths) - lengths)[rows]
            lengths, num_bytes, sources = lengths[rows], num_bytes[rows], sources[rows]
            within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            flat = flat[np.repeat(starts, lengths) + within]
        self.add(flat, lengths, num_bytes, sources)

    def add(self, tokens: npt.NDArray[Any], lengths: IntArray, num_bytes: IntArray, sources: IntArray) -> None:
        """Takes documents: their tokens one after another, and of each its length, UTF-8 bytes of text, and source."""
        num_sources = self._counts_3S.shape[1]
        for row, weights in enumerate((None, lengths, num_bytes)):
            self._counts_3S[row] += np.bincount(sources, weights, minlength=num_sources).astype(np.int64)
        self.document_lengths.add(lengths)
        tokens = tokens.astype(self._dtype)
        for first in range(0, len(tokens), COUNTED_TOKENS):
            self.unigram_counts += np.bincount(tokens[first : first + COUNTED_TOKENS], minlength=self._vocab_size)
        # A window ends with the document that fills it, however documents arrive.
        while len(lengths):
            ends = np.cumsum(lengths)
            full = int(np.searchsorted(ends, self._config.pack_window_tokens - self._held_tokens)) + 1
            room = max(1, self._config.pack_window_documents - self._held_documents)  # a rest may have many pieces
            count = min(len(lengths), room, full)
            num_tokens = int(ends[count - 1])
            self._hold(tokens[:num_tokens], lengths[:count], sources[:count])
            if (
                self._held_documents >= self._config.pack_window_documents
                or self._held_tokens >= self._config.pack_window_tokens
            ):
                self._pack()
            tokens, lengths, sources = tokens[num_tokens:], lengths[count:], sources[count:]

    def close(self) -> SplitIndex:
        """Writes what is left, and returns the counts."""
        if self._held_documents or not self._files.made:
            self._pack(last=True)
        self._files.close()
        files = tuple(self._files.made)
        return SplitIndex(
            files=files,
            num_sequences=sum(file.num_sequences for file in files),
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

    def _hold(self, tokens: npt.NDArray[Any], lengths: IntArray, sources: IntArray) -> None:
        self._tokens.append(tokens)
        self._lengths.append(lengths)
        self._sources.append(sources)
        self._held_documents += len(lengths)
        self._held_tokens += len(tokens)

    def _pack(self, *, last: bool = False) -> None:
        """Packs and writes what is held; concatenated, what fills no sequence stays held until the last time."""
        none = np.zeros(0, dtype=np.int64)
        tokens = np.concatenate([np.zeros(0, dtype=self._dtype), *self._tokens])
        lengths, sources = np.concatenate([none, *self._lengths]), np.concatenate([none, *self._sources])
        self._tokens, self._lengths, self._sources = [], [], []
        self._held_documents = self._held_tokens = 0
        length = self._config.sequence_length
        packing = pack(lengths, length) if self._config.packing == "best_fit" else concatenate(lengths, length)
        self._count_cuts(packing, lengths)
        if self._config.packing == "concatenate" and not last:
            packing, kept = _whole_sequences(packing, len(tokens) // length)
            rest = slice(len(tokens) // length * length, None)
            # It is cut no second time: it is shorter than a sequence, and the next one begins with it.
            self._hold(tokens[rest].copy(), kept.length_P, sources[kept.document_P])
        self.sequence_documents.add(np.diff(packing.offsets))
        rows_NL = fill(packing, tokens, np.cumsum(lengths) - lengths, length, self._pad_token_id)
        del tokens
        document_lengths = packing.by_sequence(packing.length_P)
        self._files.write(
            record_batch(
                rows_NL,
                document_lengths,
                self._vocab_size,
                document_sources=packing.by_sequence(sources[packing.document_P]),
                num_sources=len(self._names),
                sentence_lengths=sentence_lengths(rows_NL, document_lengths, self._words) if self._words else None,
            )
        )

    def _count_cuts(self, packing: Packing, lengths: IntArray) -> None:
        is_cut = np.bincount(packing.document_P, minlength=len(lengths)) > 1
        self.num_cut_documents += int(is_cut.sum())
        self.num_cut_tokens += int(lengths[is_cut].sum())
        self.num_avoidably_cut_documents += int((lengths[is_cut] <= self._config.sequence_length).sum())


def _whole_sequences(packing: Packing, number: int) -> tuple[Packing, Packing]:
    """The first `number` sequences, and what comes after them."""
    at = int(packing.offsets[min(number, packing.num_sequences)])
    cut = [slice(None, at), slice(at, None)]
    offsets = [packing.offsets[: number + 1], packing.offsets[number:] - at]
    one, other = (
        Packing(
            document_P=packing.document_P[part],
            start_P=packing.start_P[part],
            length_P=packing.length_P[part],
            offsets=bounds,
        )
        for part, bounds in zip(cut, offsets, strict=True)
    )
    return one, other


class _Files:
    """The files of one split, written as sequences come."""

    def __init__(self, folder: Path, split: str, max_sequences: int) -> None:
        self.made: list[ShardFile] = []
        self._folder, self._split, self._max_sequences = folder, split, max_sequences
        self._sink: pa.OSFile | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds sequences to the file that is open, or to new ones."""
        while True:
            if self._writer is None:
                path = self._folder / f"{self._split}-{len(self.made):05d}.arrow"
                self._sink = pa.OSFile(str(path), "wb")
                self._writer = pa.ipc.new_file(self._sink, batch.schema)
            part = batch.slice(0, self._max_sequences - self._written)
            self._writer.write_batch(part)
            self._written += len(part)
            batch = batch.slice(len(part))
            if self._written == self._max_sequences:
                self.close()
            if not len(batch):
                return

    def close(self) -> None:
        """Ends the file that is open."""
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()
            name = f"{self._split}-{len(self.made):05d}.arrow"
            self.made.append(ShardFile(path=name, num_sequences=self._written))
            self._writer, self._sink, self._written = None, None, 0

"""The parts of a corpus that run on Ray Data: examining units, pairing equal hashes, comparing candidates.

Texts stay in the files of units, of which workers tell facts only, so that the object store holds little. Order does
not matter here: whoever asks puts things in order. A Ray Data execution takes 2 s to start, a shuffle 6 (Ray 2.60, two
cores), so what is small is done in the step's own process, by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from components.corpus.decontamination import EvaluationIndex
from components.corpus.documents import Rules, read_kept, texts_of, write_unit
from components.corpus.duplicates import FloatArray, components, pairs_of_equal, unique_pairs
from components.corpus.minhash import jaccard, ngram_sets
from components.corpus.ngrams import IntArray, ngrams, words
from components.corpus.units import Unit
from infra.errors import FromzeroError, StorageError
from infra.storage.units import UnitStore

TASK_BYTES = 32 << 20
TASK_UNITS = 256
SHUFFLE_FROM_ROWS = 1 << 22
"""Hashes, of 24 bytes each, from which they are shuffled instead of sorted in one process."""
SHUFFLE_PARTITION_ROWS = 1 << 22
COMPARE_BYTES = 1 << 26
"""Text of candidates that is compared at a time."""
Kind = Literal["equal", "near"]


@contextmanager
def small_machine_context() -> Iterator[None]:
    """Ray Data settings that fit a laptop and keep order, for the datasets made within.

    Blocks of 16 MiB instead of 128, since a local object store may hold 150 MB; few shuffle partitions instead of 200;
    `preserve_order`, without which the row order differs from run to run.
    """
    from ray.data import DataContext

    settings = DataContext.get_current().copy()
    settings.execution_options.preserve_order = True
    settings.enable_progress_bars = False
    settings.target_max_block_size = 16 << 20
    settings.min_parallelism = 2
    settings.print_on_execution_start = False
    with DataContext.current(settings):
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamineTask:
    """One unit to make."""

    key: str
    unit: Unit
    rules: Rules
    num_bytes: int


def examine_units(
    tasks: Sequence[ExamineTask], evaluation: EvaluationIndex, store: UnitStore
) -> Iterator[FromzeroError | None]:
    """Makes units; for each, in any order, None or why its file cannot be used."""
    import ray

    groups = list(in_groups([task.num_bytes for task in tasks]))

    def make(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["index"].tolist():
            for task in tasks[slice(*groups[index])]:
                kind, message = "", ""
                try:
                    store.put(task.key, partial(write_unit, task.unit, task.rules, evaluation))
                except FromzeroError as error:
                    kind, message = type(error).__name__, str(error)
                yield pa.table({"kind": [kind], "message": [message]})

    errors: dict[str, Callable[[str], FromzeroError]] = {one.__name__: one for one in _subclasses(FromzeroError)}
    with small_machine_context():
        dataset = ray.data.from_items([{"index": i} for i in range(len(groups))], override_num_blocks=len(groups))
        dataset = dataset.map_batches(make, batch_size=1, batch_format="numpy")
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for kind, message in zip(*(block.column(n).to_pylist() for n in ("kind", "message")), strict=True):
                yield errors.get(kind, StorageError)(message) if kind else None


def _subclasses(cls: type[FromzeroError]) -> Iterator[type[FromzeroError]]:
    for one in cls.__subclasses__():
        yield one
        yield from _subclasses(one)


def in_groups(sizes: Sequence[int], most_bytes: int = TASK_BYTES, most: int = TASK_UNITS) -> Iterator[tuple[int, int]]:
    """Ranges of things that one task takes."""
    begin, held = 0, 0
    for position, size in enumerate(sizes):
        if position > begin and (held + size > most_bytes or position - begin >= most):
            yield begin, position
            begin, held = position, 0
        held += size
    if begin < len(sizes):
        yield begin, len(sizes)


def equal_pairs(
    kind: Kind, paths: Sequence[Path], first: IntArray, gone: IntArray, store: UnitStore
) -> tuple[IntArray, IntArray]:
    """Pairs (lower, higher) of documents that share a hash: of the whole text, or of a band of minima.

    Args:
        kind: which.
        paths: units, in the order of the corpus.
        first: number of the first document of each, and after the last.
        gone: documents that are passed over, in order.
        store: brings units to the machine of a worker.
    """

    def rows(index: int) -> pa.Table:
        return _hash_rows(kind, store.open(paths[index]), int(first[index]), gone)

    documents = int(first[-1]) if len(paths) else 0
    per_document = 1 if kind == "equal" else _num_bands(paths)
    if documents * per_document < SHUFFLE_FROM_ROWS:
        tables = [_hash_rows(kind, path, int(first[index]), gone) for index, path in enumerate(paths)]
        return pairs_of_equal(*_columns(pa.concat_tables(tables))) if tables else unique_pairs(*([first[:0]] * 2))
    return _shuffled_pairs(rows, len(paths), -(-documents * per_document // SHUFFLE_PARTITION_ROWS))


def _shuffled_pairs(rows: Callable[[int], pa.Table], num_tasks: int, num_partitions: int) -> tuple[IntArray, IntArray]:
    import ray

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["index"].tolist():
            yield rows(index)

    def pair(table: pa.Table) -> pa.Table:
        lower, higher = pairs_of_equal(*_columns(table))
        return pa.table({"lower": lower, "higher": higher})

    lower: list[IntArray] = [np.zeros(0, dtype=np.int64)]
    higher: list[IntArray] = [np.zeros(0, dtype=np.int64)]
    with small_machine_context():
        dataset = ray.data.from_items([{"index": i} for i in range(num_tasks)], override_num_blocks=num_tasks)
        dataset = dataset.map_batches(read, batch_size=1, batch_format="numpy")
        dataset = dataset.repartition(max(2, num_partitions), keys=["key"])
        dataset = dataset.map_batches(pair, batch_size=None, batch_format="pyarrow")
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            if len(block):
                lower.append(block.column("lower").to_numpy())
                higher.append(block.column("higher").to_numpy())
    return unique_pairs(np.concatenate(lower), np.concatenate(higher))


def _num_bands(paths: Sequence[Path]) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_schema(paths[0]).field("bands").type.list_size) if paths else 0


def _hash_rows(kind: Kind, path: Path, first: int, gone: IntArray) -> pa.Table:
    """(key, second, document) of a unit's documents: two halves of the digest, or each band with its number."""
    column = read_kept(path, ["digest" if kind == "equal" else "bands"]).column(0).combine_chunks()
    numbers = np.arange(first, first + len(column), dtype=np.int64)
    alive = ~np.isin(numbers, gone[slice(*np.searchsorted(gone, [first, first + len(column)]))])
    if kind == "equal":
        width = column.type.byte_width
        data = np.frombuffer(column.buffers()[1], dtype=np.int64, count=(column.offset + len(column)) * width // 8)
        halves = data.reshape(-1, 2)[column.offset :]
        return pa.table({"key": halves[alive, 0], "second": halves[alive, 1], "document": numbers[alive]})
    size = column.type.list_size
    keys = column.flatten().to_numpy().reshape(-1, size)
    alive &= keys.any(axis=1)  # texts without a word have no bands
    second = np.tile(np.arange(size, dtype=np.int64), int(alive.sum()))
    return pa.table({"key": keys[alive].reshape(-1), "second": second, "document": np.repeat(numbers[alive], size)})


def _columns(table: pa.Table) -> tuple[IntArray, IntArray, IntArray]:
    key, second, document = (table.column(name).to_numpy() for name in ("key", "second", "document"))
    return key, second, document


def similarities(
    lower_P: IntArray, higher_P: IntArray, paths: Sequence[Path], first: IntArray, ngram_words: int, store: UnitStore
) -> FloatArray:
    """Jaccard similarity of the n-grams of pairs of documents, [P].

    Pairs that hang together are compared together, some 64 MiB of text at a time, so each text is read once or twice.

    Args:
        lower_P: one document of each pair.
        higher_P: the other.
        paths: units, in the order of the corpus.
        first: number of the first document of each, and after the last.
        ngram_words: words of an n-gram.
        store: brings units to the machine of a worker.
    """
    documents, leader = components(lower_P, higher_P)
    order = np.lexsort((lower_P, leader[np.searchsorted(documents, lower_P)]))
    sizes = _text_bytes(documents, paths, first)
    size_P = sizes[np.searchsorted(documents, lower_P)] + sizes[np.searchsorted(documents, higher_P)]
    chunks = list(in_groups(size_P[order].tolist(), 4 * COMPARE_BYTES, 1 << 20))
    found = np.zeros(len(lower_P))

    def compare(chunk: int, *, elsewhere: bool) -> FloatArray:
        chosen = order[slice(*chunks[chunk])]
        opened = store.open if elsewhere else Path
        return _compare(lower_P[chosen], higher_P[chosen], paths, first, ngram_words, opened)

    if len(chunks) <= 1:
        for chunk in range(len(chunks)):
            found[order[slice(*chunks[chunk])]] = compare(chunk, elsewhere=False)
        return found
    import ray

    def work(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for index in batch["index"].tolist():
            values = compare(index, elsewhere=True)
            yield pa.table({"chunk": np.full(len(values), index), "similarity": values})

    with small_machine_context():
        dataset = ray.data.from_items([{"index": i} for i in range(len(chunks))], override_num_blocks=len(chunks))
        dataset = dataset.map_batches(work, batch_size=1, batch_format="numpy")
        done = [0] * len(chunks)
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            chunk_R, value_R = block.column("chunk").to_numpy(), block.column("similarity").to_numpy()
            for chunk in np.unique(chunk_R).tolist():
                values = value_R[chunk_R == chunk]
                place = chunks[chunk][0] + done[chunk]
                found[order[place : place + len(values)]] = values
                done[chunk] += len(values)
    return found


def _text_bytes(documents: IntArray, paths: Sequence[Path], first: IntArray) -> IntArray:
    sizes = np.zeros(len(documents), dtype=np.int64)
    bounds = np.searchsorted(documents, first)
    for index, path in enumerate(paths):
        here = slice(bounds[index], bounds[index + 1])
        if here.start < here.stop:
            column = read_kept(path, ["num_bytes"]).column(0).to_numpy()
            sizes[here] = column[documents[here] - first[index]]
    return sizes


def _compare(
    lower_P: IntArray,
    higher_P: IntArray,
    paths: Sequence[Path],
    first: IntArray,
    ngram_words: int,
    opened: Callable[[Path], Path],
) -> FloatArray:
    documents = np.unique(np.concatenate([lower_P, higher_P]))
    bounds = np.searchsorted(documents, first)
    sets = []
    for index, path in enumerate(paths):
        rows = (documents[bounds[index] : bounds[index + 1]] - first[index]).tolist()
        if rows:
            texts = list(texts_of(opened(path), rows))
            sets.extend(ngram_sets(ngrams(words(texts), ngram_words)))
    pairs = zip(
        np.searchsorted(documents, lower_P).tolist(), np.searchsorted(documents, higher_P).tolist(), strict=True
    )
    return np.array([jaccard(sets[one], sets[other]) for one, other in pairs])

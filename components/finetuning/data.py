"""A labelled task as token ids, the samples of it that label budgets allow, and the order of batches.

Everything here is a pure function of the task, the tokenizer and a seed. Batches hold texts of like length: on the
50,000 glosses (20 tokens in the mean) batches of 32 are then padded by 6 % of their tokens instead of 159 %.

Shapes: N rows, B a batch, L the longest text of a batch, T all tokens of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.finetuning.config import Budget
from infra.errors import DamagedArtifactError, DataError

IntArray = npt.NDArray[np.int64]
SPLITS = ("train", "validation", "test")
BATCHES_SORTED_TOGETHER = 50
TOKENIZED_TOGETHER = 4_096


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSplit:
    """The rows of one split, ordered by id."""

    ids: list[str]
    texts: list[str]
    labels: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSplit:
    """One split as token ids, special tokens included, cut to a maximal length."""

    ids: list[str]
    tokens_T: npt.NDArray[np.int32]
    starts: IntArray
    """[N + 1]: row i is tokens_T[starts[i]:starts[i + 1]]."""
    label_N: IntArray
    num_truncated: int

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def lengths_N(self) -> IntArray:
        """Tokens of each row."""
        lengths: IntArray = np.diff(self.starts)
        return lengths

    def pad(self, rows_B: IntArray, pad_token_id: int) -> tuple[IntArray, IntArray]:
        """Token ids [B, L], padded on the right, and the attention mask [B, L]."""
        lengths_B = self.lengths_N[rows_B]
        mask_BL = np.arange(int(lengths_B.max()))[None, :] < lengths_B[:, None]
        tokens_BL = np.full(mask_BL.shape, pad_token_id, dtype=np.int64)
        tokens_BL[mask_BL] = np.concatenate([self.tokens_T[self.starts[row] : self.starts[row + 1]] for row in rows_B])
        return tokens_BL, mask_BL.astype(np.int64)


def read_labels(folder: Path) -> list[str]:
    """The label names of a task, sorted."""
    labels: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return labels


def read_split(folder: Path, split: str) -> TaskSplit:
    """Reads `{split}.parquet` of a task.

    Raises:
        DataError: the split has no rows.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(folder / f"{split}.parquet", columns=["id", "text", "label"])
    if not len(table):
        raise DataError(f"task: the {split} split has no rows; give more labelled data, or another split file")
    ids, texts, labels = (table.column(name).to_pylist() for name in ("id", "text", "label"))
    return TaskSplit(ids=ids, texts=texts, labels=labels)


def encode_split(split: TaskSplit, labels: Sequence[str], tokenizer: Any, max_length: int) -> EncodedSplit:
    """Token ids of every row as `tokenizer(text, truncation=True, max_length=max_length)` gives them."""
    pieces: list[npt.NDArray[np.int32]] = []
    num_truncated = 0
    for start in range(0, len(split.texts), TOKENIZED_TOGETHER):
        batch = tokenizer(split.texts[start : start + TOKENIZED_TOGETHER], truncation=True, max_length=max_length)
        pieces += [np.asarray(tokens, dtype=np.int32) for tokens in batch["input_ids"]]
        num_truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings)
    position = {label: index for index, label in enumerate(labels)}
    return EncodedSplit(
        ids=split.ids,
        tokens_T=np.concatenate(pieces),
        starts=np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64),
        label_N=np.array([position[label] for label in split.labels], dtype=np.int64),
        num_truncated=num_truncated,
    )


def save_encoded(folder: Path, split: str, encoded: EncodedSplit) -> None:
    """Writes one split so that every trial maps the same bytes."""
    np.save(folder / f"{split}_tokens.npy", encoded.tokens_T)
    np.save(folder / f"{split}_starts.npy", encoded.starts)
    np.save(folder / f"{split}_labels.npy", encoded.label_N)
    about = {"ids": encoded.ids, "num_truncated": encoded.num_truncated}
    (folder / f"{split}.json").write_text(json.dumps(about))


def load_encoded(folder: Path, split: str) -> EncodedSplit:
    """Reads what `save_encoded` wrote; tokens stay on disk until touched.

    Raises:
        DamagedArtifactError: a file is missing or not what it was.
    """
    try:
        about = json.loads((folder / f"{split}.json").read_text())
        return EncodedSplit(
            ids=about["ids"],
            tokens_T=np.load(folder / f"{split}_tokens.npy", mmap_mode="r", allow_pickle=False),
            starts=np.load(folder / f"{split}_starts.npy", allow_pickle=False),
            label_N=np.load(folder / f"{split}_labels.npy", allow_pickle=False),
            num_truncated=about["num_truncated"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise DamagedArtifactError(f"{folder}: encoded {split} cannot be read ({error}); run again") from error


def budget_rows(ids: Sequence[str], label_N: IntArray, budget: Budget, seed: int) -> IntArray:
    """The rows that a label budget allows, ascending: the first in an order of hashes keyed by `seed`.

    While the budget is at least the number of classes, the first row of every class in that order comes before all
    others, so that no class is without a label. A larger budget with the same seed contains a smaller one.
    """
    if budget == "all" or budget >= len(ids):
        return np.arange(len(ids), dtype=np.int64)
    key = seed.to_bytes(8, "little")
    hashes = [hashlib.blake2b(row_id.encode(), digest_size=8, key=key).digest() for row_id in ids]
    order = np.array(sorted(range(len(ids)), key=hashes.__getitem__), dtype=np.int64)
    _, first = np.unique(label_N[order], return_index=True)
    rest = np.delete(order, first)
    chosen = np.concatenate([order[np.sort(first)], rest])[:budget] if budget >= len(first) else order[:budget]
    rows: IntArray = np.sort(chosen)
    return rows


def validation_rows(ids: Sequence[str], maximum: int, seed: int) -> IntArray:
    """At most `maximum` rows, by a hash order."""
    return budget_rows(ids, np.zeros(len(ids), dtype=np.int64), maximum, seed)


def training_batches(lengths_N: IntArray, rows: IntArray, batch_size: int, seed: int) -> Iterator[IntArray]:
    """Endless batches of row numbers; every pass holds each row once, the last batch of a pass may be smaller.

    Each pass shuffles the rows, sorts runs of 50 batches by length, cuts them, and shuffles the batches.
    """
    epoch = 0
    while True:
        generator = np.random.default_rng([seed, epoch])
        shuffled = generator.permutation(rows)
        run = batch_size * BATCHES_SORTED_TOGETHER
        batches = []
        for start in range(0, len(shuffled), run):
            part = shuffled[start : start + run]
            part = part[np.argsort(lengths_N[part], kind="stable")]
            batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        for index in generator.permutation(len(batches)):
            yield batches[index]
        epoch += 1


def evaluation_batches(lengths_N: IntArray, rows: IntArray, batch_size: int) -> Iterator[IntArray]:
    """Every row once, texts of like length together."""
    by_length = rows[np.argsort(lengths_N[rows], kind="stable")]
    for start in range(0, len(by_length), batch_size):
        yield by_length[start : start + batch_size]

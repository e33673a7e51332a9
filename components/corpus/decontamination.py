"""Overlap of documents with evaluation sets, by n-grams of words (Brown et al. 2020, arXiv:2005.14165, appendix C).

A document goes if it shares 13 words in a row with an evaluation text, or holds all of a shorter one of 8 words or more
(a Chinese character is a word). Shorter ones are only looked for as whole documents: "a river in Germany" would take
every text that says so. The whole document goes, not a window of 200 characters as in GPT-3: documents are many and
evaluation texts few. 40 MB/s on one core, and 24 MB/s with the hashing of words; the index takes 30 bytes an n-gram.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import Field

from components.corpus.ngrams import IntArray, UintArray, Words, ngrams, sums, sums_at, words
from components.corpus.normalise import cleaned_digest
from infra.journal.config import FrozenConfig

MIN_TABLE_BITS, MAX_TABLE_BITS = 12, 26
"""Of a table of one byte an entry; some 16 entries an n-gram."""
BATCH_TEXTS = 4096


class DecontaminationConfig(FrozenConfig):
    """How documents that overlap with evaluation texts are found."""

    ngram_words: int = Field(13, ge=5, le=100, description="words in a row that no document shares with an evaluation")
    min_words: int = Field(
        8, ge=1, le=100, description="an evaluation text shorter than ngram_words counts whole, from so many words on"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grams:
    """The n-grams of all evaluation texts, in order of their hashes, and the first text that each is of."""

    shortest: int
    """Words of the shortest that there may be."""
    lengths: tuple[int, ...]
    hash_G: UintArray
    text_G: npt.NDArray[np.int32]
    table: npt.NDArray[np.bool_]
    """By the first bits of the hash of an n-gram's first `shortest` words: whether there is any. Few words of a
    document get past it, and only for those the n-grams of all lengths are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationIndex:
    """What is looked for. Can be pickled into workers."""

    names: tuple[str, ...]
    """`<set> <id>` of each text; again for one that cleaning changes."""
    digests: frozenset[bytes]
    """Of the texts themselves."""
    grams: _Grams | None
    fingerprint: str
    """32 hex characters over the texts and how they are looked for: part of the key of a unit."""


def set_digest(ids: Sequence[str]) -> str:
    """What names an evaluation set by its texts, whatever their order: 32 hex characters."""
    return hashlib.sha256("\n".join(sorted(set(ids))).encode()).hexdigest()[:32]


def read_sets(task: Path) -> dict[str, dict[str, str]]:
    """Text by id of the evaluation sets of a task's folder: its validation and test split."""
    found: dict[str, dict[str, str]] = {}
    for split in ("validation", "test"):
        table = pq.read_table(task / f"{split}.parquet", columns=["id", "text"])
        found[f"task.{split}"] = dict(zip(*(table.column(name).to_pylist() for name in ("id", "text")), strict=True))
    return found


def build_index(
    sets: Mapping[str, Mapping[str, str]],
    config: DecontaminationConfig | None,
    cleaned: Callable[[list[str]], list[str]] | None = None,
) -> EvaluationIndex:
    """What to look for.

    Args:
        sets: text by id, by the name of the set.
        config: without it only texts that are equal are found.
        cleaned: what the cleaners of the corpus make of texts. Its documents went through them and evaluation texts
            did not, so each of these is looked for as it stands and as they would leave it.
    """
    names = [f"{name} {id_}" for name, texts in sets.items() for id_ in texts]
    texts = [text for texts in sets.values() for text in texts.values()]
    digests = [bytes.fromhex(id_) for texts in sets.values() for id_ in texts]
    told = [
        config.model_dump_json() if config else "equal texts",
        *(f"{n} {set_digest(list(t))}" for n, t in sets.items()),
    ]
    if cleaned is not None:
        found = [
            (name, new) for name, old, new in zip(names, texts, cleaned(texts), strict=True) if new not in ("", old)
        ]
        news = [cleaned_digest(new) for _, new in found]
        names += [name for name, _ in found]
        texts += [new for _, new in found]
        digests += news
        told += [f"cleaned {set_digest([new.hex() for new in news])}"] if found else []
    return EvaluationIndex(
        names=tuple(names),
        digests=frozenset(digests),
        grams=_grams(texts, config) if config else None,
        fingerprint=hashlib.sha256("\n".join(told).encode()).hexdigest()[:32],
    )


def _grams(texts: Sequence[str], config: DecontaminationConfig) -> _Grams | None:
    shortest = min(config.min_words, config.ngram_words)
    hashes: list[UintArray] = []
    lengths: list[IntArray] = []
    owners: list[IntArray] = []
    starts: list[UintArray] = []
    for start in range(0, len(texts), BATCH_TEXTS):
        found = words(texts[start : start + BATCH_TEXTS])
        of = ngrams(found, config.ngram_words)
        length_T = np.minimum(found.count_T, config.ngram_words)
        owner_G = np.repeat(np.arange(len(of.count_T)), of.count_T)
        long_enough = length_T[owner_G] >= shortest
        place_G = np.arange(len(of.hash_G)) - (of.start_T - found.start_T)[owner_G]
        hashes.append(of.hash_G[long_enough])
        lengths.append(length_T[owner_G[long_enough]])
        owners.append(owner_G[long_enough] + start)
        starts.append(sums_at(found.hash_W, place_G[long_enough], np.full(int(long_enough.sum()), shortest)))
    if not sum(map(len, hashes)):
        return None
    hash_G, first = np.unique(np.concatenate(hashes), return_index=True)
    bits = min(MAX_TABLE_BITS, max(MIN_TABLE_BITS, len(hash_G).bit_length() + 4))
    table = np.zeros(1 << bits, dtype=bool)
    table[np.concatenate(starts) >> np.uint64(64 - bits)] = True
    return _Grams(
        shortest=shortest,
        lengths=tuple(np.unique(np.concatenate(lengths)).tolist()),
        hash_G=hash_G,
        text_G=np.concatenate(owners)[first].astype(np.int32),
        table=table,
    )


def overlaps(index: EvaluationIndex, of: Words) -> IntArray:
    """The evaluation text that each text overlaps with, by its position in `index.names`; -1 for none. [T]"""
    found_T = np.full(len(of.start_T), -1, dtype=np.int64)
    if index.grams is None:
        return found_T
    grams = index.grams
    shift = np.uint64(64 - len(grams.table).bit_length() + 1)
    places = [np.zeros(0, dtype=np.int64)]
    for begin, sum_W in sums(of.hash_W, grams.shortest):
        places.append(np.flatnonzero(grams.table[(sum_W >> shift).view(np.int64)]) + begin)
    place_P = np.concatenate(places)
    end_T = of.start_T + of.count_T
    owner_P = np.searchsorted(end_T, place_P, side="right")
    for length in grams.lengths:
        within = place_P + length <= end_T[owner_P]
        hash_P = sums_at(of.hash_W, place_P[within], np.full(int(within.sum()), length))
        nearest = np.minimum(np.searchsorted(grams.hash_G, hash_P), len(grams.hash_G) - 1)
        hit = np.flatnonzero(grams.hash_G[nearest] == hash_P)
        texts, first = np.unique(owner_P[within][hit], return_index=True)
        new = found_T[texts] < 0
        found_T[texts[new]] = grams.text_G[nearest[hit[first]]][new]
    return found_T

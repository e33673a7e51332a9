"""Overlap of documents with evaluation sets, by n-grams of words (Brown et al. 2020, arXiv:2005.14165, appendix C).

A document goes if it shares 13 words in a row with an evaluation text, or holds all of a shorter one of 8 words or more
(a Chinese character is a word). Shorter ones are only looked for as whole documents: "a river in Germany" would take
every text that says so. The whole document goes, not a window of 200 characters as in GPT-3: documents are many and
evaluation texts few. 20 MB/s on one core beside the hashing of words; the index takes 20 bytes an n-gram.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import Field

from components.corpus.ngrams import IntArray, UintArray, Words, ngrams, words
from infra.journal.config import FrozenConfig

TABLE_BITS = 22
BATCH_TEXTS = 4096


class DecontaminationConfig(FrozenConfig):
    """How documents that overlap with evaluation texts are found."""

    ngram_words: int = Field(13, ge=5, le=100, description="words in a row that no document shares with an evaluation")
    min_words: int = Field(
        8, ge=1, le=100, description="an evaluation text shorter than ngram_words counts whole, from so many words on"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grams:
    """The n-grams of one length of all evaluation texts, in order, and the text that each is of."""

    length: int
    hash_G: UintArray
    text_G: npt.NDArray[np.int32]
    table: npt.NDArray[np.bool_]
    """By the first 22 bits: whether there is any; keeps most look-ups from being searches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationIndex:
    """What is looked for. Can be pickled into workers."""

    names: tuple[str, ...]
    """`<set> <id>` of each text."""
    digests: frozenset[bytes]
    """Of the texts themselves."""
    grams: tuple[_Grams, ...]
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


def build_index(sets: Mapping[str, Mapping[str, str]], config: DecontaminationConfig | None) -> EvaluationIndex:
    """What to look for.

    Args:
        sets: text by id, by the name of the set.
        config: without it only texts that are equal are found.
    """
    names = tuple(f"{name} {id_}" for name, texts in sets.items() for id_ in texts)
    ids = [id_ for texts in sets.values() for id_ in texts]
    grams = _grams([text for texts in sets.values() for text in texts.values()], config) if config else ()
    told = [
        config.model_dump_json() if config else "equal texts",
        *(f"{n} {set_digest(list(t))}" for n, t in sets.items()),
    ]
    return EvaluationIndex(
        names=names,
        digests=frozenset(map(bytes.fromhex, ids)),
        grams=grams,
        fingerprint=hashlib.sha256("\n".join(told).encode()).hexdigest()[:32],
    )


def _grams(texts: Sequence[str], config: DecontaminationConfig) -> tuple[_Grams, ...]:
    by_length: dict[int, list[tuple[UintArray, IntArray]]] = {}
    for start in range(0, len(texts), BATCH_TEXTS):
        found = words(texts[start : start + BATCH_TEXTS])
        for length in sorted(set(np.minimum(found.count_T, config.ngram_words).tolist())):
            if length < min(config.min_words, config.ngram_words):
                continue
            of = ngrams(found, length, short=False)
            owner_G = np.repeat(np.arange(len(of.count_T)), of.count_T)
            wanted_T = np.minimum(found.count_T, config.ngram_words) == length
            chosen = wanted_T[owner_G]
            by_length.setdefault(length, []).append((of.hash_G[chosen], owner_G[chosen] + start))
    made = []
    for length, parts in sorted(by_length.items()):
        hash_G, first = np.unique(np.concatenate([part for part, _ in parts]), return_index=True)
        table = np.zeros(1 << TABLE_BITS, dtype=bool)
        table[hash_G >> np.uint64(64 - TABLE_BITS)] = True
        text_G = np.concatenate([part for _, part in parts])[first].astype(np.int32)
        made.append(_Grams(length=length, hash_G=hash_G, text_G=text_G, table=table))
    return tuple(made)


def overlaps(index: EvaluationIndex, of: Words) -> IntArray:
    """The evaluation text that each text overlaps with, by its position in `index.names`; -1 for none. [T]"""
    found_T = np.full(len(of.start_T), -1, dtype=np.int64)
    for grams in index.grams:
        own = ngrams(of, grams.length, short=False)
        maybe = np.flatnonzero(grams.table[own.hash_G >> np.uint64(64 - TABLE_BITS)])
        places = np.minimum(np.searchsorted(grams.hash_G, own.hash_G[maybe]), max(0, len(grams.hash_G) - 1))
        hit = grams.hash_G[places] == own.hash_G[maybe]
        owner = np.searchsorted(own.start_T, maybe[hit], side="right") - 1
        texts, first = np.unique(owner, return_index=True)
        new = found_T[texts] < 0
        found_T[texts[new]] = grams.text_G[places[hit][first]][new]
    return found_T

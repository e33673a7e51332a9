"""Near-duplicates of 10,000 real documents and careless copies, against the exact similarity of all pairs."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from components.corpus import distributed
from components.corpus.config import CorpusConfig
from components.corpus.decontamination import build_index
from components.corpus.distributed import Kind, equal_pairs, similarities
from components.corpus.documents import Rules, read_facts, write_unit
from components.corpus.duplicates import cluster
from components.corpus.units import units_of
from infra.storage.units import UnitStore
from tests.components.corpus import plain_words, real_texts

Pairs = dict[tuple[int, int], float]
NOTHING = np.zeros(0, dtype=np.int64)
NGRAM_WORDS = 5


@cache
def texts() -> tuple[str, ...]:
    """Originals, and of each a copy with edits to up to 4 % of its words; in no order."""
    rng = random.Random(2)
    made = real_texts.documents(3000, 2000)
    for text in list(made):
        num_words = len(plain_words.words(text))
        made.append(real_texts.edited(text, rng.randint(0, max(1, round(0.04 * num_words))), rng))
    made = list(dict.fromkeys(" ".join(text.split()) for text in made if text.strip()))
    rng.shuffle(made)
    return tuple(made)


@cache
def exact_similarities() -> Pairs:
    """Of all pairs that share an n-gram, in plain Python."""
    grams = [set(plain_words.ngrams(text, NGRAM_WORDS)) for text in texts()]
    having: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for document, own in enumerate(grams):
        for gram in own:
            having[gram].append(document)
    shared: Counter[tuple[int, int]] = Counter()
    for documents in having.values():
        shared.update(combinations(documents, 2))
    return {(a, b): count / (len(grams[a]) + len(grams[b]) - count) for (a, b), count in shared.items()}


class MadeUnits:
    """Units of `lines`, as the step makes them."""

    def __init__(
        self, folder: Path, files: SimpleNamespace, lines: list[str], unit_bytes: int, threshold: float = 0.8
    ) -> None:
        near = {"similarity": threshold, "ngram_words": NGRAM_WORDS}
        config = CorpusConfig.model_validate({"sources": [{"path": "a"}], "near_duplicates": near})
        file = files.write(folder / "a.txt", "\n".join(lines).encode())
        self.store = UnitStore(folder=folder / "units")
        rules, index = Rules.of(config, config.sources[0]), build_index({}, None)
        self.paths = [
            self.store.put(f"{number:032x}", partial(write_unit, unit, rules, index))
            for number, unit in enumerate(units_of(file, unit_bytes=unit_bytes))
        ]
        self.first = np.cumsum([0, *(read_facts(path).num_kept for path in self.paths)])

    def pairs(self, kind: Kind, gone: list[int] | None = None) -> list[tuple[int, int]]:
        passed_over = np.array(gone or [], dtype=np.int64)
        lower, higher = equal_pairs(kind, self.paths, self.first, passed_over, self.store)
        return list(zip(lower.tolist(), higher.tolist(), strict=True))

    def similarities(self, pairs: list[tuple[int, int]]) -> list[float]:
        lower, higher = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in range(2))
        found = similarities(lower, higher, self.paths, self.first, NGRAM_WORDS, self.store)
        return [float(value) for value in found]


@pytest.fixture
def made(tmp_path: Path, files: SimpleNamespace) -> Callable[..., MadeUnits]:
    return partial(MadeUnits, tmp_path, files)


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_recall_and_precision_against_all_pairs(
    threshold: float, made: Callable[..., MadeUnits], record_property: Callable[[str, object], None]
) -> None:
    exact = exact_similarities()
    spread = Counter(int(value * 10) / 10 for value in exact.values())
    assert all(spread[step / 10] >= 300 for step in range(6, 10))  # what is asked covers 0.6 to 1
    units = made(list(texts()), 200_000, threshold)
    candidates = units.pairs("near")
    found = dict(zip(candidates, units.similarities(candidates), strict=True))
    assert len(units.paths) > 5 and int(units.first[-1]) == len(texts())
    assert all(value == exact.get(pair, 0.0) for pair, value in found.items())  # hence the precision is 1
    wanted = {pair for pair, value in exact.items() if value >= threshold}
    accepted = {pair for pair, value in found.items() if value >= threshold}
    recall, precision = len(accepted & wanted) / len(wanted), len(accepted & wanted) / len(accepted)
    gone = [
        {int(one) for one in cluster(lower, higher, np.ones(len(lower))).document_D}
        for lower, higher in (
            (np.array([pair[0] for pair in chosen]), np.array([pair[1] for pair in chosen]))
            for chosen in (sorted(wanted), sorted(accepted))
        )
    ]
    figures = {
        "documents": len(texts()),
        "pairs": len(wanted),
        "candidates": len(candidates),
        "recall": round(recall, 4),
        "precision": precision,
        "recall_of_documents": round(len(gone[0] & gone[1]) / len(gone[0]), 4),
    }
    record_property(f"threshold_{threshold}", figures)
    print(threshold, figures)
    assert recall > 0.95 and precision == 1.0 and gone[1] <= gone[0]
    assert len(candidates) < 3 * len(wanted)


def test_documents_that_are_gone_are_passed_over(made: Callable[..., MadeUnits]) -> None:
    lines = [*["the same text of a few words here"] * 6, "?", "!", *real_texts.poems()[:5]]
    for unit_bytes in (1 << 20, 50):
        units = made(lines, unit_bytes)
        assert units.pairs("equal") == list(combinations(range(6), 2))
        assert units.pairs("near", [1, 2, 4, 5]) == [(0, 3)]
        assert units.pairs("near", [0, 1, 2, 3, 4, 5]) == []  # texts without a word are near to nothing


def test_units_of_which_nothing_is_kept(made: Callable[..., MadeUnits]) -> None:
    units = made(["", "", "", "one text", "", " ", "one text", ""], 5)
    assert 0 in np.diff(units.first).tolist()
    assert units.pairs("equal") == units.pairs("near") == [(0, 1)] and units.similarities([(0, 1)]) == [1.0]
    empty = made(["", ""], 1 << 20)
    assert empty.pairs("equal") == empty.pairs("near") == [] and empty.similarities([]) == []
    store = empty.store
    assert [len(side) for side in equal_pairs("near", [], np.zeros(1, dtype=np.int64), NOTHING, store)] == [0, 0]


@pytest.mark.ray
def test_a_shuffle_and_many_chunks_give_what_one_process_gives(
    made: Callable[..., MadeUnits], ray_cluster: Mapping[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bucket of more than 32, a unit of which nothing is kept, and documents that are gone."""
    lines = [*texts()[:800], "\n" * 60_000, *(f"a page of one template that says the same {n}" for n in range(40))]
    lines += [lines[5], lines[7], lines[5]]
    units = made(lines, 20_000)
    assert 0 in np.diff(units.first).tolist()
    last = int(units.first[-1])
    equal, near = units.pairs("equal"), units.pairs("near", [5, last - 3])
    compared = units.similarities(near)
    assert len(equal) == 4 and len(near) > 200
    monkeypatch.setattr(distributed, "SHUFFLE_FROM_ROWS", 0)
    monkeypatch.setattr(distributed, "SHUFFLE_PARTITION_ROWS", 5_000)
    monkeypatch.setattr(distributed, "COMPARE_BYTES", 20_000)
    assert units.pairs("equal") == equal and units.pairs("near", [5, last - 3]) == near
    assert units.similarities(near) == compared
    nothing_left = made(["?", "!", ""], 20_000)
    assert nothing_left.pairs("near") == []

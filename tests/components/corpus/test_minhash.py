"""MinHash signatures estimate Jaccard similarities, and bands find pairs as often as their formula says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from components.corpus import minhash
from components.corpus.minhash import MAX_MINIMA, MIN_RECALL, band_shape, bands, jaccard, ngram_sets, signatures
from components.corpus.ngrams import ngrams, words
from tests.components.corpus import plain_words, real_texts


def two_texts(shared: int, own: int, rng: random.Random) -> list[str]:
    """Of single words, so that their Jaccard similarity is shared / (shared + 2 own)."""
    names = [f"w{number}" for number in rng.sample(range(10**9), shared + 2 * own)]
    return [" ".join(names[: shared + own]), " ".join([*names[:shared], *names[shared + own :]])]


@pytest.mark.parametrize(("shared", "own"), [(30, 60), (100, 50), (160, 20), (1000, 500), (9, 1)])
def test_equal_minima_are_an_unbiased_estimate_of_the_similarity(shared: int, own: int) -> None:
    """Over 200 pairs of 128 minima within four standard errors; a bias of 0.01 is beyond."""
    rng, pairs = random.Random(shared), 200
    texts = [text for _ in range(pairs) for text in two_texts(shared, own, rng)]
    found = signatures(ngrams(words(texts), 1), MAX_MINIMA)
    agreement_P = (found[0::2] == found[1::2]).mean(axis=1)
    similarity = shared / (shared + 2 * own)
    error = np.sqrt(similarity * (1 - similarity) / MAX_MINIMA)
    assert abs(agreement_P.mean() - similarity) < 4 * error / np.sqrt(pairs)
    # The minima are as good as independent of one another: the spread over pairs is the binomial one.
    assert 0.8 * error < agreement_P.std() < 1.25 * error


@pytest.mark.parametrize("threshold", [0.31, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_are_the_longest_with_the_recall_that_is_asked_for(threshold: float) -> None:
    num_bands, rows = band_shape(threshold)
    assert num_bands * rows <= MAX_MINIMA
    assert 1 - (1 - threshold**rows) ** num_bands >= MIN_RECALL
    longer = MAX_MINIMA // (rows + 1)
    assert longer == 0 or 1 - (1 - threshold ** (rows + 1)) ** longer < MIN_RECALL


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8])
def test_pairs_become_candidates_as_often_as_the_formula_says(similarity: float) -> None:
    rng, pairs = random.Random(1), 600
    shared = round(200 * similarity / (2 - similarity) * 2)
    own = round(shared * (1 - similarity) / similarity / 2)
    texts = [text for _ in range(pairs) for text in two_texts(shared, own, rng)]
    found = bands(ngrams(words(texts), 1), 0.8)
    rate = np.equal(found[0::2], found[1::2]).any(axis=1).mean()
    num_bands, rows = band_shape(0.8)
    expected = 1 - (1 - (shared / (shared + 2 * own)) ** rows) ** num_bands
    assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / pairs) + 0.003


def test_a_batch_equals_its_texts_one_by_one_wherever_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    glosses = real_texts.glosses()
    texts = ["", "?", "one", *glosses[:150], "", "; ".join(glosses[:60]), "", "; ".join(glosses[60:99]), "end", "", ""]
    of = ngrams(words(texts), 5)
    found = signatures(of, 12)
    alone = [signatures(ngrams(words([text]), 5), 12)[0] for text in texts]
    assert (found == np.stack(alone)).all()
    assert (found[[0, 1, -1, -2]] == np.iinfo(np.uint32).max).all()
    band_rows = bands(of, 0.8)
    for block in (1, 7, 100, int(of.count_T.max()), int(of.count_T.max()) + 1, 1 << 20):
        monkeypatch.setattr(minhash, "BLOCK_NGRAMS", block)
        assert (signatures(of, 12) == found).all() and (bands(of, 0.8) == band_rows).all()
    assert not band_rows[[0, 1, -1, -2]].any() and band_rows[2].any()


def test_no_texts_and_none_with_a_word() -> None:
    num_bands, _ = band_shape(0.8)
    assert bands(ngrams(words([]), 5), 0.8).shape == (0, num_bands)
    assert not bands(ngrams(words(["", "!"]), 5), 0.8).any()


@pytest.mark.parametrize("length", [1, 5])
def test_jaccard_of_ngram_sets_is_that_of_sets_of_tuples(length: int) -> None:
    rng = random.Random(3)
    originals = [*rng.sample(real_texts.glosses(), 200), *rng.sample(real_texts.poems(), 100), "", "word"]
    texts = [other for text in originals for other in (text, real_texts.edited(text, rng.randint(0, 4), rng))]
    sets = ngram_sets(ngrams(words(texts), length))
    for place in range(0, len(texts), 2):
        one, other = (set(plain_words.ngrams(text, length)) for text in texts[place : place + 2])
        expected = len(one & other) / len(one | other) if one | other else 1.0
        assert jaccard(sets[place], sets[place + 1]) == expected

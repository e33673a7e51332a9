"""The order of samples is a permutation in each epoch, and a function of seed and position only."""

from __future__ import annotations

import numpy as np
import pytest

from components.pretraining.hashing import uniform
from components.pretraining.sampler import Sampler, permute, sample_hash


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_each_epoch_reads_every_sequence_once(number: int) -> None:
    found = permute(np.arange(number), number, seed=3, epoch=1)
    assert sorted(found.tolist()) == list(range(number))


def test_epochs_and_seeds_differ() -> None:
    offsets = np.arange(500)
    first = permute(offsets, 500, seed=0, epoch=0)
    assert (first != permute(offsets, 500, seed=0, epoch=1)).mean() > 0.9
    assert (first != permute(offsets, 500, seed=1, epoch=0)).mean() > 0.9
    assert (first != offsets).mean() > 0.9


def test_neighbours_are_spread() -> None:
    found = permute(np.arange(10_000), 10_000, seed=7, epoch=0)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), found)[0, 1]) < 0.05


def test_batches_follow_one_another_over_the_end_of_an_epoch() -> None:
    sampler = Sampler(num_sequences=10, global_batch_size=4, seed=0)
    batches = [sampler.global_batch(step) for step in range(5)]
    indices = np.concatenate([indices_G for indices_G, _ in batches])
    epochs = np.concatenate([epochs_G for _, epochs_G in batches])
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert sorted(indices[:10].tolist()) == sorted(indices[10:].tolist()) == list(range(10))
    assert indices[:10].tolist() != indices[10:].tolist()


def test_a_batch_does_not_depend_on_how_it_was_reached() -> None:
    one, other = (Sampler(num_sequences=1000, global_batch_size=32, seed=5) for _ in range(2))
    for step in range(9):
        one.global_batch(step)
    assert one.global_batch(9)[0].tolist() == other.global_batch(9)[0].tolist()


def test_draws_are_uniform_and_do_not_follow_their_neighbours() -> None:
    draws = uniform(np.arange(300, dtype=np.uint64)[:, None], np.arange(300, dtype=np.uint64)[None, :])
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.01
    assert np.histogram(draws, bins=10, range=(0, 1))[0].min() > 8500


def hashed(batches: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Of all samples of the batches."""
    found = first = 0
    for indices_G, epochs_G in batches:
        found = sample_hash(found, first, indices_G, epochs_G)
        first += len(indices_G)
    return found


def test_the_hash_of_samples_does_not_depend_on_how_they_are_cut_into_batches() -> None:
    cuts = [
        [Sampler(num_sequences=50, global_batch_size=g, seed=1).global_batch(s) for s in range(120 // g)]
        for g in (1, 4, 12)
    ]
    assert len({hashed(batches) for batches in cuts}) == 1
    assert 0 < hashed(cuts[0]) < 2**52
    assert float(hashed(cuts[0])) == hashed(cuts[0])


def test_the_hash_of_samples_knows_order_epoch_and_sequence() -> None:
    indices, epochs = np.asarray([4, 9, 2]), np.asarray([0, 0, 1])
    known = sample_hash(0, 0, indices, epochs)
    assert sample_hash(0, 0, indices[[1, 0, 2]], epochs) != known
    assert sample_hash(0, 0, indices, np.asarray([0, 1, 1])) != known
    assert sample_hash(0, 0, np.asarray([4, 9, 3]), epochs) != known
    assert sample_hash(0, 1, indices, epochs) != known
    assert sample_hash(known, 3, indices, epochs) != known
    assert known == 4238153872845123  # the sum of three hashes, by Python's integers

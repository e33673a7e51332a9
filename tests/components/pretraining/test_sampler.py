"""The order of samples is a permutation in each epoch, and a function of seed and position only.

What a random permutation of N would give bounds the statistics: a correlation of ranks has a standard deviation of
1 / sqrt(N - 1), one of neighbours of about 1 / sqrt(N); a chi-square of k degrees of freedom one of sqrt(2 k) around k.
All are bounded at 4.5 standard deviations, which one in 150,000 exceeds by chance. That the samples are the same at any
world size is shown by trainings, in test_world_sizes.py and test_elastic.py.
"""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from components.pretraining.hashing import uniform
from components.pretraining.sampler import Sampler, permute, sample_hash

SIGMAS = 4.5
NUMBER = 20_011
"""A prime: the network permutes 2**16 numbers, of which most fall outside."""


@pytest.mark.parametrize(
    "number", [1, 2, 3, 4, 5, 13, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 65_537]
)
@pytest.mark.parametrize(("seed", "epoch"), [(3, 1), (0, 0)])
def test_each_epoch_reads_every_sequence_once(number: int, seed: int, epoch: int) -> None:
    found = permute(np.arange(number), number, seed=seed, epoch=epoch)
    assert sorted(found.tolist()) == list(range(number))


def test_epochs_and_seeds_differ() -> None:
    offsets = np.arange(500)
    first = permute(offsets, 500, seed=0, epoch=0)
    assert (first != permute(offsets, 500, seed=0, epoch=1)).mean() > 0.9
    assert (first != permute(offsets, 500, seed=1, epoch=0)).mean() > 0.9
    assert (first != offsets).mean() > 0.9


ORDERS = [(seed, epoch) for seed in (0, 1, 7, 2**62) for epoch in (0, 1, 2)]


def order(seed: int, epoch: int, number: int = NUMBER) -> np.ndarray:
    return permute(np.arange(number), number, seed=seed, epoch=epoch)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize(("seed", "epoch"), ORDERS)
def test_places_and_neighbours_are_uncorrelated(seed: int, epoch: int) -> None:
    found = order(seed, epoch)
    bound = SIGMAS / (NUMBER - 1) ** 0.5
    assert abs(correlation(np.arange(NUMBER), found)) < bound
    assert abs(correlation(found[:-1], found[1:])) < bound


def test_epochs_and_seeds_are_uncorrelated() -> None:
    orders = [order(seed, epoch) for seed, epoch in ORDERS]
    for one, other in itertools.combinations(orders, 2):
        assert abs(correlation(one, other)) < SIGMAS / (NUMBER - 1) ** 0.5
        same = int((one == other).sum())
        assert same < 10  # a Poisson number of mean 1, which is 10 or more once in ten million times


@pytest.mark.parametrize(("seed", "epoch"), ORDERS)
def test_each_part_of_an_epoch_reads_from_all_parts_of_the_split(seed: int, epoch: int) -> None:
    """A table of 16 parts of the epoch by 16 parts of the split; 15 * 15 degrees of freedom."""
    number = 16 * 1250
    table = np.zeros((16, 16))
    np.add.at(table, (np.arange(number) // 1250, order(seed, epoch, number) // 1250), 1)
    expected = 1250 / 16
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert abs(chi_square - 225) < SIGMAS * (2 * 225) ** 0.5


@pytest.mark.parametrize("number", [10**12, 4**20 - 1, 4**20, 4**20 + 1])
def test_a_trillion_sequences_cost_no_memory(number: int) -> None:
    sampler = Sampler(num_sequences=number, global_batch_size=1024, seed=0)
    sampler.global_batch(0)
    tracemalloc.start()
    batches = [sampler.global_batch(step)[0] for step in (0, 1, number // 1024 - 1, number // 2048)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = np.concatenate(batches)
    assert len(set(found.tolist())) == len(found)
    assert found.min() >= 0 and found.max() < number
    assert abs(found.mean() / number - 0.5) < SIGMAS / (12 * len(found)) ** 0.5
    assert peak < 512 * 1024  # some arrays of 1,024 numbers


@pytest.mark.parametrize("number", [10**12, 4**20 - 1])
def test_a_few_places_of_a_trillion_are_those_of_the_whole(number: int) -> None:
    """Asked for alone, in another order, or in a batch: a place has one sequence."""
    places = np.array([0, 1, number // 3, number - 1])
    together = permute(places, number, seed=5, epoch=2)
    assert [int(permute(places[[at]], number, seed=5, epoch=2)[0]) for at in range(4)] == together.tolist()
    assert permute(places[::-1], number, seed=5, epoch=2).tolist() == together[::-1].tolist()


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

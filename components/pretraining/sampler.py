"""The order of samples: a pure function of (seed, epoch, global position).

Each epoch is a permutation of the N sequences made by a keyed Feistel network (Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"): bijective on the next power of four, and what falls outside N is put through again (cycle
walking, under 4 rounds on average). So nothing is shuffled and no index is held: 8 bytes of state at any N, about
1 microsecond a sample in batches of 32 or more. A shuffled array is as good where N fits in memory and nobody resumes.

Shapes: G positions, N sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.pretraining.hashing import mix, uint64_of

IntArray = npt.NDArray[np.int64]
UintArray = npt.NDArray[np.uint64]
NUM_ROUNDS = 6
SAMPLE, HASH_BITS = 62, 52


def permute(offsets_G: IntArray, num_sequences: int, seed: int, epoch: int) -> IntArray:
    """Where the permutation of (seed, epoch) sends each offset; int64 [G], each in 0..num_sequences-1."""
    half_bits = max(1, (max(1, num_sequences - 1).bit_length() + 1) // 2)
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    keys = [mix(uint64_of(seed), uint64_of(epoch), uint64_of(number)) for number in range(NUM_ROUNDS)]
    values_G = offsets_G.astype(np.uint64)
    pending = np.arange(len(values_G))
    while len(pending):
        left, right = values_G[pending] >> half, values_G[pending] & mask
        for key in keys:
            left, right = right, left ^ (mix(key, right) & mask)
        values_G[pending] = (left << half) | right
        pending = pending[values_G[pending] >= num_sequences]
    return values_G.astype(np.int64)


def chain_hash(before: int, first: int, indices_G: IntArray, epochs_G: IntArray) -> int:
    """A hash of 52 bits (a double holds it) of all samples so far, in order, with those of one more global batch.

    Args:
        before: the hash of the batches before it; 0 for none.
        first: global position of its first sample.
        indices_G: sequence numbers.
        epochs_G: of each.
    """
    positions_G = np.arange(first, first + len(indices_G), dtype=np.uint64)
    words_G = mix(positions_G, epochs_G.astype(np.uint64), indices_G.astype(np.uint64))
    chained = mix(uint64_of(before), np.add.reduce(words_G, keepdims=True))
    return int(chained[0] >> np.uint64(12))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """Which sequences are in which global batch."""

    num_sequences: int
    global_batch_size: int
    seed: int

    def global_batch(self, step: int) -> tuple[IntArray, IntArray]:
        """Sequence numbers and epochs of batch `step` (from 0), both int64 [global_batch_size]."""
        first = step * self.global_batch_size
        positions_G = np.arange(first, first + self.global_batch_size, dtype=np.int64)
        epochs_G, offsets_G = np.divmod(positions_G, self.num_sequences)
        indices_G = np.empty_like(positions_G)
        for epoch in np.unique(epochs_G).tolist():
            here_G = epochs_G == epoch
            indices_G[here_G] = permute(offsets_G[here_G], self.num_sequences, self.seed, epoch)
        return indices_G, epochs_G


def sample_hash(previous: int, first_position: int, indices_G: IntArray, epochs_G: IntArray) -> int:
    """A hash of all samples read so far and their order, of 52 bits, so that a float64 holds it.

    It is a sum over samples of a hash of (position, epoch, sequence): however the samples are cut into batches, and on
    however many ranks they are read, one order gives one hash. Two runs that once differed stay different.

    Args:
        previous: what this gave for the samples before; 0 at the start.
        first_position: how many samples those were.
        indices_G: sequence numbers of the next ones, in order.
        epochs_G: their epochs.
    """
    positions_G = np.arange(first_position, first_position + len(indices_G), dtype=np.uint64)
    hashes_G = mix(uint64_of(SAMPLE), positions_G, epochs_G.astype(np.uint64), indices_G.astype(np.uint64))
    return (previous + int(hashes_G.sum(dtype=np.uint64))) % (1 << HASH_BITS)

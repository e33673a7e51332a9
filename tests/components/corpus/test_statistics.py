"""Histograms and samples of documents do not depend on how the documents are cut into parts."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa

from components.corpus.page import lengths_plot
from components.corpus.statistics import EDGES, KEPT, NEAR, DocumentStatistics, LengthHistogram, edges_of


def table(numbers: list[int]) -> pa.Table:
    digests = [hashlib.sha256(str(number).encode()).digest()[:16] for number in numbers]
    texts = [f"text {number}" for number in numbers]
    columns = {
        "digest": pa.array(digests, pa.binary(16)),
        "text": pa.array(texts, pa.large_string()),
        "num_bytes": pa.array([number % 700 for number in numbers], pa.int64()),
        "language": pa.array(["en" if number % 3 else "zh" for number in numbers]),
    }
    return pa.table(columns)


def counted(parts: list[list[int]]) -> DocumentStatistics:
    total = DocumentStatistics()
    for numbers in parts:
        part = DocumentStatistics()
        fate = np.array([NEAR if number % 10 == 0 else KEPT for number in numbers], dtype=np.uint8)
        half = len(numbers) // 2  # slices have an offset in their buffers
        whole = table(numbers)
        part.add(whole.slice(0, half), fate[:half], "s")
        part.add(whole.slice(half), fate[half:], "s")
        total.merge(part)
    return total


def test_counts_and_samples_are_the_same_for_any_parts() -> None:
    numbers = list(range(1000))
    mixed = random.Random(0).sample(numbers, len(numbers))
    one, many = counted([numbers]), counted([mixed[:7], mixed[7:8], mixed[8:400], [], mixed[400:]])
    assert one.samples == many.samples and len({sample.id for sample in one.samples}) == 20
    assert all(int(sample.text.split()[1]) % 10 for sample in one.samples), "of documents that are kept"
    assert one.languages == many.languages and one.languages.total() == 900
    assert one.languages["s", "zh"] == sum(number % 10 > 0 and number % 3 == 0 for number in numbers)
    for fate in (KEPT, NEAR):
        assert one.of_fate(fate).counts_K.tolist() == many.of_fate(fate).counts_K.tolist()
    assert (one.of_fate(NEAR).num, one.of_fate(KEPT, "s").num, one.of_fate(KEPT, "other").num) == (100, 900, 0)


def test_a_histogram_knows_quantiles_to_five_percent() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 2, 5000).astype(np.int64)
    histogram = LengthHistogram()
    for part in np.split(lengths, 5):
        histogram.add(part)
    assert (histogram.num, histogram.least, histogram.most) == (5000, lengths.min(), lengths.max())
    assert histogram.mean == lengths.mean()
    for share in (0.1, 0.5, 0.9, 0.99):
        assert abs(histogram.quantile(share) / np.quantile(lengths, share) - 1) < 0.05
    small = LengthHistogram()
    small.add(np.arange(22))
    assert [small.quantile((i + 1) / 22) for i in range(22)] == list(range(22)), "exact"
    for per_octave in (4, 8, 16):
        edges = np.append(edges_of(per_octave), EDGES[-1] + 1)
        assert histogram.by_octave(per_octave).tolist() == np.histogram(lengths, edges)[0].tolist()


def test_lengths_of_nothing_and_of_one_are_drawn() -> None:
    one, zero = LengthHistogram(), LengthHistogram()
    one.add(np.array([5]))
    zero.add(np.array([0, 0]))
    assert lengths_plot({"empty": LengthHistogram()}, "bytes") == '<p class="soft">None.</p>'
    plot = lengths_plot({"one": one, "zero": zero, "empty": LengthHistogram()}, "bytes")
    assert "one: 1 of 5 bytes" in plot and "zero: 2 of 0 bytes" in plot and "nan" not in plot and "inf" not in plot

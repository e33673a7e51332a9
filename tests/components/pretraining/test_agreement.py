"""Ranks that disagree are named."""

from __future__ import annotations

import re

import numpy as np
import pytest

from components.pretraining.health.agreement import check_same, check_step, disagreement, sample_digest, shown_samples
from infra.errors import ConfigError, InfrastructureError


def test_the_ranks_and_their_values_are_in_one_line() -> None:
    assert disagreement("count", [4, 4, 4]) is None
    told = disagreement("count", [4, 3, 4, 4])
    assert told == "the ranks disagree on the count: 4 on ranks 0, 2, 3; 3 on rank 1"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("digest of the token shards", ConfigError),
        ("version of torch", ConfigError),
        ("number of micro batches", InfrastructureError),
    ],
)
def test_every_difference_at_the_start_is_told(name: str, error: type[Exception]) -> None:
    same = {"kind of device": "cpu", name: "a"}
    check_same([same, same])
    with pytest.raises(error, match=re.escape(f"disagree on the {name}: a on rank 0; b on rank 1: ")):
        check_same([same, {**same, name: "b"}])


def test_another_batch_count_or_other_samples_stop_the_step() -> None:
    check_step([[4.0, 99.0], [4.0, 99.0]], 7)
    with pytest.raises(InfrastructureError, match=r"step 7: .* number of micro batches: 4 on rank 0; 5 on rank 1"):
        check_step([[4.0, 99.0], [5.0, 99.0]], 7)
    with pytest.raises(InfrastructureError, match="sample ids: 99 on ranks 0, 2; 98 on rank 1"):
        check_step([[4.0, 99.0], [4.0, 98.0], [4.0, 99.0]], 7)


def test_a_digest_is_exact_in_a_float64_and_of_step_order_and_epochs() -> None:
    ids, epochs = np.arange(8), np.zeros(8, dtype=np.int64)
    told = {
        sample_digest(0, ids, epochs),
        sample_digest(1, ids, epochs),
        sample_digest(0, ids[::-1], epochs),
        sample_digest(0, ids, epochs + 1),
    }
    assert len(told) == 4
    assert all(int(float(one)) == one for one in told)


def test_samples_are_shown_by_epoch_and_cut() -> None:
    told = shown_samples(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), most=3)
    assert told == "sequences 0, 1, 2, and 1 more of epoch 0; sequences 4, 5 of epoch 1"

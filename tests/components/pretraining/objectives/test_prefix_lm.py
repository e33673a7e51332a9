"""Prefix LM: by hand, and prefixes of every length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from components.pretraining.batches import Batch, attention_mask
from components.pretraining.objectives.prefix_lm import PrefixLm


def test_targets_attention_and_loss_by_hand(by_hand: ModuleType) -> None:
    """`<s> 5 6 </s>` has a prefix of 1, 2 or 3 tokens. With 2, `6 </s>` are the targets, and of a model with p(6) = 1/8
    and p(</s>) = 1/2 the loss is (ln 8 + ln 2) / 2 = 2 ln 2."""
    found = {}
    for epoch in range(40):
        made = PrefixLm(vocabulary=by_hand.VOCABULARY).prepare(by_hand.sequences([[[2, 5, 6, 3]]], 5, epoch=epoch))
        found[int(made.prefix_BL.sum())] = made
    assert sorted(found) == [1, 2, 3]
    assert {length: by_hand.target_ids(made) for length, made in found.items()} == {1: [5, 6, 3], 2: [6, 3], 3: [3]}
    assert found[2].mask_BX[0].tolist() == [False, True, True, False, False]
    assert by_hand.unigram_loss(found[2], {6: 1 / 8, 3: 1 / 2}) == pytest.approx(2 * math.log(2))
    seen = attention_mask(found[2].segments_BL, causal=True, prefix_BL=found[2].prefix_BL)[0, 0]
    assert seen.astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_prefix_of_another_document_is_not_seen(by_hand: ModuleType) -> None:
    made = PrefixLm(vocabulary=by_hand.VOCABULARY).prepare(by_hand.sequences([[[2, 5, 6, 3], [2, 7, 3]]], 7))
    seen = attention_mask(made.segments_BL, causal=True, prefix_BL=made.prefix_BL)[0, 0]
    assert not seen[:4, 4:].any() and not seen[4:, :4].any()


def test_every_length_is_as_likely(by_hand: ModuleType) -> None:
    made = PrefixLm(vocabulary=by_hand.VOCABULARY).prepare(by_hand.sequences([[[2, 5, 6, 7, 8, 3]]] * 1500, 6))
    counts = Counter(made.prefix_BL.sum(axis=1).tolist())
    assert sorted(counts) == [1, 2, 3, 4, 5]
    assert all(abs(count - 300) < 62 for count in counts.values())


def test_half_of_real_text_is_predicted(text_batch: Callable[..., Batch]) -> None:
    prefix, whole = (text_batch(name, range(400)) for name in ("prefix_lm", "causal_lm"))
    assert len(prefix.target_ids_T) / len(whole.target_ids_T) == pytest.approx(0.5, abs=0.04)
    assert np.isin(prefix.target_positions_T.numpy(), whole.target_positions_T.numpy()).all()

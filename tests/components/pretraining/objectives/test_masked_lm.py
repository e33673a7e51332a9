"""Masks of tokens, words and spans: by hand, and their rates on real text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from components.pretraining.batches import Batch
from components.pretraining.objectives.masked_lm import MaskedLm
from components.tokenization.shards import TokenShards
from components.tokenization.words import WordTable, read_word_table

ALL = range(400)


def test_tokens_by_hand(by_hand: ModuleType) -> None:
    """One sequence, `<s> 5 6 7 8 </s>` and `<s> 9 </s>`; each draw done again in Python's integers."""
    row = [[2, 5, 6, 7, 8, 3], [2, 9, 3]]
    found = MaskedLm(vocabulary=by_hand.VOCABULARY, masking_rate=0.5, seed=3).prepare(
        by_hand.sequences([row], 10, indices=[17], epoch=2)
    )
    key = by_hand.sequence_key(3, 2, 17)
    tokens = [2, 5, 6, 7, 8, 3, 2, 9, 3, 0]
    text_ids = [1, *range(5, 40)]
    expected, chosen = list(tokens), []
    for column, token in enumerate(tokens):
        if token > 4 and by_hand.uniform(key, column, 1) < 0.5:
            chosen.append(column)
            draw = by_hand.uniform(key, column, 2)
            if draw < 0.8:
                expected[column] = 4
            elif draw < 0.9:
                expected[column] = text_ids[by_hand.mix(key, column, 3) % len(text_ids)]
    assert 0 < len(chosen) < 5
    assert np.flatnonzero(found.mask_BX[0]).tolist() == chosen
    assert found.inputs_BL[0].tolist() == expected
    assert by_hand.target_ids(found) == [tokens[column] for column in chosen]


def test_the_loss_by_hand(by_hand: ModuleType) -> None:
    """With nearly all text hidden, 5 5 6 are the targets: of a model that gives p(5) = 1/2 and p(6) = 1/8 everywhere
    the loss is (ln 2 + ln 2 + ln 8) / 3 = 5/3 ln 2."""
    found = MaskedLm(vocabulary=by_hand.VOCABULARY, masking_rate=1 - 1e-9).prepare(
        by_hand.sequences([[[2, 5, 3], [2, 5, 6, 3]]], 8)
    )
    assert by_hand.target_ids(found) == [5, 5, 6]
    assert by_hand.unigram_loss(found, {5: 1 / 2, 6: 1 / 8}) == pytest.approx(5 / 3 * math.log(2))


def test_whole_words_by_hand(by_hand: ModuleType, words: WordTable) -> None:
    """`<s> 5 20 21 6 7 22 </s>` has the words (5 20 21), (6), (7 22): each goes by the draw of its first column."""
    for epoch in range(20):
        found = MaskedLm(vocabulary=by_hand.VOCABULARY, masking_rate=0.5, unit="word", words=words).prepare(
            by_hand.sequences([[[2, 5, 20, 21, 6, 7, 22, 3]]], 8, epoch=epoch)
        )
        key = by_hand.sequence_key(0, epoch, 0)
        goes = {first: by_hand.uniform(key, first, 1) < 0.5 for first in (1, 4, 5)}
        firsts = [None, 1, 1, 1, 4, 5, 5, None]
        assert found.mask_BX[0].tolist() == [first is not None and goes[first] for first in firsts]


def test_spans_by_hand(by_hand: ModuleType, words: WordTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five words (5 20), (6), (7), (8 21 22), (9); one span of two words after the first word that stays."""
    from components.pretraining.objectives import masked_lm

    monkeypatch.setattr(masked_lm, "draw_lengths", lambda *_: (np.asarray([2]), np.asarray([1])))
    monkeypatch.setattr(masked_lm, "interleave", lambda *_: np.asarray([False, True, False, False]))
    found = MaskedLm(
        vocabulary=by_hand.VOCABULARY, masking_rate=0.4, mask_token_fraction=1.0, unit="span", words=words
    ).prepare(by_hand.sequences([[[2, 5, 20, 6, 7, 8, 21, 22, 9, 3]]], 10))
    assert found.inputs_BL[0].tolist() == [2, 5, 20, 4, 4, 8, 21, 22, 9, 3]
    assert by_hand.target_ids(found) == [6, 7]


def originals(data: Path) -> Any:
    return TokenShards(data / "token_shards", "train").tokens(np.asarray(ALL))


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_rates_on_real_text(text_batch: Callable[..., Batch], text_data: Path, unit: str) -> None:
    batch = text_batch("masked_lm", ALL, masking_unit=unit, masking_rate=0.15, mean_span_length=3.8)
    tokens = originals(text_data)
    shown, targets = batch.input_ids_BL.numpy(), batch.target_positions_T.numpy()
    was, now = tokens.ravel()[targets], shown.ravel()[targets]
    assert (was == batch.target_ids_T.numpy()).all()
    assert was.min() > 4
    assert len(targets) / (tokens > 4).sum() == pytest.approx(0.15, abs=0.01)
    assert (now == 4).mean() == pytest.approx(0.8, abs=0.03)
    assert ((now != 4) & (now != was)).mean() == pytest.approx(0.1, abs=0.025)
    others = np.ones(tokens.size, dtype=bool)
    others[targets] = False
    assert (tokens.ravel()[others] == shown.ravel()[others]).all()


def test_words_are_hidden_whole_and_spans_have_whole_words(text_batch: Callable[..., Batch], text_data: Path) -> None:
    shards = TokenShards(text_data / "token_shards", "train")
    tokens, segments = shards.tokens(np.asarray(ALL)), shards.segments(np.asarray(ALL))
    begins = np.ones(tokens.shape, dtype=bool)
    begins[:, 1:] = np.diff(segments) != 0
    table = read_word_table(text_data / "tokenizer")
    starts = table.word_starts(tokens.ravel(), (tokens > 4).ravel(), begins.ravel())
    text = (tokens > 4).ravel()
    word = np.cumsum(starts)[text]
    runs = {}
    for unit in ("word", "span"):
        batch = text_batch("masked_lm", ALL, masking_unit=unit, masking_rate=0.15, mean_span_length=3.8)
        hidden = np.zeros(text.size, dtype=bool)
        hidden[batch.target_positions_T.numpy()] = True
        share = np.bincount(word, hidden[text]) / np.maximum(1, np.bincount(word))
        assert set(np.unique(share)) == {0.0, 1.0}
        edges = np.diff(share, prepend=0)
        runs[unit] = share.sum() / (edges > 0).sum()
    assert runs["word"] == pytest.approx(1 / 0.85, rel=0.04)  # words hidden in a row by chance
    # Spans that touch make longer runs, and budgets cut the last span of a text.
    assert 3.0 < runs["span"] < 4.5


def test_a_span_is_shown_in_one_way(text_batch: Callable[..., Batch]) -> None:
    """With no random tokens, a run is hidden whole or, where it is shown as it is, whole: spans that touch may differ,
    so nearly all."""
    batch = text_batch("masked_lm", ALL, masking_unit="span", masking_rate=0.1, random_token_fraction=0.0)
    at = batch.target_positions_T.numpy()
    hidden = batch.input_ids_BL.numpy().ravel()[at] == 4
    neighbours = np.diff(at) == 1
    assert (hidden[1:] == hidden[:-1])[neighbours].mean() > 0.95
    assert hidden.mean() == pytest.approx(0.8, abs=0.04)


def test_static_masks_are_the_same_in_every_epoch(text_batch: Callable[..., Batch]) -> None:
    for objective in ("masked_lm", "masked_lm_nsp"):
        first = text_batch(objective, [1, 2], dynamic_masking=False)
        again = text_batch(objective, [1, 2], epoch=5, dynamic_masking=False)
        other = text_batch(objective, [1, 2], epoch=5)
        assert first.input_ids_BL.tolist() == again.input_ids_BL.tolist()
        assert first.input_ids_BL.tolist() != other.input_ids_BL.tolist()

"""Denoising: each noise by hand, all of them together on any documents, and rates on real text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.pretraining.batches import Batch
from components.pretraining.config import Noise
from components.pretraining.objectives import denoising
from components.pretraining.objectives.denoising import Denoising


def shown(by_hand: ModuleType, made: Any) -> list[list[list[int]]]:
    found: list[list[list[int]]] = by_hand.documents(made.inputs_BL, made.segments_BL)
    return found


def corrupt(
    by_hand: ModuleType, noise: tuple[str, ...], row: Any, rate: float = 0.3, number: int = 1, **more: Any
) -> Any:
    objective = Denoising(vocabulary=by_hand.VOCABULARY, noise=noise, masking_rate=rate, **more)  # type: ignore[arg-type]
    width = sum(map(len, row))
    return objective.prepare(by_hand.sequences([row] * number, width, indices=list(range(number))))


def test_the_decoder_says_the_document_and_the_loss_by_hand(by_hand: ModuleType) -> None:
    """Targets are `<s> 5 6 </s>` whatever the encoder sees. Of a model with p(<s>) = p(</s>) = 1/2 and 1/8 for text the
    loss is (2 ln 2 + 2 ln 8) / 4 = 2 ln 2."""
    made = corrupt(by_hand, ("token_masking",), [[2, 5, 6, 3]], rate=1 - 1e-9)
    assert shown(by_hand, made) == [[[2, 4, 4, 3]]]
    assert by_hand.target_ids(made) == [2, 5, 6, 3]
    assert made.decoder.inputs_BM[0].tolist() == [3, 2, 5, 6]
    assert by_hand.unigram_loss(made, {2: 1 / 2, 3: 1 / 2, 5: 1 / 8, 6: 1 / 8}) == pytest.approx(2 * math.log(2))


def test_infilling_by_hand(by_hand: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """BART's Figure 2: `A B C D E` becomes `A _ D _ E`: B C are one <mask>, and one stands for nothing."""
    monkeypatch.setattr(denoising, "draw_lengths", lambda *_: (np.asarray([2, 0]), np.asarray([2])))
    monkeypatch.setattr(denoising, "interleave", lambda *_: np.asarray([False, True, False, True, False]))
    monkeypatch.setattr(denoising, "uniform", lambda *_: np.asarray([0.0]))
    made = corrupt(by_hand, ("text_infilling",), [[2, 10, 11, 12, 13, 14, 3]], rate=0.4)
    assert shown(by_hand, made) == [[[2, 10, 4, 13, 4, 14, 3]]]
    assert by_hand.target_ids(made) == [2, 10, 11, 12, 13, 14, 3]


def test_sentences_are_permuted_whole_each_order_as_likely(by_hand: ModuleType) -> None:
    row = [[2, 5, 20, 30, 6, 31, 7, 8, 3]]
    made = corrupt(by_hand, ("sentence_permutation",), row, number=1200)
    parts = ((5, 20, 30), (6, 31), (7, 8))
    counts = Counter(tuple(document[1:-1]) for (document,) in shown(by_hand, made))
    orders = {
        sum((parts[i] for i in order), ())
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    }
    assert set(counts) == orders
    assert all(abs(count - 200) < 55 for count in counts.values())


def test_a_document_is_rotated_to_each_token_as_likely(by_hand: ModuleType) -> None:
    made = corrupt(by_hand, ("document_rotation",), [[2, 5, 6, 7, 3]], number=900)
    counts = Counter(tuple(document) for (document,) in shown(by_hand, made))
    assert set(counts) == {(2, 5, 6, 7, 3), (2, 6, 7, 5, 3), (2, 7, 5, 6, 3)}
    assert all(abs(count - 300) < 60 for count in counts.values())


def test_deletion_takes_tokens_away(by_hand: ModuleType) -> None:
    made = corrupt(by_hand, ("token_deletion",), [[2, *range(5, 35), 3]], number=300)
    lengths = []
    for (document,) in shown(by_hand, made):
        assert document[0] == 2 and document[-1] == 3
        assert document == [*sorted(document[:-1]), 3]  # in order, as they were
        lengths.append(len(document) - 2)
    assert np.mean(lengths) == pytest.approx(0.7 * 30, abs=0.6)


def test_a_piece_without_ends_keeps_a_token(by_hand: ModuleType) -> None:
    made = corrupt(by_hand, ("token_deletion",), [[5, 6]], rate=1 - 1e-9)
    assert shown(by_hand, made) == [[[5]]]


documents = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(5, 39), max_size=30), st.booleans()).map(
        lambda told: [2] * told[0] + told[1] + [3] * told[2] or [5]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(documents, min_size=1, max_size=3),
    noise=st.sets(st.sampled_from(get_args(Noise)), min_size=1),
    rate=st.floats(0.05, 0.95),
    mean=st.floats(1, 9),
    seed=st.integers(0, 1000),
)
def test_any_noise_keeps_the_target_and_never_grows(
    by_hand: ModuleType, rows: Any, noise: set[Any], rate: float, mean: float, seed: int
) -> None:
    width = max(sum(map(len, row)) for row in rows)
    objective = Denoising(
        vocabulary=by_hand.VOCABULARY,
        noise=tuple(sorted(noise)),
        masking_rate=rate,
        mean_span_length=mean,
        seed=seed,
    )
    made = objective.prepare(by_hand.sequences(rows, width))
    assert by_hand.documents(made.labels_BX, made.decoder.segments_BM) == rows
    assert made.inputs_BL.shape[1] <= width
    for was, now in zip(rows, shown(by_hand, made), strict=True):
        for document, corrupted in zip(was, now, strict=True):
            assert 1 <= len(corrupted) <= len(document)
            assert not Counter(token for token in corrupted if token != 4) - Counter(document)
            assert corrupted.count(2) == document.count(2) and corrupted.count(3) == document.count(3)
            if not noise & set(denoising.TOKEN_NOISES):
                assert Counter(corrupted) == Counter(document)


@pytest.mark.parametrize(
    "noise",
    [
        ["text_infilling"],
        ["token_masking"],
        ["token_deletion"],
        ["text_infilling", "sentence_permutation"],
        ["token_masking", "token_deletion", "text_infilling", "document_rotation"],
    ],
)
def test_the_token_noises_hide_the_rate_together_on_real_text(
    text_batch: Callable[..., Batch], noise: list[str]
) -> None:
    batch = text_batch("denoising", range(400), masking_rate=0.3, noise=noise)
    left = (batch.input_ids_BL > 4).sum().item()
    text = (batch.target_ids_T > 4).sum().item()
    assert 1 - left / text == pytest.approx(0.3, abs=0.01)
    if noise[0] == "text_infilling":
        # E[length] = 3; the last span of a text is cut, which makes a few more of them
        assert 2.5 < (text - left) / (batch.input_ids_BL == 4).sum().item() < 3.0

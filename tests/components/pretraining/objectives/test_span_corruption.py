"""Span corruption: the example of the T5 paper, the counts of its code, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.pretraining.batches import Batch
from components.pretraining.objectives.objective import BoolArray
from components.pretraining.objectives.ragged import Documents
from components.pretraining.objectives.span_corruption import SpanCorruption


class Chosen(SpanCorruption):
    """With the noise of the paper's Figure 2: "Thank you [for inviting] me to your party [last] week"."""

    def noise(self, documents: Documents) -> BoolArray:
        return np.isin(documents.tokens_N, [7, 8, 13, 16])


def test_the_example_of_the_paper(by_hand: ModuleType) -> None:
    """Figure 2 as tokens 5 to 14, and a second document `<s> 15 16 </s>` of which 16 goes. Sentinels are 40, 41, ...

    Of a model that gives each sentinel 1/4, </s> 1/2 and each text token 1/8 the loss is, over 9 targets,
    (3 ln 4 + 2 ln 2 + 4 ln 8) / 9 = 20/9 ln 2.
    """
    row = [[2, *range(5, 15), 3], [2, 15, 16, 3]]
    found = Chosen(vocabulary=by_hand.VOCABULARY, masking_rate=0.3).prepare(by_hand.sequences([row], 20))
    assert by_hand.documents(found.inputs_BL, found.segments_BL) == [
        [[2, 5, 6, 40, 9, 10, 11, 12, 41, 14, 3], [2, 15, 40, 3]]
    ]
    assert by_hand.documents(found.labels_BX, found.decoder.segments_BM) == [[[40, 7, 8, 41, 13, 3], [40, 16, 3]]]
    assert by_hand.documents(found.decoder.inputs_BM, found.decoder.segments_BM) == [
        [[0, 40, 7, 8, 41, 13], [0, 40, 16]]
    ]
    chances = {3: 1 / 2, **dict.fromkeys((40, 41), 1 / 4), **dict.fromkeys(range(5, 20), 1 / 8)}
    assert by_hand.unigram_loss(found, chances) == pytest.approx(20 / 9 * math.log(2))


def t5_noise_mask(length: int, density: float, mean: float, generator: Any) -> Any:
    """`random_spans_noise_mask` of the t5 code (t5/data/preprocessors.py), in numpy."""
    original, length = length, max(length, 2)
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean), 1)

    def segmentation(items: int, segments: int) -> Any:
        first = np.arange(items - 1) < segments - 1
        generator.shuffle(first)
        return np.bincount(np.cumsum(np.concatenate([[0], first])))

    interleaved = np.stack([segmentation(length - noise, spans), segmentation(noise, spans)], axis=1).ravel()
    starts = np.zeros(length, dtype=int)
    starts[np.cumsum(interleaved)[:-1]] = 1
    return (np.cumsum(starts) % 2 == 1)[:original]


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.5, 8.0)])
@pytest.mark.parametrize("length", [2, 3, 10, 57, 120])
def test_noise_is_distributed_as_in_the_code_of_t5(by_hand: ModuleType, rate: float, mean: float, length: int) -> None:
    """How many tokens and spans exactly, and how often each place is noise."""
    number = 400
    row = [[2, *([5] * length), 3]]
    objective = SpanCorruption(vocabulary=by_hand.VOCABULARY, masking_rate=rate, mean_span_length=mean)
    made = objective.prepare(by_hand.sequences([row] * number, length + 2, indices=list(range(number))))
    outputs = by_hand.documents(made.labels_BX, made.decoder.segments_BM)
    generator = np.random.default_rng(0)
    reference = np.stack([t5_noise_mask(length, rate, mean, generator) for _ in range(number)])
    spans = int((np.diff(reference[0], prepend=False) & reference[0]).sum())
    for (output,) in outputs:
        assert sum(token >= 40 for token in output) == spans
        assert output.count(5) == reference[0].sum()
    # How often each place is noise: from the inputs, with the spans' lengths from the outputs.
    ours = np.zeros((number, length), dtype=bool)
    for row_index, ((inputs,), (output,)) in enumerate(
        zip(by_hand.documents(made.inputs_BL, made.segments_BL), outputs, strict=True)
    ):
        lengths = [len(part) for part in split_at_sentinels(output[:-1]).values()]
        at = 0
        for token in inputs[1:-1]:
            if token >= 40:
                ours[row_index, at : at + lengths[token - 40]] = True
                at += lengths[token - 40]
            else:
                at += 1
        assert at == length
    assert not ours[:, 0].any() and ours[:, -1].all()
    assert np.abs(ours.mean(axis=0) - reference.mean(axis=0)).max() < 0.15


def split_at_sentinels(output: list[int]) -> dict[int, list[int]]:
    """The text after each sentinel."""
    found: dict[int, list[int]] = {}
    for token in output:
        if token >= 40:
            found[token] = []
            last = token
        else:
            found[last].append(token)
    return found


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
    rate=st.floats(0.05, 0.7),
    mean=st.floats(1, 9),
    epoch=st.integers(0, 99),
)
def test_inputs_and_targets_give_the_document_back(
    by_hand: ModuleType, rows: Any, rate: float, mean: float, epoch: int
) -> None:
    width = max(sum(map(len, row)) for row in rows)
    made = SpanCorruption(vocabulary=by_hand.VOCABULARY, masking_rate=rate, mean_span_length=mean).prepare(
        by_hand.sequences(rows, width, epoch=epoch)
    )
    assert made.inputs_BL.shape[1] <= width
    inputs = by_hand.documents(made.inputs_BL, made.segments_BL)
    for row, (was, shown) in enumerate(zip(rows, inputs, strict=True)):
        assert len(was) == len(shown)
        for number, (document, now) in enumerate(zip(was, shown, strict=True), start=1):
            output = made.labels_BX[row][made.decoder.segments_BM[row] == number].tolist()
            read = made.decoder.inputs_BM[row][made.decoder.segments_BM[row] == number].tolist()
            if not output:
                assert now == document
                continue
            assert output[-1] == 3
            assert read == [0, *output[:-1]]
            taken = split_at_sentinels(output[:-1])
            assert list(taken) == [40 + n for n in range(len(taken))] == [token for token in now if token >= 40]
            assert [t for token in now for t in taken.get(token, [token])] == document
            assert not any(token in (0, 2, 3, 4) for part in taken.values() for token in part)


def test_rates_on_real_text(text_batch: Callable[..., Batch]) -> None:
    batch = text_batch("span_corruption", range(400), masking_rate=0.15)
    targets = batch.target_ids_T.numpy()
    text, sentinels = ((targets > 4) & (targets < 1024)).sum(), (targets >= 1024).sum()
    kept = ((batch.input_ids_BL > 4) & (batch.input_ids_BL < 1024)).sum().item()
    assert text / (text + kept) == pytest.approx(0.15, abs=0.01)
    assert text / sentinels == pytest.approx(3.0, abs=0.15)
    assert batch.decoder_input_ids_BM.shape[1] % 32 == 0
    assert batch.decoder_input_ids_BM.shape[1] < 64
    assert batch.input_ids_BL.shape[1] <= 128

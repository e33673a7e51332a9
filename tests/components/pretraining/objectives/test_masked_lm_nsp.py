"""Next-sentence prediction: pairs by hand, and half of them true on real text."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.pretraining.batches import Batch
from components.pretraining.objectives.masked_lm import MaskedLm
from components.pretraining.objectives.masked_lm_nsp import MaskedLmNsp
from components.tokenization.words import WordTable, read_word_table


def prepared(by_hand: ModuleType, words: WordTable, row: Any, partner: Any, epoch: int, width: int) -> Any:
    """With hardly any token hidden."""
    masked_lm = MaskedLm(vocabulary=by_hand.VOCABULARY, masking_rate=1e-12)
    given_ = by_hand.sequences([row], width, epoch=epoch, partners=by_hand.sequences([partner], width, epoch=epoch))
    return MaskedLmNsp(masked_lm=masked_lm, words=words).prepare(given_)


def both(by_hand: ModuleType, words: WordTable, row: Any, partner: Any, width: int) -> dict[int, Any]:
    """What is made of it with each label."""
    found: dict[int, Any] = {}
    for epoch in range(40):
        made = prepared(by_hand, words, row, partner, epoch, width)
        found.setdefault(int(made.pair_labels_P[0]), made)
    return found


def test_a_pair_by_hand(by_hand: ModuleType, words: WordTable) -> None:
    """`<s> 5 6 30 | 7 8 </s>`: a sentence ends at 30, and the padding has room for the separator. Of the partner
    `<s> 10 11 12 | 13 14 15 </s>`, without a sentence end, the second half is taken. Its 3 tokens and the 2 of `7 8`
    are both cut to 1."""
    row, partner = [[2, 5, 6, 30, 7, 8, 3], [2, 9, 3]], [[2, 10, 11, 12, 13, 14, 15, 3]]
    found = both(by_hand, words, row, partner, 13)
    for label, ends in ((0, (7, 8)), (1, (13, 15))):
        made = found[label]
        assert made.inputs_BL[0].tolist() in [[2, 5, 6, 30, 3, end, 3, 2, 9, 3, 0, 0, 0] for end in ends]
        assert made.token_types_BL[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
        assert made.segments_BL[0].tolist() == [1] * 7 + [2] * 3 + [0] * 3
        assert made.pair_positions_P.tolist() == [0]  # `<s> 9 </s>` is too short for a pair
        assert made.pair_labels_P.tolist() == [label]


def test_candidates_of_one_length_are_not_cut(by_hand: ModuleType, words: WordTable) -> None:
    found = both(by_hand, words, [[2, 5, 6, 30, 7, 8, 9, 3]], [[2, 10, 11, 12, 13, 14, 15, 3]], 9)
    assert found[0].inputs_BL[0].tolist() == [2, 5, 6, 30, 3, 7, 8, 9, 3]
    assert found[1].inputs_BL[0].tolist() == [2, 5, 6, 30, 3, 13, 14, 15, 3]


def test_without_padding_the_longer_segment_is_cut(by_hand: ModuleType, words: WordTable) -> None:
    """`<s> 5 6 7 30 | 8 9 </s>` in 8 places, with a candidate as long: five tokens must do, so A loses one."""
    found = both(by_hand, words, [[2, 5, 6, 7, 30, 8, 9, 3]], [[2, 10, 11, 30, 13, 14, 3]], 8)
    for label, second in ((0, [8, 9]), (1, [13, 14])):
        assert found[label].inputs_BL[0].tolist() in [[2, *a, 3, *second, 3] for a in ([5, 6, 7], [6, 7, 30])]


def test_a_partner_without_text_gives_no_pairs(by_hand: ModuleType, words: WordTable) -> None:
    """Else all pairs beside it would be true ones, and uncut."""
    row = [[2, 5, 6, 30, 7, 8, 3]]
    made = [prepared(by_hand, words, row, [[2, 9, 3]], epoch, 8) for epoch in range(5)]
    assert all(len(one.pair_positions_P) == 0 and one.inputs_BL[0, :7].tolist() == row[0] for one in made)


def truncated(a: int, b: int, most: int) -> tuple[int, int]:
    """Lengths after BERT's `truncate_seq_pair`."""
    while a + b > most:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30))
def test_lengths_are_cut_as_bert_cuts_them(a: int, b: int, cut: int) -> None:
    most = max(2, a + b - cut)
    kept_a = min(a, max(most - b, -(-most // 2)))
    assert (kept_a, min(b, most - kept_a)) == truncated(a, b, most)


def test_every_sentence_end_is_as_likely(by_hand: ModuleType, words: WordTable) -> None:
    row = [[2, 5, 30, 6, 31, 7, 32, 8, 3]]
    ends = [
        made.inputs_BL[0].tolist().index(3) - 1
        for epoch in range(600)
        if (made := prepared(by_hand, words, row, row, epoch, 12)).pair_labels_P[0] == 0
    ]
    counts = {end: ends.count(end) for end in set(ends)}
    assert set(counts) == {2, 4, 6}
    assert all(abs(count - len(ends) / 3) < 40 for count in counts.values())


def test_a_split_with_one_sequence_gives_no_pairs(by_hand: ModuleType, words: WordTable) -> None:
    objective = MaskedLmNsp(masked_lm=MaskedLm(vocabulary=by_hand.VOCABULARY, masking_rate=0.5), words=words)
    alone = by_hand.sequences([[[2, 5, 6, 30, 7, 8, 3]]], 8)
    assert objective.partner_indices(alone, 1, validation=False) is None
    found = objective.prepare(alone)
    assert len(found.pair_positions_P) == len(found.pair_labels_P) == 0
    assert (found.labels_BX == alone.tokens_BL).all()


def test_partners_are_other_sequences(by_hand: ModuleType, words: WordTable) -> None:
    objective = MaskedLmNsp(masked_lm=MaskedLm(vocabulary=by_hand.VOCABULARY, masking_rate=0.5), words=words)
    given_ = by_hand.sequences([[[2, 5, 3]]] * 500, 4, indices=list(range(500)))
    found = objective.partner_indices(given_, 500, validation=False)
    assert (found != np.arange(500)).all()
    assert found.min() >= 0 and found.max() < 500
    assert len(set(found.tolist())) > 280  # 1 - 1/e of them


def test_half_of_the_pairs_are_true_on_real_text(text_batch: Callable[..., Batch]) -> None:
    labels = []
    for epoch in range(3):
        batch = text_batch("masked_lm_nsp", range(500), epoch=epoch)
        labels.append(batch.pair_labels_P.numpy())
        first = batch.input_ids_BL.reshape(-1)[batch.pair_positions_P]
        assert (first == 2).all()
        types, tokens = batch.token_types_BL.numpy(), batch.input_ids_BL.numpy()
        pairs = np.diff(types, prepend=0, axis=1) == 1
        assert pairs.sum() == len(labels[-1])
        assert (tokens[:, :-1][pairs[:, 1:]] == 3).all()  # B begins after a separator
        assert batch.num_targets_K == (len(batch.target_ids_T), len(labels[-1]))
    found = np.concatenate(labels)
    assert len(found) > 1500
    assert found.mean() == pytest.approx(0.5, abs=4 * 0.5 / len(found) ** 0.5)


def test_lengths_and_cuts_do_not_tell_the_label_on_real_text(text_batch: Callable[..., Batch], text_data: Path) -> None:
    """How long A and B are, and how many of each end with a sentence: the same for both labels, within noise."""
    ends_V = read_word_table(text_data / "tokenizer").ends_sentence_V
    seen: dict[int, list[tuple[float, ...]]] = {0: [], 1: []}
    for epoch in range(4):
        batch = text_batch("masked_lm_nsp", range(500), epoch=epoch, masking_rate=1e-9)
        tokens = batch.input_ids_BL.numpy().ravel()
        for at, label in zip(batch.pair_positions_P.tolist(), batch.pair_labels_P.tolist(), strict=True):
            first, second = at + 1 + np.flatnonzero(tokens[at + 1 : at + 129] == 3)[:2]
            seen[label].append((first - at, second - first, ends_V[tokens[first - 1]], ends_V[tokens[second - 1]]))
    means = [np.mean(rows, axis=0) for rows in seen.values()]
    errors = [np.var(rows, axis=0) / len(rows) for rows in seen.values()]
    assert (np.abs(means[0] - means[1]) < 4 * np.sqrt(sum(errors))).all(), means
    assert min(map(len, seen.values())) > 1000


text = st.lists(st.integers(5, 39), min_size=1, max_size=12)
rows = st.lists(text.map(lambda part: [2, *part, 3]), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(row=rows, partner=rows, free=st.integers(0, 6), epoch=st.integers(0, 1000))
def test_whatever_the_documents_nothing_is_invented(
    by_hand: ModuleType, words: WordTable, row: Any, partner: Any, free: int, epoch: int
) -> None:
    width = max(sum(map(len, row)), sum(map(len, partner))) + free
    made = prepared(by_hand, words, row, partner, epoch, width)
    found = by_hand.documents(made.inputs_BL, made.segments_BL)[0]
    types = by_hand.documents(made.token_types_BL, made.segments_BL)[0]
    assert len(found) == len(row)
    labels = dict(zip(made.pair_positions_P.tolist(), made.pair_labels_P.tolist(), strict=True))
    starts = [0, *itertools.accumulate(map(len, found))]
    for start, was, now, kinds in zip(starts, row, found, types, strict=False):
        if start not in labels:
            assert now == was and set(kinds) == {0}
            continue
        middle = kinds.index(1)
        assert now[0] == 2 and now[middle - 1] == 3 and now[-1] == 3
        a, b = now[1 : middle - 1], now[middle:-1]
        assert a and b
        assert contains(was, a)
        assert contains(was, b) if labels[start] == 0 else any(contains(document, b) for document in partner)
    assert not np.isin(made.labels_BX[made.mask_BX], [0, 2, 3, 4]).any()


def contains(whole: list[int], part: list[int]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))

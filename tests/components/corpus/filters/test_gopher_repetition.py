"""Gopher's repetition rules against a plain loop, and each on both sides of its threshold."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.corpus.filters import GopherRepetition, TextBatch
from components.corpus.filters.gopher_repetition import gram_fractions

LOOSE: dict[str, Any] = {
    "max_duplicate_line_fraction": 1,
    "max_duplicate_paragraph_fraction": 1,
    "max_duplicate_line_character_fraction": 1,
    "max_duplicate_paragraph_character_fraction": 1,
    "max_top_gram_fractions": (1, 1, 1),
    "max_duplicate_gram_fractions": (1,) * 6,
}


def slow_fraction(words: list[str], n: int) -> float:
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    total = sum(map(len, words))
    counts = Counter(grams)
    if n <= 4:
        repeated = [(count, sum(map(len, gram))) for gram, count in counts.items() if count > 1]
        count, length = max(repeated, default=(0, 0))
        return count * length / total if total else 0
    covered, seen = set(), set()
    for start, gram in enumerate(grams):
        if gram in seen:
            covered |= set(range(start, start + n))
        seen.add(gram)
    return sum(len(words[place]) for place in covered) / total if total else 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "a"]), max_size=40), max_size=4))
def test_gram_fractions_are_those_of_a_plain_loop(texts: list[list[str]]) -> None:
    fractions = gram_fractions(TextBatch([" ".join(words) for words in texts]))
    for n, of_texts in zip(range(2, 11), fractions, strict=True):
        assert of_texts.tolist() == pytest.approx([slow_fraction(words, n) for words in texts]), n


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("天地玄黄", max_size=60), max_size=3))
def test_chinese_grams_are_as_long_as_the_words_they_stand_for(texts: list[str]) -> None:
    fractions = gram_fractions(TextBatch(texts))
    for n, characters in ((2, 3), (3, 4), (4, 6)):
        expected = []
        for text in texts:
            counts = Counter(text[start : start + characters] for start in range(len(text) - characters + 1))
            most = max(counts.values(), default=0)
            expected.append(most * characters / len(text) if most > 1 else 0)
        assert fractions[n - 2].tolist() == pytest.approx(expected)
    for text, fraction in zip(texts, fractions[5 - 2], strict=True):
        covered: set[int] = set()
        for start in range(len(text) - 6):  # 5 words are 7 characters
            if text.find(text[start : start + 7]) < start:
                covered |= set(range(start, start + 7))
        assert fraction == pytest.approx(len(covered) / len(text) if text else 0)


def distinct(number: int, first: int = 0x5000) -> str:
    return "".join(chr(first + place) for place in range(number))


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        (
            {"max_duplicate_line_fraction": 0.3},
            "a\na\na\na\nb\nc\nd\ne\nf\ng",
            "a\na\na\na\nb\nc\nd\ne\nf",
        ),  # 3/10; 3/9
        ({"max_duplicate_paragraph_fraction": 0.3}, "a\n\na\n\nb\nb\n\nc", "a\n\na\n\nb"),  # 1/4; 1/3
        ({"max_duplicate_line_character_fraction": 0.2}, "ab\nab\nabcdef", "ab\nab\nabcde"),  # 2/10; 2/9
        ({"max_duplicate_line_character_fraction": 0.2}, "中文\n中文\n天地玄黄宇宙", "中文\n中文\n天地玄黄宇"),
        ({"max_duplicate_paragraph_character_fraction": 0.2}, "ab\n\nab\n\nabcdef", "ab\n\nab\n\nabcde"),
        # "a b" twice is 4 characters, of 20 or 19.
        ({"max_top_gram_fractions": (0.2, 1, 1)}, "a b x a b " + "c" * 15, "a b x a b " + "c" * 14),
        # Three characters stand for two words: 6 of 30, or 6 of 29.
        ({"max_top_gram_fractions": (0.2, 1, 1)}, "天地玄一天地玄" + distinct(23), "天地玄一天地玄" + distinct(22)),
        # The second "a b c d e" is 5 characters, of 34 or 33; 5/34 = 0.147, 5/33 = 0.152.
        (
            {"max_duplicate_gram_fractions": (0.15, 1, 1, 1, 1, 1)},
            "a b c d e x a b c d e " + "y" * 23,
            "a b c d e x a b c d e " + "y" * 22,
        ),
        # The second run of seven characters is 7, of 47 or 46: 0.149, 0.152.
        (
            {"max_duplicate_gram_fractions": (0.15, 1, 1, 1, 1, 1)},
            "天地玄黄宇宙洪一天地玄黄宇宙洪" + distinct(32),
            "天地玄黄宇宙洪一天地玄黄宇宙洪" + distinct(31),
        ),
    ],
)
def test_each_rule(rule: dict[str, Any], kept: str, dropped: str) -> None:
    filter_ = GopherRepetition(**{**LOOSE, **rule})
    assert filter_.keeps(TextBatch([kept, dropped])).tolist() == [True, False]


def test_a_long_name_mentioned_twice_is_no_repetition_in_chinese() -> None:
    text = f"中华人民{distinct(60)}中华人民{distinct(60, 0x6000)}"
    assert GopherRepetition().keeps(TextBatch([text]))[0]


def test_texts_do_not_repeat_each_other() -> None:
    text = "One text that is not repetitive at all by itself, whoever stands beside it in a batch."
    assert np.all(GopherRepetition().keeps(TextBatch([text] * 5)))

"""Filters of one threshold keep what is on it and drop what is beyond, a text at a time or many at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from components.corpus.filters import (
    FilterConfig,
    Language,
    MaxCharacters,
    MaxDuplicateLineFraction,
    MaxRepeatedGramFraction,
    MinCharacters,
    MinLetterFraction,
    TextBatch,
)

ALL_NAMES = ("c4", "fineweb", "gopher_quality", "gopher_repetition", "max_duplicate_line_fraction")


@pytest.mark.parametrize(
    ("filter_", "kept", "dropped"),
    [
        (MinCharacters(characters=3), "中文字", "ab"),
        (MaxCharacters(characters=3), "abc", "abcd"),
        (MinLetterFraction(fraction=0.5), "ab 12", "a 12"),
        (MinLetterFraction(fraction=0.5), "中文12", "1,2;"),
        (MinLetterFraction(fraction=0.5), "かก12", ""),
        (MaxDuplicateLineFraction(fraction=0.5), "a\nb\na", "a\na\na"),
        (MaxRepeatedGramFraction(fraction=0.5, gram_characters=2), "abcdef", "abababab"),
        (MaxRepeatedGramFraction(fraction=0.5, gram_characters=2), "哈哈", "哈哈哈哈"),
        (Language(codes=("en",)), "This is plainly a sentence in English.", "Das ist ein ganz gewöhnlicher Satz."),
        (Language(codes=("zh",)), "床前明月光，疑是地上霜。", "The moon is bright before my bed tonight."),
        (Language(codes=("zh", "ja"), min_probability=0.9), "これは日本語の文です。", "12345"),
    ],
)
def test_filters_keep_and_drop(filter_: MinCharacters, kept: str, dropped: str) -> None:
    assert filter_.keeps(TextBatch([kept, dropped, kept])).tolist() == [True, False, True]


def test_an_unsure_language_is_dropped() -> None:
    assert not Language(codes=("en",), min_probability=0.65).keeps(TextBatch(["hello"]))[0]
    assert Language(codes=("en",), min_probability=0.1).keeps(TextBatch(["hello"]))[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab\n", max_size=25), max_size=5), st.integers(2, 4))
def test_repeated_grams_are_counted_as_a_plain_loop_does(texts: list[str], length: int) -> None:
    expected = []
    for text in texts:
        grams = Counter(text[start : start + length] for start in range(len(text) - length + 1))
        expected.append(grams.total() - len(grams) <= 0.4 * grams.total())
    filter_ = MaxRepeatedGramFraction(fraction=0.4, gram_characters=length)
    assert filter_.keeps(TextBatch(texts)).tolist() == expected


@pytest.mark.parametrize("name", ALL_NAMES)
def test_no_text_and_empty_texts_are_no_error(name: str) -> None:
    filter_ = TypeAdapter(FilterConfig).validate_python({"name": name})
    assert filter_.keeps(TextBatch([])).tolist() == []
    assert len(filter_.keeps(TextBatch(["", "\n\n", "。", "-"]))) == 4

"""Cleaning is idempotent, and what names a text does not depend on how it is spaced."""

from __future__ import annotations

import random

import pytest

from components.corpus.normalise import clean, cleaned_digest, is_unicode, text_digest, text_id, unit_interval


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("cafe\u0301", "café"),
        ("\ufeffa\x00b\x1b[0m", "ab[0m"),
        ("  a \t b\u3000c  ", "a b c"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \n \n\n\n  b", "a\n\nb"),
        ("\x00\u200b", "\u200b"),
        ("中文，没有空格", "中文，没有空格"),
        (" \n\t", ""),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


def test_without_collapsing_indentation_stays() -> None:
    assert clean("if x:\r\n\ty  = 1\n", collapse_whitespace=False) == "if x:\n\ty  = 1"


def test_cleaning_twice_changes_nothing_and_keeps_the_id() -> None:
    draw = random.Random(7)
    alphabet = "ab é\u0301\u0327\t\n\r\x00\x85\xa0\u3000\ufeff\u1100\u1161中\u2028"
    for _ in range(3000):
        text = "".join(draw.choices(alphabet, k=draw.randint(0, 12)))
        for collapse in (True, False):
            once = clean(text, collapse_whitespace=collapse)
            assert clean(once, collapse_whitespace=collapse) == once
            assert cleaned_digest(once) == text_digest(text) == text_digest(once)


def test_ids_ignore_spacing_and_composition_but_not_case() -> None:
    assert text_id("a  b\nc") == text_id(" a b c ")
    assert text_id("é") == text_id("e\u0301")
    assert text_id("Polish") != text_id("polish")
    assert len(text_id("x")) == 32


def test_a_lone_surrogate_is_not_unicode() -> None:
    assert not is_unicode("a\ud800b") and is_unicode("😀中")


def test_hash_fractions_are_even_and_independent_of_each_other() -> None:
    digests = [text_digest(str(number)) for number in range(4000)]
    first = [unit_interval(digest, "task_split") for digest in digests]
    second = [unit_interval(digest, "corpus_split") for digest in digests]
    assert abs(sum(place < 0.1 for place in first) / 4000 - 0.1) < 0.02
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(first, second, strict=True))
    assert abs(both / 4000 - 0.25) < 0.03

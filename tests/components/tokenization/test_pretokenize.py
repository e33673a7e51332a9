"""No word is long, in any script, and words put together are the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from components.tokenization.pretokenize import MARKED_WORDS, WORDS, WORDS_WITH_SPACES, with_han_words

LIMIT = 32
SCRIPTS = {
    "url": "https://example.org/a-very-long/path?with=many&and=more#anchor/" * 20,
    "thai": "สวัสดีชาวโลกยินดีต้อนรับ" * 20,
    "japanese": "これはとても長いひらがなとカタカナのテキストです漢字も" * 20,
    "dna": "ACGTTGCA" * 50,
    "chinese": "中华人民共和国中央人民政府今天成立了" * 20,
    "spaces": "a" + " " * 500 + "\n" * 300 + "b" + "\t" * 100,
    "marks": "e" + "\u0301" * 200,
    "symbols": "=" * 300 + "。" * 100 + "😀" * 80 + "▁" * 70,
    "digits": "1234567890" * 20,
    "controls": "\x00\x01\u200b\ufeff" * 50,
}


def words(pattern: str, text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def check(pattern: str, text: str) -> None:
    found = words(pattern, text)
    assert "".join(found) == text
    assert all(len(word.removeprefix(" ").removeprefix("▁")) <= LIMIT for word in found)


@pytest.mark.parametrize("han_words", [False, True])
@pytest.mark.parametrize("pattern", [WORDS_WITH_SPACES, MARKED_WORDS], ids=["bytes", "marked"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_text_of_any_script_falls_into_short_words(pattern: str, script: str, han_words: bool) -> None:
    text, wanted = SCRIPTS[script], with_han_words(pattern) if han_words else pattern
    check(wanted, text if pattern == WORDS_WITH_SPACES else "".join("▁" if c.isspace() else c for c in text))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_comes_back_from_its_words(text: str) -> None:
    check(WORDS_WITH_SPACES, text)
    assert all(len(word) <= LIMIT for word in words(WORDS, text) if not word.isspace())


@pytest.mark.parametrize("script", ["a", "中", " ", "-", "ไ"])
def test_time_grows_with_the_length_of_a_line_and_not_with_its_square(script: str) -> None:
    def seconds(count: int) -> float:
        started = time.process_time()
        words(WORDS_WITH_SPACES, script * count)
        return time.process_time() - started

    short, long = (min(seconds(count) for _ in range(3)) for count in (20_000, 640_000))
    assert long < 200 * short  # 32 times the length; a square would be 1,024 times the time

"""The features of a batch are what a plain loop over each text finds, in any mixture of scripts."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.segments import Segments
from components.corpus.hashing import RunHashes

ALPHABET = "ab é\u0301\u0e01\u0e34中国。，かナ…'-1|\n\n \u3000😀"


def of_text(batch: TextBatch, segments: Segments) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in batch.texts]
    for start, end, text in zip(segments.starts, segments.ends, segments.texts, strict=True):
        found[text].append(batch.codes[start:end].tobytes().decode("utf-32-le"))
    return found


def is_unspaced(character: str) -> bool:
    name = unicodedata.name(character, "")
    return character.isalpha() and name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER"))


def slow_words(text: str) -> list[str]:
    words = []
    for run in text.split():
        pieces = [""]
        for character in run:
            is_mark = unicodedata.category(character)[0] == "M"
            base = next((c for c in reversed(pieces[-1]) if unicodedata.category(c)[0] != "M"), "")
            if is_unspaced(character) or (base and is_unspaced(base) and not is_mark):
                pieces.append("")
            pieces[-1] += character
        for piece in pieces:
            start, end = 0, len(piece)
            while start < end and unicodedata.category(piece[start])[0] in "PM":
                start += 1
            while end > start and unicodedata.category(piece[end - 1])[0] == "P":
                end -= 1
            if start < end:
                words.append(piece[start:end])
    return words


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=30), max_size=6))
def test_words_lines_and_paragraphs_are_those_of_a_plain_loop(texts: list[str]) -> None:
    batch = TextBatch(texts)
    assert of_text(batch, batch.words) == [slow_words(text) for text in texts]
    lines = [[line.strip() for line in text.split("\n")] for text in texts]
    assert of_text(batch, batch.lines) == [[line for line in of if line] for of in lines]
    paragraphs = [" ".join(line or "\0" for line in of).split("\0") for of in lines]
    assert batch.count(batch.paragraphs).tolist() == [sum(bool(p.strip()) for p in of) for of in paragraphs]
    assert batch.num_characters.tolist() == [len(text) for text in texts]
    assert batch.num_letters.tolist() == [sum(map(str.isalpha, text)) for text in texts]
    assert batch.num_visible.tolist() == [len("".join(text.split())) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "中", ""]), max_size=12), max_size=4))
def test_a_line_repeats_only_an_earlier_line_of_its_own_text(texts: list[list[str]]) -> None:
    batch = TextBatch(["\n".join(lines) for lines in texts])
    expected = []
    for lines in texts:
        seen: set[str] = set()
        for line in filter(None, lines):
            expected.append(line in seen)
            seen.add(line)
    assert batch.repeats(batch.lines).tolist() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's e-mail, (3.14)!", ["The", "cat's", "e-mail", "3.14"]),
        ("我爱Python编程。", ["我", "爱", "Python", "编", "程"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("กินข้าว", ["กิ", "น", "ข้", "า", "ว"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("... — !", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    batch = TextBatch([text])
    assert of_text(batch, batch.words) == [words]


def test_chinese_words_count_as_many_as_they_would_be_in_english() -> None:
    batch = TextBatch(["中" * 14, "one two 中文", "かな" * 2, ""])
    assert batch.num_words.tolist() == pytest.approx([10, 2 + 2 / 1.4, 1, 0])
    assert batch.is_spaced.tolist() == [False, True, False, True]
    assert batch.is_han.tolist() == [True, False, True, False]


def test_runs_are_the_same_wherever_they_stand_and_others_differ() -> None:
    values = np.tile(np.arange(70_001), 2)  # more than one block
    hashes = RunHashes(values)
    starts = np.array([0, 5, 65_530, 3])
    ends = np.array([3, 70_000, 65_545, 3])
    assert (hashes.of(starts, ends) == hashes.of(starts + 70_001, ends + 70_001)).all()
    assert len(set(hashes.of(np.arange(60_000), np.arange(60_000) + 7).tolist())) == 60_000
    zeros = RunHashes(np.zeros(9, np.int64))
    assert len(set(zeros.of(np.zeros(9, np.int64), np.arange(9)).tolist())) == 9  # length counts

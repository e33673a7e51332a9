"""Hashes of words and n-grams are equal where the words are, in any script and however texts are batched."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.corpus import ngrams as under_test
from components.corpus.ngrams import MAX_WORD, WINDOW, Ngrams, Words, ngrams, words
from tests.components.corpus import plain_words, real_texts

TEXTS = st.lists(
    st.text(
        st.one_of(
            st.sampled_from("aB é’\n\x00ßİﬁ٣中文字〇カ゛กำ\U00020000\U000e0100\ufe0f\u0301"),
            st.characters(codec="utf-8", exclude_categories=["Cn", "Co"]),
        ),
        max_size=30,
    ),
    max_size=8,
)


def lists(of: Words | Ngrams) -> list[list[int]]:
    """The hashes of each text."""
    hashes = of.hash_W if isinstance(of, Words) else of.hash_G
    assert int(of.count_T.sum()) == len(hashes)
    assert of.start_T.tolist() == (np.cumsum(of.count_T) - of.count_T).tolist()
    return [hashes[s : s + c].tolist() for s, c in zip(of.start_T.tolist(), of.count_T.tolist(), strict=True)]


def assert_same_structure(hashes: Iterable[list[int]], things: Iterable[list[object]]) -> None:
    """As many in each text, and two hashes are equal just where the things are."""
    pairs: set[tuple[int, object]] = set()
    for own_hashes, own_things in zip(hashes, things, strict=True):
        assert len(own_hashes) == len(own_things), own_things
        pairs.update(zip(own_hashes, own_things, strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The cat, the HAT.", "the cat the hat"),
        ("床前明月光,疑是", "床 前 明 月 光 疑 是"),
        ("GPT模型v2", "gpt 模 型 v2"),
        ("naïve cafe\u0301", "NAÏVE, CAFE\u0301"),
        ("Straße ﬁne İ", "STRASSE fine i\u0307"),
        ("一九〇〇年 人々", "一 九 〇 〇 年 人 々"),
        ("ไทย ລາວ", "ไ ท ย ລ າ ວ"),
        ("I ❤\ufe0f 葛\U000e0100", "i 葛"),
        ("under_score it's", "under score it s"),
        ("", " \n.,;—…"),
    ],
)
def test_what_a_word_is(text: str, same: str) -> None:
    one, other = lists(words([text, same]))
    assert one == other
    assert len(one) == len(same.split() if any(map(str.isalnum, same)) else [])


@pytest.mark.parametrize(("one", "other"), [("ab", "ba"), ("a b", "ab"), ("a", "aa"), ("é", "e"), ("王", "玉")])
def test_different_words_differ(one: str, other: str) -> None:
    assert lists(words([one])) != lists(words([other]))


def test_each_character_of_unicode_is_what_its_name_says() -> None:
    """Assigned characters alone; those of the astral Han planes have names too."""
    characters = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    found = words(characters)
    expected = [len(plain_words.words(character)) for character in characters]
    assert [c for c, one, other in zip(characters, found.count_T.tolist(), expected, strict=True) if one != other] == []
    # Behind a letter, a letter goes on and a character without spaces begins anew.
    behind = words(["a" + character for character in characters])
    expected = [len(plain_words.words("a" + character)) for character in characters]
    assert behind.count_T.tolist() == expected


def test_case_is_folded_as_python_folds_it() -> None:
    characters = [
        chr(c) for c in range(0x20000) if chr(c).casefold() != chr(c) and unicodedata.category(chr(c)) != "So"
    ]
    assert len(characters) > 1400
    assert lists(words(characters)) == lists(words([c.casefold() for c in characters]))
    for character in characters:  # no text before it that makes the whole batch be folded
        assert lists(words([character])) == lists(words([character.casefold()])), character


@given(TEXTS, st.integers(1, 6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_hashes_are_equal_where_words_and_ngrams_are(texts: list[str], length: int, short: bool) -> None:
    found = words(texts)
    assert_same_structure(lists(found), [list[object](plain_words.words(text)) for text in texts])
    expected = [list[object](plain_words.ngrams(text, length, short)) for text in texts]
    assert_same_structure(lists(ngrams(found, length, short=short)), expected)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13])
def test_hashes_of_real_text_are_equal_where_ngrams_are(length: int) -> None:
    texts = [*real_texts.glosses()[:4000], "", "word", *real_texts.poems()[:1500]]
    found = lists(ngrams(words(texts), length))
    assert_same_structure(found, [list[object](plain_words.ngrams(text, length)) for text in texts])


def test_a_batch_equals_its_texts_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether texts are ASCII or not, and wherever a window ends."""
    rng = random.Random(0)
    texts = ["", *rng.sample(real_texts.glosses(), 300), "", "ß", *rng.sample(real_texts.poems(), 300), "İ", "x", ""]
    rng.shuffle(texts)
    alone = [lists(words([text]))[0] for text in texts]
    ngrams_alone = [lists(ngrams(words([text]), 5))[0] for text in texts]
    assert lists(words(texts)) == alone and lists(ngrams(words(texts), 5)) == ngrams_alone
    ascii_only = [place for place, text in enumerate(texts) if text.isascii()]
    assert lists(words([texts[place] for place in ascii_only])) == [alone[place] for place in ascii_only]
    monkeypatch.setattr(under_test, "WINDOW", 97)
    monkeypatch.setattr(under_test, "MAX_WORD", 40)
    assert lists(words(texts)) == alone and lists(ngrams(words(texts), 5)) == ngrams_alone


@pytest.mark.parametrize("letter", ["x", "é"])
def test_words_and_gaps_longer_than_a_window(letter: str) -> None:
    """A word beyond MAX_WORD is several, the same ones wherever in the batch it stands."""
    long = letter * (3 * WINDOW + 5)
    texts = ["a " * 9 + long, long, "b" + " " * (2 * WINDOW) + "c", long + "中", letter * MAX_WORD, " " * WINDOW + "b"]
    first, alone, apart, before_han, just, last = lists(words(texts))
    pieces = -(-len(long) // MAX_WORD)
    assert len(alone) == pieces and first[9:] == alone and before_han[:-1] == alone
    assert len(set(alone[:-1])) == 1 and just == alone[:1]
    assert len(apart) == 2 and apart[:1] == last


def test_nothing_in_nothing_out() -> None:
    for texts in ([], [""], ["", "?"]):
        found = words(texts)
        assert found.count_T.tolist() == [0] * len(texts) and not len(found.hash_W)
        of = ngrams(found, 5)
        assert of.count_T.tolist() == [0] * len(texts) and not len(of.hash_G)


def test_a_text_of_few_words_is_one_ngram_or_none() -> None:
    found = words(["a b", "a b c", "", "b", "a b"])
    assert ngrams(found, 3, short=False).count_T.tolist() == [0, 1, 0, 0, 0]
    of = lists(ngrams(found, 3))
    assert [len(one) for one in of] == [1, 1, 0, 1, 1] and of[0] == of[4] != of[1]

"""Each of Gopher's quality rules, on both sides of its threshold, in English and Chinese."""

from __future__ import annotations

from typing import Any

import pytest

from components.corpus.filters import GopherQuality, TextBatch

LOOSE: dict[str, Any] = {
    "min_words": 0,
    "min_mean_word_characters": 0,
    "max_mean_word_characters": 99,
    "min_alphabetic_word_fraction": 0,
    "min_stop_words": 0,
    "max_symbols_per_word": 99,
    "max_bullet_line_fraction": 1,
    "max_ellipsis_line_fraction": 1,
}
CHINESE = "人工智能是研究如何让机器像人一样思考的学科，它在过去的几十年里有了很大的发展。"  # 37 letters


def keeps(text: str, **rule: float) -> bool:
    return bool(GopherQuality(**{**LOOSE, **rule}).keeps(TextBatch([text]))[0])


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        ({"min_words": 50}, "word " * 50, "word " * 49),
        ({"min_words": 50}, "中" * 70, "中" * 69),  # 70 / 1.4 = 50
        ({"max_words": 50}, "word " * 50, "word " * 51),
        ({"max_words": 50}, "中" * 70, "中" * 71),
        ({"min_mean_word_characters": 3}, "ab abcd", "ab abc"),  # 3; 2.5
        ({"max_mean_word_characters": 10}, "a" * 10, "a" * 11),
        ({"max_symbols_per_word": 0.1}, "word " * 10 + "#", "word " * 10 + "##"),
        ({"max_symbols_per_word": 0.1}, "中" * 14 + "#", "中" * 14 + "##"),  # 14 / 1.4 = 10 words
        ({"max_symbols_per_word": 0.1}, "word " * 10 + "...", "word " * 10 + "... ..."),
        ({"max_symbols_per_word": 0.1}, "中" * 14 + "……", "中" * 7 + "……" + "中" * 7 + "……"),
        ({"max_bullet_line_fraction": 0.9}, "• a\n" * 9 + "b", "• a\n" * 10 + "b"),  # 9/10; 10/11
        ({"max_bullet_line_fraction": 0.9}, "・中\n" * 9 + "文", "・中\n" * 10 + "文"),
        ({"max_ellipsis_line_fraction": 0.3}, "a b...\n" * 3 + "a b\n" * 7, "a b...\n" * 3 + "a b\n" * 6),
        ({"max_ellipsis_line_fraction": 0.3}, "中文……\n" * 3 + "文\n" * 7, "中文……\n" * 3 + "文\n" * 6),
        ({"min_alphabetic_word_fraction": 0.8}, "a b c d 1", "a b c 1"),
        ({"min_alphabetic_word_fraction": 0.8}, "中文，字；词。1", "中文字1"),  # punctuation is no word
        ({"min_stop_words": 2}, "THE cat of mine", "the the cat"),  # two different ones
        ({"min_stop_words": 2}, "theof and the", "thee often and"),  # whole words
        ({"min_stop_words": 2}, "这是我的书", "苹果香蕉是"),
        ({"min_stop_words": 2}, "学而时习之", "王李张刘陈"),  # classical Chinese
        ({"min_stop_words": 2}, "これは本のこと", "株式会社東京"),
    ],
)
def test_each_rule(rule: dict[str, float], kept: str, dropped: str) -> None:
    assert keeps(kept, **rule) and not keeps(dropped, **rule)


def test_mean_word_length_and_english_stop_words_are_not_asked_of_scripts_without_spaces() -> None:
    assert keeps("中" * 70, min_mean_word_characters=3)
    assert keeps("สวัสดีครับผมชื่อสมชาย", min_mean_word_characters=3, min_stop_words=2)


def test_prose_passes_with_the_defaults_and_lists_do_not() -> None:
    english = "It is the nature of a man to have a good reason and to be proud of it when he is with others. " * 3
    parts = "\n".join(f"{code} {code * 7} 12.5 kg" for code in range(100, 160))
    names = "".join(chr(0x4E00 + 37 * place) for place in range(120))
    batch = TextBatch([english, CHINESE * 3, parts, names, CHINESE])
    assert GopherQuality().keeps(batch).tolist() == [True, True, False, False, False]

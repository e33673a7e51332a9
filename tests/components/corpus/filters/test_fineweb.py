"""FineWeb's three rules, on both sides of their thresholds, in English and Chinese."""

from __future__ import annotations

from typing import Any

import pytest

from components.corpus.filters import FineWeb, TextBatch

LOOSE: dict[str, Any] = {
    "punctuated_line_fraction": 0,
    "duplicate_line_character_fraction": 1,
    "short_line_fraction": 1,
    "short_line_characters": 1,
}


def lines(punctuated: int, others: int, mark: str) -> str:
    numbered = [f"中文第{chr(0x5000 + place)}行" for place in range(punctuated + others)]
    return "\n".join(line + mark * (place < punctuated) for place, line in enumerate(numbered))


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        # 13 of 100 lines; 12 of 100.
        ({"punctuated_line_fraction": 0.12}, lines(13, 87, "."), lines(12, 88, ".")),
        ({"punctuated_line_fraction": 0.12}, lines(13, 87, "。"), lines(12, 88, "。")),
        ({"punctuated_line_fraction": 0.12}, lines(13, 87, "！」"), lines(13, 87, "，")),
        # "ab" again: 2 of 21 characters; 2 of 20.
        ({"duplicate_line_character_fraction": 0.1}, "ab.\nab." + "\n" + "c" * 25 + ".", "ab.\nab.\n" + "c" * 23 + "."),
        (
            {"duplicate_line_character_fraction": 0.1},
            "中。\n中。\n" + "文" * 17 + "。",
            "中。\n中。\n" + "文" * 15 + "。",
        ),
        # Two of three lines are short: 0.667 < 0.67; three of four: 0.75.
        (
            {"short_line_fraction": 0.67, "short_line_characters": 30},
            "a.\nb.\n" + "c" * 29 + ".",
            "a.\nb.\nd.\n" + "c" * 29 + ".",
        ),
        ({"short_line_fraction": 0.5, "short_line_characters": 30}, "c" * 29 + ".", "c" * 28 + "."),
        # Seven characters and a mark are 29 English ones, eight 33.
        ({"short_line_fraction": 0.5, "short_line_characters": 30}, "天地玄黄宇宙洪荒。", "天地玄黄宇宙洪。"),
    ],
)
def test_each_rule(rule: dict[str, Any], kept: str, dropped: str) -> None:
    assert FineWeb(**{**LOOSE, **rule}).keeps(TextBatch([kept, dropped])).tolist() == [True, False]


def test_a_regulated_poem_passes_and_a_menu_does_not() -> None:
    poem = "空山新雨後，天氣晚來秋。\n明月松間照，清泉石上流。\n竹喧歸浣女，蓮動下漁舟。\n隨意春芳歇，王孫自可留。"
    menu = "首页\n新闻\n体育\n财经\n娱乐\n联系我们\n关于本站"
    assert FineWeb().keeps(TextBatch([poem, menu])).tolist() == [True, False]

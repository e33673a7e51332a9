"""C4's rules for a page, in English and Chinese."""

from __future__ import annotations

import pytest

from components.corpus.filters import C4, TextBatch


@pytest.mark.parametrize(
    ("kept", "dropped"),
    [
        ("One. Two! Three?", "One. Two!"),
        ('He said "yes." She nodded. (So did I.)', "Version 1.2.3 of a.b.c is out. Yes."),
        ("一句。两句！三句……", "一句。两句！"),
        ("他说：「好。」她也说好。真的吗？", "天地，玄黄。宇宙；洪荒"),
        ("One. Two. Three (braces).", "One. Two. Three {braces}."),
        ("One. Two. Lorem, ipsum.", "One. Two. LOREM ipsum dolor."),
        ("यह एक वाक्य है। यह दूसरा है। यह तीसरा है।", "यह एक वाक्य है।"),
        ("ภาษาไทยไม่มีเครื่องหมายจบประโยค", "One line"),
    ],
)
def test_pages(kept: str, dropped: str) -> None:
    assert C4().keeps(TextBatch([kept, dropped])).tolist() == [True, False]


def test_each_rule_can_be_put_off() -> None:
    off = C4(min_sentences=0, drop_lorem_ipsum=False, drop_curly_brackets=False)
    assert off.keeps(TextBatch(["{ lorem ipsum }"]))[0]

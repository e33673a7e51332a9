"""Cleaning repairs what is damaged, leaves alone what is not, and done twice changes nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.corpus.cleaning import CleaningConfig, CleaningCounts, clean_texts
from components.corpus.normalise import clean, is_unicode

GLOSSES = Path("conf/data/wordnet/glosses.jsonl.gz")
NOTHING = CleaningConfig(repair_unicode=False)
EVERYTHING = CleaningConfig(strip_html=True, mask_emails=True, mask_phones=True, mask_ips=True, c4_lines=True)
BUT_LINES = EVERYTHING.model_copy(update={"c4_lines": False})
POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"


def only(name: str, text: str) -> str:
    (cleaned,), counts = clean_texts([text], CleaningConfig.model_validate({"repair_unicode": False, name: True}))
    assert counts.as_dict()[name] == (cleaned != clean(text))
    return cleaned


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("schÃ¶n", "schön"),
        ("doesnâ€™t", "doesn’t"),
        ("it\x92s", "it’s"),
        ("voilÃ  tout", "voilà tout"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("ï¼Œå¥½", "，好"),
        (POEM.encode().decode("latin-1"), POEM),
        ("déjà".encode().decode("mac-roman"), "déjà"),
        ("crème brûlée".encode().decode("cp437"), "crème brûlée"),
    ],
)
def test_wrongly_decoded_text_is_repaired(damaged: str, whole: str) -> None:
    assert only("repair_unicode", damaged) == whole


@pytest.mark.parametrize(
    "text",
    [
        POEM,
        "他說：「好，我去！」——ＡＢＣ１２３……《詩》、“引号”",
        "l’été à Évian, où «l’âme» s’élève…",
        "Это обычный текст — с «кавычками» № 5.",
        "Ελληνικά κείμενα, άλφα και ωμέγα.",
        "日本語のテキスト、カタカナ・ﾊﾝｶｸ。",
        "naïve ¶ verse × 2 ± 0.5 µm ½ €",
        "ÂNGULO E MÃE, SÃO ÀS DUAS",
    ],
)
def test_clean_text_is_not_touched_by_any_repair_or_mask(text: str) -> None:
    assert clean_texts([text], BUT_LINES) == ([clean(text)], CleaningCounts())


def test_no_gloss_of_wordnet_is_changed() -> None:
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    cleaned, counts = clean_texts(texts, BUT_LINES)
    assert counts == CleaningCounts()
    assert cleaned == [clean(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<p>One <b>bold</b> word.</p><p>Two</p>", "One bold word.\n\nTwo"),
        ('a <a href="x" target=_blank>link</a><br/>next', "a link\nnext"),
        ("<td>1</td><td>2</td>", "1 2"),
        ("a<script type='x'>if (a < b) {}</script>b<!-- no\n-->c<style>p {}</style>", "abc"),
        ("Tom &amp; Jerry &lt;3 &#20013;&#x6587;&nbsp;&eacute;", "Tom & Jerry <3 中文 é"),
        ("&amp;amp;lt;b&amp;gt;bold&lt;/b&gt;", "bold"),
        ("<!DOCTYPE html><html lang='zh'>中文</html>", "中文"),
    ],
)
def test_html_goes(text: str, cleaned: str) -> None:
    assert only("strip_html", text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "I <3 you",
        "if a <b and c> d",
        "Vec<T>, List<String>, <a>",
        "?a=1&copy=2&lt=3",
        "AT&T; R&D &unknownname;",
        "x<y>z <!-- never closed",
        "《书》<第一章>",
    ],
)
def test_what_only_looks_like_html_stays(text: str) -> None:
    assert only("strip_html", text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Write to Jane.Doe+x@mail.example.co.uk.", "Write to email@example.com."),
        ("邮箱是zhang_san@163.com，谢谢", "邮箱是email@example.com，谢谢"),
        ("email@example.com", "email@example.com"),
        ("@user on 3@5, a@b", "@user on 3@5, a@b"),
    ],
)
def test_emails(text: str, cleaned: str) -> None:
    assert only("mask_emails", text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("电话13800138000。", "电话555-0100。"),
        ("+86 138 0013 8000 or 138-0013-8000", "555-0100 or 555-0100"),
        ("座机：010-62345678，(021) 6234567", "座机：555-0100，555-0100"),
        ("客服400-820-8820", "客服555-0100"),
        ("Call (212) 736-5000 or 212.736.5000 now", "Call 555-0100 or 555-0100 now"),
        ("+49 30 1234567, +44 (20) 7946 0958", "555-0100, 555-0100"),
        ("In 1998-2003, 12,500.75 of 3.14159265358979", "In 1998-2003, 12,500.75 of 3.14159265358979"),
        ("ISBN 978-3-16-148410-0, 2024-01-15 10:30:00", "ISBN 978-3-16-148410-0, 2024-01-15 10:30:00"),
        ("+1.5 +20 3", "+1.5 +20 3"),
        ("id 99138001380001", "id 99138001380001"),
    ],
)
def test_phones(text: str, cleaned: str) -> None:
    assert only("mask_phones", text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("from 8.8.8.8 to 2606:4700::1111.", "from 192.0.2.1 to 2001:db8::1."),
        ("地址8.8.4.4，端口", "地址192.0.2.1，端口"),
        (
            "127.0.0.1 10.0.0.1 192.168.1.2 192.0.2.1 fe80::1 ::1",
            "127.0.0.1 10.0.0.1 192.168.1.2 192.0.2.1 fe80::1 ::1",
        ),
        ("v8.1.2.3, version 8.1.2.3, 版本8.1.2.3", "v8.1.2.3, version 8.1.2.3, 版本8.1.2.3"),
        (
            "8.8.8.8.8 and 256.8.8.8 at 12:30:45 in std::vector::at",
            "8.8.8.8.8 and 256.8.8.8 at 12:30:45 in std::vector::at",
        ),
    ],
)
def test_public_addresses(text: str, cleaned: str) -> None:
    assert only("mask_ips", text) == cleaned


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("There are five words here.", True),
        ("Only four words here.", False),
        ("There is no full stop here", False),
        ("This one breaks off before it...", False),
        ('And he said to her: "Yes"', True),
        ("Please enable JavaScript to see it.", False),
        ("You agree to our terms of use.", False),
        ("床前明月光，疑是地。", True),  # eight characters; seven stand for five words
        ("床前明月光，疑。", False),  # six
        ("床前明月光，疑是地上霜，", False),
        ("他忽然停下来不再说话……", True),
        ("请先阅读本网站的隐私政策。", False),
        ("中" * 1500 + "。", True),  # no word of 1500 characters
        ("One word here is rather long: " + "x" * 1001 + ".", False),
        ("ภาษาไทยไม่มีเครื่องหมายจบประโยค", True),
    ],
)
def test_c4_lines(line: str, stays: bool) -> None:
    frame = "The line before it is fine.\n{}\nThe line after it is fine."
    expected = frame.format(line) if stays else frame.replace("{}\n", "")
    assert only("c4_lines", frame.format(line)) == expected


def test_c4_lines_loses_citations_and_may_leave_nothing() -> None:
    assert only("c4_lines", "This was shown by them twice. [1]") == "This was shown by them twice."
    assert only("c4_lines", "Home\nNews\nAbout us") == ""


def test_counts_are_texts_and_add_up() -> None:
    config = CleaningConfig(mask_emails=True, strip_html=True)
    texts = ["a@b.org and <b>c@d.org</b>", "a@b.org", "schÃ¶n", "clean"]
    cleaned, counts = clean_texts(texts, config)
    assert cleaned == ["email@example.com and email@example.com", "email@example.com", "schön", "clean"]
    assert counts == CleaningCounts(repair_unicode=1, strip_html=1, mask_emails=2)
    assert (counts + counts).mask_emails == 4
    assert set(counts.as_dict()) == set(CleaningConfig.model_fields)


def test_without_cleaners_a_text_is_only_normalised() -> None:
    raw = "  a\t <b>x</b>\r\n\r\n\r\n\r\nschÃ¶n cafe\u0301 "
    assert clean_texts([raw], NOTHING)[0] == [clean(raw)]
    assert clean_texts([raw], NOTHING, collapse_whitespace=False)[0] == [clean(raw, collapse_whitespace=False)]
    assert clean_texts([], EVERYTHING) == ([], CleaningCounts())


PIECES = (
    "<b> </b> <p> <a href=x> <!-- --> <script> </script> &amp; &lt; &gt; amp; lt; b& ; <b < > &#60; &#38; &#133;",
    "a@b.co @ .co a . 1 138 00138000 +86 010- 212- 736- 5000 ( ) 8.8.8.8 8. :: 2606:4700:: Ã ¶ Â â € ™ \x92 é 中 文 。",
    "[1] [ ] … ... One_two_three_four_five. javascript",
)
SPACES = (" ", "\n", "\t", "\r", "\x00", "\xa0", "\u0301", "\u3000")
TEXTS = st.lists(st.sampled_from((*" ".join(PIECES).split(" "), *SPACES)), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS | st.text(max_size=20).filter(is_unicode), st.booleans())
@example("Ã\x00¶", True)
@example("a@b.co@c.com", True)
@example("&amp;" * 40 + "lt;b>", True)
@example("202-212-736-5000", True)
def test_cleaning_twice_changes_nothing(text: str, collapse: bool) -> None:
    for config in (EVERYTHING, BUT_LINES):
        once, _ = clean_texts([text], config, collapse_whitespace=collapse)
        twice, counts = clean_texts(once, config, collapse_whitespace=collapse)
        assert twice == once
        assert counts == CleaningCounts()


@pytest.mark.parametrize(
    "piece", ["<script>", "<!--", "<b ", "<a x=1 ", "&amp;", "+1 2 ", "a@", "1.1.1.", "::", "a.b@c."]
)
def test_a_hostile_text_takes_no_quadratic_time(piece: str) -> None:
    """0.3 MB of each; what needs time with the square of the length would take minutes."""
    clean_texts([piece * (300_000 // len(piece))], BUT_LINES)

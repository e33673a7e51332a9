"""The reference points: majority class and TF-IDF against scikit-learn and by hand."""

from __future__ import annotations

import pytest

from components.comparison.baselines import majority, tfidf, written_without_spaces
from components.comparison.config import CompareConfig

CHINESE = {"动物": "这种动物有四条腿和尾巴", "植物": "这种植物有绿色的叶子和花", "器物": "这种器物用金属制成"}


def test_the_majority_is_the_most_frequent_label_and_the_first_by_name_among_equals() -> None:
    assert majority(["b", "a", "b", "a", "c"], 2).predicted == ["a", "a"]
    assert majority(["b", "a", "b"], 1).predicted == ["b"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["an animal with four legs"], False),
        (["四条腿的动物，会跑"], True),
        (["動物は走る。とても速い。"], True),
        (["สัตว์สี่ขา"], True),
        (["네 발 달린 동물"], False),
        (["животное с четырьмя ногами"], False),
        (["the Chinese word 动物 means animal"], False),
        (["123 456"], False),
    ],
)
def test_scripts_without_spaces_are_known(texts: list[str], expected: bool) -> None:
    assert written_without_spaces(texts) is expected


def test_texts_without_a_word_are_told_apart_too() -> None:
    found = tfidf(CompareConfig(), ["😀😀", "😡😡", "😀", "😡"], ["good", "bad", "good", "bad"], ["😀", "😡"])
    assert found.predicted == ["good", "bad"]


def test_chinese_texts_are_told_apart_by_character_n_grams() -> None:
    train = [(f"{text}，第{number}例", label) for number in range(20) for label, text in CHINESE.items()]
    texts, labels = [text for text, _ in train], [label for _, label in train]
    found = tfidf(CompareConfig(), texts, labels, ["绿色的叶子", "四条腿", "金属"])
    assert found.predicted == ["植物", "动物", "器物"]
    assert "character 1-3-grams" in found.detail


def test_words_of_one_letter_count_and_two_classes_work() -> None:
    found = tfidf(CompareConfig(), ["a x", "a x b", "c y", "c y d"] * 3, ["p", "p", "q", "q"] * 3, ["x", "y"])
    assert found.predicted == ["p", "q"]
    assert found.train_flops > 0


def test_only_so_many_characters_are_read() -> None:
    config = CompareConfig(tfidf_max_characters=16)
    texts = ["word " * 4 + "left", "word " * 4 + "right"] * 3
    assert tfidf(
        config,
        [f"{label} {text}" for text, label in zip(texts, "ab" * 3, strict=True)],
        ["x", "y"] * 3,
        ["b " + texts[0]],
    ).predicted == ["y"]

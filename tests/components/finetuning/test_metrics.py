"""Scores and bootstraps against scikit-learn and against values by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from components.finetuning import metrics


def predictions(num_rows: int, num_classes: int, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label_N = generator.integers(0, num_classes, num_rows)
    guess_N = generator.integers(0, num_classes, num_rows)
    return label_N, np.where(generator.random(num_rows) < right, label_N, guess_N)


@pytest.mark.parametrize(("num_classes", "right"), [(2, 0.5), (10, 0.8), (20, 0.1)])
def test_scores_equal_those_of_scikit_learn(num_classes: int, right: float) -> None:
    label_N, predicted_N = predictions(500, num_classes, right)
    names = [f"class{index}" for index in range(num_classes)]
    precision, recall, f1, support = precision_recall_fscore_support(
        label_N, predicted_N, labels=range(num_classes), zero_division=0
    )
    own = metrics.class_scores(label_N, predicted_N, names)
    assert metrics.accuracy(label_N, predicted_N) == accuracy_score(label_N, predicted_N)
    assert metrics.macro_f1(label_N, predicted_N, num_classes) == pytest.approx(
        f1_score(label_N, predicted_N, average="macro")
    )
    assert np.allclose([(c.precision, c.recall, c.f1, c.support) for c in own], np.c_[precision, recall, f1, support])
    expected = confusion_matrix(label_N, predicted_N, labels=range(num_classes))
    assert (metrics.confusion_matrix(label_N, predicted_N, num_classes) == expected).all()


def test_a_class_that_is_only_predicted_counts_as_zero_f1() -> None:
    label_N, predicted_N = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert metrics.macro_f1(label_N, predicted_N, 4) == pytest.approx(f1_score(label_N, predicted_N, average="macro"))


def test_intervals_agree_with_resampling_row_by_row() -> None:
    label_N, predicted_N = predictions(800, 5, 0.6)
    generator = np.random.default_rng(1)
    rows = generator.integers(0, 800, (1500, 800))
    accuracies = (label_N == predicted_N)[rows].mean(axis=1)
    macro = [f1_score(label_N[r], predicted_N[r], average="macro") for r in rows[:300]]
    scores = metrics.score(label_N, predicted_N, 5)
    assert (scores.accuracy.low, scores.accuracy.high) == pytest.approx(
        np.quantile(accuracies, [0.025, 0.975]), abs=0.006
    )
    assert (scores.macro_f1.low, scores.macro_f1.high) == pytest.approx(np.quantile(macro, [0.025, 0.975]), abs=0.012)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    label_N, predicted_N = predictions(300, 4, 0.5)
    first, again, other = (metrics.score(label_N, predicted_N, 4, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.accuracy != other.accuracy


def test_a_paired_difference_is_narrower_than_two_intervals_and_changes_sign_with_the_order() -> None:
    label_N, first_N = predictions(2000, 3, 0.7)
    second_N = first_N.copy()
    second_N[:60] = (label_N[:60] + 1) % 3
    gap = metrics.paired_difference(label_N, first_N, second_N)
    alone = metrics.score(label_N, first_N, 3).accuracy
    assert 0 < gap.low < gap.value < gap.high
    assert gap.high - gap.low < 0.5 * (alone.high - alone.low)
    assert metrics.paired_difference(label_N, second_N, first_N).value == -gap.value


def test_equal_predictions_differ_by_exactly_nothing() -> None:
    label_N, predicted_N = predictions(100, 3, 0.5)
    gap = metrics.paired_difference(label_N, predicted_N, predicted_N)
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_the_mean_over_seeds_is_the_mean_of_the_differences() -> None:
    label_N, _ = predictions(400, 3, 0.5)
    first = [predictions(400, 3, 0.7, seed)[1] for seed in (1, 2, 3)]
    second = [predictions(400, 3, 0.2, seed)[1] for seed in (4, 5, 6)]
    gaps = [metrics.paired_difference(label_N, a, b).value for a, b in zip(first, second, strict=True)]
    mean = metrics.paired_mean_difference(label_N, first, second)
    assert mean.value == pytest.approx(np.mean(gaps))
    assert mean.low < mean.value < mean.high


def test_unequal_numbers_of_seeds_are_refused() -> None:
    label_N, predicted_N = predictions(10, 2, 0.5)
    with pytest.raises(ValueError, match="zip"):
        metrics.paired_mean_difference(label_N, [predicted_N], [predicted_N, predicted_N])


def test_one_right_row_has_a_degenerate_interval() -> None:
    scores = metrics.score(np.array([1]), np.array([1]), 3)
    assert scores.as_metrics("test_") == {
        f"test_{name}{end}": 1.0 for name in ("accuracy", "macro_f1") for end in ("", "_low", "_high")
    }

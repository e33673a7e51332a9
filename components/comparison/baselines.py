"""What needs no language model: the majority class, and TF-IDF with logistic regression.

One-vs-rest with liblinear's Newton solver, because it reaches 87.7 % on the 50,000 WordNet glosses in 5 s of one core,
where L-BFGS on the multinomial loss is at 87.3 % after 5 s and not converged. With hundreds of classes it takes as many
times longer; lower `tfidf_max_features` then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from components.comparison.config import CompareConfig

UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
UNSPACED_SHARE = 0.3
WORD = re.compile(r"(?u)\b\w+\b")
SAMPLED_TEXTS = 1_000
PRODUCTS_PER_ITERATION = 10
"""Matrix products in one Newton iteration of liblinear, assumed: a gradient and some Hessian ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Predictions of a baseline on the test texts."""

    predicted: list[str]
    train_flops: float
    detail: str


def majority(train_labels: Sequence[str], num_test: int) -> Baseline:
    """The most frequent training label for every test text; among equals the first by name."""
    counts = Counter(train_labels)
    label = min(counts, key=lambda name: (-counts[name], name))
    return Baseline(predicted=[label] * num_test, train_flops=0.0, detail=f"always {label}")


def written_without_spaces(texts: Sequence[str]) -> bool:
    """Whether words are not set apart by spaces: 30 % or more of the letters of the first 1,000 texts are Chinese,
    Japanese, Thai, Lao, Burmese or Khmer."""
    sample = "".join(texts[:SAMPLED_TEXTS])
    letters = sum(character.isalpha() for character in sample)
    return letters > 0 and len(UNSPACED.findall(sample)) / letters >= UNSPACED_SHARE


def tfidf(
    config: CompareConfig, train_texts: Sequence[str], train_labels: Sequence[str], test_texts: Sequence[str]
) -> Baseline:
    """TF-IDF of word 1-2-grams (character 1-3-grams where words are not set apart) and logistic regression on all
    training labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    unspaced = written_without_spaces(train_texts) or not any(WORD.search(text) for text in train_texts)
    cut = config.tfidf_max_characters
    vectorizer = TfidfVectorizer(
        analyzer="char" if unspaced else "word",
        ngram_range=(1, 3) if unspaced else (1, 2),
        token_pattern=None if unspaced else WORD.pattern,
        max_features=config.tfidf_max_features,
        sublinear_tf=True,
    )
    features_NF = vectorizer.fit_transform(text[:cut] for text in train_texts)
    regression = LogisticRegression(C=config.tfidf_inverse_regularisation, solver="liblinear", random_state=0)
    classifier = OneVsRestClassifier(regression).fit(features_NF, list(train_labels))
    iterations = sum(int(estimator.n_iter_.sum()) for estimator in classifier.estimators_)
    return Baseline(
        predicted=[str(label) for label in classifier.predict(vectorizer.transform(text[:cut] for text in test_texts))],
        train_flops=4.0 * features_NF.nnz * PRODUCTS_PER_ITERATION * iterations,
        detail=f"{'character 1-3' if unspaced else 'word 1-2'}-grams, {features_NF.shape[1]:,} features",
    )

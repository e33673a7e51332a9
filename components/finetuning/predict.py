"""Classifies texts with a saved classifier: transformers and torch, no Ray, nothing trained.

It cleans, tokenizes, cuts, pads and runs in fp32 exactly as the evaluation after training did, so its labels are those
that were reported. It runs in one process; for millions of texts spread them over many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.corpus.normalise import clean
from components.finetuning.data import EncodedSplit
from infra.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The most probable label of a text."""

    label: str
    probability: float


class Classifier:
    """A saved classifier; make one with `Classifier.load`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.labels = [model.config.id2label[index] for index in range(model.config.num_labels)]

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """The classifier in the Hugging Face folder `folder`.

        Raises:
            UserError: the folder holds no classifier.
        """
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no model is there (config.json is missing); give the folder of a classifier")
        from components.finetuning.models import load_classifier, load_tokenizer

        return cls(load_classifier(folder), load_tokenizer(folder))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The most probable label of each text and its probability (softmax), in the order of `texts`."""
        if not texts:
            return []
        from components.finetuning.models import predict_logits

        cleaned = [clean(text) for text in texts]
        tokens = [np.asarray(ids, dtype=np.int32) for ids in self.tokenizer(cleaned, truncation=True)["input_ids"]]
        split = EncodedSplit(
            ids=[],
            tokens_T=np.concatenate(tokens),
            starts=np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])]).astype(np.int64),
            label_N=np.zeros(len(tokens), dtype=np.int64),
            num_truncated=0,
        )
        rows = np.arange(len(tokens), dtype=np.int64)
        logits_NC = predict_logits(self.model, split, rows, self.tokenizer.pad_token_id).astype(np.float64)
        odds_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
        best_N = logits_NC.argmax(axis=1)
        probability_N = odds_NC[rows, best_N] / odds_NC.sum(axis=1)
        return [
            Prediction(label=self.labels[best], probability=float(probability))
            for best, probability in zip(best_N, probability_N, strict=True)
        ]

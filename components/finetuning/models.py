"""Classifiers in transformers' own classes: built from a pretrained encoder or from the same config, run, and saved.

Whatever `AutoModelForSequenceClassification` makes of the encoder's config is used, so that the result loads with
nothing of ours installed. A classifier that can pool over all tokens (ModernBERT) is told to: an encoder trained by
masking alone has learned nothing for its first token, and a small label budget does not teach it.

Shapes: B a batch, L the longest text of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from components.finetuning.data import EncodedSplit, IntArray, evaluation_batches
from components.finetuning.sweep import Init
from infra.energy.flops import shape_of

DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "classifier_dropout",
    "mlp_dropout",
    "embedding_dropout",
    "dropout",
    "dropout_rate",
)
"""T5's rate counts for its attention too."""
ATTENTION_DROPOUT_FIELDS = ("attention_probs_dropout_prob", "attention_dropout", "activation_dropout")
"""Set to 0: drawing a mask for every pair of tokens takes 14 % of a step on a CPU."""
EVALUATION_BATCH_SIZE = 128


def build_classifier(
    folder: Path,
    init: Init,
    labels: Sequence[str],
    *,
    dropout: float = 0.0,
    seed: int = 0,
    attention: Literal["eager", "sdpa"] = "eager",
) -> torch.nn.Module:
    """A classifier in fp32 with a new head.

    Args:
        folder: Hugging Face folder of the pretrained encoder.
        init: `pretrained` takes its weights, `scratch` only its config.
        labels: names of the classes, in the order of their ids.
        dropout: of every kind that the architecture has, but none on attention.
        seed: of the random weights.
        attention: `eager` is 1.2 times as fast as `sdpa` on 32 short texts under bf16 autocast on a CPU.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"
    for field in DROPOUT_FIELDS:
        if hasattr(config, field):
            setattr(config, field, dropout)
    for field in ATTENTION_DROPOUT_FIELDS:
        if hasattr(config, field):
            setattr(config, field, 0.0)
    torch.manual_seed(seed)
    classes = AutoModelForSequenceClassification
    if init == "pretrained":
        model = classes.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation=attention)
    else:
        model = classes.from_config(config, attn_implementation=attention)
    network: torch.nn.Module = model
    return network.float()


def load_classifier(folder: Path) -> Any:
    """The classifier saved in `folder`, in fp32, ready to predict."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path, max_length: int | None = None) -> Any:
    """The tokenizer in `folder`; `max_length` sets where it cuts a text, on the right."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if max_length is not None:
        tokenizer.model_max_length = max_length
    return tokenizer


def text_length_limit(folder: Path, wanted: int) -> int:
    """Tokens a text may have: `wanted`, or what the encoder has positions for if that is less."""
    from transformers import AutoConfig

    limit = getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None)
    return min(wanted, limit) if limit else wanted


def predict_logits(
    model: Any, split: EncodedSplit, rows: IntArray, pad_token_id: int, device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Logits [len(rows), C] in fp32, in the order of `rows`; batches hold texts of like length."""
    model.eval()
    order = {int(row): place for place, row in enumerate(rows)}
    logits: npt.NDArray[np.float32] | None = None
    with torch.inference_mode():
        for batch in evaluation_batches(split.lengths_N, rows, EVALUATION_BATCH_SIZE):
            tokens_BL, mask_BL = split.pad(batch, pad_token_id)
            logits_BC = model(
                input_ids=torch.from_numpy(tokens_BL).to(device), attention_mask=torch.from_numpy(mask_BL).to(device)
            ).logits.float()
            if logits is None:
                logits = np.zeros((len(rows), logits_BC.shape[1]), dtype=np.float32)
            logits[[order[int(row)] for row in batch]] = logits_BC.cpu().numpy()
    return logits if logits is not None else np.zeros((0, 0), dtype=np.float32)


def training_flops(config: Any, num_tokens: int, num_texts: int, *, training: bool = True) -> float:
    """FLOPs of training on (or running) `num_texts` texts of `num_tokens` tokens in all, padding not counted."""
    shape = shape_of(config)
    span = num_tokens / max(1, num_texts)
    decoder_tokens = num_tokens if shape.num_decoder_layers else 0  # which reads the text once more
    return shape.flops(
        num_tokens=num_tokens,
        span=span,
        num_head_tokens=num_texts,
        num_decoder_tokens=decoder_tokens,
        decoder_span=span / 2,
        training=training,
        num_head_parameters=shape.hidden_size * (shape.hidden_size + config.num_labels),
    )

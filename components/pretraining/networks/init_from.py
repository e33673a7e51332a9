"""Whether a Hugging Face folder can be what a training starts from (`model.init_from`): told from its config.json,
without torch or transformers, and all at once.

Any network of the fitting kind may: a masked language model for masked_lm, an encoder-decoder for span_corruption and
denoising, a causal language model for the others. The weights are looked at only when they are loaded; whether the
network can keep packed documents apart is tried then (runner.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.pretraining.config import Kind, PretrainConfig, num_sentinels
from infra.errors import ConfigError

HEADS: tuple[tuple[str, Kind], ...] = (
    ("ForMaskedLM", "encoder"),
    ("ForPreTraining", "encoder"),
    ("ForCausalLM", "decoder"),
    ("LMHeadModel", "decoder"),
)
ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "mpnet",
        "modernbert",
        "roberta",
        "xlm-roberta",
    }
)
DECODERS = frozenset(
    {
        "bloom",
        "falcon",
        "gemma",
        "gemma2",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "llama",
        "mistral",
        "olmo",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
POSITION_FIELDS = ("max_position_embeddings", "n_positions", "seq_length")
NEXT_SENTENCE_TYPES = ("bert",)
DROPOUT_FIELDS = ("hidden_dropout_prob", "hidden_dropout", "dropout", "dropout_rate", "resid_pdrop", "mlp_dropout")


def read_description(folder: Path, where: str) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ConfigError: there is none.
    """
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(described.get("model_type"), str):
            raise ValueError("config.json names no model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}.init_from={folder}: not a Hugging Face model folder: {error}") from error
    found: dict[str, Any] = described
    return found


def kind_of_description(described: dict[str, Any]) -> Kind | None:
    """Encoder, encoder-decoder or decoder; None where config.json does not tell."""
    if described.get("is_encoder_decoder"):
        return "encoder_decoder"
    for name in described.get("architectures") or ():
        for ending, kind in HEADS:
            if name.endswith(ending):
                return kind
    if described["model_type"] in ENCODERS:
        return "encoder"
    return "decoder" if described["model_type"] in DECODERS else None


def start_problems(config: PretrainConfig, where: str, vocab_size: int | None = None, num_new: int = 0) -> list[str]:
    """Everything that keeps `model.init_from` from being a start, one line each.

    Args:
        config: with `model.init_from`.
        where: the config key of its model, such as `pretrain_mlm.model`.
        vocab_size: tokens of the tokenizer, once it is known. More rows than that are usual in released models.
        num_new: the last of them, which the model's own tokenizer lacks: they and sentinels then get new rows.
    """
    folder = Path(str(config.model.init_from))
    try:
        described = read_description(folder, where)
    except ConfigError as error:
        return list(error.problems)
    model_type, found = described["model_type"], []
    kind, named = kind_of_description(described), ", ".join(described.get("architectures") or ()) or "no architecture"
    if kind != config.kind:
        what = f"is {kind} ({model_type}, {named})" if kind else f"tells no kind of network ({model_type}, {named})"
        found.append(f"it {what}, and objective={config.objective} takes an {config.kind}".replace("an de", "a de"))
    elif config.objective == "masked_lm_nsp" and model_type not in NEXT_SENTENCE_TYPES:
        found.append(f"{model_type} has no head for next-sentence prediction: set objective=masked_lm")
    if config.model.architecture not in (None, model_type):
        found.append(f"its model_type is {model_type}, and architecture={config.model.architecture}: leave that out")
    vocab = described.get("vocab_size")
    more = 0 if num_new else num_sentinels(config)
    if vocab_size is not None and (not isinstance(vocab, int) or vocab < vocab_size - num_new + more):
        sentinels = f" and {more} sentinels" if more else ""
        found.append(
            f"its vocab_size is {vocab}, the token shards have {vocab_size} tokens{sentinels}: use the tokenizer that "
            "it was made with"
        )
    found += _length_problems(config, described)
    if config.model.dropout > 0 and not any(name in described for name in DROPOUT_FIELDS):
        found.append(f"{model_type} drops no hidden states: set dropout=0")
    return [f"{where}.init_from={folder}: {line}" for line in found]


def _length_problems(config: PretrainConfig, described: dict[str, Any]) -> list[str]:
    """Positions and attention windows that are too short for the sequences."""
    found = []
    limits = [described[name] for name in POSITION_FIELDS if isinstance(described.get(name), int)]
    offset = 2 if described["model_type"] in ("roberta", "camembert", "xlm-roberta") else 0  # rows that no token uses
    if limits and limits[0] - offset < config.sequence_length:
        found.append(f"it has {limits[0] - offset} positions, less than sequence_length={config.sequence_length}")
    window = described.get("sliding_window")
    if isinstance(window, int) and described.get("use_sliding_window", True) and window < config.sequence_length:
        found.append(
            f"its attention has a sliding_window of {window}, and packed rows are not windowed: set "
            f"sequence_length to at most {window}"
        )
    return found

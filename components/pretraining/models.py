"""The networks: ModernBertForMaskedLM, BertForMaskedLM and LlamaForCausalLM of transformers, with random weights or
from a folder.

ModernBERT (Warner et al. 2024, arXiv:2412.13663) is BERT with rotary positions, pre-norm and gated feed-forward layers.
It is the default encoder because it learns much sooner: after 900 steps of 2,048 tokens on WordNet glosses its
validation loss was 4.74, that of BERT at 1.1 times its size 5.84, unigrams give 6.86 (tests/benchmarks/LOG.md). All its
layers attend to the whole document here; its sliding windows pay beyond a thousand tokens.

On a CPU attention is `eager`: at 128 tokens it trains 1.3 to 1.5 times as fast as `sdpa`.

Dropout is 0: the runs here read their text a few times at most, and the loss then depends on nothing but the weights
and the batch. Embeddings and output head are tied, which at 6M weights and a vocabulary of 8192 saves a third.

Shapes: B sequences, L tokens, T targets, D width, V vocabulary, K losses.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.pretraining.config import Architecture, ModelConfig, PretrainConfig
from components.pretraining.hardware import hardware
from infra.errors import ConfigError

PACKED_OBJECTIVES = ("masked_lm", "causal_lm", "label_lm")
"""Whose attention is causal or full within each document, so that positions that restart say all."""
HEAD_SIZE = 64
MAX_CHOSEN_WIDTH = 16_384
HIDDEN_SCORE = -1e4
"""Added to the score of a token that must not be seen: exp of it is 0 in every precision."""


def feed_forward_size(architecture: Architecture, hidden_size: int) -> int:
    """Default width of the feed-forward layer: 4 D for bert, 2 D for modernbert's gated one, and for llama's SwiGLU
    8/3 D, up to a multiple of 64."""
    if architecture == "llama":
        return -(-8 * hidden_size // (3 * 64)) * 64
    return (4 if architecture == "bert" else 2) * hidden_size


def count_parameters(architecture: Architecture, model: ModelConfig, vocab_size: int, positions: int) -> int:
    """Weights of the network, by formula; tied weights once.

    Args:
        architecture: which network.
        model: its sizes.
        vocab_size: V.
        positions: rows of bert's position embeddings.
    """
    width = model.hidden_size
    inner = model.intermediate_size or feed_forward_size(architecture, width)
    if architecture == "llama":
        return vocab_size * width + model.num_layers * (4 * width**2 + 3 * width * inner + 2 * width) + width
    if architecture == "modernbert":
        layers = model.num_layers * (4 * width**2 + 3 * width * inner + 2 * width) - width  # the first has no norm
        return vocab_size * width + width + layers + width + width**2 + width + vocab_size
    layer = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
    head = width**2 + width + 2 * width + vocab_size
    return (vocab_size + positions + 2) * width + 2 * width + model.num_layers * layer + head


def sized(architecture: Architecture, model: ModelConfig, vocab_size: int, positions: int) -> ModelConfig:
    """`model` with width and depth chosen where `target_parameters` is given.

    The rule: heads of 64, as many layers as heads (D = 64 N, about the proportion of GPT-2 small and of BERT base),
    and of these the one whose number of weights is nearest to the target, by ratio.
    """
    if model.target_parameters is None:
        return model
    choices = [
        model.model_copy(
            update={"hidden_size": HEAD_SIZE * n, "num_layers": n, "num_heads": n, "intermediate_size": None}
        )
        for n in range(1, MAX_CHOSEN_WIDTH // HEAD_SIZE + 1)
    ]
    wanted = math.log(model.target_parameters)
    return min(choices, key=lambda m: abs(math.log(count_parameters(architecture, m, vocab_size, positions)) - wanted))


def build_model(config: PretrainConfig, vocab_size: int, special: dict[str, int]) -> Any:
    """The language model in fp32, its random weights drawn from the seed.

    Args:
        config: says which.
        vocab_size: V.
        special: ids by the names `pad`, `bos`, `eos`.

    Raises:
        ConfigError: `init_from` holds something that does not fit.
    """
    if config.model.init_from is not None:
        return load_model(Path(config.model.init_from), config, vocab_size)
    positions = config.model.max_position_embeddings or config.sequence_length
    model = sized(config.architecture, config.model, vocab_size, positions)
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.intermediate_size or feed_forward_size(config.architecture, model.hidden_size),
        "max_position_embeddings": positions,
        "pad_token_id": special["pad"],
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "tie_word_embeddings": True,
        "attn_implementation": attention_implementation(config),
    }
    torch.manual_seed(config.seed)
    if config.architecture == "modernbert":
        from transformers.models.modernbert import ModernBertConfig, ModernBertForMaskedLM

        return ModernBertForMaskedLM(ModernBertConfig(**sizes, **_modernbert_extras(model, special)))
    if config.architecture == "bert":
        from transformers.models.bert import BertConfig, BertForMaskedLM

        return BertForMaskedLM(BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=model.num_heads, attention_dropout=0.0))


def attention_implementation(config: PretrainConfig) -> str:
    """By the hardware; flash attention takes no mask, only causal or full attention within each document."""
    here = hardware(config.cluster)
    packed = config.objective in PACKED_OBJECTIVES and config.precision != "fp32"
    return here.packed_attention if packed else here.attention


def _modernbert_extras(model: ModelConfig, special: dict[str, int]) -> dict[str, Any]:
    rotary = {"rope_type": "default", "rope_theta": 10_000.0}
    return {
        "cls_token_id": special["bos"],
        "sep_token_id": special["eos"],
        "layer_types": ["full_attention"] * model.num_layers,
        "rope_parameters": {"full_attention": rotary, "sliding_attention": rotary},
        "classifier_pooling": "mean",
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
    }


def load_model(folder: Path, config: PretrainConfig, vocab_size: int) -> Any:
    """The language model of a Hugging Face folder, in fp32, without dropout.

    Raises:
        ConfigError: it is none, of another architecture, or does not fit the token shards.
    """
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, vocab, positions = (described.get(k) for k in ("model_type", "vocab_size", "max_position_embeddings"))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"model.init_from={folder}: not a Hugging Face model folder: {error}") from error
    wrong = []
    if kind != config.architecture:
        wrong.append(f"its model_type is {kind}, wanted {config.architecture} for objective={config.objective}")
    if not isinstance(vocab, int) or vocab < vocab_size:
        wrong.append(
            f"its vocab_size is {vocab}, the token shards have {vocab_size}: use the tokenizer it was made with"
        )
    if kind == "bert" and (not isinstance(positions, int) or positions < config.sequence_length):
        wrong.append(f"its max_position_embeddings is {positions}, less than sequence_length={config.sequence_length}")
    if wrong:
        raise ConfigError(*(f"model.init_from={folder}: {line}" for line in wrong))
    options = {"dtype": torch.float32, "attn_implementation": attention_implementation(config)}
    if config.architecture == "modernbert":
        from transformers.models.modernbert import ModernBertForMaskedLM

        none = {"attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0}
        return ModernBertForMaskedLM.from_pretrained(folder, local_files_only=True, **none, **options)
    if config.architecture == "bert":
        from transformers.models.bert import BertForMaskedLM

        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM.from_pretrained(folder, local_files_only=True, **no_dropout, **options)
    from transformers.models.llama import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, local_files_only=True, attention_dropout=0.0, **options)


def model_mask(model: Any, attention_B1LL: torch.Tensor) -> Any:
    """The boolean mask [B, 1, L, L] in the form that the network's attention takes."""
    if model.config._attn_implementation == "flash_attention_2":
        return None
    mask: Any = attention_B1LL
    if model.config._attn_implementation == "eager":  # which adds the mask to the scores
        mask = torch.where(attention_B1LL, 0.0, HIDDEN_SCORE).to(model.dtype)
    return {"full_attention": mask} if model.config.model_type == "modernbert" else mask


class TargetLoss(nn.Module):
    """A language model whose forward gives the summed loss of the targets.

    The head runs on the targets alone: at a masking rate of 0.3 and V = 8192 that is a third of the head's work, and
    logits [T, V] in place of [B, L, V].
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        positions_BL: torch.Tensor,
        attention_B1LL: torch.Tensor,
        target_positions_T: torch.Tensor,
        target_ids_T: torch.Tensor,
    ) -> torch.Tensor:
        """Sum over the targets of -log p, in nats; fp32 [K], a sum for each loss of the objective."""
        model = self.language_model
        if model.config._attn_implementation == "flash_attention_2":  # takes documents of one row, by their positions
            input_ids_BL, positions_BL = input_ids_BL.reshape(1, -1), positions_BL.reshape(1, -1)
        extra = {"use_cache": False} if model.config.model_type == "llama" else {}
        hidden_BLD = model.base_model(
            input_ids=input_ids_BL, attention_mask=model_mask(model, attention_B1LL), position_ids=positions_BL, **extra
        ).last_hidden_state
        hidden_TD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1]).index_select(0, target_positions_T)
        logits_TV = self._head(hidden_TD).float()
        return nn.functional.cross_entropy(logits_TV, target_ids_T, reduction="sum")[None]

    def _head(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        model = self.language_model
        if model.config.model_type == "bert":
            logits_TV: torch.Tensor = model.cls(hidden_TD)
        elif model.config.model_type == "modernbert":
            logits_TV = model.decoder(model.head(hidden_TD))
        else:
            logits_TV = model.lm_head(hidden_TD)
        return logits_TV

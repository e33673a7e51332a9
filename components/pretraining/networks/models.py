"""The network of a training, and its loss on the targets of a batch.

Which networks there are says architectures.py; how each is run on packed rows, runner.py. Here they are made, with
random weights or from a folder, and wrapped into a module whose forward gives summed losses.

Without dropout the loss depends on nothing but the weights and the batch, which is the default: the runs here read
their text a few times at most. With it, masks are keyed by sample (dropout.py). Activation checkpointing keeps the
input of each layer alone and runs the layer again in the backward pass: a third more work.

Shapes: B sequences, L tokens, M decoder tokens, T targets, P documents, D width, V vocabulary, K losses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from components.pretraining.config import ObjectiveName, PretrainConfig, network_vocab_size, num_sentinels
from components.pretraining.engine.hardware import attention_implementation
from components.pretraining.networks import document_attention
from components.pretraining.networks.architectures import make_network
from components.pretraining.networks.cross_entropy import MAX_LOGITS, linear_cross_entropy
from components.pretraining.networks.dropout import (
    Contexts,
    SampleDropout,
    dropout_fields,
    hidden_dropout,
    silence_attention,
)
from components.pretraining.networks.init_from import start_problems
from components.pretraining.networks.runner import Runner, output_layer, reads_masks
from components.pretraining.networks.sizes import network_sizes
from infra.energy.flops import shape_of
from infra.errors import ConfigError, FromzeroError

logger = logging.getLogger(__name__)
LossOutput = Literal["sums", "losses", "predictions"]
DECODER_STARTS: Mapping[ObjectiveName, str] = {"span_corruption": "pad", "denoising": "eos"}
"""What the decoder reads first, by the objective and not by the architecture, whose own start may be another."""


def build_model(config: PretrainConfig, vocab_size: int, special: dict[str, int]) -> Any:
    """The language model in fp32, its random weights drawn from the seed.

    Args:
        config: says which.
        vocab_size: tokens of the tokenizer; the network has `network_vocab_size` rows.
        special: ids by the names `pad`, `bos`, `eos`.

    Raises:
        ConfigError: `init_from` holds something that does not fit, or `target_parameters` cannot be met.
    """
    torch.manual_seed(config.seed)
    if config.model.init_from is not None:
        model = load_model(Path(config.model.init_from), config, vocab_size)
    else:
        sizes = network_sizes(config, vocab_size)
        model = make_network(config, sizes, network_vocab_size(config, vocab_size), special)
    if config.objective in DECODER_STARTS:
        start = special[DECODER_STARTS[config.objective]]
        for told in (model.config, model.generation_config):
            told.decoder_start_token_id = start
        if config.objective == "span_corruption":  # whose targets begin with a sentinel, not with BART's <s>
            model.generation_config.forced_bos_token_id = None
    silence_attention(model)
    if config.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"activation_checkpointing=true: {type(model).__name__} cannot; set it to false")
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def load_model(folder: Path, config: PretrainConfig, vocab_size: int) -> Any:
    """The language model of a Hugging Face folder, in fp32, with the dropout of the config.

    Special tokens that were added to its tokenizer get new rows, where it has no row for them.

    Raises:
        ConfigError: it is none, of another kind, or does not fit the token shards.
    """
    import transformers

    if found := start_problems(config, "model"):
        raise ConfigError(*found)
    classes = {
        "encoder": "AutoModelForPreTraining" if config.objective == "masked_lm_nsp" else "AutoModelForMaskedLM",
        "encoder_decoder": "AutoModelForSeq2SeqLM",
        "decoder": "AutoModelForCausalLM",
    }
    document_attention.register()
    try:
        described = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        for name, value in dropout_fields(vars(described), config.model.dropout).items():
            setattr(described, name, value)
        model, told = getattr(transformers, classes[config.kind]).from_pretrained(
            folder,
            config=described,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation=attention_implementation(
                config, described.model_type, getattr(described, "layer_types", None) or ()
            ),
            output_loading_info=True,
        )
        shape_of(model.config)  # counted from at the end, and better missed now
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.init_from={folder}: transformers cannot load it: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"model.init_from={folder}: its config.json does not tell its sizes: {error}") from error
    if missing := sorted(told["missing_keys"]):
        logger.warning("%s: %d weights are not in it and start at random: %s", folder, len(missing), ", ".join(missing))
    add_rows(model, vocab_size + num_sentinels(config))
    return model


def add_rows(model: Any, num_ids: int) -> None:
    """Gives the embeddings, and the head if it is another matrix, rows for `num_ids` ids, in place; never fewer.

    A new row is the mean of the old ones, so that no new token is likely before it was trained (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """
    num_rows = int(model.get_input_embeddings().weight.shape[0])
    if num_ids <= num_rows:
        return
    model.resize_token_embeddings(num_ids, mean_resizing=False)
    tables = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight_VD in tables.values():
            weight_VD[num_rows:] = weight_VD[:num_rows].mean(0)


class TargetLoss(nn.Module):
    """A language model whose forward gives the summed losses of the targets.

    The head runs on the targets alone: at a masking rate of 0.3 and V = 8192 that is a third of the head's work.

    Args:
        language_model: of transformers, with a language modelling head.

    Raises:
        ConfigError: it cannot keep packed documents apart.
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model = language_model
        self.runner = Runner(language_model)
        self.reads_masks = reads_masks(language_model)
        """Whether the batches need `attention_B1LL`."""
        self.dropout = hidden_dropout(language_model.config)
        self._dropping: SampleDropout | None = None
        if language_model.is_gradient_checkpointing:
            told = {"use_reentrant": False, "context_fn": self._contexts}
            language_model.activation_checkpointing_enable(told)

    def forward(self, output: LossOutput = "sums", **inputs: torch.Tensor) -> torch.Tensor:
        """Losses in nats, fp32: of the targets, then, where there are pairs, of next-sentence prediction.

        Args:
            output: `sums`, a sum for each loss [K]; `losses`, that of each target and then the sums of the other losses
                [T + K - 1]; `predictions`, the likeliest token of each target, int64 [T].
            inputs: `input_ids_BL`, `positions_BL` (restart in each document), `target_positions_T` (index into B * L,
                or B * M behind an encoder), `target_ids_T`; where masks are read, `attention_B1LL` (bool: who sees
                whom); of an encoder-decoder `decoder_input_ids_BM`, `decoder_positions_BM`, `decoder_attention_B1MM`,
                `cross_attention_B1ML`; for pairs `token_types_BL`, `pair_positions_P` (first token of each document),
                `pair_labels_P` (0: B follows A); with dropout `sample_keys_B` (int64).
        """
        model = self.language_model
        rows_T, ids_T = inputs["target_positions_T"], inputs["target_ids_T"]
        with self._drops(inputs.get("sample_keys_B")):
            if self.runner.way.features is None:
                return _of_logits(self.runner.logits(model, inputs).index_select(0, rows_T), ids_T, output)
            hidden_SD = self.runner.hidden(model, inputs)
            features_TD = self.runner.way.features(model, hidden_SD.index_select(0, rows_T))
            weight_VD, bias_V = output_layer(model)
            if output == "sums":
                losses = linear_cross_entropy(features_TD, weight_VD, bias_V, ids_T)[None]
            else:
                losses = _in_pieces(features_TD, weight_VD, bias_V, ids_T, output)
            if "pair_positions_P" not in inputs or output == "predictions":
                return losses
            first_P1D = hidden_SD.index_select(0, inputs["pair_positions_P"])[:, None]
            logits_P2 = model.cls.seq_relationship(model.base_model.pooler(first_P1D)).float()
            pairs = nn.functional.cross_entropy(logits_P2, inputs["pair_labels_P"], reduction="sum")
        return torch.cat([losses, pairs[None]])

    def _drops(self, sample_keys_B: torch.Tensor | None) -> Any:
        """What the forward pass runs in: dropout by key while training, nothing else."""
        self._dropping = None
        if not self.training or not self.dropout:
            return nullcontext()
        if sample_keys_B is None:
            raise FromzeroError(f"dropout is {self.dropout} and the batch has no sample_keys_B to key its masks")
        self._dropping = SampleDropout(sample_keys_B)
        return self._dropping

    def _contexts(self) -> Contexts:
        return self._dropping.contexts() if self._dropping else (nullcontext(), nullcontext())


def _of_logits(logits_TV: torch.Tensor, target_ids_T: torch.Tensor, output: LossOutput) -> torch.Tensor:
    """`output` of `TargetLoss.forward`, of the targets alone."""
    if output == "predictions":
        return logits_TV.argmax(-1)
    losses_T = nn.functional.cross_entropy(logits_TV.float(), target_ids_T, reduction="none")
    return losses_T.sum()[None] if output == "sums" else losses_T


def _in_pieces(
    features_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    target_ids_T: torch.Tensor,
    output: LossOutput,
) -> torch.Tensor:
    """The same with no more logits at once than in training (cross_entropy.py), which the memory plan counts."""
    step = max(1, MAX_LOGITS // len(weight_VD))
    pieces = [slice(start, start + step) for start in range(0, max(1, len(target_ids_T)), step)]
    return torch.cat(
        [
            _of_logits(nn.functional.linear(features_TD[piece], weight_VD, bias_V), target_ids_T[piece], output)
            for piece in pieces
        ]
    )

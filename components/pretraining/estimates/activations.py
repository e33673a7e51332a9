"""Bytes that a rank keeps of one micro batch between the forward and the backward pass, by formula.

After Korthikanti et al. 2022 (arXiv:2205.05198, section 4), who count 34 D + 5 H L bytes a token for a layer of GPT-2
in 16 bits with dropout. The terms here are those of the layers as transformers 5 computes them: tensors of width D and
F, and for eager attention matrices of L x L for each head. Without dropout that is 8 D + 2 F + H L elements for BERT,
with F = 4 D 32 D + 2 H L bytes: Korthikanti's without the masks of dropout (2 D), its output (2 H L) and mask (H L).
Dropout keyed by sample (dropout.py) keeps its factors in the training's precision, 4 D bytes. RMS norms and eager
softmax are computed in fp32, which those terms hold apart. The tests compare with what autograd really saves
(torch.autograd.graph.saved_tensors_hooks): a layer to 0.1 %, a whole network to 4 %.

Eager attention of 4 heads at 128 tokens is a fifth of a layer of width 256; at 1,024 tokens it is two thirds, and SDPA
has none of it. Attention within documents keeps L x L for documents as long as their rows, which is what is counted,
and less for shorter ones. Activation checkpointing keeps the input of each layer, and one layer in full
while it is computed again.

Shapes: B sequences, L tokens (of the encoder or decoder-only), M of the decoder of an encoder-decoder, T targets, D
width, F feed-forward width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.pretraining.config import (
    Architecture,
    ModelConfig,
    PretrainConfig,
    micro_batch_size,
    network_vocab_size,
)
from components.pretraining.engine.hardware import attention_implementation
from components.pretraining.networks.sizes import feed_forward_size, network_sizes

FP32_BYTES = 4
MAX_LOGITS = 1 << 22
"""Logits that `cross_entropy.py` holds at once; a test compares."""
BLOCK_LOGITS = 1 << 18
"""And those that are in fp32 on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Tensors that one layer saves for the backward pass, by the shape of one token's part."""

    wide: int
    """[D] in the training's precision."""
    wide_fp32: int = 0
    """[D] in fp32: what an RMS norm takes."""
    inner: int
    """[F] in the training's precision."""
    scores: int
    """Eager: [H, L] in the training's precision."""
    scores_fp32: int = 0
    """Eager: [H, L] in fp32, the softmax; in fp32 it is the same tensor as `scores`."""
    wide_sdpa: int = 0
    """[D] beside `wide` where attention is SDPA."""
    scores_sdpa: int = 0
    """[H, L] in the training's precision under SDPA: t5's bias is trained, so no fused kernel takes it."""
    attentions: int = 1
    cross: int = 0
    """[D] for each token of the encoder: keys and values of cross-attention."""
    norms: int = 2
    head_norms: int = 0
    """RMS norms of each head."""
    dropped: int = 0
    """[D] in the training's precision, where there is dropout,"""
    dropped_inner: int = 0
    """and [F]."""


LAYERS: Mapping[Architecture, Layer] = {
    "llama": Layer(wide=8, wide_fp32=2, inner=4, scores=1, scores_fp32=1),
    "qwen3": Layer(wide=10, wide_fp32=4, inner=4, scores=1, scores_fp32=1, head_norms=2),
    "gpt2": Layer(wide=8, inner=2, scores=1, dropped=2),
    "bert": Layer(wide=8, inner=2, scores=1, dropped=2),
    "modernbert": Layer(wide=8, inner=4, scores=1, wide_sdpa=2, dropped_inner=1),
    "t5": Layer(wide=6, wide_fp32=4, inner=7, scores=1, wide_sdpa=3, scores_sdpa=2, dropped=2, dropped_inner=1),
    "bart": Layer(wide=8, inner=2, scores=1, dropped=2),
}
"""Of the one side, or of the encoder."""
DECODER_LAYERS: Mapping[Architecture, Layer] = {
    "t5": Layer(
        wide=9,
        wide_fp32=6,
        inner=7,
        scores=1,
        norms=3,
        wide_sdpa=3,
        scores_sdpa=2,
        attentions=2,
        cross=2,
        dropped=3,
        dropped_inner=1,
    ),
    "bart": Layer(wide=12, inner=2, scores=1, norms=3, attentions=2, cross=2, dropped=3),
}
"""Of the decoder of an encoder-decoder, cross-attention included; its scores are [H, M] and [H, L]."""

ENDS: Mapping[Architecture, tuple[int, int, int, int]] = {
    "llama": (1, 1, 1, 0),
    "qwen3": (1, 1, 1, 0),
    "gpt2": (1, 0, 1, 1),
    "bert": (1, 0, 4, 1),
    "modernbert": (2, 0, 4, 1),
    "t5": (1, 1, 1, 2),
    "bart": (1, 0, 1, 1),
}
"""Outside of the layers, the norms after the embeddings and before the head: tensors of [D] for each token in the
training's precision and in fp32; in the head of [D] for each target; and again for each token, of dropout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationBytes:
    """Of one micro batch on one rank, bytes."""

    layers: float
    """Kept by all layers, and by the norms before and after them."""
    recomputed: float
    """One layer in full, while it is computed again."""
    head: float
    """What the head keeps: hidden states of the targets, and the gradients of these and of the output layer, which
    the cross-entropy in pieces makes in the forward pass."""
    head_logits: float
    """One piece of logits, and its softmax in fp32: gone at the end of the forward pass."""

    @property
    def saved(self) -> float:
        """Kept at the end of the forward pass: what the test compares."""
        return self.layers + self.head

    @property
    def peak(self) -> float:
        """The most at once: in the head, or in the last layer when the head is done."""
        return self.layers + max(self.head + self.head_logits, self.recomputed)


def targets_per_token(config: PretrainConfig) -> float:
    """Targets that pass through the head for each token of the (encoder's) input; where that depends on the text, the
    most."""
    if config.objective in ("masked_lm", "masked_lm_nsp"):
        return config.masking_rate
    if config.objective == "span_corruption":  # hidden tokens, a sentinel for each span (Raffel et al. 2020, 3.1.4)
        return config.masking_rate * (1 + 1 / config.mean_span_length)
    return 1.0


def decoder_length(config: PretrainConfig) -> float:
    """M: tokens of the decoder for a sequence of L; 0 without one."""
    return config.sequence_length * targets_per_token(config) if config.kind == "encoder_decoder" else 0.0


def activation_bytes(config: PretrainConfig, vocab_size: int, num_ranks: int) -> ActivationBytes:
    """Activations of one micro batch of the training.

    Args:
        config: of the training.
        vocab_size: tokens of the tokenizer.
        num_ranks: N, which the micro batch follows from.
    """
    model = network_sizes(config, vocab_size)
    size = 4 if config.precision == "fp32" else 2
    batch, length = micro_batch_size(config, num_ranks), float(config.sequence_length)
    targets, decoded = length * targets_per_token(config), decoder_length(config)
    layer = layer_bytes(config, model, LAYERS[config.architecture], length, length)
    inputs = size * length * model.hidden_size
    if decoded:
        layer += layer_bytes(config, model, DECODER_LAYERS[config.architecture], decoded, decoded + length)
        inputs += size * decoded * model.hidden_size
    kept = inputs if config.activation_checkpointing else layer
    wide, wide_fp32, wide_head, dropped = ENDS[config.architecture]
    wide += dropped if model.dropout else 0
    ends = (length + decoded) * (size * wide + FP32_BYTES * wide_fp32) * model.hidden_size
    rows = network_vocab_size(config, vocab_size)
    logits = batch * targets * rows
    sums = size if logits <= MAX_LOGITS else FP32_BYTES  # of more than one piece
    in_fp32 = max(rows, MAX_LOGITS if config.cluster.num_gpus_per_worker else BLOCK_LOGITS)
    return ActivationBytes(
        layers=batch * (model.num_layers * kept + ends),
        recomputed=batch * layer if config.activation_checkpointing else 0.0,
        head=size * wide_head * batch * targets * model.hidden_size + sums * rows * model.hidden_size,
        head_logits=size * min(logits, MAX_LOGITS) + FP32_BYTES * min(logits, in_fp32),
    )


def layer_bytes(config: PretrainConfig, model: ModelConfig, layer: Layer, length: float, seen: float) -> float:
    """Bytes that one layer saves of one sequence.

    Args:
        config: precision and hardware of the training.
        model: sizes, chosen.
        layer: what it saves.
        length: tokens of the sequence.
        seen: tokens that attention scores; in a decoder with cross-attention those of both sides.
    """
    is_low = config.precision != "fp32"
    size = 2 if is_low else 4
    inner = model.intermediate_size or feed_forward_size(config.architecture, model.hidden_size)
    attention = attention_implementation(config, config.architecture)
    drops = int(model.dropout > 0)
    width = size * (layer.wide + drops * layer.dropped) + FP32_BYTES * layer.wide_fp32
    # an RMS norm has one number, in fp32; a layer norm two, in the training's precision
    statistics = (FP32_BYTES if layer.wide_fp32 else 2 * size) * layer.norms
    statistics += FP32_BYTES * layer.head_norms * model.num_heads
    if attention == "eager":
        low = size * layer.scores if is_low or not layer.scores_fp32 else 0
        scores = model.num_heads * (low + FP32_BYTES * layer.scores_fp32) * seen
    elif attention == "documents":
        scores = model.num_heads * size * seen
    elif layer.scores_sdpa:
        width += size * layer.wide_sdpa
        scores = model.num_heads * size * layer.scores_sdpa * seen
    else:  # the log-sum-exp of each head; SDPA also keeps the mask, in the training's precision
        width += size * layer.wide_sdpa
        scores = FP32_BYTES * model.num_heads * layer.attentions + (size * seen if attention == "sdpa" else 0)
    across = size * layer.cross * model.hidden_size * (seen - length)
    inner *= size * (layer.inner + drops * layer.dropped_inner)
    return across + length * (width * model.hidden_size + inner + statistics + scores)

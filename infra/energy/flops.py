"""FLOPs of transformer training and inference, by formula.

The usual count (Kaplan et al. 2020, arXiv:2001.08361, appendix B; Chowdhery et al. 2022, arXiv:2204.02311, appendix
B): one multiply-add is 2 FLOPs; the forward pass of one token takes 2 FLOPs for each weight of a matrix
multiplication, and 4 * span * hidden_size in each layer for attention (scores and weighted sum); the backward pass
takes twice the forward pass. Norms, softmax, activations, embedding look-ups and the optimizer are left out: under
2 % at the sizes here. What a machine really executes (padding, recomputation) is not counted either.

An encoder-decoder is an encoder, and a decoder whose layers also attend to the encoder's output: queries and outputs of
that attention are made for each decoder token, keys and values for each encoder token.

Shapes: hidden width D, layers N, vocabulary V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNGATED_TYPES = ("bert", "bart", "gpt2", "roberta", "distilbert", "electra", "gpt_neox", "opt", "pegasus", "mbart")
"""Model types of transformers with two matrices in the feed-forward layer; others have three."""
HEAD_TYPES = ("bert", "modernbert", "roberta", "distilbert", "electra")
"""Those with a square matrix before the output layer of the language model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkShape:
    """What a network multiplies tokens with."""

    hidden_size: int
    num_layers: int
    """Of the encoder, or of the decoder where there is no encoder."""
    num_decoder_layers: int
    """Of the decoder of an encoder-decoder; else 0."""
    attention_size: int
    """Heads times size of a head."""
    key_value_size: int
    """Key and value heads times size of a head."""
    intermediate_size: int
    num_feed_forward_matrices: int
    num_head_parameters: int
    """Of the language modelling head."""

    @property
    def attention_parameters(self) -> int:
        """Weights of one attention: queries, keys, values, outputs."""
        return 2 * self.hidden_size * (self.attention_size + self.key_value_size)

    def flops(
        self,
        *,
        num_tokens: float,
        span: float,
        num_head_tokens: float,
        num_decoder_tokens: float = 0,
        decoder_span: float = 0,
        training: bool = True,
        num_head_parameters: int | None = None,
    ) -> float:
        """FLOPs to train on, or to run, some text.

        Args:
            num_tokens: that the encoder, or the only stack, reads.
            span: tokens that one of them attends to, on average; half the length of a sequence if causal.
            num_head_tokens: that pass through the head.
            num_decoder_tokens: that the decoder of an encoder-decoder reads.
            decoder_span: decoder tokens that one of these attends to, on average; and `span` of the encoder's.
            training: forward and backward, or forward only.
            num_head_parameters: of another head than the language model's.
        """
        feed_forward = self.num_feed_forward_matrices * self.hidden_size * self.intermediate_size
        layer = self.attention_parameters + feed_forward
        count = num_tokens * self.num_layers * (2 * layer + 4 * span * self.attention_size)
        crossing = 2 * self.hidden_size * self.attention_size
        count += self.num_decoder_layers * (
            num_decoder_tokens * (2 * (layer + crossing) + 4 * (decoder_span + span) * self.attention_size)
            + num_tokens * 2 * (2 * self.hidden_size * self.key_value_size)
        )
        head = self.num_head_parameters if num_head_parameters is None else num_head_parameters
        return (3.0 if training else 1.0) * (count + 2 * num_head_tokens * head)


def shape_of(config: Any) -> NetworkShape:
    """The shape of a network from its transformers config.

    Args:
        config: a `PreTrainedConfig`; names differ between model types, and the usual ones are known.

    Raises:
        AttributeError: it has unusual ones.
    """

    def named(*names: str, default: int | None = None) -> int:
        found = [value for name in names if isinstance(value := getattr(config, name, None), int)]
        if not found and default is None:
            raise AttributeError(f"a {config.model_type} config has none of {', '.join(names)}")
        return found[0] if found or default is None else default

    hidden, heads = named("hidden_size", "d_model", "n_embd", "dim"), named("num_attention_heads", "n_heads", "n_head")
    head_size = named("head_dim", "d_kv", default=hidden // heads)
    square = hidden * hidden if config.model_type in HEAD_TYPES else 0
    gated = bool(getattr(config, "is_gated_act", config.model_type not in UNGATED_TYPES))
    is_double = bool(getattr(config, "is_encoder_decoder", False))
    return NetworkShape(
        hidden_size=hidden,
        num_layers=named("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
        num_decoder_layers=named("num_decoder_layers", "decoder_layers") if is_double else 0,
        attention_size=heads * head_size,
        key_value_size=named("num_key_value_heads", default=heads) * head_size,
        intermediate_size=named(
            "intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim", "ffn_dim", "hidden_dim", default=4 * hidden
        ),
        num_feed_forward_matrices=3 if gated else 2,
        num_head_parameters=hidden * config.vocab_size + square,
    )

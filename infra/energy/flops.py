"""FLOPs of transformer training and inference, by formula.

The usual count (Kaplan et al. 2020, arXiv:2001.08361, appendix B; Chowdhery et al. 2022, arXiv:2204.02311, appendix
B): one multiply-add is 2 FLOPs; the forward pass of one token takes 2 FLOPs for each weight of a matrix
multiplication, and 4 * span * hidden_size in each layer for attention (scores and weighted sum); the backward pass
takes twice the forward pass. Norms, softmax, activations, embedding look-ups and the optimizer are left out: under
2 % at the sizes here. What a machine really executes (padding, recomputation) is not counted either.

Shapes: hidden width D, layers N.
"""

from __future__ import annotations


def matmul_parameters(*, hidden_size: int, num_layers: int, intermediate_size: int, gated: bool) -> int:
    """Weights of the layers that every token is multiplied with; embeddings and the output head are not among them.

    Args:
        hidden_size: D.
        num_layers: N.
        intermediate_size: width of the feed-forward layer.
        gated: whether the feed-forward layer has three matrices (llama, modernbert) or two (bert).
    """
    attention = 4 * hidden_size * hidden_size
    feed_forward = (3 if gated else 2) * hidden_size * intermediate_size
    return num_layers * (attention + feed_forward)


def transformer_flops(
    *,
    num_matmul_parameters: int,
    num_tokens: float,
    num_layers: int,
    hidden_size: int,
    attention_span: float,
    num_head_parameters: int = 0,
    num_head_tokens: float = 0,
    training: bool,
) -> float:
    """FLOPs to train on, or to run, `num_tokens` tokens.

    Args:
        num_matmul_parameters: weights each token is multiplied with, from `matmul_parameters`.
        num_tokens: tokens that pass through the layers.
        num_layers: N.
        hidden_size: D.
        attention_span: tokens that one token attends to, on average: the length of a sequence, half of it if causal.
        num_head_parameters: weights of the output head, for a language model hidden_size * vocab_size.
        num_head_tokens: tokens that pass through the head; fewer than `num_tokens` where only targets do.
        training: forward and backward (three times the forward pass) or forward only.
    """
    layers = num_tokens * (2 * num_matmul_parameters + 4 * num_layers * attention_span * hidden_size)
    head = num_head_tokens * 2 * num_head_parameters
    return (3.0 if training else 1.0) * (layers + head)

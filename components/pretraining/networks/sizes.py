"""How large a network is, by formula and without torch: its weights, its vocabulary, and the shape that a budget of
weights buys.

`target_parameters` chooses width D and depth N so that the count is within 5 % of the budget:

- Heads of 64, D a multiple of 64, feed-forward widths as usual. Of all (D, N) within 5 % it takes the one whose aspect
  D / N is nearest, by ratio, to 64 up to D = 1024 (BERT base, GPT-2 small, T5 base), growing with the square root of D
  to 128 from D = 4096 on (GPT-3: Brown et al. 2020, table 2.1; Llama).
- Where no such pair exists (a few budgets below 5M), the feed-forward width moves by up to a half.
- The aspect stays in 3 .. 256. The loss hardly cares: at a fixed number of weights it moves by less than 3 % while
  the aspect moves 40-fold (Kaplan et al. 2020, arXiv:2001.08361, section 3.1); Levine et al. 2020 (arXiv:2006.12467)
  find the same plateau, and that wide beats deep only as width grows, which the growing aspect follows.
- An encoder-decoder has N layers on each side.

The budget counts every weight, tied ones once, embeddings too. A large vocabulary therefore leaves small budgets few
shapes: with 8,192 tokens the smallest network has 0.6M weights, with 128,000 it has 8.3M.

Shapes: D width, F feed-forward width, N layers, V rows of the embedding, P positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from components.pretraining.config import Architecture, ModelConfig, PretrainConfig, network_vocab_size
from infra.errors import ConfigError

HEAD_SIZE = 64
TOLERANCE = 0.05
MIN_ASPECT, MAX_ASPECT = 3, 256
MAX_CHOSEN_WIDTH = 32_768
RELATIVE_BUCKETS = 32
"""Rows of T5's table of relative positions."""
BART_POSITION_OFFSET = 2
"""Rows of BART's position embeddings that no position uses."""


def feed_forward_size(architecture: Architecture, hidden_size: int) -> int:
    """Default F: 4 D for two matrices (bert, bart, gpt2), 2 D for modernbert's gated layer, and for the gated layers of
    llama, qwen3 and t5 8/3 D up to a multiple of 64, which has as many weights as 4 D in two."""
    if architecture == "modernbert":
        return 2 * hidden_size
    if architecture in ("llama", "qwen3", "t5"):
        return -(-8 * hidden_size // (3 * 64)) * 64
    return 4 * hidden_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights of a network whose depth is open."""

    fixed: int
    """Embeddings, head and last norms."""
    per_layer: int
    """Of one layer; of an encoder-decoder, of one layer on each side."""

    def total(self, num_layers: int) -> int:
        """Weights at that depth."""
        return self.fixed + num_layers * self.per_layer


def weights(
    architecture: Architecture, model: ModelConfig, vocab_size: int, positions: int, *, next_sentence: bool = False
) -> Weights:
    """Weights by formula, tied ones once; biases, norms and tables of positions counted.

    Args:
        architecture: which network.
        model: its sizes; its number of layers is not looked at.
        vocab_size: V.
        positions: P, for those with learned positions.
        next_sentence: with the pooler and head of next-sentence prediction.
    """
    d, heads = model.hidden_size, model.num_heads
    f = model.intermediate_size or feed_forward_size(architecture, d)
    square, biased, embedding = d * d, d * d + d, vocab_size * d
    plain_layer = 4 * biased + 2 * d * f + f + d + 4 * d  # attention, feed-forward, two norms; all with biases
    gated_layer = 4 * square + 3 * d * f + 2 * d  # no biases, norms without shift
    if architecture == "llama":
        return Weights(fixed=embedding + d, per_layer=gated_layer)
    if architecture == "qwen3":
        return Weights(fixed=embedding + d, per_layer=gated_layer + 2 * (d // heads))
    if architecture == "gpt2":
        return Weights(fixed=embedding + positions * d + 2 * d, per_layer=plain_layer)
    if architecture == "modernbert":  # its first layer has no norm before attention
        return Weights(fixed=embedding + d - d + d + square + d + vocab_size, per_layer=gated_layer)
    if architecture == "bert":
        pooler = biased + 2 * d + 2 if next_sentence else 0
        head = biased + 2 * d + vocab_size
        return Weights(fixed=embedding + (positions + 2) * d + 2 * d + head + pooler, per_layer=plain_layer)
    if architecture == "t5":
        return Weights(
            fixed=embedding + 2 * RELATIVE_BUCKETS * heads + 2 * d,
            per_layer=2 * gated_layer + 4 * square + d,
        )
    return Weights(
        fixed=embedding + 2 * (positions + BART_POSITION_OFFSET) * d + 4 * d,
        per_layer=2 * plain_layer + 4 * biased + 2 * d,
    )


def count_parameters(
    architecture: Architecture, model: ModelConfig, vocab_size: int, positions: int, *, next_sentence: bool = False
) -> int:
    """Weights of the network, by formula; the arguments are those of `weights`, with V the rows of the embedding."""
    return weights(architecture, model, vocab_size, positions, next_sentence=next_sentence).total(model.num_layers)


def preferred_aspect(hidden_size: int) -> float:
    """D / N that the rule aims at."""
    return min(128.0, 64.0 * math.sqrt(max(1.0, hidden_size / 1024)))


def sized(
    architecture: Architecture, model: ModelConfig, vocab_size: int, positions: int, *, next_sentence: bool = False
) -> ModelConfig:
    """`model` with width, depth and heads chosen by the rule above where `target_parameters` is given.

    `intermediate_size` is then None, the usual one, but for the few budgets that no usual one meets.

    Raises:
        ConfigError: the budget does not even pay the embeddings, or no shape comes within 5 % of it.
    """
    target = model.target_parameters
    if target is None:
        return model
    best: tuple[bool, float, ModelConfig] | None = None
    below, above = 0, 0
    for heads in range(1, MAX_CHOSEN_WIDTH // HEAD_SIZE + 1):
        width = HEAD_SIZE * heads
        shape = model.model_copy(update={"hidden_size": width, "num_heads": heads, "intermediate_size": None})
        cost = weights(architecture, shape, vocab_size, positions, next_sentence=next_sentence)
        if heads == 1 and cost.total(1) > target * (1 + TOLERANCE):
            raise ConfigError(
                f"model.target_parameters={target:,}: the smallest {architecture} with {vocab_size:,} tokens has "
                f"{cost.total(1):,} weights, {vocab_size * width:,} of them embeddings: raise target_parameters, or "
                "lower tokenizer.vocab_size"
            )
        shallowest, deepest = max(1, -(-width // MAX_ASPECT)), max(1, width // MIN_ASPECT)
        if cost.total(shallowest) > 1.5 * target:
            break
        ideal = (target - cost.fixed) / cost.per_layer
        for depth in {math.floor(ideal), math.ceil(ideal)}:
            layers = min(deepest, max(shallowest, depth))
            candidate = shape.model_copy(update={"num_layers": layers})
            distance = abs(math.log(width / layers / preferred_aspect(width)))
            for odd, inner in enumerate((None, _fitted_feed_forward(architecture, candidate, cost, target))):
                sizes = candidate.model_copy(update={"intermediate_size": inner})
                total = count_parameters(architecture, sizes, vocab_size, positions, next_sentence=next_sentence)
                below = max(below, total) if total <= target else below
                above = min(above or total, total) if total > target else above
                if abs(total / target - 1) <= TOLERANCE and (best is None or (bool(odd), distance) < best[:2]):
                    best = bool(odd), distance, sizes
    if best is None:
        near = " and ".join(f"{count:,}" for count in (below, above) if count)
        raise ConfigError(
            f"model.target_parameters={target:,}: no {architecture} with {vocab_size:,} tokens and heads of "
            f"{HEAD_SIZE} comes within {TOLERANCE:.0%}: the nearest have {near} weights; take one of these, lower "
            "tokenizer.vocab_size, or give hidden_size, num_layers and num_heads"
        )
    return best[2]


def _fitted_feed_forward(architecture: Architecture, model: ModelConfig, cost: Weights, target: int) -> int:
    """The multiple of 64 within a half of the usual F that brings the count nearest to the target."""
    usual = feed_forward_size(architecture, model.hidden_size)
    matrices = (2 if architecture in ("bert", "bart", "gpt2") else 3) * (2 if architecture in ("t5", "bart") else 1)
    wanted = usual + (target - cost.total(model.num_layers)) / (matrices * model.hidden_size * model.num_layers)
    least, most = -(-usual // (2 * HEAD_SIZE)), 3 * usual // (2 * HEAD_SIZE)
    return HEAD_SIZE * min(most, max(least, round(wanted / HEAD_SIZE)))


def network_sizes(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    """The sizes of the network of a training from random weights.

    Args:
        config: of the training.
        vocab_size: tokens of the tokenizer.

    Raises:
        ConfigError: see `sized`.
    """
    return sized(
        config.architecture,
        config.model,
        network_vocab_size(config, vocab_size),
        num_positions(config),
        next_sentence=config.objective == "masked_lm_nsp",
    )


def size_problems(config: PretrainConfig, where: str, vocab_size: int) -> list[str]:
    """Why `model.target_parameters` cannot be met, if it cannot.

    Args:
        config: of the training.
        where: its config key.
        vocab_size: tokens of the tokenizer.
    """
    try:
        network_sizes(config, vocab_size)
    except ConfigError as error:
        return [f"{where}.{line}" for line in error.problems]
    return []


def num_parameters(config: PretrainConfig, vocab_size: int) -> int:
    """Weights of the network of a training from random weights; the arguments and errors are those of
    `network_sizes`."""
    return count_parameters(
        config.architecture,
        network_sizes(config, vocab_size),
        network_vocab_size(config, vocab_size),
        num_positions(config),
        next_sentence=config.objective == "masked_lm_nsp",
    )


def num_positions(config: PretrainConfig) -> int:
    """P: the longest document that the network can take, tokens."""
    return config.model.max_position_embeddings or config.sequence_length

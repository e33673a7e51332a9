"""What a user sets for a pretraining, and what is wrong with it, told without torch.

Fields marked execution say how to run and never change a key; everything else changes the model that comes out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.cluster.config import ClusterConfig
from infra.journal.config import FrozenConfig, execution_field

ObjectiveName = Literal["masked_lm", "causal_lm", "label_lm"]
Architecture = Literal["modernbert", "bert", "llama"]


class ModelConfig(FrozenConfig):
    """The network: an encoder (ModernBERT or BERT) or a Llama-style decoder, from random weights or from a folder."""

    architecture: Architecture | None = Field(
        None, description="without it modernbert for masked_lm, llama for causal_lm and label_lm"
    )
    hidden_size: int = Field(256, ge=8, description="width")
    num_layers: int = Field(4, ge=1, description="depth")
    num_heads: int = Field(4, ge=1, description="attention heads; divides hidden_size")
    intermediate_size: int | None = Field(
        None,
        ge=8,
        description="feed-forward width; without it 4 * hidden_size (bert), 2 (modernbert), 8/3 up to 64s (llama)",
    )
    max_position_embeddings: int | None = Field(
        None, ge=1, description="longest document, tokens; without it sequence_length"
    )
    target_parameters: int | None = Field(
        None, ge=10_000, description="weights wanted; if given, it chooses width, depth and heads (models.py)"
    )
    init_from: str | None = execution_field(
        None, description="Hugging Face folder to start from; its content counts in the key, not its path"
    )


class PretrainConfig(FrozenConfig):
    """One training of a language model."""

    objective: ObjectiveName = Field("masked_lm", description="what the loss is")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    steps: int = Field(1000, ge=1, description="optimizer steps")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    min_learning_rate_fraction: float = Field(0.1, ge=0, le=1, description="last learning rate, as part of the peak")
    warmup_fraction: float = Field(0.06, ge=0, le=1, description="part of the steps with rising learning rate")
    warmup_steps: int | None = Field(None, ge=0, description="if given, instead of warmup_fraction, steps")
    global_batch_size: int = Field(32, ge=1, description="sequences in one optimizer step, over all workers")
    sequence_length: int = Field(128, ge=8, description="tokens of a packed sequence; that of the token shards")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's, on matrices only")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's")
    gradient_clipping: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    masking_rate: float = Field(0.3, gt=0, lt=1, description="masked_lm: part of the text tokens that are targets")
    mask_token_fraction: float = Field(0.8, ge=0, le=1, description="masked_lm: part of the targets shown as <mask>")
    random_token_fraction: float = Field(0.1, ge=0, le=1, description="masked_lm: part shown as a random token")
    precision: Literal["bf16", "fp32", "fp16"] = Field("bf16", description="of weights and activations in training")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order of samples and masks")
    validation_every_steps: int | None = Field(None, ge=1, description="null for the end only")
    max_validation_sequences: int | None = Field(512, ge=1, description="null for the whole split")
    data_license: str | None = Field(
        None, description="of the training text, one line for the model card; without it, what corpus.sources say"
    )

    zero_stage: int = execution_field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    micro_batch_size_per_rank: int = execution_field(
        16, ge=1, description="most sequences a worker takes at once; the largest divisor of its share is used"
    )
    checkpoint_every_steps: int | None = execution_field(200, ge=1, description="null for no checkpoints")
    keep_checkpoints: int = execution_field(2, ge=1, description="newest checkpoints that are kept")
    log_every_steps: int = execution_field(10, ge=1, description="steps between two points of the history")
    cluster: ClusterConfig = execution_field(
        default_factory=lambda: ClusterConfig.model_validate({}), description="workers and their resources"
    )

    @property
    def architecture(self) -> Architecture:
        """The architecture, by the objective where the model names none."""
        if self.model.architecture is not None:
            return self.model.architecture
        return "modernbert" if self.objective == "masked_lm" else "llama"

    @property
    def num_warmup_steps(self) -> int:
        """Steps of warmup."""
        return self.warmup_steps if self.warmup_steps is not None else round(self.warmup_fraction * self.steps)


def micro_batch_size(config: PretrainConfig, world_size: int) -> int:
    """Sequences a rank takes at once: the largest divisor of its share of the batch that the config allows."""
    share = config.global_batch_size // world_size
    return max(size for size in range(1, min(share, config.micro_batch_size_per_rank) + 1) if share % size == 0)


def problems(config: PretrainConfig, where: str = "pretrain", cluster: str = "cluster") -> list[str]:
    """Everything wrong with a combination of values, one line each.

    Args:
        config: valid field by field.
        where: the config key of `config`, for the messages.
        cluster: the config key of its cluster.
    """
    found: list[str] = []
    batch, workers, model = config.global_batch_size, config.cluster.num_workers, config.model
    if batch % workers:
        fits = [count for count in range(1, min(batch, workers) + 1) if batch % count == 0]
        up = -(-batch // workers) * workers
        found.append(
            f"{where}.global_batch_size={batch} must be a multiple of {cluster}.num_workers={workers}: "
            f"set {where}.global_batch_size={up}, or {cluster}.num_workers to one of {', '.join(map(str, fits))}"
        )
    sizes_count = model.target_parameters is None and model.init_from is None
    if sizes_count and model.hidden_size % model.num_heads:
        found.append(
            f"{where}.model.hidden_size={model.hidden_size} must be a multiple of "
            f"{where}.model.num_heads={model.num_heads}"
        )
    elif sizes_count and config.architecture != "bert" and (model.hidden_size // model.num_heads) % 2:
        found.append(
            f"{where}.model.hidden_size={model.hidden_size} / {where}.model.num_heads={model.num_heads} must be "
            "even: rotary positions turn pairs of numbers"
        )
    if (config.objective == "masked_lm") != (config.architecture != "llama"):
        found.append(
            f"{where}.model.architecture={config.architecture} does not fit {where}.objective={config.objective}: "
            "masked_lm takes modernbert or bert, causal_lm and label_lm take llama"
        )
    if model.max_position_embeddings is not None and model.max_position_embeddings < config.sequence_length:
        found.append(
            f"{where}.model.max_position_embeddings={model.max_position_embeddings} must be at least "
            f"{where}.sequence_length={config.sequence_length}"
        )
    if config.num_warmup_steps >= config.steps and config.num_warmup_steps > 0:
        found.append(f"{where}.warmup_steps={config.num_warmup_steps} must be fewer than {where}.steps={config.steps}")
    if config.mask_token_fraction + config.random_token_fraction > 1:
        found.append(
            f"{where}.mask_token_fraction={config.mask_token_fraction} and {where}.random_token_fraction="
            f"{config.random_token_fraction} must not exceed 1 together"
        )
    if not all(0 <= beta < 1 for beta in config.betas):
        found.append(f"{where}.betas={list(config.betas)} must each be at least 0 and less than 1")
    if config.precision == "fp16" and config.cluster.num_gpus_per_worker == 0:
        found.append(
            f"{where}.precision=fp16 needs GPUs, and {cluster}.num_gpus_per_worker=0: "
            f"set {where}.precision to bf16 or fp32"
        )
    return found

"""What a user sets for a pretraining, told without torch. Which values fit one another is in `fit.py`.

Fields marked execution say how to run and never change a key; everything else changes the model that comes out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from infra.cluster.config import ClusterConfig
from infra.errors import FromzeroError
from infra.journal.config import FrozenConfig, execution_field

ObjectiveName = Literal[
    "masked_lm", "masked_lm_nsp", "span_corruption", "denoising", "causal_lm", "prefix_lm", "label_lm"
]
Architecture = Literal["modernbert", "bert", "t5", "bart", "llama", "qwen3", "gpt2"]
Kind = Literal["encoder", "encoder_decoder", "decoder"]
Noise = Literal["token_masking", "token_deletion", "text_infilling", "sentence_permutation", "document_rotation"]
ZeroStage = Literal[0, 1, 2, 3, "auto"]
AttentionScope = Literal["document", "sequence"]
OnBadLoss = Literal["stop", "skip", "rollback"]

KINDS: dict[Architecture, Kind] = {
    "modernbert": "encoder",
    "bert": "encoder",
    "t5": "encoder_decoder",
    "bart": "encoder_decoder",
    "llama": "decoder",
    "qwen3": "decoder",
    "gpt2": "decoder",
}
OBJECTIVE_KINDS: dict[ObjectiveName, Kind] = {
    "masked_lm": "encoder",
    "masked_lm_nsp": "encoder",
    "span_corruption": "encoder_decoder",
    "denoising": "encoder_decoder",
    "causal_lm": "decoder",
    "prefix_lm": "decoder",
    "label_lm": "decoder",
}
DEFAULT_ARCHITECTURES: dict[ObjectiveName, Architecture] = {
    "masked_lm": "modernbert",
    "masked_lm_nsp": "bert",
    "span_corruption": "t5",
    "denoising": "bart",
    "causal_lm": "llama",
    "prefix_lm": "llama",
    "label_lm": "llama",
}


TASKS: dict[Kind, str] = {
    "encoder": "fill-mask",
    "encoder_decoder": "text2text-generation",
    "decoder": "text-generation",
}
"""The task that transformers has for each kind of network."""
COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)")
COUNT_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def count_of(value: Any) -> Any:
    """The number that a text such as 10M, 1.5B or 10_000_000 stands for; anything else as it is.

    Raises:
        ValueError: the text is no number of weights.
    """
    if not isinstance(value, str):
        return value
    found = COUNT.fullmatch(value.strip().replace("_", "").replace(",", ""))
    if found is None:
        raise ValueError(f"{value!r} is no number: write 10M, 7B, 1.5B, 350k or 10_000_000")
    return round(float(found[1]) * COUNT_FACTORS[found[2].lower()])


NUM_SENTINELS = 100
"""Of span_corruption, as T5 has: `<extra_id_0>` is the id after the tokenizer's last, and so on."""


class ModelConfig(FrozenConfig):
    """The network: an encoder, an encoder-decoder or a decoder, from random weights or from a folder."""

    architecture: Architecture | None = Field(
        None,
        description="without it modernbert for masked_lm, bert for masked_lm_nsp, t5 for span_corruption, bart for "
        "denoising, llama for causal_lm, prefix_lm and label_lm",
    )
    hidden_size: int = Field(256, ge=8, description="width")
    num_layers: int = Field(4, ge=1, description="depth; of the encoder and of the decoder each")
    num_heads: int = Field(4, ge=1, description="attention heads; divides hidden_size")
    intermediate_size: int | None = Field(
        None,
        ge=8,
        description="feed-forward width; without it 4 * hidden_size (bert, bart, gpt2), 2 (modernbert), 8/3 up to 64s "
        "(llama, qwen3, t5)",
    )
    max_position_embeddings: int | None = Field(
        None, ge=1, description="longest document, tokens; without it sequence_length; t5 knows no limit"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="of hidden states, never of attention; masks are keyed by sample"
    )
    vocab_multiple: int = Field(64, ge=1, description="the vocabulary of the network is padded to a multiple of this")
    target_parameters: Annotated[int | None, BeforeValidator(count_of)] = Field(
        None,
        ge=10_000,
        description="weights wanted, such as 10M or 7B; if given, it chooses width, depth and heads (sizes.py), within "
        "5 % of it",
    )
    init_from: str | None = execution_field(
        None, description="Hugging Face folder to start from; its content counts in the key, not its path"
    )


class HealthConfig(FrozenConfig):
    """When a training counts as gone wrong, and what is done then."""

    on_non_finite_loss: OnBadLoss = Field(
        "stop",
        description="what follows a loss or a gradient norm that is no finite number: stop; skip the batch; or roll "
        "back: undo rollback_steps, and step over their batches and the bad one",
    )
    on_loss_spike: OnBadLoss | None = Field(
        None, description="the same for a loss that jumps and a gradient norm above max_gradient_norm; null only logs"
    )
    spike_deviations: float = Field(
        8.0, gt=0, description="a loss this many standard deviations of its noise above the recent ones is a spike"
    )
    spike_window_steps: int = Field(100, ge=20, description="losses that the noise is taken from, steps")
    rollback_steps: int = Field(10, ge=1, description="optimizer steps that a rollback undoes, at most")
    max_incidents: int = Field(10, ge=1, description="skips and rollbacks; one more stops the training")
    max_gradient_norm: float | None = Field(
        None, gt=0, description="bound of the gradient norm before clipping; null for none"
    )
    hang_timeout_seconds: float = execution_field(
        900.0,
        gt=0,
        description="a rank that stays so long in one phase of a step, an evaluation's batch, a checkpoint or the "
        "export is named with its stack, and the workers are started again",
    )


class PretrainConfig(FrozenConfig):
    """One training of a language model."""

    objective: ObjectiveName = Field("masked_lm", description="what the loss is")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    steps: int = Field(1000, ge=1, description="optimizer steps")
    optimizer: Literal["adamw", "adafactor", "muon"] = Field(
        "adamw", description="muon: matrices of the layers by Muon, everything else by AdamW"
    )
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    muon_learning_rate: float = Field(0.02, gt=0, description="muon: peak learning rate of the matrices")
    schedule: Literal["cosine", "linear", "wsd"] = Field(
        "cosine", description="after the warmup; wsd: constant, then a linear decay over decay_fraction"
    )
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd: last part of the steps, in which it falls")
    min_learning_rate_fraction: float = Field(0.1, ge=0, le=1, description="last learning rate, as part of the peak")
    warmup_fraction: float = Field(0.06, ge=0, le=1, description="part of the steps with rising learning rate")
    warmup_steps: int | None = Field(None, ge=0, description="if given, instead of warmup_fraction, steps")
    global_batch_size: int = Field(32, ge=1, description="sequences in one optimizer step, over all workers")
    sequence_length: int = Field(128, ge=8, description="tokens of a packed sequence; that of the token shards")
    attention_scope: AttentionScope = Field(
        "document",
        description="how far a token sees: document keeps attention and positions within each packed document; "
        "sequence lets both run through the whole sequence, as GPT-2 did (masked_lm and causal_lm)",
    )
    weight_decay: float = Field(0.1, ge=0, description="on matrices only")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's")
    gradient_clipping: float | None = Field(1.0, gt=0, description="largest gradient norm; null for none")
    precision: Literal["bf16", "fp32", "fp16"] = Field("bf16", description="of weights and activations in training")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order of samples, masks and dropout")

    masking_rate: float = Field(
        0.3, gt=0, lt=1, description="part of the text that is hidden; BERT and T5 took 0.15, BART 0.3"
    )
    masking_unit: Literal["token", "word", "span"] = Field(
        "token", description="masked_lm and masked_lm_nsp: what is hidden at once; span: as in SpanBERT"
    )
    dynamic_masking: bool = Field(
        True, description="masked_lm and masked_lm_nsp: other masks (and pairs) in each epoch; false: always the same"
    )
    mask_token_fraction: float = Field(
        0.8, ge=0, le=1, description="masked_lm and masked_lm_nsp: part of the targets shown as <mask>"
    )
    random_token_fraction: float = Field(
        0.1, ge=0, le=1, description="masked_lm and masked_lm_nsp: part shown as a random token"
    )
    mean_span_length: float = Field(
        3.0,
        ge=1,
        description="of span_corruption and denoising: tokens; of masking_unit=span: words, SpanBERT took 3.8",
    )
    noise: tuple[Noise, ...] = Field(
        ("text_infilling", "sentence_permutation"),
        min_length=1,
        description="denoising: what is done to a document; masking_rate is what the token noises hide together",
    )

    validation_every_steps: int | None = Field(None, ge=1, description="null for the end only")
    max_validation_sequences: int | None = Field(512, ge=1, description="null for the whole split")
    health: HealthConfig = Field(default_factory=lambda: HealthConfig.model_validate({}))
    ds_config: dict[str, Any] = Field(
        default_factory=dict, description="more settings for DeepSpeed, merged into what follows from the others"
    )
    data_license: str | None = Field(
        None, description="of the training text, one line for the model card; without it, what corpus.sources say"
    )

    zero_stage: ZeroStage = execution_field(
        1, description="DeepSpeed ZeRO stage; auto: the smallest whose state fits the memory of a worker"
    )
    offload_optimizer: bool = execution_field(False, description="GPU, stage 1 or more: optimizer state in CPU memory")
    offload_parameters: bool = execution_field(False, description="GPU, stage 3: weights in CPU memory")
    activation_checkpointing: bool = execution_field(
        False, description="compute activations again in the backward pass: less memory, a third more work"
    )
    micro_batch_size_per_rank: int = execution_field(
        16, ge=1, description="most sequences a worker takes at once; the largest divisor of its share is used"
    )
    checkpoint_every_steps: int | None = execution_field(200, ge=1, description="null for no checkpoints")
    keep_checkpoints: int = execution_field(2, ge=1, description="newest checkpoints that are kept")
    keep_best_checkpoints: int = execution_field(
        0, ge=0, description="checkpoints of lowest validation loss that are kept beside them"
    )
    permanent_checkpoint_every_steps: int | None = execution_field(
        None, ge=1, description="checkpoints that stay for good; null for none"
    )
    log_every_steps: int = execution_field(10, ge=1, description="steps between two points of the history")
    samples_every_steps: int | None = execution_field(
        None, ge=1, description="steps between two tables of samples; null for one at the end"
    )
    num_samples: int = execution_field(
        4, ge=0, description="held-out documents that a table of samples shows at a time"
    )
    sample_tokens: int = execution_field(32, ge=1, description="longest sample that is generated, tokens")
    cluster: ClusterConfig = execution_field(
        default_factory=lambda: ClusterConfig.model_validate({}), description="workers and their resources"
    )

    @property
    def architecture(self) -> Architecture:
        """The architecture, by the objective where the model names none."""
        return self.model.architecture or DEFAULT_ARCHITECTURES[self.objective]

    @property
    def kind(self) -> Kind:
        """What the objective trains."""
        return OBJECTIVE_KINDS[self.objective]

    @property
    def is_tuning(self) -> bool:
        """Whether it goes on with a network of another training, which is not known here."""
        return self.objective == "label_lm" and self.model.architecture is None and self.model.init_from is None

    @property
    def stage(self) -> int:
        """The ZeRO stage, once `auto` is resolved."""
        if self.zero_stage == "auto":
            raise FromzeroError("zero_stage=auto is not resolved yet")
        return self.zero_stage

    @property
    def num_warmup_steps(self) -> int:
        """Steps of warmup."""
        return self.warmup_steps if self.warmup_steps is not None else round(self.warmup_fraction * self.steps)


def micro_batch_size(config: PretrainConfig, world_size: int) -> int:
    """Sequences a rank takes at once: the largest divisor of its share of the batch that the config allows."""
    share = config.global_batch_size // world_size
    return max(size for size in range(1, min(share, config.micro_batch_size_per_rank) + 1) if share % size == 0)


def reads_sentences(config: PretrainConfig) -> bool:
    """Whether the objective needs token shards with sentences."""
    permutes = config.objective == "denoising" and "sentence_permutation" in config.noise
    return permutes or config.objective == "masked_lm_nsp"


def num_sentinels(config: PretrainConfig) -> int:
    """Ids that the objective needs beyond those of the tokenizer."""
    return NUM_SENTINELS if config.objective == "span_corruption" else 0


def network_vocab_size(config: PretrainConfig, vocab_size: int) -> int:
    """Rows of the network's embeddings: the tokenizer's `vocab_size`, the sentinels, padding to `vocab_multiple`."""
    multiple = config.model.vocab_multiple
    return -(-(vocab_size + num_sentinels(config)) // multiple) * multiple

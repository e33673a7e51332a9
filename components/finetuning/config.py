"""What a user may say about fine-tuning. Budgets are in labels, epochs and tokens, never in seconds: a slow machine
makes the same model as a fast one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.cluster.config import ClusterConfig
from infra.journal.config import FrozenConfig, execution_field

Budget = int | Literal["all"]


class FinetuneConfig(FrozenConfig):
    """Sweep and final fits of a classifier on a pretrained encoder, and the same from random weights."""

    seed: int = Field(0, ge=0, description="of the sampled trials, the label samples, the batches and the new head")
    allow_unchecked_model: bool = execution_field(
        False, description="judge a model too whose pretraining text was not compared with the task's evaluation sets"
    )
    label_budgets: tuple[Budget, ...] = Field(
        (500, "all"), min_length=1, description="numbers of training labels to fine-tune with; all = every one"
    )
    num_trials: int = Field(6, ge=1, le=512, description="trials of the sweep for each start and label budget")
    seeds: int = Field(3, ge=1, le=64, description="final fits at every label budget but the largest")
    seeds_at_largest: int = Field(1, ge=1, le=64, description="final fits at the largest label budget")
    compare_with_scratch: bool = Field(True, description="do the same from random weights, to show the gain")
    selection_metric: Literal["accuracy", "macro_f1"] = Field(
        "accuracy", description="validation metric by which trials go on and one is chosen"
    )

    scheduler: Literal["successive_halving"] = Field(
        "successive_halving", description="synchronous: which trials go on depends on their metrics alone"
    )
    reduction_factor: int = Field(3, ge=2, le=16, description="one of so many trials goes on to the next rung")
    num_rungs: int = Field(2, ge=1, le=6, description="rungs of the sweep; the last trains to the end")

    learning_rate_min: float = Field(5e-4, gt=0, description="least peak learning rate; log-uniform in between")
    learning_rate_max: float = Field(4e-3, gt=0, description="greatest peak learning rate")
    batch_sizes: tuple[int, ...] = Field((32,), min_length=1, description="rows a step, one is sampled a trial")
    epochs_small: tuple[int, ...] = Field(
        (10, 20), min_length=1, description="passes over the labels at small budgets, one is sampled a trial"
    )
    epochs_large: tuple[int, ...] = Field((1,), min_length=1, description="the same at budgets that are not small")
    small_budget_rows: int = Field(2_000, ge=1, description="a label budget up to so many rows is small")
    weight_decays: tuple[float, ...] = Field((0.01, 0.1), min_length=1, description="AdamW, one is sampled a trial")
    dropouts: tuple[float, ...] = Field(
        (0.1, 0.2), min_length=1, description="not on attention; one is sampled a trial"
    )
    label_smoothings: tuple[float, ...] = Field((0.0, 0.1), min_length=1, description="one is sampled a trial")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising learning rate")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")

    max_tokens_per_fit: int = Field(
        1_200_000, ge=1, description="tokens a final fit trains on at most; caps the epochs of long data"
    )
    max_tokens_per_trial: int = Field(
        240_000, ge=1, description="tokens a trial of the sweep trains on at most, over all its rungs"
    )
    max_length: int = Field(128, ge=4, description="tokens of a text, special ones included; more is cut")
    max_validation_rows: int = Field(1_000, ge=1, description="validation rows that trials are judged on")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of training; evaluation is always in fp32")
    data_license: str | None = Field(None, description="for the model card; without it, what task and corpus say")
    registered_model: str = Field(
        "fromzero-classifier",
        pattern=r"^[^/:\s][^/:]{0,199}$",
        description="name of the registered model, without / and :",
    )

    cluster: ClusterConfig = execution_field(ClusterConfig(), description="threads and GPUs of each trial")
    trials_concurrency: int | None = execution_field(
        None, ge=1, description="trials that train at the same time; without it, as many as there are free CPUs for"
    )


def problems(config: FinetuneConfig) -> list[str]:
    """What single fields cannot show to be wrong: one line a problem, with the key, what is allowed and the fix."""
    found = []
    if len(set(config.label_budgets)) != len(config.label_budgets):
        found.append(f"finetune.label_budgets: {list(config.label_budgets)} names a budget twice; name each once")
    if any(budget != "all" and budget < 2 for budget in config.label_budgets):
        found.append(f"finetune.label_budgets: {list(config.label_budgets)}: a budget is 2 or more labels, or all")
    if config.learning_rate_min > config.learning_rate_max:
        found.append(
            f"finetune.learning_rate_min: {config.learning_rate_min} is above learning_rate_max "
            f"{config.learning_rate_max}; swap them"
        )
    for name in ("batch_sizes", "epochs_small", "epochs_large"):
        if min(getattr(config, name)) < 1:
            found.append(f"finetune.{name}: {list(getattr(config, name))}: each must be 1 or more")
    for name in ("dropouts", "label_smoothings"):
        if not all(0 <= value < 1 for value in getattr(config, name)):
            found.append(f"finetune.{name}: {list(getattr(config, name))}: each must be at least 0 and below 1")
    if min(config.weight_decays) < 0:
        found.append(f"finetune.weight_decays: {list(config.weight_decays)}: each must be 0 or more")
    if config.num_trials < config.reduction_factor ** (config.num_rungs - 1):
        found.append(
            f"finetune.num_trials: {config.num_trials} is less than reduction_factor ** (num_rungs - 1) = "
            f"{config.reduction_factor ** (config.num_rungs - 1)}; raise it, or lower num_rungs"
        )
    return found

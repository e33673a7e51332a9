"""What a combination of values may be, the learning rate, and the count of FLOPs."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from pydantic import ValidationError

from components.pretraining.config import PretrainConfig, micro_batch_size
from components.pretraining.fit import problems
from components.pretraining.schedule import learning_rate
from infra.cluster.config import ClusterConfig
from infra.energy.flops import matmul_parameters, transformer_flops
from infra.journal.config import is_execution
from infra.journal.step import Resources


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global_batch_size": 32, "cluster": {"num_workers": 3}}, r"global_batch_size=32.*cluster.num_workers=3"),
        (
            {"global_batch_size": 32, "cluster": {"num_workers": [2, 4]}},
            r"global_batch_size=32 .*every number of workers in cluster.num_workers=\[2, 4\], and is not of 3: "
            r"set .*global_batch_size=36, or a range within 1, 2, 4$",
        ),
        ({"model": {"hidden_size": 30, "num_heads": 4}}, r"hidden_size=30 must be a multiple of .*num_heads=4"),
        ({"objective": "causal_lm", "model": {"hidden_size": 36, "num_heads": 4}}, "must be even"),
        ({"objective": "causal_lm", "model": {"architecture": "bert"}}, "does not fit"),
        ({"model": {"max_position_embeddings": 64}}, r"max_position_embeddings=64 must be at least .*128"),
        ({"warmup_steps": 1000}, r"warmup_steps=1000 must be fewer than .*steps=1000"),
        ({"mask_token_fraction": 0.8, "random_token_fraction": 0.3}, "must not exceed 1 together"),
        ({"betas": [0.9, 1.0]}, "less than 1"),
        ({"precision": "fp16"}, "fp16 needs GPUs"),
    ],
)
def test_a_wrong_combination_is_named(values: dict[str, Any], message: str) -> None:
    found = problems(PretrainConfig.model_validate(values), "pretrain_mlm")
    assert len(found) == 1
    assert re.search(message, found[0])
    assert found[0].startswith("pretrain_mlm.")


def test_a_range_of_workers_has_two_ends_in_order() -> None:
    elastic, fixed = ClusterConfig(num_workers=(1, 3)), ClusterConfig(num_workers=2)
    assert (elastic.min_workers, elastic.max_workers, elastic.is_elastic) == (1, 3, True)
    assert (fixed.min_workers, fixed.max_workers, fixed.is_elastic) == (2, 2, False)
    with pytest.raises(ValidationError, match=r"num_workers=\[3, 1\]: the first must not exceed the second"):
        ClusterConfig(num_workers=(3, 1))


def test_a_training_that_follows_the_cluster_holds_what_that_has_up_to_its_most() -> None:
    wish = Resources(num_cpus=1, max_cpus=3, num_gpus=0, max_gpus=0)
    assert [wish.held({"CPU": cpus})["CPU"] for cpus in (1.0, 2.0, 8.0)] == [1, 2, 3]


def test_all_problems_are_told_at_once() -> None:
    values = {"precision": "fp16", "global_batch_size": 7, "model": {"hidden_size": 30}}
    assert len(problems(PretrainConfig.model_validate(values))) == 3
    assert problems(PretrainConfig()) == []


@pytest.mark.parametrize(
    ("batch", "most", "world", "expected"), [(32, 16, 2, 16), (32, 16, 1, 16), (24, 16, 2, 12), (14, 4, 2, 1)]
)
def test_the_micro_batch_divides_the_share(batch: int, most: int, world: int, expected: int) -> None:
    config = PretrainConfig.model_validate({"global_batch_size": batch, "micro_batch_size_per_rank": most})
    assert micro_batch_size(config, world) == expected


def test_how_to_run_is_no_part_of_the_key() -> None:
    execution = {name for name in PretrainConfig.model_fields if is_execution(PretrainConfig, name)}
    assert execution == {
        "zero_stage",
        "offload_optimizer",
        "offload_parameters",
        "activation_checkpointing",
        "micro_batch_size_per_rank",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "keep_best_checkpoints",
        "permanent_checkpoint_every_steps",
        "log_every_steps",
        "samples_every_steps",
        "num_samples",
        "sample_tokens",
        "cluster",
    }


def test_the_learning_rate_rises_then_falls_to_its_part_of_the_peak() -> None:
    config = PretrainConfig.model_validate({"steps": 100, "warmup_steps": 10, "learning_rate": 1.0})
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(one >= other for one, other in itertools.pairwise(rates[10:]))


def test_flops_by_hand() -> None:
    assert matmul_parameters(hidden_size=4, num_layers=2, intermediate_size=16, gated=False) == 2 * (64 + 128)
    assert matmul_parameters(hidden_size=4, num_layers=1, intermediate_size=8, gated=True) == 64 + 96
    told: Any = {"num_matmul_parameters": 100, "num_tokens": 10, "num_layers": 2, "hidden_size": 4}
    head: Any = {"attention_span": 5, "num_head_parameters": 50, "num_head_tokens": 3}
    assert transformer_flops(**told, **head, training=False) == 10 * (200 + 4 * 2 * 5 * 4) + 3 * 100
    assert transformer_flops(**told, **head, training=True) == 3 * transformer_flops(**told, **head, training=False)

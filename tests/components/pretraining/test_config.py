"""What a combination of values may be, the learning rate, and the count of FLOPs."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from pydantic import ValidationError

from components.pretraining.config import KINDS, PretrainConfig, micro_batch_size
from components.pretraining.engine.schedule import learning_rate
from components.pretraining.fit import problems
from infra.cluster.config import ClusterConfig
from infra.energy.flops import NetworkShape, shape_of
from infra.journal.config import is_execution
from infra.journal.step import Resources


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global_batch_size": 32, "cluster": {"num_workers": 3}}, r"global_batch_size=32.*cluster.num_workers=3"),
        (
            {"global_batch_size": 32, "cluster": {"num_workers": [2, 4]}},
            r"global_batch_size=32 .*every number of workers in cluster.num_workers=\[2, 4\], and is not of 3: "
            r"set .*global_batch_size=36, or cluster.num_workers to a range within 1, 2, 4$",
        ),
        ({"model": {"hidden_size": 30, "num_heads": 4}}, r"hidden_size=30 must be a multiple of .*num_heads=4"),
        ({"objective": "causal_lm", "model": {"hidden_size": 36, "num_heads": 4}}, "must be even"),
        ({"objective": "causal_lm", "model": {"architecture": "bert"}}, "does not fit"),
        ({"model": {"max_position_embeddings": 64}}, r"max_position_embeddings=64 must be at least .*128"),
        ({"warmup_fraction": 1}, r"warmup_fraction=1.0 makes 1000 steps, which must be fewer than .*steps=1000"),
        (
            {"global_batch_size": 16, "cluster": {"num_workers": [8, 64]}},
            r": set cluster.num_workers to a range within 1, 2, 4, 8, 16$",
        ),
        (
            {"model": {"target_parameters": 10**6, "init_from": "nowhere"}},
            r"model.target_parameters=1,000,000 has no effect beside .*init_from.*: set it to null",
        ),
        ({"warmup_steps": 1000}, r"warmup_steps=1000 must be fewer than .*steps=1000"),
        ({"mask_token_fraction": 0.8, "random_token_fraction": 0.3}, "must not exceed 1 together"),
        ({"betas": [0.9, 1.0]}, "less than 1"),
        ({"precision": "fp16"}, "fp16 needs GPUs"),
        ({"objective": "span_corruption", "masking_rate": 0.8}, r"no token between two spans: set .*at most 0.75"),
        (
            {"objective": "span_corruption", "masking_rate": 0.3, "mean_span_length": 3, "sequence_length": 2048},
            r"make 205 spans .*there are 100 sentinels: set .*mean_span_length to at least 6.2",
        ),
        ({"masking_unit": "span", "mean_span_length": 200}, "mean_span_length=200.* less than .*sequence_length=128"),
        ({"objective": "denoising", "noise": ["token_masking", "token_masking"]}, "names one twice"),
    ],
)
def test_a_wrong_combination_is_named(values: dict[str, Any], message: str) -> None:
    found = problems(PretrainConfig.model_validate(values), "pretrain_mlm")
    assert len(found) == 1
    assert re.search(message, found[0])
    assert found[0].startswith("pretrain_mlm.")


def test_settings_of_other_objectives_are_no_problem() -> None:
    for values in ({"masking_rate": 0.9}, {"mean_span_length": 500}, {"noise": ["document_rotation"] * 2}):
        assert problems(PretrainConfig.model_validate({"objective": "causal_lm", **values})) == []


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


@pytest.mark.parametrize(("matrices", "training"), [(2, False), (3, True)])
def test_flops_by_hand(matrices: int, training: bool) -> None:
    shape = NetworkShape(
        hidden_size=4,
        num_layers=2,
        num_decoder_layers=0,
        attention_size=4,
        key_value_size=2,
        intermediate_size=8,
        num_feed_forward_matrices=matrices,
        num_head_parameters=50,
    )
    layer = 2 * (4 * 4) + 2 * (4 * 2) + matrices * 4 * 8  # queries and outputs, keys and values, feed-forward
    forward = 10 * 2 * (2 * layer + 4 * 5 * 4) + 3 * 2 * 50
    found = shape.flops(num_tokens=10, span=5, num_head_tokens=3, training=training)
    assert found == (3 if training else 1) * forward


@pytest.mark.parametrize(("architecture", "kind"), KINDS.items())
def test_flops_are_those_that_torch_counts(architecture: str, kind: str, packed: Any) -> None:
    """Whole rows of one document each; what torch counts of a causal model is attention to all of a row."""
    from torch.utils.flop_counter import FlopCounterMode

    from components.pretraining.networks.models import TargetLoss, build_model

    objective = {"encoder": "masked_lm", "encoder_decoder": "denoising", "decoder": "causal_lm"}[kind]
    sizes = {"architecture": architecture, "hidden_size": 96, "num_layers": 3, "num_heads": 3}
    config = PretrainConfig.model_validate({"objective": objective, "model": sizes, "sequence_length": 64})
    module = TargetLoss(build_model(config, 500, {"pad": 0, "bos": 2, "eos": 3}))
    documents = packed.documents(kind, (64, 64))
    batch = packed.pack([[document] for document in documents], kind, 64, decoder_width=32)
    with FlopCounterMode(display=False) as counter:
        module(**batch).sum().backward()
    targets = len(batch["target_ids_T"])
    double = kind == "encoder_decoder"
    expected = shape_of(module.language_model.config).flops(
        num_tokens=128,
        span=64,
        num_head_tokens=targets,
        num_decoder_tokens=targets if double else 0,
        decoder_span=32 if double else 0,
    )
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.005)


def test_flops_of_an_encoder_decoder_by_hand() -> None:
    shape = NetworkShape(
        hidden_size=4,
        num_layers=2,
        num_decoder_layers=3,
        attention_size=4,
        key_value_size=4,
        intermediate_size=8,
        num_feed_forward_matrices=2,
        num_head_parameters=40,
    )
    encoder = 10 * 2 * (2 * (64 + 64) + 4 * 5 * 4)
    decoder = 6 * 3 * (2 * (64 + 64 + 32) + 4 * (2 + 5) * 4)  # own attention, queries and outputs of the other
    keys = 10 * 3 * 2 * 32
    told: Any = {"num_tokens": 10, "span": 5, "num_decoder_tokens": 6, "decoder_span": 2, "num_head_tokens": 7}
    assert shape.flops(**told, training=False) == encoder + decoder + keys + 2 * 7 * 40
    assert shape.flops(**told) == 3 * shape.flops(**told, training=False)

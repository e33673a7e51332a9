"""What a training will take, by hand; and the choice of the ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.estimates.scaling import checkpoint_bytes, network_bytes, scale, step_flops
from components.pretraining.estimates.zero_stage import MARGIN, choose_stage, needed_bytes, with_sizes_of
from components.pretraining.networks.sizes import num_parameters
from infra.errors import ConfigError

VOCAB = 32_000
GPUS = {"num_workers": 64, "num_gpus_per_worker": 1, "peak_tflops_per_worker": 1000, "expected_mfu": 0.5}


def llama(**more: Any) -> PretrainConfig:
    told = {
        "objective": "causal_lm",
        "steps": 1000,
        "model": {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "intermediate_size": 11008},
        "sequence_length": 4096,
        "global_batch_size": 1024,
        "micro_batch_size_per_rank": 4,
        "activation_checkpointing": True,
        "cluster": GPUS | {"network_gbit_per_second": 400},
    }
    return PretrainConfig.model_validate({**told, **more})


def test_llama_7b_by_hand() -> None:
    found = scale(llama(), VOCAB, 1)
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    tokens = 1024 * 4096
    assert found.num_parameters == layers + 32 * 2 * 4096 + 4096 + VOCAB * 4096
    flops = 6 * (layers + VOCAB * 4096) * tokens + 3 * tokens * 4 * 32 * 4096 * 2048
    assert found.flops == pytest.approx(1000 * flops)
    assert (found.gradient_accumulation_steps, found.global_batch_tokens) == (4, tokens)
    assert found.tokens_per_parameter == pytest.approx(1000 * tokens / found.num_parameters)
    assert found.hours == pytest.approx(1000 * flops / (64 * 0.5e15) / 3600)
    assert found.export_bytes == 4 * found.num_parameters
    assert found.checkpoint_bytes == 14 * found.num_parameters


@pytest.mark.parametrize(("stage", "once", "four_times"), [(0, 2, 2), (1, 2, 2), (2, 2, 5), (3, 3, 12)])
def test_the_network_carries_what_section_7_says(stage: int, once: int, four_times: int) -> None:
    """2 Psi, for stage 3 3 Psi; stage 2 and 3 reduce after every micro batch."""
    psi = num_parameters(llama(), VOCAB)
    for micro, factor in ((16, once), (4, four_times)):
        config = llama(micro_batch_size_per_rank=micro)
        assert network_bytes(config, VOCAB, stage, 64) == pytest.approx(factor * psi * 2 * 63 / 64)
    assert network_bytes(llama(global_batch_size=4), VOCAB, stage, 1) == 0


def test_a_slow_network_sets_the_hours() -> None:
    slow = scale(llama(cluster=GPUS | {"network_gbit_per_second": 1}), VOCAB, 1)
    assert slow.hours == pytest.approx(1000 * slow.network_bytes_per_step * 8 / 1e9 / 3600)
    assert scale(llama(cluster={"num_workers": 64}), VOCAB, 1).hours is None


def test_an_encoder_counts_its_targets_only_in_the_head() -> None:
    told: Any = {"objective": "masked_lm", "model": {"architecture": "bert", "hidden_size": 64, "num_heads": 1}}
    few, many = (PretrainConfig.model_validate({**told, "masking_rate": rate}) for rate in (0.1, 0.2))
    head = 6 * 32 * 128 * 64 * (VOCAB + 64)
    assert step_flops(many, VOCAB) - step_flops(few, VOCAB) == pytest.approx(0.1 * head)


def test_fp32_of_stage_0_has_no_masters_to_save() -> None:
    config = llama(precision="fp32")
    assert checkpoint_bytes(config, VOCAB, 0, 2) == 12 * num_parameters(config, VOCAB)
    assert checkpoint_bytes(config, VOCAB, 1, 2) == 16 * num_parameters(config, VOCAB)
    assert checkpoint_bytes(config, VOCAB, 3, 2) == 12 * num_parameters(config, VOCAB)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_auto_takes_the_smallest_stage_that_fits_and_says_why(stage: int) -> None:
    config = llama()
    needs = [needed_bytes(config, VOCAB, one, 64) for one in range(4)]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == 4
    choice = choose_stage(config, VOCAB, 1.001 * needs[stage] / (1 - MARGIN), "pretrain_clm")
    assert choice.stage == stage
    assert f"zero_stage=auto: {stage}, the smallest that fits" in choice.reason
    assert all(f"stage {one} would need" in choice.reason for one in range(stage))


def test_what_fits_nowhere_is_told_with_what_is_missing_and_what_helps() -> None:
    config = llama(activation_checkpointing=False)
    least = min(needed_bytes(config, VOCAB, stage, 64) for stage in range(4))
    with pytest.raises(ConfigError, match=r"pretrain_clm.zero_stage=auto: no stage fits") as caught:
        choose_stage(config, VOCAB, 1e9, "pretrain_clm")
    message = str(caught.value)
    assert f"{least - 0.95e9:,.0f} bytes" in message
    for remedy in ("num_workers", "offload_optimizer", "activation_checkpointing", "micro_batch_size_per_rank=4"):
        assert remedy in message


def test_offload_needs_a_stage_that_divides_what_is_offloaded() -> None:
    assert choose_stage(llama(offload_optimizer=True), VOCAB, 1e15, "x").stage == 1
    assert choose_stage(llama(offload_parameters=True), VOCAB, 1e15, "x").stage == 3


def test_the_sizes_of_a_model_to_start_from_are_read(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(vocab_size=100, hidden_size=48, num_hidden_layers=3, num_attention_heads=2).save_pretrained(tmp_path)
    config, vocab_size = with_sizes_of(PretrainConfig(), tmp_path)
    model = config.model
    found = (config.architecture, model.hidden_size, model.num_layers, model.num_heads, model.intermediate_size)
    assert (*found, vocab_size) == ("bert", 48, 3, 2, 3072, 100)
    with pytest.raises(ConfigError, match="not a Hugging Face model folder"):
        with_sizes_of(PretrainConfig(), tmp_path / "none")

"""Model states: the paper's table, DeepSpeed's own estimators, and what the formulas must add up to."""

from __future__ import annotations

from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.estimates.memory import layer_matrices, paper_bytes, state_bytes
from components.pretraining.networks.sizes import num_parameters, weights

TABLE_1: dict[float, dict[int, tuple[float, float, float]]] = {
    7.5e9: {
        1: (120, 120, 120),
        4: (52.5, 41.3, 30),
        16: (35.6, 21.6, 7.5),
        64: (31.4, 16.6, 1.88),
        256: (30.4, 15.4, 0.47),
        1024: (30.1, 15.1, 0.12),
    },
    128e9: {
        1: (2048, 2048, 2048),
        4: (896, 704, 512),
        16: (608, 368, 128),
        64: (536, 284, 32),
        256: (518, 263, 8),
        1024: (513, 257, 2),
    },
    1e12: {
        1: (16000, 16000, 16000),
        4: (7000, 5500, 4000),
        16: (4750, 2875, 1000),
        64: (4187, 2218, 250),
        256: (4046, 2054, 62.5),
        1024: (4011, 2013, 15.6),
    },
}
"""Rajbhandari et al. 2020: GB (10^9) a device of P_os, P_os+g and P_os+g+p, by parameters and degree."""
ROWS = [(psi, ranks, row) for psi, rows in TABLE_1.items() for ranks, row in rows.items()]
VOCAB = 4096


@pytest.mark.parametrize(("psi", "ranks", "row"), ROWS)
def test_table_1_of_the_paper(psi: float, ranks: int, row: tuple[float, float, float]) -> None:
    """To the last digit that the paper prints; it cuts 4,187.5 and 2,218.75 where it rounds others."""
    for stage, printed in enumerate(row, start=1):
        last_digit = 10.0 ** -len(str(printed).partition(".")[2]) if printed % 1 else 1.0
        assert paper_bytes(int(psi), stage, ranks) / 1e9 == pytest.approx(printed, abs=last_digit)


def training(**more: Any) -> PretrainConfig:
    told = {
        "objective": "causal_lm",
        "model": {"hidden_size": 512, "num_layers": 8, "num_heads": 8},
        "global_batch_size": 64,
        "micro_batch_size_per_rank": 1,
        "cluster": {"num_gpus_per_worker": 1},
    }
    return PretrainConfig.model_validate({**told, **more})


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 4, 64])
def test_bf16_is_the_papers_model_but_for_weights_across_borders(stage: int, ranks: int) -> None:
    """Stage 1 is the paper's stage 2 once gradients are reduced."""
    config = training()
    psi = num_parameters(config, VOCAB)
    found = state_bytes(config, VOCAB, stage, ranks).total - paper_bytes(psi, max(stage, 2) if stage else 0, ranks)
    largest = VOCAB * config.model.hidden_size
    assert -1 <= found <= 2 * 2 * largest + 16 * ranks


def test_stage_1_holds_all_gradients_during_the_backward_pass_of_several_micro_batches() -> None:
    config = training()
    psi = num_parameters(config, VOCAB)
    one, two = (state_bytes(config, VOCAB, stage, 4) for stage in (1, 2))
    assert one.total == two.total
    assert one.peak(0) - two.peak(0) == 2 * psi
    alone = training(micro_batch_size_per_rank=16)
    assert state_bytes(alone, VOCAB, 1, 4) == state_bytes(alone, VOCAB, 2, 4)


@pytest.mark.parametrize("offload", [False, True])
def test_deepspeeds_estimator_of_stage_2_counts_fp32_gradients_that_are_not_there(offload: bool) -> None:
    """Without offload it has 4 bytes a parameter and rank more than is held; of the device with offload it is right."""
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    ranks = 8
    config = training(offload_optimizer=offload)
    psi = num_parameters(config, VOCAB)
    _, theirs = estimate_zero2_model_states_mem_needs(psi, num_gpus_per_node=ranks, cpu_offload=offload)
    ours = state_bytes(config, VOCAB, 2, ranks)
    if offload:
        assert ours.total == theirs == 2 * psi
    else:
        assert theirs - ours.total == pytest.approx(4 * psi / ranks, abs=2 * 2 * VOCAB * config.model.hidden_size)
        assert theirs == pytest.approx(ours.total + ours.during_update, rel=0.05)  # as a peak of the update it is right


def test_deepspeeds_estimator_of_stage_3_leaves_out_the_bucket() -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    ranks = 8
    config = training()
    psi = num_parameters(config, VOCAB)
    largest = VOCAB * config.model.hidden_size
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        psi, largest, num_gpus_per_node=ranks, cpu_offload=False, cpu_offload_params=False
    )
    ours = state_bytes(config, VOCAB, 3, ranks)
    assert ours.buffers == 2 * 2 * psi  # two buckets, because communication overlaps, of all elements: psi < 5e8
    assert ours.total - ours.buffers == pytest.approx(16 * psi / ranks, rel=0.01)
    assert theirs - 4 * largest == pytest.approx(18 * psi / ranks, rel=0.01)


def test_offloaded_state_is_in_the_hosts_memory() -> None:
    plain, offloaded = (
        state_bytes(training(offload_optimizer=on, offload_parameters=on), VOCAB, 3, 4) for on in (False, True)
    )
    moved = plain.weights + plain.gradients + plain.optimizer
    assert offloaded.total == plain.total - moved
    assert offloaded.offloaded == moved + plain.during_update


def test_settings_of_ds_config_count() -> None:
    config = training(ds_config={"zero_optimization": {"stage3_param_persistence_threshold": 0}})
    psi = num_parameters(config, VOCAB)
    few = state_bytes(config, VOCAB, 3, 4).weights
    assert few - 2 * psi / 4 == pytest.approx(2 * (psi - _matrix_elements(config)), abs=4)  # vectors alone


def _matrix_elements(config: PretrainConfig) -> int:
    layer = sum(count * elements for count, elements in layer_matrices(config.architecture, config.model))
    return VOCAB * config.model.hidden_size + config.model.num_layers * layer


@pytest.mark.parametrize("architecture", ["modernbert", "bert", "t5", "bart", "llama", "qwen3", "gpt2"])
def test_the_matrices_of_a_layer_are_its_weights_but_for_vectors(architecture: Any) -> None:
    config = training(
        objective={"t5": "span_corruption", "bart": "denoising"}.get(
            architecture, "masked_lm" if "bert" in architecture else "causal_lm"
        ),
        model={"architecture": architecture, "hidden_size": 512, "num_heads": 8},
    )
    matrices = sum(count * elements for count, elements in layer_matrices(architecture, config.model))
    vectors = weights(architecture, config.model, VOCAB, 128).per_layer - matrices
    assert 0 < vectors < 40 * 512

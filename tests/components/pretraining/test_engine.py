"""The DeepSpeed engine and the loop against a plain PyTorch loop, at every ZeRO stage and world size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.pretraining.batches import make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.pretraining.engine import parameter_groups
from components.pretraining.evaluation import validation_indices
from components.pretraining.models import TargetLoss, build_model
from components.pretraining.sampler import Sampler
from components.pretraining.schedule import learning_rate
from components.tokenization.shards import TokenShards

TINY: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 8,
    "learning_rate": 0.01,
    "sequence_length": 32,
    "global_batch_size": 8,
    "micro_batch_size_per_rank": 2,
    "warmup_steps": 2,
    "log_every_steps": 1,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": None,
}
STAGES = (0, 1, 2, 3)


def plain_loop(data: Path, config: PretrainConfig) -> list[float]:
    """The same training in fp32 with nothing but torch: the whole global batch at once, one mean loss."""
    shards = TokenShards(data / "token_shards", "train")
    objective = make_objective(config, shards, data / "tokenizer")
    module = TargetLoss(build_model(config, shards.index.vocab_size, {"pad": 0, "bos": 2, "eos": 3}))
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config.weight_decay), lr=1.0, betas=config.betas, eps=config.epsilon
    )
    sampler = Sampler(num_sequences=len(shards), global_batch_size=config.global_batch_size, seed=config.seed)
    found = []
    for step in range(config.steps):
        indices_G, epochs_G = sampler.global_batch(step)
        batch = make_batch(shards, objective, indices_G, epochs_G)
        loss = module(**batch.to(torch.device("cpu")))[0] / batch.num_targets_K[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clipping or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Mapping[str, Path]:
    """Trainings on one and two ranks: their work folders by name."""
    root = tmp_path_factory.mktemp("trained")
    found: dict[str, Path] = {}
    for world_size, stages in ((2, STAGES), (1, (0, 1, 3))):
        works = {}
        for precision in ("fp32", "bf16")[:world_size]:  # bf16 on two ranks only
            for stage in stages:
                name = f"{precision}-zero{stage}-{world_size}"
                found[name] = root / name
                works[root / name] = {**TINY, "precision": precision, "zero_stage": stage}
        if world_size == 2:
            for objective in ("causal_lm", "masked_lm"):
                found[objective] = root / objective
                works[root / objective] = {**TINY, "objective": objective, "steps": 4, "precision": "bf16"}
        run_trainings.run(tiny_data, works, world_size)
    return found


@pytest.mark.parametrize(
    "name", [f"fp32-zero{stage}-2" for stage in STAGES] + [f"fp32-zero{stage}-1" for stage in (0, 1, 3)]
)
def test_the_losses_are_those_of_a_plain_loop(
    trained: Mapping[str, Path], name: str, tiny_data: Path, run_trainings: Any
) -> None:
    config = PretrainConfig.model_validate({**TINY, "precision": "fp32"})
    assert run_trainings.losses(trained[name]) == pytest.approx(plain_loop(tiny_data, config), rel=2e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_near_fp32(trained: Mapping[str, Path], stage: int, run_trainings: Any) -> None:
    exact = run_trainings.losses(trained["fp32-zero1-2"])
    assert run_trainings.losses(trained[f"bf16-zero{stage}-2"]) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("name", [f"bf16-zero{stage}-2" for stage in STAGES])
def test_the_exported_weights_are_fp32_master_weights(trained: Mapping[str, Path], name: str) -> None:
    weights = load_file(trained[name] / "export" / "model" / "model.safetensors")
    matrix = weights["model.layers.1.mlp.Wi.weight"]
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert not torch.equal(matrix, matrix.bfloat16().float())


@pytest.mark.parametrize("objective", ["masked_lm", "causal_lm"])
def test_the_saved_model_has_the_reported_validation_loss(
    trained: Mapping[str, Path], tiny_data: Path, objective: str
) -> None:
    """Loaded by transformers alone, in fp32; what differs is bf16 against fp32."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    folder = trained[objective] / "export"
    loader = AutoModelForMaskedLM if objective == "masked_lm" else AutoModelForCausalLM
    model = loader.from_pretrained(folder / "model")
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == 512
    config = PretrainConfig.model_validate({**TINY, "objective": objective})
    shards = TokenShards(tiny_data / "token_shards", "validation")
    indices_B = validation_indices(len(shards), config)
    assert len(indices_B) == 20
    batch = make_batch(
        shards,
        make_objective(config, shards, tiny_data / "tokenizer"),
        indices_B,
        np.zeros_like(indices_B),
        validation=True,
    )
    with torch.no_grad():
        loss = float(TargetLoss(model)(**batch.to(torch.device("cpu")))[0]) / batch.num_targets_K[0]
    reported = json.loads((folder / "result.json").read_text())["metrics"]
    assert loss == pytest.approx(reported["validation_loss"], rel=2e-3)
    assert "fill-mask" in (folder / "model" / "README.md").read_text() or objective == "causal_lm"
    assert reported["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_no_compiler_is_called(tiny_data: Path, tmp_path: Path, run_trainings: Any) -> None:
    """Compilers first on the path that leave a trace, and no cache of built operations."""
    tools = tmp_path / "bin"
    tools.mkdir()
    trace = tmp_path / "called"
    for name in ("g++", "c++", "gcc", "cc", "ninja", "clang++"):
        (tools / name).write_text(f"#!/bin/sh\necho {name} $@ >> {trace}\nexit 1\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
        "CXX": str(tools / "g++"),
    }
    run_trainings.run(tiny_data, {tmp_path / "work": {**TINY, "steps": 2}}, 2, environment=environment)
    assert not trace.exists(), trace.read_text()

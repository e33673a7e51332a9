"""A `ds_config` of the user's own: merged, contradictions named, DeepSpeed's keys known."""

from __future__ import annotations

from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.engine.ds_config import OWNED, REFUSED, REPLACED, SECTIONS, TOP_LEVEL, deepspeed_config
from components.pretraining.fit import problems
from infra.errors import ConfigError
from pipelines.compose import load_config


def configured(ds_config: dict[str, Any], **values: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"ds_config": ds_config, **values})


def test_it_is_merged_deeply_and_auto_is_ours() -> None:
    given = {
        "train_batch_size": "auto",
        "communication_data_type": "fp32",
        "zero_optimization": {"reduce_bucket_size": 5, "stage": "auto", "sub_group_size": 7},
        "bf16": {"enabled": True},
    }
    config = configured(given, zero_stage=2)
    told = deepspeed_config(config, 2, 10**7)
    plain = deepspeed_config(configured({}, zero_stage=2), 2, 10**7)
    merged = {"reduce_bucket_size": 5, "sub_group_size": 7}
    assert problems(config) == []
    assert told == {
        **plain,
        "communication_data_type": "fp32",
        "zero_optimization": {**plain["zero_optimization"], **merged},
    }
    assert (plain["train_batch_size"], plain["zero_optimization"]["reduce_bucket_size"]) == (32, 10**7)


def test_no_clipping_is_said_aloud() -> None:
    """Without the key DeepSpeed 0.19.8 clips at 1."""
    assert deepspeed_config(configured({}, gradient_clipping=None), 2, 0)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_batch_size": 64}, r"train_batch_size=64 contradicts 32, .*: set p\.global_batch_size instead"),
        ({"train_micro_batch_size_per_gpu": 4}, r"=4 contradicts 16, .*set p\.micro_batch_size_per_rank"),
        ({"gradient_accumulation_steps": 2}, r"=2 contradicts 1, .*set p\.micro_batch_size_per_rank \(with"),
        ({"gradient_clipping": 0.5}, r"=0\.5 contradicts 1\.0, .*set p\.gradient_clipping"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage=3 contradicts 1, .*set p\.zero_stage"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"offload_optimizer\.device='cpu' contradicts 'none', .*set p\.offload_optimizer",
        ),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled=True contradicts False, .*set p\.precision"),
        ({"bf16": {"enabled": False}}, r"bf16\.enabled=False contradicts True, .*set p\.precision"),
        ({"zero_optimization": 3}, r"zero_optimization=3 must be a mapping, such as \{reduce"),
        ({"zero_optimization": None}, r"zero_optimization=None must be a mapping"),
        ({"bf16": False}, r"bf16=False must be a mapping"),
        ({"fp16": True}, r"fp16=True must be a mapping"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, r"offload_optimizer='cpu' must be a mapping"),
        ({"zero_optimization": {"stage": {"a": 1}}}, r"stage=\{'a': 1\} contradicts 1"),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, r"='many' must be a number of at least 1"),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, r"=-5 must be a number of at least 1"),
        ({"zero_optimization": {"allgather_bucket_size": None}}, r"=None must be a number of at least 0"),
        ({"zero_optimization": {"contiguous_gradients": None}}, r"contiguous_gradients=None is no value"),
        ({"optimizer": {"type": "AdamW"}}, r"optimizer\.type='AdamW' has no effect here: set p\.optimizer, learning"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler\.type='WarmupLR' has no effect here: set p\.schedule"),
        ({"data_types": {"param_dtype": "fp32"}}, r"param_dtype='fp32' has no effect here: set p\.precision"),
        ({"gradient_allreduce_op": "sum"}, r"gradient_allreduce_op='sum' is not possible: the loss is normalised"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, r"zenflow\.topk_ratio=0\.1 is not possible"),
        ({"gradient_cliping": 1.0}, r"gradient_cliping: DeepSpeed .* has no key .*did you mean gradient_clipping\?"),
        ({"zero_optimization": {"bucket": 1}}, r"zero_optimization\.bucket: DeepSpeed .* has no key bucket"),
        ({"elasticity": {"enabled": True}}, r"elasticity\.enabled: DeepSpeed .* has no key elasticity"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    found = problems(configured(given), "p")
    assert len(found) == 1, found
    assert found[0].startswith("p.ds_config.")
    assert __import__("re").search(message, found[0]), found[0]


def test_batch_keys_are_right_at_every_number_of_workers() -> None:
    values = {"cluster": {"num_workers": [1, 2]}, "global_batch_size": 48, "micro_batch_size_per_rank": 12}
    assert problems(configured({"train_micro_batch_size_per_gpu": 12}, **values)) == []
    found = problems(configured({"gradient_accumulation_steps": 1}, **values), "p")
    assert len(found) == 1
    assert "=1 contradicts 4 with num_workers=1" in found[0]


def test_all_of_it_is_told_at_once() -> None:
    given = {"train_batch_size": 64, "scheduler": {"type": "x", "params": {"a": 1}}, "unheard_of": 1}
    assert len(problems(configured(given))) == 4


def test_the_same_from_the_command_line_and_the_planner() -> None:
    key = "pretrain_mlm.ds_config"
    config = load_config("smoke", [f"{key}.zero_optimization.reduce_bucket_size=1000000", f"{key}.dump_state=true"])
    assert config.pretrain_mlm.ds_config == {"zero_optimization": {"reduce_bucket_size": 1_000_000}, "dump_state": True}
    whole = load_config("smoke", [f"{key}={{zero_optimization: {{sub_group_size: 1e6}}}}"])
    assert whole.pretrain_mlm.ds_config == {"zero_optimization": {"sub_group_size": 1e6}}
    with pytest.raises(ConfigError, match=rf"^{key}\.gradient_clipping=3 contradicts 1.0"):
        load_config("smoke", [f"{key}.gradient_clipping=3"])


class Asked(dict[str, Any]):
    """A config that writes down which keys it is asked for."""

    keys_asked: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> Asked:
        return self


def test_deepspeeds_keys_are_those_of_the_installed_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from components.pretraining.engine.engine import import_deepspeed

    import_deepspeed()
    from deepspeed.runtime.config import (
        _REMOVED_TOP_LEVEL_CONFIG_KEYS,
        _REMOVED_ZERO_CONFIG_KEYS,
        DeepSpeedConfig,
    )
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    asked = Asked({"train_batch_size": 1})
    asked.keys_asked = set()
    DeepSpeedConfig(asked)
    known = {key.partition(".")[0] for key in (*OWNED, *REPLACED, *REFUSED)} | TOP_LEVEL
    asked.keys_asked.add("sequence_parallel_size")  # asked for where there is a process group
    assert asked.keys_asked - set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) == known

    for section, model in (
        ("zero_optimization", DeepSpeedZeroConfig),
        ("bf16", DeepSpeedBF16Config),
        ("fp16", DeepSpeedFP16Config),
    ):
        names = set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}
        apart = {key.partition(".")[2].partition(".")[0] for key in (*REPLACED, *REFUSED) if key.startswith(section)}
        assert names - apart - set(_REMOVED_ZERO_CONFIG_KEYS) == SECTIONS[section]


def test_deepspeeds_own_refusal_is_the_users_error(tiny_data: Any, tmp_path: Any, run_trainings: Any) -> None:
    config = {"sequence_length": 32, "global_batch_size": 8, "ds_config": {"communication_data_type": "fp7"}}
    with pytest.raises(
        RuntimeError, match=r"ConfigError: ds_config: DeepSpeed does not take it: Invalid communication"
    ):
        run_trainings.run(tiny_data, {tmp_path / "work": config}, 1)

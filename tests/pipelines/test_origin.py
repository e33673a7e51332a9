"""Where a value was set."""

from __future__ import annotations

import pytest

from pipelines.origin import Origins


@pytest.mark.parametrize(
    ("pipeline", "arguments", "key", "source"),
    [
        ("llm", ["pretrain_mlm.learning_rate=5e-4"], "pretrain_mlm.learning_rate", "command line"),
        ("llm", ["pretrain_mlm.model={hidden_size: 64}"], "pretrain_mlm.model.hidden_size", "command line"),
        ("llm", ["seed=3"], "finetune.seed", "command line"),
        ("llm", ["pretrain_mlm.sequence_length=64"], "token_shards.sequence_length", "command line"),
        ("llm", ["prompt.instruction=x"], "prompt_examples.instruction", "command line"),
        ("llm", ["model=gpu"], "pretrain_mlm.model.hidden_size", "model=gpu on the command line"),
        ("llm", [], "pretrain_mlm.learning_rate", "conf/pretrain/laptop.yaml"),
        ("llm", [], "corpus.sources", "conf/corpus/wordnet.yaml"),
        ("smoke", [], "pretrain_mlm.steps", "conf/pipeline/smoke.yaml"),
        ("smoke", ["finetune.num_trials=9"], "finetune.reduction_factor", ""),
        ("llm", [], "pretrain_mlm.objective", "conf/config.yaml"),
    ],
)
def test_the_strongest_source_is_named(pipeline: str, arguments: list[str], key: str, source: str) -> None:
    assert Origins(pipeline, arguments)(key) == source

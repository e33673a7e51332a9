"""A model's folder for MLflow is what MLflow itself would have made by loading the model, and loads nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from infra.errors import StorageError
from infra.tracking.flavor import link_model_folder
from infra.tracking.writer import is_permanent
from tests.infra.toy_model import write_classifier

SMALL: dict[str, Any] = {"vocab_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "text-classification": lambda: BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=8)),
    "fill-mask": lambda: BertForMaskedLM(BertConfig(**SMALL, intermediate_size=8)),
    "text-generation": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=8)),
}
OF_ITS_TIME = {"model_uuid", "utc_time_created", "model_size_bytes"}


@pytest.fixture(params=sorted(MODELS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A task, a Hugging Face folder and the folder for MLflow."""
    source, target = tmp_path / "source", tmp_path / "ours"
    write_classifier(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"mask_token": "<unk>"})
    tokenizer.save_pretrained(source)
    torch.manual_seed(1)
    MODELS[request.param]().save_pretrained(source)
    link_model_folder(source, sorted(path.name for path in source.iterdir()), target, request.param)
    return request.param, source, target


def test_it_is_described_as_mlflow_describes_it(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    task, source, ours = made
    theirs = tmp_path / "theirs"
    parts = {"model": type(MODELS[task]()).from_pretrained(source), "tokenizer": AutoTokenizer.from_pretrained(source)}
    mlflow.transformers.save_model(
        parts, str(theirs), task=task, pip_requirements=["transformers", "torch", "safetensors"]
    )
    for name in ("MLmodel", "conda.yaml", "python_env.yaml"):
        found, expected = (yaml.safe_load((folder / name).read_text()) for folder in (ours, theirs))
        for content in (found, expected):
            for key in OF_ITS_TIME:
                content.pop(key, None)
        assert found == expected, name
    assert (ours / "requirements.txt").read_text() == (theirs / "requirements.txt").read_text()
    for part in ("model/model.safetensors", "components/tokenizer/tokenizer.json"):
        assert (ours / part).read_bytes() == (theirs / part).read_bytes()


def test_mlflow_loads_it_and_it_says_what_the_model_says(made: tuple[str, Path, Path]) -> None:
    task, source, ours = made
    text = "甲 乙 <unk>"
    options: dict[str, dict[str, Any]] = {
        "text-generation": {"max_new_tokens": 2, "do_sample": False},
        "fill-mask": {"top_k": 2},
        "text-classification": {},
    }
    expected = pipeline(task, model=str(source))(text, **options[task])
    assert json.dumps(mlflow.transformers.load_model(str(ours))(text, **options[task])) == json.dumps(expected)
    if task == "text-classification":
        (row,) = mlflow.pyfunc.load_model(str(ours)).predict([text]).to_dict("records")
        assert row == expected[0]


def test_the_weights_are_not_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_classifier(source)
    code = f"""import sys
from pathlib import Path
from infra.tracking.flavor import link_model_folder
files = {sorted(path.name for path in source.iterdir())}
link_model_folder(Path({str(source)!r}), files, Path({str(tmp_path / "ours")!r}), "text-classification")
print(sorted({{"torch", "transformers"}} & set(sys.modules)))"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    assert (tmp_path / "ours" / "model" / "model.safetensors").is_symlink()


def test_a_folder_that_is_no_model_is_refused_for_good(tmp_path: Path) -> None:
    write_classifier(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text("[]")
    with pytest.raises(
        StorageError, match=r"source is no model that MLflow could load for text-classification"
    ) as told:
        link_model_folder(tmp_path / "source", ["config.json"], tmp_path / "ours", "text-classification")
    assert is_permanent(told.value)


def test_what_is_not_the_models_stays_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_classifier(source)
    files = sorted(path.name for path in source.iterdir())
    (source / "secret.env").write_text("of somebody else")
    link_model_folder(source, files, tmp_path / "ours", "text-classification")
    assert not list((tmp_path / "ours").rglob("secret.env"))


def test_the_size_is_that_of_the_files(made: tuple[str, Path, Path]) -> None:
    _, source, ours = made
    size = sum(path.stat().st_size for path in source.iterdir())
    assert yaml.safe_load((ours / "MLmodel").read_text())["model_size_bytes"] == size

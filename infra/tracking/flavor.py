"""The folder of a Hugging Face model in MLflow's `transformers` flavour, made from its files.

`mlflow.transformers.save_model` loads the weights to write them again, for MLflow 3.17 fails on a folder's name with
transformers 5. That costs the tracker the memory of the model and 5 s for torch. Here nothing is loaded and no file
copied: the folder holds links, and the descriptions that `mlflow.transformers` and `mlflow.pyfunc` read.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.errors import StorageError

PIPELINES = {
    "text-classification": "TextClassificationPipeline",
    "fill-mask": "FillMaskPipeline",
    "text-generation": "TextGenerationPipeline",
}
"""The class that transformers makes for a task."""
TOKENIZER_FILES = {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model"),
}
REQUIREMENTS = ("transformers", "torch", "safetensors")
MODEL, TOKENIZER = "model", "components/tokenizer"


def link_model_folder(source: Path, files: Sequence[str], target: Path, task: str) -> None:
    """Makes `target`, an MLflow model of the Hugging Face folder `source`, out of links to its files.

    Args:
        source: the folder.
        files: what of it is the model's, relative to `source`.
        target: does not exist yet.
        task: of the transformers pipeline.

    Raises:
        StorageError: it is no model of a pipeline for `task`.
    """
    try:
        _make(source, files, target, task)
    except (LookupError, TypeError, ValueError, FileNotFoundError) as error:
        told = f"{type(error).__name__}: {error}"
        raise StorageError(f"{source} is no model that MLflow could load for {task} ({told})") from error


def _make(source: Path, files: Sequence[str], target: Path, task: str) -> None:
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model
    from mlflow.utils.environment import _PythonEnv

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    _link(source, target / MODEL, [name for name in files if name not in TOKENIZER_FILES])
    _link(source, target / TOKENIZER, [name for name in files if name in TOKENIZER_FILES])
    model = Model(signature=_signature(task))
    model.add_flavor(
        "transformers",
        transformers_version=importlib.metadata.version("transformers"),
        code=None,
        task=task,
        instance_type=PIPELINES[task],
        pipeline_model_type=config["architectures"][0],
        source_model_name=str(source),
        model_binary=MODEL,
        torch_dtype=f"torch.{config.get('dtype', 'float32')}",
        components=["tokenizer"],
        tokenizer_type=tokenizer["tokenizer_class"],
    )
    add_to_model(model, "mlflow.transformers", conda_env="conda.yaml", python_env="python_env.yaml")
    model.model_size_bytes = sum((source / name).stat().st_size for name in files)
    model.save(str(target / "MLmodel"))
    _describe_environment(target, _PythonEnv.current())


def _link(source: Path, target: Path, files: Sequence[str]) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to((source / name).resolve(strict=True))


def _signature(task: str) -> Any:
    """What goes in and comes out of the pipeline, as MLflow says it for the task."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    answer = [ColSpec("string")]
    if task == "text-classification":
        answer = [ColSpec("string", name="label"), ColSpec("double", name="score")]
    return ModelSignature(inputs=Schema([ColSpec("string")]), outputs=Schema(answer))


def _describe_environment(target: Path, python: Any) -> None:
    """Writes what MLflow needs to serve the model elsewhere."""
    import yaml
    from mlflow.utils.environment import _mlflow_conda_env

    pip = [f"mlflow=={importlib.metadata.version('mlflow')}", *REQUIREMENTS]
    conda = _mlflow_conda_env(additional_pip_deps=pip, install_mlflow=False)
    (target / "conda.yaml").write_text(yaml.safe_dump(conda), encoding="utf-8")
    (target / "requirements.txt").write_text("\n".join(pip), encoding="utf-8")
    python.to_yaml(str(target / "python_env.yaml"))

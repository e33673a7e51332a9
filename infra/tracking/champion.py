"""Where the files of a registered model lie, asked of MLflow by name and alias."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from infra.errors import InfrastructureError, UserError
from infra.tracking.tracker import Destination
from infra.tracking.writer import KEY_TAG, URI_TAG


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """A registered model version on this machine."""

    name: str
    version: str
    key: str
    folder: Path
    """A Hugging Face folder."""


def find_champion(destination: Destination, name: str, alias: str = "champion") -> Champion:
    """The version of registered model `name` that has `alias`; its files are downloaded if they are not here.

    Raises:
        UserError: no such model or alias.
        InfrastructureError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    if destination.uri.startswith("sqlite:") and not Path(destination.uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no model is registered under {destination.uri}; make one first: fromzero run")
    client = destination.open().client
    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            known = ", ".join(model.name for model in client.search_registered_models())
            others = f"choose another with --model: {known}" if known else "none is registered"
            raise UserError(f"no registered model {name}@{alias} in {destination.uri}; {others}") from error
        raise InfrastructureError(f"{destination.uri} does not answer: {error}") from error
    folder = _local(version.tags.get(URI_TAG, ""))
    if not (folder / "config.json").is_file():
        folder = _download(version.source, destination.uri)
    return Champion(name=name, version=str(version.version), key=version.tags.get(KEY_TAG, ""), folder=folder)


def _download(source: str, tracking_uri: str) -> Path:
    """The model's files in one new temporary folder: MLflow keeps the tokenizer beside the weights."""
    from mlflow.artifacts import download_artifacts

    copy = tempfile.mkdtemp(prefix="fromzero-champion-")
    folder = Path(download_artifacts(artifact_uri=source, tracking_uri=tracking_uri, dst_path=copy))
    shutil.copytree(folder / "components" / "tokenizer", folder / "model", dirs_exist_ok=True)
    return folder / "model"


def _local(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path) if uri.startswith("file:") else uri or "/nonexistent")

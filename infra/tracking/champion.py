"""The version of a registered model, asked of MLflow by name and alias or number, and where its files lie."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from infra.errors import DamagedArtifactError, FromzeroError, InfrastructureError, UserError
from infra.storage.manifest import check_artifact
from infra.tracking.tracker import Destination
from infra.tracking.writer import ID_TAG, IS_PROMPT_TAG, KEY_TAG, URI_TAG

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """A registered model version on this machine."""

    name: str
    version: str
    key: str
    folder: Path
    """A Hugging Face folder."""
    copy: tempfile.TemporaryDirectory[str] | None = None
    """What holds the folder, if it was downloaded; goes with this value."""


def find_champion(
    destination: Destination, name: str, alias: str = "champion", *, root: Path | None = None
) -> Champion:
    """The version of registered model `name` that has `alias`; its files are downloaded if they are not here, or not as
    they were made.

    Args:
        destination: the MLflow store.
        name: of the registered model.
        alias: of the version.
        root: where artifacts lie, which may have been moved since.

    Raises:
        UserError: no such model or alias.
        InfrastructureError: MLflow does not answer.
    """
    version = find_version(destination, name, alias=alias)
    key, copy = version.tags.get(KEY_TAG, ""), None
    folder = _local(version.tags.get(URI_TAG, ""))
    moved = root.glob(f"artifacts/*/{version.tags.get(ID_TAG, '')}") if root and key and not folder.is_dir() else ()
    folder = next(iter(moved), folder)
    try:
        is_here = check_artifact(folder, key) is not None
    except DamagedArtifactError as error:
        logger.warning("%s; the files that MLflow has are taken", str(error))
        is_here = False
    if not is_here:
        try:
            copy = tempfile.TemporaryDirectory(prefix="fromzero-champion-")
            folder = _download(version.source, destination.uri, copy.name)
        except Exception as error:  # telemetry boundary: MLflow raises whatever its store or network raises
            raise InfrastructureError(destination.told(error)) from error
    return Champion(name=name, version=str(version.version), key=key, folder=folder, copy=copy)


def find_version(
    destination: Destination, name: str, *, alias: str | None = None, number: str | None = None, prompt: bool = False
) -> Any:
    """The version of registered model `name` that has `alias`, or that with `number`, as MLflow tells it; of the
    registered prompt where `prompt` is true.

    Raises:
        UserError: no such model or prompt, alias or version; says which there are.
        InfrastructureError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    if destination.database and not destination.database.exists():
        raise UserError(f"no model is registered under {destination.uri}; make one first: fromzero run")
    try:
        client = destination.open().client
        by_alias = client.get_prompt_version_by_alias if prompt else client.get_model_version_by_alias
        by_number = client.get_prompt_version if prompt else client.get_model_version
        try:
            return by_alias(name, alias) if alias else by_number(name, number)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            wanted = f"{name}@{alias}" if alias else f"{name}/{number}"
            kind, there = ("prompt", _prompts(client, name)) if prompt else ("model", _registered(client, name))
            raise UserError(f"no registered {kind} {wanted} in {destination.uri}; {there}") from error
    except FromzeroError:
        raise
    except Exception as error:  # telemetry boundary: MLflow raises whatever its database or network raises
        raise InfrastructureError(destination.told(error)) from error


def _registered(client: Any, name: str) -> str:
    """What there is in place of a wrong name, alias or version."""
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        return f"registered there: {', '.join(models)}" if models else "none is registered"
    versions = ", ".join(str(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    return f"its versions are {versions or 'none'}, its aliases {', '.join(models[name].aliases) or 'none'}"


def _prompts(client: Any, name: str) -> str:
    """What there is in place of a wrong alias or version of a prompt."""
    versions = client.search_model_versions(f"name = '{name}' and tags.`{IS_PROMPT_TAG}` = 'true'")
    return f"its versions are {', '.join(str(version.version) for version in versions) or 'none'}"


def _download(source: str, tracking_uri: str, target: str) -> Path:
    """The model's files in one folder below `target`: MLflow keeps the tokenizer beside the weights."""
    from mlflow.artifacts import download_artifacts

    folder = Path(download_artifacts(artifact_uri=source, tracking_uri=tracking_uri, dst_path=target))
    shutil.copytree(folder / "components" / "tokenizer", folder / "model", dirs_exist_ok=True)
    return folder / "model"


def _local(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path) if uri.startswith("file:") else uri or "/nonexistent")

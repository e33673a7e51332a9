"""A model in MLflow: delivered twice it is there once, and its files load where the artifact's folder is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infra.errors import InfrastructureError, UserError
from infra.storage import manifest
from infra.tracking.champion import find_champion, find_version
from infra.tracking.tracker import Destination
from infra.tracking.writer import KEY_TAG
from tests.infra.toy_model import model_message, write_classifier

TEXTS = ["甲 乙 乙", "乙", "甲"]


@pytest.fixture(scope="module")
def delivered(store: Destination, tmp_path_factory: pytest.TempPathFactory) -> tuple[Destination, Path]:
    """A store that was told twice of one registered classifier, by two processes' writers."""
    root = tmp_path_factory.mktemp("models")
    folder = root / ("k" * 32) / "model"
    write_classifier(folder)
    manifest.write(folder.parent, {})
    target = replace(store, experiment="models")
    run = {"kind": "run", "id": "r", "name": "r", "start_time": 1, "tags": {}, "parameters": {}}
    model = model_message("r", "k" * 32, folder, "toy-classifier")
    for _ in range(2):
        writer = target.open()
        writer.apply(run)
        writer.apply(model)
    return target, folder


def test_a_model_delivered_twice_is_one_model_and_one_version(delivered: tuple[Destination, Path]) -> None:
    writer = delivered[0].open()
    assert len(writer.client.search_logged_models([writer.experiment_id])) == 1
    assert len(writer.client.search_model_versions("name = 'toy-classifier'")) == 1


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_flip, shutil.rmtree, lambda folder: shutil.rmtree(folder.parent)])
def test_a_champion_whose_files_are_gone_or_damaged_comes_from_mlflow(
    delivered: tuple[Destination, Path], damage: Callable[[Path], None], tmp_path: Path
) -> None:
    target, folder = delivered
    assert find_champion(target, "toy-classifier").folder == folder
    expected = logits(folder)
    sound = shutil.copytree(folder.parent, tmp_path / "sound")
    damage(folder)
    try:
        found = find_champion(target, "toy-classifier")
        assert (found.version, found.key) == ("1", "k" * 32)
        assert not found.folder.is_relative_to(folder.parent)
        assert torch.equal(logits(found.folder), expected)
        copy = found.folder
        del found
        assert not copy.exists(), "what was downloaded stays behind"
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(sound, folder.parent)


def test_a_champion_is_found_under_a_root_that_was_moved(delivered: tuple[Destination, Path], tmp_path: Path) -> None:
    target, folder = delivered
    place = tmp_path / "artifacts" / "finetune" / folder.parent.name
    shutil.copytree(folder.parent, place)
    away = folder.parent.rename(folder.parent.with_name("away"))
    try:
        assert find_champion(target, "toy-classifier", root=tmp_path).folder == place / "model"
    finally:
        away.rename(folder.parent)


def test_a_name_that_is_not_registered_is_answered_with_those_that_are(delivered: tuple[Destination, Path]) -> None:
    known = r"no registered model nobody@champion .*; registered there: (.+, )?toy-classifier\b"  # others' on a server
    with pytest.raises(UserError, match=known):
        find_champion(delivered[0], "nobody")


@pytest.mark.parametrize("wanted", [{"alias": "champion"}, {"number": "1"}])
def test_a_version_is_found_by_alias_and_by_number(delivered: tuple[Destination, Path], wanted: dict[str, str]) -> None:
    version = find_version(delivered[0], "toy-classifier", **wanted)
    assert (str(version.version), version.tags[KEY_TAG]) == ("1", "k" * 32)


@pytest.mark.parametrize("wanted", [{"alias": "best"}, {"number": "9"}])
def test_a_wrong_alias_or_version_is_answered_with_those_there_are(
    delivered: tuple[Destination, Path], wanted: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=r"no registered model toy-classifier[@/]\w+ .* versions are 1, .* champion$"):
        find_version(delivered[0], "toy-classifier", **wanted)


def test_a_server_that_is_away_is_no_bug_of_ours() -> None:
    away = Destination(uri="http://127.0.0.1:9", experiment="toy", artifact_location=None)
    with pytest.raises(InfrastructureError, match=r"http://127.0.0.1:9 does not answer"):
        find_version(away, "toy-classifier", number="1")


def logits(folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found: torch.Tensor = AutoModelForSequenceClassification.from_pretrained(folder)(
            **tokenizer(TEXTS, padding=True, return_tensors="pt")
        ).logits
    return found

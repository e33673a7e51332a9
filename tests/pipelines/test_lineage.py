"""`lineage` and `lineage diff` on toy models: every name that a user may have seen is found, and only what differs is
told. The command line runs in this process."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.journal import runs
from infra.storage import manifest
from infra.storage.files import sha256
from infra.storage.store import Store
from infra.tracking.delivered import Delivered
from infra.tracking.tracker import Destination
from infra.tracking.writer import KEY_TAG, URI_TAG
from pipelines.cli import main
from tests.infra.toy_models import make
from tests.pipelines.conftest import Done

Fromzero = Callable[..., Done]
Keys = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lineage")


@pytest.fixture(scope="module")
def keys(root: Path) -> Keys:
    """Two runs under one root, the second with another learning rate and more data."""
    data, store = root / "data", Store.open(str(root / "root"))
    data.mkdir()
    (data / "a.txt").write_text("one\ntwo\n\nfour\n")
    one = make(store, "r1", data, 0.1)
    (data / "b.txt").write_text("five\n")
    return {"r1": one, "r2": make(store, "r2", data, 0.25)}


@pytest.fixture
def fromzero(root: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Fromzero:
    """`fromzero("lineage", ...)` in the folder of the raw files."""
    monkeypatch.chdir(root / "data")

    def call(*arguments: str, at: Path = root / "root") -> Done:
        monkeypatch.setattr(sys, "argv", ["fromzero", *arguments, f"storage.root={at}"])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capfd.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return call


def raw_node(root: Path) -> str:
    return f"raw/{sha256(root / 'data' / 'a.txt')}"


@pytest.mark.parametrize(
    ("target", "node"),
    [
        ("toy-classifier", "model/{classify}/model"),
        ("pretrain", "model/{pretrain}/model"),
        ("toy-prompt", "prompt/{judge}/toy-prompt"),
        ("corpus", "corpus/{corpus}"),
        ("{corpus}", "corpus/{corpus}"),
        ("{old_key:.8}", "classify/{old_key}"),
        ("r2", "judge/{judge}"),
        ("mlflow-r2", "judge/{judge}"),
        ("classify-of-r2", "classify/{classify}"),
        ("a.txt", "{raw}"),
        ("./a.txt", "{raw}"),
        ("{root}/data/a.txt", "{raw}"),
        ("{root}/copy of a", "{raw}"),
        ("wiki:a.txt", "{raw}"),
        ("{digest:.32}", "{raw}"),
        ("{root}/root/artifacts/classify/{classify}/model", "model/{classify}/model"),
        ("{root}/root/artifacts/corpus/{corpus}", "corpus/{corpus}"),
    ],
)
def test_every_name_that_a_user_may_have_seen_is_found(
    target: str, node: str, root: Path, keys: Keys, fromzero: Fromzero
) -> None:
    (root / "copy of a").write_bytes((root / "data" / "a.txt").read_bytes())
    raw = raw_node(root)
    known: dict[str, Any] = {**keys["r2"], "old_key": keys["r1"]["classify"], "root": root, "raw": raw}
    found = fromzero("lineage", target.format(**known, digest=raw.removeprefix("raw/")), "--json")
    assert found.code == 0, found.err
    assert found.json["target"] == node.format(**known)


def test_raw_files_are_shown_with_their_rows_as_text_and_json(root: Path, fromzero: Fromzero) -> None:
    assert "a.txt raw file, 4 rows, 14 bytes" in fromzero("lineage", "toy-classifier").out
    nodes = {node["id"]: node for node in fromzero("lineage", "toy-classifier", "--json").json["nodes"]}
    assert nodes[raw_node(root)]["num_rows"] == 4 and nodes[raw_node(root)]["sources"] == {"corpus.wiki": 4}


def test_from_a_raw_file_the_graph_goes_down_to_all_that_was_made_of_it(
    root: Path, keys: Keys, fromzero: Fromzero
) -> None:
    nodes = {node["id"] for node in fromzero("lineage", "a.txt", "--json").json["nodes"]}
    assert {f"prompt/{made['judge']}/toy-prompt" for made in keys.values()} < nodes
    nodes = {node["id"] for node in fromzero("lineage", "wiki:b.txt", "--json").json["nodes"]}
    assert f"judge/{keys['r2']['judge']}" in nodes and f"judge/{keys['r1']['judge']}" not in nodes


def test_a_wrong_target_is_answered_with_what_there_is(fromzero: Fromzero, tmp_path: Path) -> None:
    found = fromzero("lineage", "nobody")
    assert found.code == 2 and len(found.err.splitlines()) == 1
    for word in ("models: toy-classifier, pretrain", "toy-prompt", "corpus", "wiki:a.txt", "r2, r1"):
        assert word in found.err
    empty = fromzero("lineage", "nobody", at=tmp_path)
    assert empty.code == 2 and "nothing is finished there yet" in empty.err


def test_the_text_of_a_difference_has_what_differs_and_names_what_does_not(keys: Keys, fromzero: Fromzero) -> None:
    found = fromzero("lineage", "diff", keys["r1"]["classify"][:8], "toy-classifier")
    assert found.code == 0, found.err
    lines = [" ".join(line.split()) for line in found.out.splitlines()]
    assert lines[0] == f"A {keys['r1']['classify'][:8]} classify {keys['r1']['classify'][:12]} run r1"
    assert lines[1].startswith("B toy-classifier classify") and lines[1].endswith("run r2")
    for line in (
        f"corpus.wiki added b.txt 1 rows {sha256(Path('b.txt'))[:8]}",
        "pretrain.learning_rate 0.1 -> 0.25",
        "corpus num_documents_in 4 -> 5 +1",
        "pretrain test_accuracy 0.9 (0.85 to 0.95) -> 0.75 (0.7 to 0.8) -0.15",
        "pretrain chosen lr 0.1 -> lr 0.25",
    ):
        assert line in lines, found.out
    assert lines[-1] in ("the same: code, libraries", "the same: code, libraries, cost")  # toys take no time
    assert "test_accuracy_low" not in found.out


def test_the_document_of_a_difference_has_both_sides_and_every_section(keys: Keys, fromzero: Fromzero) -> None:
    found = fromzero("lineage", "diff", "r1", "r2", "--json").json
    assert [one["step"] for one in found["a"]["made_by"]] == ["pretrain", "classify"]
    assert found["b"]["target"] == "r2" and found["is_same"] is False and found["errors"] == []
    assert found["config"] == [{"step": "pretrain", "key": "pretrain.learning_rate", "a": 0.1, "b": 0.25}]
    assert {row["step"]: row["status"] for row in found["steps"]} == dict.fromkeys(
        ("corpus", "pretrain", "classify"), "differs"
    )
    assert set(found) >= {"data", "code", "libraries", "result", "cost"}
    empty = fromzero("lineage", "diff", "r1", "nobody", "--json")
    assert empty.code == 2 and set(empty.json) == set(found) and "nobody is no model" in empty.json["errors"][0]


def test_two_names_of_one_model_are_the_same_in_one_line(keys: Keys, fromzero: Fromzero) -> None:
    found = fromzero("lineage", "--json", "diff", "toy-classifier", keys["r2"]["classify"])  # options may stand first
    assert found.json["is_same"] and found.json["result"] == []
    text = fromzero("lineage", "diff", "toy-classifier", "toy-classifier").out
    assert text.splitlines()[2:] == ["the same: both were made by the same artifacts"]


def test_a_model_of_another_root_is_given_by_its_folder(
    root: Path, keys: Keys, fromzero: Fromzero, tmp_path: Path
) -> None:
    """Its past is looked for where it lies."""
    other = tmp_path / "moved"
    shutil.copytree(root / "root", other)
    folder = other / "artifacts" / "classify" / keys["r1"]["classify"]
    fresh = Store.open(str(tmp_path / "fresh"))
    made = make(fresh, "r9", root / "data", 0.5)
    found = fromzero("lineage", "diff", str(folder), made["classify"], "--json", at=fresh.root).json
    assert found["a"]["root"] == str(other) and {row["status"] for row in found["steps"]} == {"differs"}
    refused = fromzero("lineage", str(folder), at=fresh.root)
    assert refused.code == 2 and f"add storage.root={other}" in refused.err


def test_versions_and_aliases_are_asked_of_mlflow(root: Path, keys: Keys, fromzero: Fromzero) -> None:
    """The alias need not stand on the newest."""
    uri = f"sqlite:///{root}/root/mlflow.db"
    where = Destination(uri=uri, experiment="fromzero", artifact_location=None)
    client = where.open().client
    client.create_registered_model("toy-classifier")
    for key in (keys["r1"]["classify"], keys["r2"]["classify"], "e" * 32):
        client.create_model_version("toy-classifier", str(root), tags={KEY_TAG: key, URI_TAG: "/elsewhere/model"})
    client.set_registered_model_alias("toy-classifier", "champion", "1")
    found = fromzero("lineage", "diff", "toy-classifier@champion", "toy-classifier/2", "--json").json
    assert [found[side]["made_by"][0]["key"] for side in ("a", "b")] == [keys[run]["classify"] for run in ("r1", "r2")]
    node = fromzero("lineage", "models:/toy-classifier@champion", "--json").json["target"]
    assert node == f"model/{keys['r1']['classify']}/model"
    last = manifest.read(root / "root" / "artifacts" / "classify" / keys["r1"]["classify"])
    Delivered.load(root / "root", where).add([last], {"r1/classify": "a run of MLflow"})
    nodes = fromzero("lineage", "corpus", "--json").json["nodes"] + fromzero("lineage", "a.txt", "--json").json["nodes"]
    aliases = {node["id"]: node["alias"] for node in nodes if node["name"] == "toy-classifier"}
    assert aliases == {
        f"model/{keys['r1']['classify']}/model": "champion",
        f"model/{keys['r2']['classify']}/model": None,
    }
    for target, told in (
        ("toy-classifier/7", "its versions are 3, 2, 1, its aliases champion"),
        ("toy-classifier/3", f"key {'e' * 32}, which is not under {root}/root; it was made at /elsewhere"),
        ("nobody/1", "registered there: toy-classifier"),
    ):
        refused = fromzero("lineage", "diff", target, "toy-classifier")
        assert refused.code == 2 and told in refused.err and len(refused.err.splitlines()) == 1, refused.err


def test_a_version_of_a_prompt_is_found_in_any_form(root: Path, keys: Keys, fromzero: Fromzero) -> None:
    uri = f"sqlite:///{root}/root/mlflow.db"
    client = Destination(uri=uri, experiment="fromzero", artifact_location=None).open().client
    client.create_prompt("toy-prompt")
    for run in ("r1", "r2"):
        client.create_prompt_version("toy-prompt", "{{text}}", tags={KEY_TAG: keys[run]["judge"]})
    client.set_prompt_alias("toy-prompt", "best", 1)
    for target, run in (("toy-prompt/2", "r2"), ("prompts:/toy-prompt/1", "r1"), ("prompts:/toy-prompt@best", "r1")):
        found = fromzero("lineage", target, "--json")
        assert found.code == 0, found.err
        assert found.json["target"] == f"prompt/{keys[run]['judge']}/toy-prompt"
    for wrong in ("toy-prompt/3", "toy-prompt@worst"):
        refused = fromzero("lineage", wrong)
        assert refused.code == 2 and "its versions are 2, 1\n" in refused.err, refused.err


def test_a_run_that_was_killed_shows_what_it_had_made(fromzero: Fromzero, root: Path, keys: Keys) -> None:
    path = root / "root" / "runs" / "r2.json"
    record = json.loads(path.read_text())
    planned = {step["name"]: step["key"] for step in record["steps"][:2]}
    for content in ({"planned": planned}, {"planned": {"classify": "d" * 32}}):
        path.write_text(json.dumps({**record, "steps": [], "status": "KILLED", **content}))
        shown = fromzero("lineage", "r2", "--json")
        if "d" * 32 in content["planned"].values():
            assert shown.code == 2 and "nothing that run r2 planned is under" in shown.err
        else:
            assert shown.json["target"] in {f"{name}/{key}" for name, key in planned.items()}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("target", ["x" * 300, "/proc/self/mem", "toy-classifier/99999999999999999999999"])
def test_what_can_be_no_name_is_no_bug(target: str, fromzero: Fromzero) -> None:
    refused = fromzero("lineage", target)
    assert refused.code == 2 and "is no model, prompt, step" in refused.err


def test_a_page_goes_through_a_link_and_into_a_pipe(fromzero: Fromzero, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    assert fromzero("lineage", "toy-classifier", "--html", str(tmp_path / "link")).code == 0
    assert (tmp_path / "link").is_symlink() and "<svg" in (tmp_path / "page.html").read_text()
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        assert fromzero("lineage", "toy-classifier", "--html", str(tmp_path / "pipe")).code == 0
        assert "<svg" in read.result(timeout=60)
    refused = fromzero("lineage", "toy-classifier", "--html", "/proc/x.html")
    assert refused.code == 2 and "--html: /proc/x.html cannot be written" in refused.err


@pytest.mark.parametrize("command", [("lineage", "toy-classifier"), ("status",)])
def test_a_root_that_can_be_no_folder_is_one_line(command: tuple[str, ...], fromzero: Fromzero) -> None:
    refused = fromzero(*command, at=Path("/tmp") / ("x" * 300))
    assert refused.code == 3 and len(refused.err.splitlines()) == 1 and "File name too long" in refused.err


@pytest.mark.parametrize("command", [("lineage", "toy-classifier"), ("status",)])
def test_who_only_looks_makes_no_folder(command: tuple[str, ...], fromzero: Fromzero, tmp_path: Path) -> None:
    done = fromzero(*command, at=tmp_path / "typo")
    assert "typo" in done.out + done.err
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lineage", "--help"), "lineage [OPTIONS] {TARGET}"),
        (("lineage", "diff", "--help"), "lineage diff [OPTIONS] {A} {B}"),
        (("--help",), "lineage diff"),
    ],
)
def test_both_commands_have_a_help_of_their_own(
    arguments: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fromzero", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code and told in " ".join(capfd.readouterr().out.split())


def test_a_raw_file_has_no_difference_and_a_missing_side_is_asked_for(fromzero: Fromzero) -> None:
    refused = fromzero("lineage", "diff", "a.txt", "toy-classifier")
    assert refused.code == 2 and "a.txt is a raw file" in refused.err
    assert json.loads(fromzero("lineage", "diff", "--json").out)["errors"] == ["Missing argument 'B'."]


def test_a_run_that_ends_in_several_steps_shows_them_all(fromzero: Fromzero, root: Path, keys: Keys) -> None:
    """As one that failed in a branch, or had `--until`: not the last of its steps alone."""
    store = Store.open(str(root / "root"))
    whole = next(record for record in runs.load_all(store) if record.id == "r2")
    ends = {keys[run]["classify"] for run in ("r1", "r2")}
    steps = [step.model_copy(update={"key": key}) for key in ends for step in whole.steps if step.name == "classify"]
    runs.save(store, whole.model_copy(update={"id": "both", "run_id": None, "steps": steps}))
    try:
        nodes = {node["id"] for node in fromzero("lineage", "both", "--json").json["nodes"]}
        assert {f"classify/{key}" for key in ends} <= nodes
        assert fromzero("lineage", "both").out.count("made from") == 2
    finally:
        runs.path_of(store, "both").unlink()

"""What MLflow is told of pipeline runs and steps, as messages for the writer.

A step's messages are a function of its manifest, so the run that made it and a repair years later send the same ones
under the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from infra.tracking.writer import KEY_TAG, URI_TAG

Message = dict[str, Any]
AliasUse = Literal["move", "keep", "none"]
HISTORY = "metrics.jsonl"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of nested mappings; lists of scalars stay whole."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flatten(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def pipeline_started(
    run: str, pipeline: str, config: Mapping[str, Any], tags: Mapping[str, str], started_at: float
) -> list[Message]:
    """The pipeline's own run, with its whole config."""
    return [
        {
            "kind": "run",
            "id": run,
            "parent_id": None,
            "name": f"{pipeline} {run}",
            "start_time": _milliseconds(started_at),
            "tags": {"fromzero.pipeline": pipeline, **_source(tags)},
            "parameters": {k: v for k, v in flatten(config) if v is not None},
        },
        {"kind": "text", "id": run, "name": "config.json", "text": json.dumps(config, ensure_ascii=False, indent=1)},
    ]


def pipeline_note(run: str, manifests: Iterable[Mapping[str, Any]]) -> Iterator[Message]:
    """What the pipeline found, as the description of its run."""
    verdicts = [str(m["metrics"]["verdict"]) for m in manifests if m["metrics"].get("verdict")]
    if verdicts:
        yield {"kind": "tags", "id": run, "tags": {"mlflow.note.content": "\n\n".join(verdicts)}}


def run_ended(own_id: str, status: str, ended_at: float) -> Message:
    """Closes a run."""
    return {"kind": "end", "id": own_id, "status": status, "end_time": _milliseconds(ended_at)}


def step_started(
    run: str,
    step: str,
    key: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    root: Path | str,
    started_at: float,
    tags: Mapping[str, str],
) -> list[Message]:
    """A step's run, below the pipeline's, with its config and the artifacts that it takes; see `raw_inputs`."""
    own_id = f"{run}/{step}"
    datasets = [
        {
            "name": entry["step"],
            "digest": entry["key"],
            "context": name,
            "source": f"{root}/artifacts/{entry['step']}/{entry['key']}",
        }
        for name, entry in inputs.items()
    ]
    messages: list[Message] = [
        {
            "kind": "run",
            "id": own_id,
            "parent_id": run,
            "name": step,
            "start_time": _milliseconds(started_at),
            "tags": {KEY_TAG: key, "fromzero.step": step, **_source(tags)},
            "parameters": {k: v for k, v in flatten(config) if v is not None},
        },
        {"kind": "text", "id": own_id, "name": "config.json", "text": json.dumps(config, ensure_ascii=False, indent=1)},
    ]
    if datasets:
        messages.append({"kind": "datasets", "id": own_id, "datasets": datasets})
    return messages


def dataset_name(source: str, path: str) -> str:
    """What MLflow calls a raw file."""
    return f"{source}:{Path(path).name}"[:100]


def raw_inputs(own_id: str, raw: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterator[Message]:
    """The raw files of a step, told at its end: only then their rows are known, and MLflow 3.17 lets no input change.

    Args:
        own_id: our own id of the step's run.
        raw: by source: path, sha256, and num_rows if they were counted.
    """
    datasets = [
        {
            "name": dataset_name(source, file["path"]),
            "digest": file["sha256"][:32],
            "context": "raw",
            "source": file["path"],
            "num_rows": file.get("num_rows"),
        }
        for source, files in raw.items()
        for file in files
    ]
    if datasets:
        yield {"kind": "datasets", "id": own_id, "datasets": datasets}


def table(own_id: str, name: str, text: str) -> Message:
    """A table as it stands now, which replaces the one of this name.

    Args:
        own_id: our own id of the step's run.
        name: of its artifact.
        text: `{"columns": [...], "data": [[...], ...]}`.
    """
    return {"kind": "table", "id": own_id, "name": name, "text": text}


def trial(parent_id: str, record: Mapping[str, Any], time_ms: int) -> list[Message]:
    """A trial as it stands now, as a run below its step's.

    Args:
        parent_id: our own id of the step's run.
        record: a `TrialRecord` as JSON.
        time_ms: now, Unix milliseconds.
    """
    own_id = f"{parent_id}/{record['trial_id']}"
    points = [[name, value, step, time_ms] for step, row in record["history"] for name, value in row.items()]
    return [
        {
            "kind": "run",
            "id": own_id,
            "parent_id": parent_id,
            "name": record["trial_id"],
            "start_time": time_ms,
            "tags": {},
            "parameters": {name: value for name, value in record["parameters"].items() if value is not None},
        },
        {"kind": "metrics", "id": own_id, "points": points},
        {"kind": "tags", "id": own_id, "tags": {"fromzero.trial_status": record["status"]}},
        {
            "kind": "end",
            "id": own_id,
            "status": "FAILED" if record["status"] == "failed" else "FINISHED",
            "end_time": time_ms,
        },
    ]


def step_finished(run: str, manifest: Mapping[str, Any], folder: Path, uri: str | None = None) -> list[Message]:
    """What a finished step has to show: its raw files, curves, trials, files, models, prompts, cost; then its end.

    Curves and trials are in it whole, because a run that goes on from a checkpoint of another has seen their ends only;
    the tracker drops the points that it has sent already.

    Args:
        run: our own id of the pipeline's run.
        manifest: of the step.
        folder: its artifact.
        uri: what that is called on every machine, if it lies on an object store.
    """
    own_id, key = f"{run}/{manifest['step']}", manifest["key"]
    now = _milliseconds(manifest["finished_at"])
    step = int(manifest["metrics"].get("steps") or 0)
    numbers = {
        name: value
        for name, value in {**manifest["measured"], **manifest["metrics"]}.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    words = {n: v for n, v in manifest["metrics"].items() if isinstance(v, str)}
    curves = list(_history(manifest, folder))
    known = {(name, at) for name, _, at, _ in curves}
    points = [[name, value, step, now] for name, value in numbers.items() if (name, step) not in known]
    messages: list[Message] = [
        *raw_inputs(own_id, manifest["raw"]),
        {"kind": "metrics", "id": own_id, "points": [*curves, *points]},
        {"kind": "tags", "id": own_id, "tags": {URI_TAG: uri or folder.as_uri(), **words}},
        {"kind": "file", "id": own_id, "path": str(folder / "manifest.json"), "folder": ""},
    ]
    for record in manifest["records"]:
        if record["type"] == "file":
            messages.append(
                {"kind": "file", "id": own_id, "path": str(folder / record["path"]), "folder": record["folder"]}
            )
        elif record["type"] == "table":
            messages.append(table(own_id, record["path"], (folder / record["path"]).read_text("utf-8")))
        elif record["type"] == "model":
            messages.append(
                {
                    "kind": "model",
                    "id": own_id,
                    "record": record,
                    "key": key,
                    "time": now,
                    "path": str(folder / record["path"]),
                    "uri": f"{uri or folder}/{record['path']}",
                }
            )
        elif record["type"] == "checkpoint":
            messages.append(_checkpoint(own_id, key, record, now, uri or str(folder)))
        elif record["type"] == "prompt":
            messages.append({"kind": "prompt", "id": own_id, "record": record, "key": key})
        elif record["type"] == "trial":
            messages += trial(own_id, record, now)
    messages.append(run_ended(own_id, "FINISHED", manifest["finished_at"]))
    return messages


def _checkpoint(own_id: str, key: str, record: Mapping[str, Any], time_ms: int, artifact: str) -> Message:
    """A checkpoint as a model; it lies in ROOT/work/<step>/<key> beside ROOT/artifacts/<step>/<key>."""
    root, _, step, _ = artifact.rsplit("/", 3)
    place = f"{root}/work/{step}/{key}/{record['path']}"
    model = {**record, "type": "model", "task": "checkpoint"}
    return {"kind": "model", "id": own_id, "record": model, "key": key, "time": time_ms, "path": place, "uri": place}


def repair(
    manifest: Mapping[str, Any],
    folder: Path,
    root: Path | str,
    *,
    uri: str | None = None,
    alias: AliasUse = "move",
) -> Message:
    """Brings back into MLflow a finished step that MLflow does not know: a new server, or a lost database.

    Args:
        manifest: of the step.
        folder: its artifact.
        root: the store's.
        uri: as in `step_finished`.
        alias: whether its models take the aliases that they were made for: `move` them from other versions, `keep` them
            where they are on one, or `none`, for a result of the past.
    """
    run = manifest["made_by_run"]
    records = [{**record, "alias": None} if alias == "none" else record for record in manifest["records"]]
    started = step_started(
        run,
        manifest["step"],
        manifest["key"],
        manifest["config"],
        manifest["inputs"],
        root,
        manifest["started_at"],
        manifest["tags"],
    )
    return {
        "kind": "repair",
        "id": f"{run}/{manifest['step']}",
        "key": manifest["key"],
        "keeps_aliases": alias == "keep",
        "messages": [*started, *step_finished(run, {**manifest, "records": records}, folder, uri)],
    }


def _history(manifest: Mapping[str, Any], folder: Path) -> Iterator[list[Any]]:
    """The points of the training's curves."""
    path = folder / HISTORY
    if not path.exists():
        return
    time_ms = _milliseconds(manifest["started_at"])
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                yield [name, value, int(row.get("step", 0)), time_ms]


def _source(tags: Mapping[str, str]) -> dict[str, str]:
    """`tags` with those from which MLflow's pages show where a run came from."""
    shown = {"mlflow.source.name": "fromzero", "mlflow.source.type": "LOCAL"}
    if "git_commit" in tags:
        shown["mlflow.source.git.commit"] = tags["git_commit"]
    return {**shown, **tags}


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)

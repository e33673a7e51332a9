"""A pipeline of toy steps, raw files to a registered model, made in this process without Ray: real plans, keys and
manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.journal.config import FrozenConfig, execution_field
from infra.journal.plan import artifact_of, make_plan
from infra.journal.runs import RunRecord, StepRecord, save
from infra.journal.step import Artifact, Step, StepContext, StepOutput
from infra.journal.worker import Job, run_job
from infra.storage.raw import resolve
from infra.storage.store import Store
from infra.tracking.client import StepTracker
from infra.tracking.records import ModelRecord, PromptRecord


class ReadConfig(FrozenConfig):
    """Config of `read`."""

    upper: bool = False


class TrainConfig(FrozenConfig):
    """Config of `train` and `judge`."""

    learning_rate: float = 0.1
    threads: int = execution_field(1, description="in no key")


def read(config: ReadConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """All lines of all files."""
    lines = {source: [Path(f.path).read_text().splitlines() for f in files] for source, files in context.raw.items()}
    text = "\n".join(line for files in lines.values() for file in files for line in file)
    (context.output / "text.txt").write_text(text.upper() if config.upper else text)
    num_rows = {source: [len(file) for file in files] for source, files in lines.items()}
    return StepOutput(metrics={"num_documents_in": sum(map(sum, num_rows.values()))}, num_rows=num_rows)


def train(config: TrainConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """A model that is a file."""
    (context.output / "model").mkdir()
    (context.output / "model" / "config.json").write_text("{}")
    accuracy = 1 - config.learning_rate
    metrics = {"test_accuracy": accuracy, "test_accuracy_low": accuracy - 0.05, "test_accuracy_high": accuracy + 0.05}
    is_last = context.step == "classify"
    model = ModelRecord(
        path="model",
        name=context.step,
        task="text-classification",
        metrics=metrics,
        registered_name="toy-classifier" if is_last else None,
        alias="champion" if is_last else None,
    )
    return StepOutput(metrics={**metrics, "chosen": f"lr {config.learning_rate}", "train_flops": 1e6}, records=(model,))


def judge(config: TrainConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """A prompt, made of the model."""
    (context.output / "verdict.txt").write_text("good")
    return StepOutput(metrics={"verdict": "good"}, records=(PromptRecord(name="toy-prompt", template="{{text}}"),))


def make(store: Store, run: str, data: Path, learning_rate: float = 0.1, *, pretrained: bool = True) -> dict[str, str]:
    """Runs corpus > pretrain > classify > judge as the run `run`; returns the keys by step.

    Args:
        store: the root.
        run: our own id of the run.
        data: folder of the raw files.
        learning_rate: of `pretrain`, or of `classify` where there is none.
        pretrained: whether there is a step `pretrain`.
    """

    def step(name: str, function: str, config: FrozenConfig, **inputs: Step) -> Step:
        return Step(name=name, function=f"tests.infra.toy_models:{function}", config=config, inputs=inputs)

    files = {"wiki": resolve(str(data), None, "test")}
    corpus = Step(name="corpus", function="tests.infra.toy_models:read", config=ReadConfig(), raw=files)
    if pretrained:
        pretrain = step("pretrain", "train", TrainConfig(learning_rate=learning_rate), corpus=corpus)
        classify = step("classify", "train", TrainConfig(), pretrain=pretrain)
    else:
        classify = step("classify", "train", TrainConfig(learning_rate=learning_rate), corpus=corpus)
    plan = make_plan([step("judge", "judge", TrainConfig(), model=classify)], store, {"CPU": 2.0})
    artifacts: dict[str, Artifact] = {}
    for planned in plan:
        manifest = planned.manifest
        if manifest is None:
            made = run_job(
                Job(
                    step=planned.step,
                    key=planned.key,
                    identity=planned.identity,
                    definitions=planned.definitions,
                    inputs={name: artifacts[parent.name] for name, parent in planned.step.inputs.items()},
                    root=store.root,
                    tracker=StepTracker(step=planned.step.name),
                    environment={"made_by_run": run, "tags": {"git_commit": "c" * 40}},
                )
            )
            assert isinstance(made, dict), made
            manifest = made
        artifacts[planned.step.name] = artifact_of(planned, store, manifest)
    keys = {planned.step.name: planned.key for planned in plan}
    steps = [StepRecord(name=name, key=key, status="ran", run_id=f"{name}-of-{run}") for name, key in keys.items()]
    facts = {"process": {}, "root": str(store.root), "tracking_uri": "", "run_id": f"mlflow-{run}", "steps": steps}
    save(store, RunRecord(id=run, pipeline="toy", status="FINISHED", started_at=1.0, **facts))
    return keys

"""A bad batch in a training on two ranks: what is skipped or rolled back is as if it had never been, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.pretraining.sampler import Sampler
from components.tokenization.packing import Ragged
from components.tokenization.shards import TokenShards, record_batch, write_shard

BAD, BATCH_SIZE = 24, 8
CONFIG: dict[str, Any] = {
    "objective": "causal_lm",
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 30,
    "learning_rate": 0.01,
    "sequence_length": 32,
    "global_batch_size": BATCH_SIZE,
    "micro_batch_size_per_rank": 2,
    "warmup_steps": 2,
    "log_every_steps": 1,
    "max_validation_sequences": 8,
    "checkpoint_every_steps": None,
}
SKIP, BACK = {"on_loss_spike": "skip"}, {"on_loss_spike": "rollback", "rollback_steps": 4}
WEIGHTS = "export/model/model.safetensors"


def config(health: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return {**CONFIG, **values, "health": health}


def curve(work: Path, run_trainings: Any) -> list[dict[str, float]]:
    """The history without what it tells of incidents."""
    return [row for row in run_trainings.history(work) if "incident" not in row]


def incidents(work: Path, run_trainings: Any) -> list[dict[str, Any]]:
    return [row for row in run_trainings.history(work) if "incident" in row]


def assert_same(one: Path, other: Path, run_trainings: Any) -> None:
    assert curve(one, run_trainings) == curve(other, run_trainings)
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def bad_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards in which batch 24 is nothing but rare tokens."""
    root = tmp_path_factory.mktemp("bad") / "data"
    shutil.copytree(tiny_data, root)
    shards = TokenShards(root / "token_shards", "train")
    indices_N = np.arange(len(shards))
    assert len(shards) > 32 * BATCH_SIZE  # so that no sequence is read twice
    tokens_NL, segments_NL = shards.tokens(indices_N).copy(), shards.segments(indices_N)
    lengths = [np.bincount(row[row > 0])[1:].tolist() for row in segments_NL]
    rare = np.argsort(np.load(root / "token_shards" / "unigram_counts.npy")[5:])[:16] + 5
    draw = np.random.default_rng(0)
    for index in Sampler(num_sequences=len(shards), global_batch_size=BATCH_SIZE, seed=0).global_batch(BAD)[0]:
        number = sum(lengths[index])
        tokens_NL[index, :number] = draw.choice(rare, number)
    path = root / "token_shards" / shards.split.files[0].path
    sentences = Ragged.of([[sum(row)] for row in lengths])
    write_shard(path, record_batch(tokens_NL, Ragged.of(lengths), shards.index.vocab_size, sentence_lengths=sentences))
    return root


@pytest.fixture(scope="module")
def ended(bad_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Mapping[str, Path]:
    """Trainings that met the bad batch, and those that never had it, by name."""
    root = tmp_path_factory.mktemp("ended")
    every = {"rollback": 3, "rollback-7": 7, "rollback-none": None}
    told = {name: config(BACK, checkpoint_every_steps=number) for name, number in every.items()}
    told |= {f"skip-{stage}": config(SKIP, zero_stage=stage) for stage in range(4)}
    told |= {f"rollback-{stage}": config(BACK, zero_stage=stage, checkpoint_every_steps=5) for stage in (0, 3)}
    told["told"] = config({})
    said = run_trainings.run(bad_data, {root / name: one for name, one in told.items()}, 2)
    (root / "said").write_text(said)
    without = {root / f"never-{stage}": config(SKIP, zero_stage=stage) for stage in range(4)}
    run_trainings.run(bad_data, without, 2, disturb={"without": [BAD]})
    without = {root / f"never-back-{stage}": config(BACK, zero_stage=stage) for stage in (0, 1, 3)}
    run_trainings.run(bad_data, without, 2, disturb={"without": list(range(BAD - 4, BAD + 1))})
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("stage", range(4))
def test_a_skipped_batch_leaves_no_trace(ended: Mapping[str, Path], stage: int, run_trainings: Any) -> None:
    assert_same(ended[f"skip-{stage}"], ended[f"never-{stage}"], run_trainings)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("rollback", 1), ("rollback-7", 1), ("rollback-none", 1), ("rollback-0", 0), ("rollback-3", 3)],
)
def test_after_a_rollback_all_is_as_if_its_batches_had_never_been_whatever_was_saved(
    ended: Mapping[str, Path], name: str, stage: int, run_trainings: Any
) -> None:
    assert_same(ended[name], ended[f"never-back-{stage}"], run_trainings)


def test_the_points_of_steps_that_are_made_again_are_told_as_such(
    ended: Mapping[str, Path], run_trainings: Any
) -> None:
    """Else MLflow keeps those of the undone steps, and only those."""
    told = [json.loads(line) for line in (ended["rollback"] / "remade.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train_loss"] for row in told if "train_loss" in row}
    assert set(losses) == set(range(BAD - 3, BAD + 2))
    assert losses == {step: run_trainings.losses(ended["rollback"])[step - 1] for step in losses}
    assert not (ended["skip-1"] / "remade.jsonl").exists()


def test_the_batch_and_its_samples_are_named(ended: Mapping[str, Path], bad_data: Path, run_trainings: Any) -> None:
    shards = TokenShards(bad_data / "token_shards", "train")
    indices_G, epochs_G = Sampler(num_sequences=len(shards), global_batch_size=BATCH_SIZE, seed=0).global_batch(BAD)
    for name, verdict, first, stepped_over in (
        ("skip-1", "skip", BAD, 1),
        ("rollback", "rollback", BAD - 4, 5),
        ("told", "accept", None, 0),
    ):
        row = incidents(ended[name], run_trainings)[0]
        assert (row["step"], row["skipped_batches"]) == (BAD, stepped_over)
        told = row["incident"]
        assert (told["kind"], told["verdict"], told["batch"]) == ("loss_spike", verdict, BAD)
        assert told.get("first_batch") == first
        assert told["value"] > told["bound"]
        assert (told["sequences"], told["epochs"]) == (indices_G.tolist(), epochs_G.tolist())
    said = ended["said"].read_text()
    samples = f"batch {BAD}: sequences {', '.join(map(str, indices_G))} of epoch 0"
    assert f"skip of batch {BAD}; {samples}" in said
    assert f"rollback of batches {BAD - 4}-{BAD}; {samples}" in said
    assert f"step {BAD + 1}: the loss " in said


def test_without_a_policy_the_batch_is_trained_on(ended: Mapping[str, Path], run_trainings: Any) -> None:
    losses = run_trainings.losses(ended["told"])
    assert losses[BAD] == incidents(ended["told"], run_trainings)[0]["incident"]["value"]


@pytest.fixture(scope="module")
def resumed(
    ended: Mapping[str, Path], bad_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any
) -> Mapping[str, Path]:
    """Trainings killed when they had decided, or some steps later, and gone on with."""
    root = tmp_path_factory.mktemp("resumed")
    works = {}
    for name, health, points in (("skip", SKIP, 2), ("deciding", BACK, 0), ("gone-back", BACK, 3)):
        works[name] = {root / name: config(health, checkpoint_every_steps=3)}
        run_trainings.run(bad_data, works[name], 2, kill_after_incident=points)
        assert not (root / name / "export").exists()
    shutil.copytree(root / "gone-back", root / "alone")
    run_trainings.run(bad_data, {**works["skip"], **works["deciding"], **works["gone-back"]}, 2)
    run_trainings.run(bad_data, {root / "alone": works["gone-back"][root / "gone-back"]}, 1)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize(("name", "same"), [("skip", "skip-1"), ("deciding", "rollback"), ("gone-back", "rollback")])
def test_a_resume_repeats_the_decisions_to_the_bit(
    resumed: Mapping[str, Path], ended: Mapping[str, Path], name: str, same: str, run_trainings: Any
) -> None:
    assert run_trainings.history(resumed[name]) == run_trainings.history(ended[same])
    assert (resumed[name] / WEIGHTS).read_bytes() == (ended[same] / WEIGHTS).read_bytes()


def test_a_resume_on_another_number_of_ranks_takes_the_same_decisions(
    resumed: Mapping[str, Path], ended: Mapping[str, Path], run_trainings: Any
) -> None:
    one, other = (incidents(work, run_trainings) for work in (resumed["alone"], ended["rollback"]))
    assert [row["incident"]["sequences"] for row in one] == [row["incident"]["sequences"] for row in other]
    losses = run_trainings.losses(ended["rollback"])
    assert run_trainings.losses(resumed["alone"]) == pytest.approx(losses, rel=1e-2)


BADS = [
    {"batch": 3, "rank": 1, "what": "nan_loss"},
    {"batch": 5, "rank": 0, "what": "nan_gradient"},
    {"batch": 8, "rank": 1, "what": 1e5},
]
ALL_SKIP = {"on_non_finite_loss": "skip", "on_loss_spike": "skip", "max_gradient_norm": 100.0}


def test_numbers_that_are_bad_on_one_rank_are_skipped_by_all(
    tiny_data: Path, tmp_path: Path, run_trainings: Any
) -> None:
    """A loss, a gradient, and a gradient norm out of bounds, in bf16 and fp32."""
    stages = {0: "fp32", 1: "bf16", 2: "fp32", 3: "bf16"}
    told = {
        str(stage): config(ALL_SKIP, zero_stage=stage, precision=precision, steps=10)
        for stage, precision in stages.items()
    }
    run_trainings.run(tiny_data, {tmp_path / f"bad-{n}": one for n, one in told.items()}, 2, disturb={"bad": BADS})
    never = {tmp_path / f"never-{name}": one for name, one in told.items()}
    run_trainings.run(tiny_data, never, 2, disturb={"without": [3, 5, 8]})
    for name in told:
        assert_same(tmp_path / f"bad-{name}", tmp_path / f"never-{name}", run_trainings)
        rows = [row["incident"] for row in incidents(tmp_path / f"bad-{name}", run_trainings)]
        assert [row["kind"] for row in rows] == ["non_finite_loss", "non_finite_gradient_norm", "gradient_norm"]
        assert [row["batch"] for row in rows] == [3, 5, 8]


def test_a_rollback_soon_after_another_finds_its_checkpoint(
    tiny_data: Path, tmp_path: Path, run_trainings: Any
) -> None:
    """The first goes back from 8 to 4, the second from 5 to 4 again, not to 1, whose checkpoint is gone."""
    told = config(
        {"on_non_finite_loss": "rollback", "rollback_steps": 4},
        steps=10,
        checkpoint_every_steps=2,
        keep_checkpoints=1,
    )
    bads = [{"batch": batch, "rank": 1, "what": "nan_loss"} for batch in (8, 10)]
    run_trainings.run(tiny_data, {tmp_path / "bad": told}, 2, disturb={"bad": bads})
    run_trainings.run(tiny_data, {tmp_path / "never": told}, 2, disturb={"without": list(range(4, 11))})
    assert_same(tmp_path / "bad", tmp_path / "never", run_trainings)
    rows = [row["incident"] for row in incidents(tmp_path / "bad", run_trainings)]
    assert [(row["first_batch"], row["batch"]) for row in rows] == [(4, 8), (9, 10)]


def test_too_many_incidents_stop_the_training_and_are_listed(
    tiny_data: Path, tmp_path: Path, run_trainings: Any
) -> None:
    told = {tmp_path / "work": config({**ALL_SKIP, "max_incidents": 2}, steps=10)}
    with pytest.raises(RuntimeError) as raised:
        run_trainings.run(tiny_data, told, 2, disturb={"bad": BADS})
    said = str(raised.value)
    assert "TrainingError: the gradient norm " in said
    assert "is above max_gradient_norm=100 at step 7 of 10 (batch 8: sequences " in said
    assert "2 incidents before it, of max_incidents=2:" in said
    assert "  step 4: the loss is not finite: skip of batch 3\n" in said
    assert "  step 5: the gradient norm is not finite: skip of batch 5\n" in said

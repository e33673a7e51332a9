"""Successive halving depends on metrics by trial index alone."""

import itertools
import random

import pytest

from components.finetuning import sweep as halving
from components.finetuning.config import FinetuneConfig, problems
from components.finetuning.sweep import Sweep


def make(config: FinetuneConfig | None = None, **changes: object) -> Sweep:
    arguments: dict[str, object] = {"num_rows": 500, "mean_length": 20.0, "largest": False} | changes
    return halving.make_sweep(config or FinetuneConfig(), "pretrained", 500, **arguments)  # type: ignore[arg-type]


def metric(name: str) -> float:
    """A fixed metric for each unit, in no order of its own."""
    return random.Random(name).random()


def play(sweep: Sweep, order: random.Random) -> tuple[list[str], int | None, dict[str, float]]:
    """Runs a sweep whose units end in a random order, some at the same time."""
    metrics: dict[str, float] = {}
    ran = []
    while ready := halving.ready_units(sweep, metrics):
        for unit in order.sample(ready, order.randint(1, len(ready))):
            assert unit.resume is None or unit.resume in metrics
            metrics[unit.name] = metric(unit.name)
            ran.append(unit.name)
    return ran, halving.chosen_trial(sweep, metrics), metrics


def test_the_chosen_trial_does_not_depend_on_what_finishes_first() -> None:
    sweep = make(FinetuneConfig(num_trials=9, num_rungs=3))
    played = [play(sweep, random.Random(order)) for order in range(20)]
    assert len({tuple(sorted(ran)) for ran, _, _ in played}) == 1
    assert len({chosen for _, chosen, _ in played}) == 1
    assert len(played[0][0]) == sweep.num_units == 9 + 3 + 1 + 3


def test_the_best_go_on_and_among_equals_the_lower_index() -> None:
    assert halving.best({0: 0.5, 1: 0.9, 2: 0.9, 3: 0.9}, 2) == (1, 2)
    assert halving.best({3: 0.1, 2: 0.1}, 1) == (2,)


def test_no_unit_of_the_next_rung_is_ready_before_the_last_of_this_one_has_ended() -> None:
    sweep = make(FinetuneConfig(num_trials=6))
    first = halving.ready_units(sweep, {})
    metrics = {unit.name: 0.5 for unit in first[:-1]}
    assert [unit.name for unit in halving.ready_units(sweep, metrics)] == [first[-1].name]
    metrics[first[-1].name] = 0.9
    assert {unit.rung for unit in halving.ready_units(sweep, metrics)} == {1}
    assert {unit.trial for unit in halving.ready_units(sweep, metrics)} == {0, 5}


def test_the_first_final_fit_goes_on_from_a_sweep_that_trained_to_the_end() -> None:
    config = FinetuneConfig(max_tokens_per_trial=10**9, max_tokens_per_fit=10**9)
    whole, cut = make(config), make(config.model_copy(update={"max_tokens_per_trial": 5_000}))
    assert halving.final_unit(whole, 2, 0).resume == halving.rung_unit(whole, 2, 1).name
    assert halving.rung_unit(whole, 2, 1).save == "weights"
    assert halving.final_unit(whole, 2, 1).resume is None
    assert halving.final_unit(cut, 2, 0).resume is None
    assert halving.rung_unit(cut, 2, 1).save == "nothing"


def test_rungs_of_one_trial_lie_on_one_schedule() -> None:
    sweep = make(FinetuneConfig(num_trials=9, num_rungs=3, max_tokens_per_trial=10**9))
    units = [halving.rung_unit(sweep, 4, rung) for rung in range(3)]
    assert {unit.total_steps for unit in units} == {units[-1].until_step}
    assert [unit.resume for unit in units] == [None, units[0].name, units[1].name]
    for before, after in itertools.pairwise(units):
        assert after.until_step == pytest.approx(3 * before.until_step, abs=3)


def test_learning_rates_cover_the_whole_range_one_in_each_part() -> None:
    config = FinetuneConfig(num_trials=8, num_rungs=1, learning_rate_min=1e-5, learning_rate_max=1e3)
    rates = sorted(trial.learning_rate for trial in halving.sample_trials(config, 500))
    for index, rate in enumerate(rates):
        assert 10 ** (index - 5) <= rate * 1.00001 and rate <= 1.00001 * 10 ** (index - 4)


def test_trials_depend_on_the_seed_alone_and_are_the_same_for_both_starts() -> None:
    config = FinetuneConfig()
    assert halving.sample_trials(config, 500) == halving.sample_trials(config, 500)
    assert halving.sample_trials(config, 500) != halving.sample_trials(FinetuneConfig(seed=1), 500)
    assert (
        make().trials
        == halving.make_sweep(config, "scratch", 500, num_rows=500, mean_length=20.0, largest=False).trials
    )


def test_small_and_large_budgets_have_their_own_epochs() -> None:
    config = FinetuneConfig(epochs_small=(7,), epochs_large=(2,), small_budget_rows=100)
    assert {trial.epochs for trial in halving.sample_trials(config, 100)} == {7}
    assert {trial.epochs for trial in halving.sample_trials(config, 101)} == {2}


@pytest.mark.parametrize(
    ("num_rows", "mean_length", "max_tokens", "steps"),
    [(320, 10.0, 10**9, 20), (330, 10.0, 10**9, 22), (320, 10.0, 3_200, 10), (320, 100.0, 1, 1), (5, 10.0, 100, 2)],
)
def test_steps_are_those_of_the_epochs_or_of_the_tokens_allowed(
    num_rows: int, mean_length: float, max_tokens: int, steps: int
) -> None:
    trial = halving.Hyperparameters(
        learning_rate=1.0, batch_size=32, epochs=2, weight_decay=0.0, dropout=0.0, label_smoothing=0.0
    )
    assert halving.num_steps(trial, num_rows, mean_length, max_tokens) == steps


def test_only_states_that_nothing_goes_on_from_are_dropped() -> None:
    sweep = make(FinetuneConfig(num_trials=3, max_tokens_per_trial=10**9, max_tokens_per_fit=10**9))
    metrics = {f"{sweep.name}_trial{trial}_rung0": float(trial) for trial in range(3)}
    losers = [f"{sweep.name}_trial{trial}_rung0" for trial in range(2)]
    assert halving.superseded(sweep, metrics) == losers
    metrics[f"{sweep.name}_trial2_rung1"] = 1.0
    assert halving.superseded(sweep, metrics) == [*losers, f"{sweep.name}_trial2_rung0"]
    metrics[f"{sweep.name}_seed0"] = 1.0
    assert halving.superseded(sweep, metrics)[-1] == f"{sweep.name}_trial2_rung1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_budgets": (500, 500)}, "names a budget twice"),
        ({"label_budgets": (1, "all")}, "a budget is 2 or more labels"),
        ({"learning_rate_min": 1.0, "learning_rate_max": 0.1}, "above learning_rate_max"),
        ({"batch_sizes": (0,)}, r"finetune.batch_sizes: \[0\]: each must be 1 or more"),
        ({"dropouts": (1.0,)}, "at least 0 and below 1"),
        ({"weight_decays": (-0.1,)}, "each must be 0 or more"),
        ({"num_trials": 2, "num_rungs": 3}, "less than reduction_factor"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict[str, object], message: str) -> None:
    (problem,) = problems(FinetuneConfig(**values))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_the_default_config_has_no_problems() -> None:
    assert problems(FinetuneConfig()) == []

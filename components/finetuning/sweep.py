"""Synchronous successive halving (Karnin et al. 2013; Jamieson & Talwalkar 2016) as pure functions.

Which unit of work may run next, which trials go on and which one is chosen depend on finished metrics by trial index
alone, never on what finished first: one seed chooses one trial at any number of workers. The price is a barrier after
each rung; with several sweeps at once (start x label budget) the units of the others fill it. A trial that would
recover late is cut early all the same: give `num_rungs=1` if that matters more than the cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from components.finetuning.config import Budget, FinetuneConfig

Init = Literal["pretrained", "scratch"]
SAMPLING_STREAM = 101


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """What a trial tries."""

    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float
    dropout: float
    label_smoothing: float

    def as_dict(self) -> dict[str, Any]:
        """By name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One piece of work for one process: a rung of a trial, or a final fit. Its name is its identity."""

    name: str
    init: Init
    budget: Budget
    trial: int
    hyperparameters: Hyperparameters
    seed_index: int
    """Which label sample, batch order and new head."""
    total_steps: int
    """Length of the learning rate schedule."""
    until_step: int
    """Where this unit ends."""
    resume: str | None
    """The unit whose saved state this one goes on from."""
    save: Literal["nothing", "weights", "all"]
    judge: Literal["validation", "test"]
    """What is evaluated at the end; a final fit is judged on validation too."""
    rung: int | None
    """None for a final fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """All trials of one start at one label budget, and its final fits."""

    init: Init
    budget: Budget
    num_rows: int
    trials: tuple[Hyperparameters, ...]
    trial_steps: tuple[int, ...]
    """Steps of each trial over all its rungs."""
    fit_steps: tuple[int, ...]
    """Steps of a final fit with each trial's hyperparameters."""
    num_rungs: int
    reduction_factor: int
    num_seeds: int
    keep_weights: bool
    """Whether one of its final fits becomes the champion."""

    @property
    def name(self) -> str:
        """`pretrained_500`."""
        return f"{self.init}_{self.budget}"

    @property
    def num_units(self) -> int:
        """Rungs of trials and final fits."""
        return sum(self.num_in_rung(rung) for rung in range(self.num_rungs)) + self.num_seeds

    def num_in_rung(self, rung: int) -> int:
        """Trials that reach `rung`; at least one."""
        count: int = len(self.trials) // self.reduction_factor**rung
        return max(1, count)


def sample_trials(config: FinetuneConfig, num_rows: int) -> tuple[Hyperparameters, ...]:
    """The trials of a sweep, the same for both starts.

    Learning rates are stratified: one in each of `num_trials` equal parts of the logarithmic range, at random within
    it; other values are dealt evenly and shuffled, each by itself.
    """
    generator = np.random.default_rng([SAMPLING_STREAM, config.seed])
    count = config.num_trials
    low, high = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
    parts = (generator.permutation(count) + generator.random(count)) / count
    epochs = config.epochs_small if num_rows <= config.small_budget_rows else config.epochs_large

    def deal(values: Sequence[Any]) -> list[Any]:
        return [values[index % len(values)] for index in generator.permutation(count)]

    columns = zip(
        parts.tolist(),
        deal(config.batch_sizes),
        deal(epochs),
        deal(config.weight_decays),
        deal(config.dropouts),
        deal(config.label_smoothings),
        strict=True,
    )
    return tuple(
        Hyperparameters(
            learning_rate=float(f"{math.exp(low + part * (high - low)):.6g}"),
            batch_size=batch_size,
            epochs=num_epochs,
            weight_decay=weight_decay,
            dropout=dropout,
            label_smoothing=label_smoothing,
        )
        for part, batch_size, num_epochs, weight_decay, dropout, label_smoothing in columns
    )


def num_steps(trial: Hyperparameters, num_rows: int, mean_length: float, max_tokens: int) -> int:
    """Steps of a fit: its epochs, cut where `max_tokens` tokens of the mean text length are spent; at least one."""
    wanted = trial.epochs * math.ceil(num_rows / trial.batch_size)
    affordable = int(max_tokens / (mean_length * min(trial.batch_size, num_rows)))
    return max(1, min(wanted, affordable))


def make_sweep(
    config: FinetuneConfig, init: Init, budget: Budget, *, num_rows: int, mean_length: float, largest: bool
) -> Sweep:
    """The sweep of one start at one label budget.

    Args:
        config: the step's config.
        init: where the weights come from.
        budget: the label budget.
        num_rows: training rows the budget comes to.
        mean_length: mean tokens of a training text.
        largest: whether this is the largest budget.
    """
    trials = sample_trials(config, num_rows)
    fit = [num_steps(trial, num_rows, mean_length, config.max_tokens_per_fit) for trial in trials]
    tried = [num_steps(trial, num_rows, mean_length, config.max_tokens_per_trial) for trial in trials]
    return Sweep(
        init=init,
        budget=budget,
        num_rows=num_rows,
        trials=trials,
        trial_steps=tuple(min(pair) for pair in zip(tried, fit, strict=True)),
        fit_steps=tuple(fit),
        num_rungs=config.num_rungs,
        reduction_factor=config.reduction_factor,
        num_seeds=config.seeds_at_largest if largest else config.seeds,
        keep_weights=largest and init == "pretrained",
    )


def best(metrics: Mapping[int, float], count: int) -> tuple[int, ...]:
    """The `count` trials with the highest metric, ascending by index; among equals the lower index wins."""
    ranked = sorted(metrics, key=lambda trial: (-metrics[trial], trial))
    return tuple(sorted(ranked[:count]))


def rung_unit(sweep: Sweep, trial: int, rung: int) -> Unit:
    """The unit that trains `trial` to the end of `rung`."""
    last = rung == sweep.num_rungs - 1
    steps = sweep.trial_steps[trial]
    reused = last and steps == sweep.fit_steps[trial]
    return Unit(
        name=f"{sweep.name}_trial{trial}_rung{rung}",
        init=sweep.init,
        budget=sweep.budget,
        trial=trial,
        hyperparameters=sweep.trials[trial],
        seed_index=0,
        total_steps=steps,
        until_step=math.ceil(steps / sweep.reduction_factor ** (sweep.num_rungs - 1 - rung)),
        resume=f"{sweep.name}_trial{trial}_rung{rung - 1}" if rung else None,
        save="weights" if reused else "nothing" if last else "all",
        judge="validation",
        rung=rung,
    )


def final_unit(sweep: Sweep, trial: int, seed_index: int) -> Unit:
    """A final fit as the chosen trial; the first goes on from the sweep if that trained to the end."""
    whole = sweep.trial_steps[trial] == sweep.fit_steps[trial] and seed_index == 0
    return Unit(
        name=f"{sweep.name}_seed{seed_index}",
        init=sweep.init,
        budget=sweep.budget,
        trial=trial,
        hyperparameters=sweep.trials[trial],
        seed_index=seed_index,
        total_steps=sweep.fit_steps[trial],
        until_step=sweep.fit_steps[trial],
        resume=f"{sweep.name}_trial{trial}_rung{sweep.num_rungs - 1}" if whole else None,
        save="weights" if sweep.keep_weights else "nothing",
        judge="test",
        rung=None,
    )


def survivors(sweep: Sweep, metrics: Mapping[str, float], rung: int) -> tuple[int, ...] | None:
    """The trials of `rung`, or None while the rung before is not complete.

    Args:
        sweep: the sweep.
        metrics: validation metric of every finished unit, by name.
        rung: 0 is all trials; `num_rungs` is the chosen one.
    """
    trials: tuple[int, ...] = tuple(range(len(sweep.trials)))
    for before in range(rung):
        names = {trial: rung_unit(sweep, trial, before).name for trial in trials}
        if any(name not in metrics for name in names.values()):
            return None
        count = 1 if before == sweep.num_rungs - 1 else sweep.num_in_rung(before + 1)
        trials = best({trial: metrics[name] for trial, name in names.items()}, count)
    return trials


def chosen_trial(sweep: Sweep, metrics: Mapping[str, float]) -> int | None:
    """The trial that won, or None while the sweep is not over."""
    winners = survivors(sweep, metrics, sweep.num_rungs)
    return winners[0] if winners else None


def ready_units(sweep: Sweep, metrics: Mapping[str, float]) -> list[Unit]:
    """Units that may run now and are not finished; none when the sweep and its final fits are over."""
    for rung in range(sweep.num_rungs):
        units = [rung_unit(sweep, trial, rung) for trial in survivors(sweep, metrics, rung) or ()]
        waiting = [unit for unit in units if unit.name not in metrics]
        if waiting:
            return waiting
    winner = chosen_trial(sweep, metrics)
    finals = [final_unit(sweep, winner, index) for index in range(sweep.num_seeds)] if winner is not None else []
    return [unit for unit in finals if unit.name not in metrics]


def superseded(sweep: Sweep, metrics: Mapping[str, float]) -> list[str]:
    """Units whose saved state nothing will go on from any more."""
    names = []
    for rung in range(sweep.num_rungs):
        heirs = survivors(sweep, metrics, rung + 1)
        if heirs is None:
            break
        trials = survivors(sweep, metrics, rung) or ()
        for trial in trials:
            if rung + 1 < sweep.num_rungs:
                heir = rung_unit(sweep, trial, rung + 1).name
            else:
                heir = final_unit(sweep, trial, 0).name
            if trial not in heirs or heir in metrics:
                names.append(rung_unit(sweep, trial, rung).name)
    return names


def workload(sweeps: Sequence[Sweep]) -> float:
    """Training examples of all units, about: trials differ in length, and which go on is not known before."""
    total = 0.0
    for sweep in sweeps:
        tried = [trial.batch_size * steps for trial, steps in zip(sweep.trials, sweep.trial_steps, strict=True)]
        fits = [trial.batch_size * steps for trial, steps in zip(sweep.trials, sweep.fit_steps, strict=True)]
        before = 0.0
        for rung in range(sweep.num_rungs):
            share = float(sweep.reduction_factor) ** (rung + 1 - sweep.num_rungs)
            total += sweep.num_in_rung(rung) * (share - before) * sum(tried) / len(tried)
            before = share
        whole = sweep.trial_steps == sweep.fit_steps
        total += (sweep.num_seeds - whole) * sum(fits) / len(fits)
    return total

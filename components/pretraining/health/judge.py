"""Whether a step went wrong, and what follows: pure functions of numbers that all ranks share.

A step is judged after its backward pass and before its update, so a batch that is skipped leaves no trace in weights,
moments or step counts. Four things can be wrong: a loss or a gradient norm that is no finite number, a gradient norm
above `max_gradient_norm`, and a loss that jumps:

    center = median of the last 16 accepted losses
    noise  = 1.4826 * median(|d - median(d)|) / sqrt(2),  d = differences of neighbours in the window of accepted losses
    spike:   loss > center + spike_deviations * max(noise, center / 500), once the window has 20 losses

Differences take the trend out, so a loss that falls quickly does not widen the noise, and a center that lags behind a
falling loss only makes the rule milder; medians do not move for a spike that was let in. At the default of 8 deviations
a jump of less than 1.6 % never counts. On a healthy curve (llama of 0.2M weights, 3,000 steps of 512 tokens of
WordNet glosses, loss 7.6 to 4.0) the largest of 2,979 losses stood 4.4 deviations out: no alarm at 8, none at 5, 2 at
4, 13 at 3.

What follows is by conf. Skip: the batch is stepped over. Rollback, as PaLM did by hand (Chowdhery et al. 2022, section
5.1: back about 100 steps, then 200 to 500 batches left out): the last `rollback_steps` updates are undone, or those
since the last rollback if they are fewer, and their batches and the bad one are stepped over. Where the state of that
step comes from does not matter: any checkpoint that is old enough, and its steps made again. So the outcome depends on
no setting of checkpoints.

The batch of a step follows from the step and the list of incidents alone; see `batch_of_step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.pretraining.config import HealthConfig

Kind = Literal["non_finite_loss", "non_finite_gradient_norm", "gradient_norm", "loss_spike"]
Verdict = Literal["accept", "skip", "rollback", "stop"]

CENTER_STEPS = 16
MIN_LOSSES = 20
NORMAL_MAD = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""
NOISE_FLOOR = 1 / 500
"""Least noise, as part of the center: where the loss hardly moves, a trifle is no spike."""


class Incident(BaseModel):
    """A batch that was not trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    verdict: Literal["skip", "rollback"]
    step: int
    """The optimizer step that it would have made, from 1."""
    batch: int
    """Its number in the order of samples, from 0."""
    first_batch: int
    """The first batch that is stepped over; `batch` is the last."""
    value: float | None
    """Loss or gradient norm; None where it is no finite number."""
    bound: float | None
    """What the value should not exceed."""

    def __str__(self) -> str:
        batches = (
            f"batch {self.batch}" if self.first_batch == self.batch else f"batches {self.first_batch}-{self.batch}"
        )
        return f"step {self.step}: {_told(self.kind, self.value, self.bound)}: {self.verdict} of {batches}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is wrong with a step."""

    kind: Kind
    verdict: Verdict
    value: float
    bound: float | None

    def __str__(self) -> str:
        return _told(self.kind, self.value, self.bound)

    def as_row(self) -> dict[str, str | float | None]:
        """Itself for JSON."""
        value = self.value if math.isfinite(self.value) else None
        return {"kind": self.kind, "verdict": self.verdict, "value": value, "bound": self.bound}


def judge(
    config: HealthConfig, loss: float, gradient_norm: float | None, losses: Sequence[float], num_incidents: int
) -> Finding | None:
    """What is wrong with a step before its update, and what follows; None for nothing.

    Args:
        config: which verdict follows.
        loss: of the global batch.
        gradient_norm: of the global batch, before clipping; None where it is not known.
        losses: accepted ones before, oldest first; the last `spike_window_steps` count.
        num_incidents: batches that were skipped or rolled back before; at `max_incidents` the verdict is stop.
    """
    found = _find(config, loss, gradient_norm, losses)
    if found is None:
        return None
    kind, value, bound = found
    wished = config.on_loss_spike if kind in ("loss_spike", "gradient_norm") else config.on_non_finite_loss
    verdict: Verdict = wished or "accept"
    if verdict in ("skip", "rollback") and num_incidents >= config.max_incidents:
        verdict = "stop"
    return Finding(kind=kind, verdict=verdict, value=value, bound=bound)


def _find(
    config: HealthConfig, loss: float, gradient_norm: float | None, losses: Sequence[float]
) -> tuple[Kind, float, float | None] | None:
    if not math.isfinite(loss):
        return "non_finite_loss", loss, None
    if gradient_norm is not None and not math.isfinite(gradient_norm):
        return "non_finite_gradient_norm", gradient_norm, None
    limit = config.max_gradient_norm
    if limit is not None and gradient_norm is not None and gradient_norm > limit:
        return "gradient_norm", gradient_norm, limit
    bound = spike_bound(losses[-config.spike_window_steps :], config.spike_deviations)
    if bound is not None and loss > bound:
        return "loss_spike", loss, bound
    return None


def spike_bound(losses: Sequence[float], deviations: float) -> float | None:
    """The largest loss that is no spike after `losses`; None where they are too few to tell."""
    if len(losses) < MIN_LOSSES:
        return None
    center = median(losses[-CENTER_STEPS:])
    differences = [after - before for before, after in pairwise(losses)]
    trend = median(differences)
    noise = NORMAL_MAD * median(abs(one - trend) for one in differences) / math.sqrt(2)
    return center + deviations * max(noise, abs(center) * NOISE_FLOOR)


def batch_of_step(incidents: Iterable[Incident], step: int) -> int:
    """The batch that optimizer step `step` (from 0) is made with: the step-th of those that are not stepped over."""
    batch, end = step, 0
    for first, last in sorted((one.first_batch, one.batch) for one in incidents):
        first = max(first, end)  # what an earlier span has not counted yet
        if first > batch:
            break
        batch += max(0, last + 1 - first)
        end = max(end, last + 1)
    return batch


def num_stepped_over(incidents: Iterable[Incident]) -> int:
    """Batches that are stepped over."""
    batches = {batch for one in incidents for batch in range(one.first_batch, one.batch + 1)}
    return len(batches)


def incident(config: HealthConfig, finding: Finding, incidents: Sequence[Incident], step: int) -> Incident:
    """What a verdict of skip or rollback does to the order of batches.

    Args:
        config: says how far back.
        finding: its verdict is skip or rollback.
        incidents: those before.
        step: optimizer steps done.
    """
    batch = batch_of_step(incidents, step)
    rolled_back = finding.verdict == "rollback"
    return Incident(
        kind=finding.kind,
        verdict="rollback" if rolled_back else "skip",
        step=step + 1,
        batch=batch,
        first_batch=batch_of_step(incidents, rollback_target(config, incidents, step)) if rolled_back else batch,
        value=finding.value if math.isfinite(finding.value) else None,
        bound=finding.bound,
    )


def rollback_target(config: HealthConfig, incidents: Iterable[Incident], step: int) -> int:
    """The step that a rollback at `step` steps done goes back to: never before that of a rollback before it, for the
    checkpoint that it took is the last that is left."""
    undone = [one.step - 1 for one in incidents if one.verdict == "rollback"]
    return max(0, *(done - config.rollback_steps for done in (*undone, step)))


def may_roll_back(config: HealthConfig) -> bool:
    """Whether a rollback can happen: the training then needs checkpoints old enough, the first of step 0."""
    return "rollback" in (config.on_non_finite_loss, config.on_loss_spike)


def _told(kind: Kind, value: float | None, bound: float | None) -> str:
    shown = "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"
    return {
        "non_finite_loss": f"the loss is {shown}",
        "non_finite_gradient_norm": f"the gradient norm is {shown}",
        "gradient_norm": f"the gradient norm {shown} is above max_gradient_norm={bound:.4g}" if bound else "",
        "loss_spike": f"the loss {shown} is a spike, above {bound:.4g}" if bound is not None else "",
    }[kind]

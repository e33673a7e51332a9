"""Which checkpoints stay: the newest, the best, and permanent ones; those between them are ephemeral. Without torch.

Where rollbacks may happen one that is old enough stays too, and all that are newer, which will be old enough in time.

A pure function of what the manifests say, so that it is the same after a resume and on every machine. `health` and
people can go back to any that stays. Disk: (newest + best + permanent) times the state, 12 to 16 bytes a weight; with
rollbacks the newest are at least rollback_steps / checkpoint_every_steps + 1, and those of workers told to leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.pretraining.config import PretrainConfig
from components.pretraining.health.judge import may_roll_back


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What retention asks of a checkpoint."""

    step: int
    validation_loss: float | None
    """Of the newest validation at or before its step, nats a target; None before the first one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """How many checkpoints stay."""

    newest: int
    """The newest, whatever they are."""
    best: int = 0
    """Those of lowest validation loss; of those with the same loss, which is that of one validation, the first."""
    permanent_every_steps: int | None = None
    """Those of steps that are multiples of this; the start is none."""
    rollback_steps: int | None = None
    """All since the newest that is so many steps older than the last."""

    @classmethod
    def of(cls, config: PretrainConfig) -> Retention:
        """What a config asks for."""
        return cls(
            newest=config.keep_checkpoints,
            best=config.keep_best_checkpoints,
            permanent_every_steps=config.permanent_checkpoint_every_steps,
            rollback_steps=config.health.rollback_steps if may_roll_back(config.health) else None,
        )

    def lasting(self, complete: Mapping[str, Standing]) -> set[str]:
        """Names of those that stay after the training too: permanent and best ones.

        Args:
            complete: all complete checkpoints by name.
        """
        every = self.permanent_every_steps
        permanent = {name for name, one in complete.items() if every and one.step and one.step % every == 0}
        first: dict[float, str] = {}
        for name in _by_age(complete):
            loss = complete[name].validation_loss
            if loss is not None:
                first.setdefault(loss, name)
        return permanent | {first[loss] for loss in sorted(first)[: self.best]}

    def kept(self, complete: Mapping[str, Standing]) -> set[str]:
        """Names of those that stay while the training goes on."""
        by_age = _by_age(complete)
        stay = self.lasting(complete) | set(by_age[-self.newest :])
        if self.rollback_steps is not None and by_age:
            until = complete[by_age[-1]].step - self.rollback_steps
            num_old = sum(one.step <= until for one in complete.values())
            stay |= set(by_age[max(0, num_old - 1) :])
        return stay


def _by_age(complete: Mapping[str, Standing]) -> list[str]:
    return sorted(complete, key=lambda name: (complete[name].step, name))

"""Which checkpoints stay: the newest, the best, and permanent ones; those between them are ephemeral. Without torch.

A pure function of what the manifests say, so that it is the same after a resume and on every machine. `health` and
people can go back to any that stays. Disk: (newest + best + permanent) times the state, 12 to 16 bytes a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.pretraining.config import PretrainConfig
from components.pretraining.health import num_kept_checkpoints


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
    """Those of lowest validation loss; of two with the same loss the earlier."""
    permanent_every_steps: int | None = None
    """Those of steps that are multiples of this."""

    @classmethod
    def of(cls, config: PretrainConfig) -> Retention:
        """What a config asks for."""
        return cls(
            newest=num_kept_checkpoints(config),
            best=config.keep_best_checkpoints,
            permanent_every_steps=config.permanent_checkpoint_every_steps,
        )

    def lasting(self, complete: Mapping[str, Standing]) -> set[str]:
        """Names of those that stay after the training too: permanent and best ones.

        Args:
            complete: all complete checkpoints by name.
        """
        every = self.permanent_every_steps
        permanent = {name for name, one in complete.items() if every is not None and one.step % every == 0}
        judged = [
            (one.validation_loss, one.step, name) for name, one in complete.items() if one.validation_loss is not None
        ]
        return permanent | {name for _, _, name in sorted(judged)[: self.best]}

    def kept(self, complete: Mapping[str, Standing]) -> set[str]:
        """Names of those that stay while the training goes on."""
        by_age = sorted(complete, key=lambda name: (complete[name].step, name))
        return self.lasting(complete) | set(by_age[-self.newest :])

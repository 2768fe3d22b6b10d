"""Tells callbacks which optimizer steps a batch made: none inside an accumulation, two with two optimizers."""

import lightning as L

_STEPS_BETWEEN_VOTES = 10


class StepWatch:
    """Follows Lightning's ``global_step``, which counts the steps of every optimizer."""

    def __init__(self) -> None:
        self._seen = 0

    def start(self, trainer: L.Trainer) -> None:
        """Begins to watch, where a fresh or resumed run begins to train."""
        self._seen = trainer.global_step

    def new_steps(self, trainer: L.Trainer) -> range:
        """The steps since the last look; empty, and so false, where no optimizer stepped."""
        new = range(self._seen + 1, trainer.global_step + 1)
        self._seen = trainer.global_step
        return new


def any_due(steps: range, every: int) -> bool:
    """Whether one of the steps is a multiple of a cadence."""
    return any(step % every == 0 for step in steps)


def steps_between_votes(trainer: L.Trainer) -> int:
    """The cadence of decisions that processes take together: a vote makes the devices wait."""
    return 1 if trainer.world_size == 1 else _STEPS_BETWEEN_VOTES

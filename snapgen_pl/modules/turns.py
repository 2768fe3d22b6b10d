"""Steps of two networks in turn, a generator and a discriminator, each with an optimizer and images of its own."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import lightning as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from snapgen_pl.distill.loss_terms import LossTerms, WeightedSum, raw_means
from snapgen_pl.modules.training import Training, TrainingStep, clip_gradients

Turn = Literal["generator", "discriminator"]


class Turns:
    """Whose step comes next, and how it is taken: so many of the discriminator's, then one of the generator's.

    In each turn the other network is frozen. Lightning's gradient clipping and accumulation are not for two optimizers:
    they are done here. The module optimizes manually, and configures the generator's optimizer before the other's, each
    with a LambdaLR.

    Args:
        discriminator_steps: steps of the discriminator's for one of the generator's.
        accumulate: batches a step.
        gradient_clip: each network's gradients are clipped to this norm; None leaves them.

    Attributes:
        steps: that each network has taken.
        alone: steps that the generator has taken, or is taking, without an answer from the discriminator.

    Raises:
        ValueError: for less than one step or batch.
    """

    def __init__(self, discriminator_steps: int, accumulate: int, gradient_clip: float | None) -> None:
        if min(discriminator_steps, accumulate) < 1:
            raise ValueError(
                f"discriminator_steps is {discriminator_steps}, accumulate {accumulate}; both must be at least 1"
            )
        self.discriminator_steps, self.accumulate, self.gradient_clip = discriminator_steps, accumulate, gradient_clip
        self.steps: dict[Turn, int] = {"generator": 0, "discriminator": 0}
        self.alone = 0
        self._batches = 0  # of the step that is being taken

    @property
    def turn(self) -> Turn:
        """Whose step comes next, or is being taken."""
        due = self.discriminator_steps * (self.steps["generator"] + 1 - self.alone)
        return "discriminator" if self.steps["discriminator"] < due else "generator"

    @property
    def between_steps(self) -> bool:
        """Whether the next batch begins a step."""
        return self._batches == 0

    def postpone(self) -> None:
        """Lets the generator take the next step, whatever the discriminator has taken; as often as wanted."""
        rounds = self.steps["discriminator"] // self.discriminator_steps
        self.alone = self.steps["generator"] + 1 - rounds

    def take(self, module: L.LightningModule, batch_loss: Callable[[], TrainingStep]) -> TrainingStep:
        """Trains the network whose turn it is on one batch; it steps with the last of a step's batches.

        Args:
            module: of both networks.
            batch_loss: what the network pays for the batch.
        """
        turn = self.turn
        network = _network(module, turn)
        last = self._batches + 1 == self.accumulate
        with network.optimizer.toggle_model(sync_grad=last):
            step = batch_loss()
            module.manual_backward(step["loss"] / self.accumulate)
        self._batches = (self._batches + 1) % self.accumulate
        if last:
            self._step(module, turn, network)
        return {**step, "loss": step["loss"].detach()}

    def _step(self, module: L.LightningModule, turn: Turn, network: "_Network") -> None:
        if self.gradient_clip is not None:
            norm = clip_gradients(network.optimizer.optimizer, self.gradient_clip)
            module.log(f"train/gradient_norm_{turn}", norm)
        network.optimizer.step()
        network.optimizer.zero_grad(set_to_none=True)
        network.schedule.step()
        self.steps[turn] += 1


def discriminator_loss(module: Training, terms: LossTerms, position_B: Tensor) -> TrainingStep:
    """The weighted sum of what a discriminator pays, each term noted.

    Args:
        module: whose step it is.
        terms: per sample.
        position_B: the samples' places in the stream of images.
    """
    module.step_means.add(raw_means(terms))
    return {"loss": WeightedSum()(terms).loss, "terms": terms.detached(), "position_B": position_B}


class _Network(NamedTuple):
    """What trains one of the two."""

    optimizer: LightningOptimizer
    schedule: LambdaLR


def _network(module: L.LightningModule, turn: Turn) -> _Network:
    optimizers, schedules = module.optimizers(), module.lr_schedulers()
    assert isinstance(optimizers, list), optimizers
    assert isinstance(schedules, list), schedules
    index = 0 if turn == "generator" else 1
    schedule = schedules[index]
    assert isinstance(schedule, LambdaLR), schedule
    return _Network(optimizers[index], schedule)

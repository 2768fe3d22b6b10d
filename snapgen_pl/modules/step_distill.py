"""Stage three: a distilled student becomes a few-step generator (SnapGen, adversarial step distillation)."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from snapgen_pl import rng
from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.conditioning.condition import Condition, alike, rolled
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.data.source import Batch
from snapgen_pl.distill.adversarial import AdversarialLoss, gradient_penalty
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, Role
from snapgen_pl.flow.path import PathSample, data_from_velocity, sample_path
from snapgen_pl.flow.samplers import Euler, Sampler
from snapgen_pl.flow.timesteps import TimestepDensity, TimestepGrid, even_times
from snapgen_pl.fsdp import reshard
from snapgen_pl.models.denoiser import Denoiser, DenoiserOutput
from snapgen_pl.models.discriminator import Discriminator
from snapgen_pl.modules.distill import Distill
from snapgen_pl.modules.pretrain import VALIDATION_SEED, Pretrain
from snapgen_pl.modules.training import TrainingStep
from snapgen_pl.modules.turns import Turns, discriminator_loss
from snapgen_pl.rng import Stream
from snapgen_pl.teachers.teacher import Teacher


class StepDistill(Distill):
    """Distillation at the few times of a sampler, and a discriminator on what a frozen teacher sees.

    The generator meets data at the sampler's times t and guesses the data; the guess is noised to t', the next lower of
    these times, and the discriminator is to take it for data that are noised likewise. To the terms of
    :class:`~snapgen_pl.modules.distill.Distill`, which keep it near the data and the teacher, comes
    L_adv = softplus(-l(x'_t')) with its weight; :class:`~callbacks.timestep_scaling.TimestepAwareScaling` scales the
    others alone. The discriminator's heads read the teacher's features of x_t' and see t' and the condition.

    The networks take turns, a step each: ``discriminator_steps`` of the discriminator's, one of the generator's, each
    on images of its own. So ``trainer.max_steps`` counts the steps of both, ``images_seen`` and the average count the
    generator's alone. In each turn the other network is frozen. Lightning's gradient clipping and accumulation
    are not for two optimizers: ``gradient_clip`` and ``accumulate`` stand here instead.

    A Trainer of your own needs ddp_find_unused_parameters_true under DDP; the command line sees to it.

    Args:
        denoiser: the generator, as in Distill; begin with a distilled student's weights by ``init_from``.
        conditioner: as in Distill.
        autoencoder: as in Distill.
        teacher: whose features the discriminator reads and whose velocities L_kd learns from.
        discriminator: the heads, all that is trained of it.
        sampler: draws images, and its times are those that are trained at.
        adversarial: the loss of both.
        adversarial_weight: of L_adv, above 0.
        renoise: density of the times that guesses and data are noised to; None is the next lower time of the sampler,
            0 included, where nothing is added.
        misaligned: whether real latents under their neighbour's condition are fakes too, where there is one and it is
            another: their mean is over these. Neighbours are those in what one process takes at once, so that they
            depend on the number of processes, and there must be two.
        penalty_weight: of R1 on the features of real latents.
        discriminator_optimizer: built over the discriminator's parameters.
        discriminator_steps: steps of the discriminator's for one of the generator's.
        accumulate: batches a step.
        gradient_clip: each network's gradients are clipped to this norm; None leaves them.
        **distill: as in Distill.

    Raises:
        ValueError: where the parts do not fit together.

    Attributes:
        turns: whose step comes next, and how many each network has taken.
    """

    draws_as: ClassVar[type[Pretrain]] = Pretrain
    takes_teacher_outputs = False
    timesteps: TimestepGrid

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioner,
        autoencoder: Autoencoder,
        teacher: Teacher,
        discriminator: Discriminator,
        sampler: Sampler = Euler(steps=4),  # noqa: B008 (frozen)
        adversarial: AdversarialLoss = AdversarialLoss(),  # noqa: B008 (frozen)
        adversarial_weight: float = 1.0,
        renoise: TimestepDensity | None = None,
        misaligned: bool = False,
        penalty_weight: float = 0.0,
        discriminator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda parameters: AdamW(
            parameters, lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0
        ),
        discriminator_steps: int = 1,
        accumulate: int = 1,
        gradient_clip: float | None = 1.0,
        **distill: Any,
    ) -> None:
        grid = TimestepGrid(tuple(sampler.times()))
        super().__init__(denoiser, conditioner, autoencoder, teacher, sampler=sampler, timesteps=grid, **distill)
        if not (adversarial_weight > 0 and penalty_weight >= 0):
            raise ValueError(
                f"adversarial_weight is {adversarial_weight}, penalty_weight {penalty_weight}; the first must be above "
                "0, the second at least 0. Without an adversarial term, train a Distill"
            )
        _check_discriminator(discriminator, teacher)
        self.automatic_optimization = False
        self.discriminator, self.adversarial, self.adversarial_weight = discriminator, adversarial, adversarial_weight
        self.renoise, self.misaligned, self.penalty_weight = renoise, misaligned, penalty_weight
        self.make_discriminator_optimizer = discriminator_optimizer
        self.turns = Turns(discriminator_steps, accumulate, gradient_clip)

    @property
    def loss_roles(self) -> Mapping[str, Role]:  # type: ignore[override]  # as in Distill
        """By name, the role of every term that the generator is trained on."""
        return {**super().loss_roles, "adversarial": "adversarial"}

    @property
    def charted(self) -> Collection[str]:
        """Also what the networks pay against each other."""
        return (*super().charted, "adversarial", "d_real", "d_fake")

    def configure_optimizers(self) -> Any:
        """The generator's and the discriminator's, with one schedule: by the images that the generator has seen."""
        optimizer = self.make_discriminator_optimizer(self.discriminator.parameters())
        return super().configure_optimizers(), {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}

    def training_step(self, batch: Batch, batch_idx: int) -> TrainingStep:
        """One batch, for the network whose turn it is."""
        step = super().training_step if self.turns.turn == "generator" else self.discriminator_step
        return self.turns.take(self, partial(step, batch, batch_idx))

    def discriminator_step(self, batch: Batch, batch_idx: int) -> TrainingStep:
        """What the discriminator pays for a batch."""
        return discriminator_loss(self, self.discriminator_terms(batch, *self.training_sample(batch)), batch.position_B)

    def terms(self, output: DenoiserOutput, batch: Batch, path: PathSample, condition: Condition) -> list[LossTerm]:
        """Also L_adv, in training."""
        if not self.training:
            return super().terms(output, batch, path, condition)
        question = self.ask(batch, condition)
        if self.listens:  # the same question is answered here and observed below
            batch = batch._replace(taught=self.answer(path, question))
        terms = super().terms(output, batch, path, condition)
        t_B = self._level(batch, path)
        guess_BCHW = data_from_velocity(path.x_BCHW, output.velocity_BCHW.float(), path.t_B)
        fake_BCHW = self._noised(guess_BCHW, t_B, batch, Stream.RENOISE_FAKE)
        (seen,) = self.teacher.observe([fake_BCHW], t_B, question, self.discriminator.features)
        logits = self.discriminator(seen.features, t_B, seen.summary_BD)
        return [
            *terms, LossTerm("adversarial", "adversarial", self.adversarial.fool(logits), self.adversarial_weight)
        ]  # fmt: skip

    def discriminator_terms(self, batch: Batch, path: PathSample, condition: Condition) -> LossTerms:
        """The terms of the discriminator's loss per sample, in fp32, at the times t' of what it looks at.

        ``d_real`` and ``d_fake``, and, where configured, ``d_misaligned`` and ``d_penalty``.

        Args:
            batch: as it came.
            path: of its latents.
            condition: what is left of the batch's.

        Raises:
            ValueError: for a single image, which has no neighbour, where these are misaligned.
        """
        if self.misaligned and len(batch.position_B) == 1:
            raise ValueError(
                "model.misaligned takes conditions of neighbours, but a process takes one image at once; set a larger "
                "data.batch_size, or misaligned false"
            )
        with torch.no_grad():
            output: DenoiserOutput = self.denoiser(path.x_BCHW, path.t_B, self.conditioner(condition))
            reshard(self.denoiser, self.conditioner)
            t_B = self._level(batch, path)
            data_BCHW = data_from_velocity(path.x_BCHW, path.velocity_BCHW, path.t_B)
            guess_BCHW = data_from_velocity(path.x_BCHW, output.velocity_BCHW.float(), path.t_B)
            real_BCHW = self._noised(data_BCHW, t_B, batch, Stream.RENOISE_REAL)
            fake_BCHW = self._noised(guess_BCHW, t_B, batch, Stream.RENOISE_FAKE)
            question, names = self.ask(batch, condition), self.discriminator.features
            real, fake = self.teacher.observe([real_BCHW, fake_BCHW], t_B, question, names)
        features = [feature.requires_grad_(self.penalty_weight > 0) for feature in real.features]
        logits = self.discriminator(features, t_B, real.summary_BD)
        losses = {
            "d_real": (self.adversarial.real(logits), 1.0),
            "d_fake": (self.adversarial.fake(self.discriminator(fake.features, t_B, fake.summary_BD)), 1.0),
        }
        if self.misaligned:
            with torch.no_grad():
                (other,) = self.teacher.observe([real_BCHW], t_B, question.rolled(), names)
            strange_B = self.adversarial.fake(self.discriminator(other.features, t_B, other.summary_BD))
            # What would be seen just as before is real, and no fake.
            same_B = alike(batch.condition, rolled(batch.condition)).to(t_B.device)
            other_B = ~(question.nothing_B | same_B)
            losses["d_misaligned"] = (strange_B * other_B / other_B.float().mean().clamp(min=1e-6), 1.0)
        if self.penalty_weight:
            losses["d_penalty"] = (gradient_penalty(logits, features), self.penalty_weight)
        return LossTerms(t_B, tuple(LossTerm(name, "adversarial", *loss) for name, loss in losses.items()))

    def validation_sample(self, batch: Batch) -> tuple[PathSample, Condition]:
        """As in Pretrain, at the sampler's times."""
        t_B = self.timesteps.sample(even_times(batch.position_B))
        return self._path(batch, t_B, VALIDATION_SEED), batch.condition

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keeps whose turn it is."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps"] = dict(self.turns.steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up."""
        super().on_load_checkpoint(checkpoint)
        self.turns.steps = checkpoint["steps"]

    def _level(self, batch: Batch, path: PathSample) -> Tensor:
        """The times t' that the discriminator looks at."""
        if self.renoise is None:
            return self.timesteps.next(path.t_B)
        return self.renoise.sample(rng.uniform(self.seed, Stream.RENOISE_TIME, batch.position_B))

    def _noised(self, data_BCHW: Tensor, t_B: Tensor, batch: Batch, stream: Stream) -> Tensor:
        noise_BCHW = rng.normal(self.seed, stream, batch.position_B, tuple(data_BCHW.shape[1:]))
        return sample_path(data_BCHW, noise_BCHW, t_B).x_BCHW


def _check_discriminator(discriminator: Discriminator, teacher: Teacher) -> None:
    teacher.check_features(discriminator.features)
    for read in discriminator.inputs:
        if (found := teacher.feature_channels[read.feature]) != read.channels:
            raise ValueError(
                f"the discriminator reads {read.channels} channels of {read.feature}, the teacher's has {found}; set "
                f"its channels to {found}"
            )
    if discriminator.summary_dim != teacher.summary_dim:
        raise ValueError(
            f"discriminator.summary_dim is {discriminator.summary_dim}, the teacher's conditions are vectors of "
            f"{teacher.summary_dim}; set it to that"
        )

"""Training steps of every stage, by the modules that ``fit`` trains, on weights that were never trained."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import nn

from benchmarks.clock import Clock
from benchmarks.cuda import Mode, autocast
from benchmarks.teacher import RandomTeacher
from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.source import LatentBatch
from snapgen_pl.distill.feature_loss import FeaturePair
from snapgen_pl.distill.loss_terms import LossTerms
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.modules.distill import Distill
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.modules.step_distill import StepDistill
from snapgen_pl.modules.training import clip_gradients

# The last two are the turns of step distillation.
Stage = Literal["pretraining", "distillation", "generator", "discriminator"]

# As experiments/t2i and experiments/step have it.
_GUIDANCE = 4.5
_GRADIENT_CLIP = 1.0
_HEAD_SPACING = 8
_PIECE = 2**26  # numbers


class Work(NamedTuple):
    """FLOPs of a step for each multiply-accumulate: of the student's prediction, the teacher's, and its features."""

    student: int
    teacher: int
    observed: int


WORK: dict[Stage, Work] = {
    "pretraining": Work(6, 0, 0),
    "distillation": Work(6, 4, 0),  # a guided velocity is two predictions
    "generator": Work(6, 2, 4),  # a velocity; and features, with gradients through them, none of weights
    "discriminator": Work(2, 0, 4),  # features of data and of guesses
}


class Step:
    """The loss of a stage on one batch, and its gradients. Times and noise are drawn beforehand.

    Distillation learns from guided velocities and, where the student has features on the grid of the teacher's tokens,
    from the teacher's last block by the last of these. Step distillation learns from velocities that are not guided.

    Args:
        stage: whose.
        student: the network that is trained; one student may serve step after step.
        tokens: context tokens that it is fed.
        teacher: the network of the teacher.
        size: height and width of the latent.
        batch: images.
        clock: is told when student, teacher and heads end.
        mode: how the networks run.

    Attributes:
        weights: what the stage trains.
        averaged: whether there is an average of them.
        clock: as given.
        mode: as given.
    """

    def __init__(
        self,
        stage: Stage,
        student: Denoiser,
        tokens: int,
        teacher: MMDiT,
        size: int,
        batch: int,
        clock: Clock,
        mode: Mode = "eager",
    ) -> None:
        self._device = next(student.parameters()).device
        with self._device:
            module = _module(stage, student, tokens, teacher, size, clock).train()
            latent_BCHW = torch.randn(batch, *module.latent_shape)
            asked_B, position_B = torch.zeros(batch, dtype=torch.int64), torch.arange(batch)
        trained: dict[bool, list[nn.Module]] = {True: module.trained(), False: []}
        if isinstance(module, StepDistill):
            trained[False] = [module.discriminator]
        self.averaged = stage != "discriminator"
        for turn, parts in trained.items():
            for part in parts:
                part.requires_grad_(turn == self.averaged)
        self.weights = [weight for part in trained[self.averaged] for weight in part.parameters()]
        self.clock, self.mode = clock, mode
        self._combine = module.combine
        stored = LatentBatch(Posterior(latent_BCHW), asked_B, position_B)
        self._terms = partial(_terms_of(module, stage), stored, *module.training_sample(stored))
        if mode != "eager":
            compile_regions(student)
            compile_regions(teacher, shapes=4)  # one batch or two, with and without gradients

    def gradients(self) -> None:
        """Adds to what there is."""
        with autocast(self._device, self.mode):
            loss = self._combine(self._terms()).loss
        loss.backward()  # type: ignore[no-untyped-call]
        self.clock.mark("student" if self.averaged else "heads")


class Update:
    """What ``fit`` does with gradients: clips them, steps by fused AdamW, and moves the average in fp32.

    Args:
        weights: that have gradients.
        averaged: whether there is an average of them.
        clock: is told when optimizer and average end.
        mode: how the step runs that this is a part of.
    """

    def __init__(self, weights: Sequence[nn.Parameter], averaged: bool, clock: Clock, mode: Mode = "eager") -> None:
        self.optimizer = torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True, capturable=mode == "graphed")
        self._weights = [weight.detach() for weight in weights]
        self._average = [weight.clone() for weight in self._weights] if averaged else []
        self._clock = clock

    def __call__(self) -> None:
        """Leaves the gradients."""
        clip_gradients(self.optimizer, _GRADIENT_CLIP)
        self.optimizer.step()
        self._clock.mark("optimizer")
        if self._average:
            torch._foreach_lerp_(self._average, self._weights, 1e-4)
            self._clock.mark("average")


def whole_step(step: Step) -> Callable[[], None]:
    """Gradients, and the update of all weights by them."""
    update = Update(step.weights, step.averaged, step.clock, step.mode)

    def whole() -> None:
        step.gradients()
        update()
        update.optimizer.zero_grad(set_to_none=True)

    return whole


def pieces(weights: Sequence[nn.Parameter], largest: int = _PIECE) -> Iterator[list[nn.Parameter]]:
    """Weights in groups of at most so many numbers, where one weight is not more."""
    piece: list[nn.Parameter] = []
    for weight in weights:
        if piece and sum(each.numel() for each in piece) + weight.numel() > largest:
            yield piece
            piece = []
        piece.append(weight)
    yield piece


def features_read(teacher: Denoiser) -> tuple[str, ...]:
    """What of a teacher the heads read: every eighth feature, or the last of fewer."""
    names = teacher.feature_names
    return names[_HEAD_SPACING - 1 :: _HEAD_SPACING] or names[-1:]


def _module(stage: Stage, student: Denoiser, tokens: int, network: MMDiT, size: int, clock: Clock) -> Pretrain:
    autoencoder = PatchPCA(patch=8, channels=student.in_channels)
    parts = student, ClassTokens(1, tokens, student.context_dim), autoencoder
    image_size = size * autoencoder.downsampling
    if stage == "pretraining":
        return Pretrain(*parts, image_size=image_size)
    if stage == "distillation":
        teacher = RandomTeacher(network, Guidance(_GUIDANCE), clock)
        return Distill(*parts, teacher, _pairs(student, network), image_size=image_size)
    teacher = RandomTeacher(network, Guidance(), clock)
    read = [HeadInput(name, network.feature_channels[name]) for name in features_read(network)]
    heads = Discriminator(read, teacher.summary_dim)
    heads.register_forward_hook(lambda *_: clock.mark("heads"))
    return StepDistill(*parts, teacher, heads, image_size=image_size)


def _pairs(student: Denoiser, teacher: MMDiT) -> list[FeaturePair]:
    """The student's last feature on the grid of the teacher's tokens, and the teacher's last block."""
    fitting = [name for name, stride in student.feature_strides.items() if stride == teacher.patch]
    name, channels = list(teacher.feature_channels.items())[-1]
    return [FeaturePair(own, name, student.feature_channels[own], channels) for own in fitting[-1:]]


def _terms_of(module: Pretrain, stage: Stage) -> Callable[..., LossTerms]:
    if stage == "discriminator":
        assert isinstance(module, StepDistill)
        return module.discriminator_terms
    return module.loss_terms

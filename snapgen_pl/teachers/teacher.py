"""The contract of teachers: a frozen network with the conditioner and the guidance that it is asked with."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from snapgen_pl.conditioning.condition import Condition, first
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.flow.guidance import Guidance, concatenate, repeated, replace_rows
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.models.denoiser import Conditioning, Denoiser, DenoiserOutput, PreparedConditioning


class Question(NamedTuple):
    """What a teacher is told of samples, whatever their x and t: made by :meth:`Teacher.ask`, once a batch.

    Attributes:
        wanted: what each is asked for with, prepared.
        nothing: likewise, that nothing is asked for.
        nothing_B: bool, True where nothing is asked for.
        summary_BD: fp32, what each is asked for with as one vector of width ``summary_dim``.
    """

    wanted: PreparedConditioning
    nothing: PreparedConditioning
    nothing_B: Tensor
    summary_BD: Tensor

    @property
    def conditional(self) -> PreparedConditioning:
        """What is wanted; nothing where nothing is asked for."""
        return replace_rows(self.wanted, self.nothing, self.nothing_B)

    def rolled(self) -> "Question":
        """Each sample asked for with what the one before it is, the first with the last's; nothing stays nothing."""
        wanted = self.wanted.mapped(lambda rows: rows.roll(1, 0))
        return self._replace(wanted=wanted, summary_BD=self.summary_BD.roll(1, 0))


class Observed(NamedTuple):
    """What a frozen network sees in noisy latents.

    Attributes:
        features: (B, C, H, W) each, as asked for.
        summary_BD: fp32, the condition as one vector of width ``summary_dim``; zeros where nothing was asked for.
    """

    features: tuple[Tensor, ...]
    summary_BD: Tensor


class Teacher(ABC):
    """A velocity to learn from, and features of the network that has it.

    It is no module, so whoever holds one has nothing of it in checkpoints, optimizers and averages, and does not bring
    it into training mode; copies of the holder share it. Constructing one reads configurations alone, :meth:`ready`
    reads the weights, :meth:`place` puts them where they compute.

    Args:
        denoiser: frozen here; its weights may come later.
        conditioner: likewise.
        guidance: how far v is pushed away from the unconditional velocity, and at which times.

    Attributes:
        guidance: as given.

    Raises:
        ValueError: where the parts do not fit together.
    """

    def __init__(self, denoiser: Denoiser, conditioner: Conditioner, guidance: Guidance) -> None:
        if denoiser.context_dim != conditioner.context_dim:
            raise ValueError(
                f"{type(self).__name__}'s network takes tokens of width {denoiser.context_dim}, its conditioner gives "
                f"{conditioner.context_dim}; give it the conditioner that the network was trained with"
            )
        guidance.check_channels(denoiser.in_channels)
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._conditioner = conditioner.eval().requires_grad_(False)
        self.guidance = guidance
        self._nothing: PreparedConditioning | None = None
        self._has_weights = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        """Copies of the holder share it: 8 B parameters are not to be held twice."""
        return self

    @property
    def in_channels(self) -> int:
        """Channels of the latents."""
        return self._denoiser.in_channels

    @property
    def feature_channels(self) -> Mapping[str, int]:
        """Channels of each feature that may be asked for, by name."""
        return self._denoiser.feature_channels

    @property
    def feature_strides(self) -> Mapping[str, int]:
        """By the same names, latent positions that a feature's position covers along one side."""
        return self._denoiser.feature_strides

    @property
    def summary_dim(self) -> int:
        """Width of a condition as one vector: the pooled one, where there is one, or the tokens'."""
        return self._denoiser.pooled_dim or self._denoiser.context_dim

    @property
    def takes(self) -> Literal["label", "caption"]:
        """Which conditions it is asked with."""
        return self._conditioner.takes

    @property
    def divided(self) -> bool:
        """Whether weights are divided among processes, all of which must then ask as often as the others."""
        return False

    def encoders(self) -> Mapping[str, str]:
        """The identities of the text encoders whose states it takes, by the names that states go by."""
        return self._conditioner.encoders()

    def check_features(self, features: tuple[str, ...]) -> None:
        """Raises ValueError for a name that is none of ``feature_channels``."""
        self._denoiser.check_features(features)

    def check_autoencoder(self, identity: Mapping[str, str | int | float]) -> None:
        """Checks that the student's latents are the teacher's.

        Args:
            identity: of the student's autoencoder, once it is ready.

        Raises:
            ValueError: naming what differs.
        """
        wrong = [
            f"{key} is {value!r} of the teacher's, {identity.get(key)!r} of the student's"
            for key, value in self.latents().items()
            if identity.get(key) != value
        ]
        if wrong:
            raise ValueError(
                f"the student's latents are not those that {type(self).__name__} knows: {'; '.join(wrong)}. "
                "Set model.autoencoder to the teacher's, or choose another teacher"
            )

    @abstractmethod
    def latents(self) -> Mapping[str, str | int | float]:
        """What the identity of an autoencoder must say for its latents to be those that the network was trained on."""

    def ready(self, folder: Path, classes: tuple[str, ...]) -> list[str]:
        """Reads the weights into the host's memory, once a process.

        Args:
            folder: the student's run's, for what has to be kept with it.
            classes: the data's class names; labels index them.

        Returns:
            Lines for the user.

        Raises:
            ValueError: where weights are missing, damaged or another network's, or where labels mean other classes.
        """
        if self._has_weights:
            return []
        lines = self._read(folder, classes)
        self._has_weights = True
        return lines

    @abstractmethod
    def _read(self, folder: Path, classes: tuple[str, ...]) -> list[str]:
        """Does what :meth:`ready` promises."""

    def place(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        """Puts the weights where they compute, once they are read; done once however often it is called.

        Args:
            device: of the student.
            mesh: of the processes that the student is sharded over, where it is.
        """
        self._denoiser.to(device)
        self._conditioner.to(device)

    @abstractmethod
    def identity(self) -> Facts:
        """What its answers depend on, for caches and manifests: SHA-256 of configuration and weights, and guidance."""

    @property
    @abstractmethod
    def _dtype(self) -> torch.dtype:
        """What the network is given."""

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Weights are of the precision that is wanted: the student's autocast ends here."""
        return torch.autocast(device.type, enabled=False)

    def ask(self, condition: Condition, nothing_B: Tensor) -> Question:
        """Puts a question: the conditioner's part and what else depends on neither x nor t.

        Where weights are sharded, every process must ask and have answered as often as the others.

        Args:
            condition: what the samples are asked for with, before anything was dropped.
            nothing_B: bool, True where the student is asked for nothing.

        Raises:
            ValueError: before :meth:`ready`.
        """
        if not self._has_weights:
            raise ValueError(f"{type(self).__name__} has no weights yet; call ready() first")
        # Inference mode off: FSDP would keep buffers made in a validation, and a training could not use them.
        with torch.inference_mode(False), torch.no_grad(), self._precision(nothing_B.device):
            conditioning: Conditioning = self._conditioner(condition)
            return Question(
                self._prepared(conditioning),
                self._unconditional(condition, len(nothing_B)),
                nothing_B,
                conditioning.summary().float(),
            )

    def __call__(
        self, x_BCHW: Tensor, t_B: Tensor, question: Question, features: tuple[str, ...] = ()
    ) -> DenoiserOutput:
        """The guided velocity v_u + s (v_c - v_u) in fp32, and features on the way to v_c.

        Where s is not 1, v_c and v_u come of one forward of twice the batch. Where nothing is asked for, v is v_u, and
        so are the features.

        Args:
            x_BCHW: the noisy latents x_t.
            t_B: times in [0, 1]; 1 is noise.
            question: of :meth:`ask`.
            features: names out of ``feature_channels``.

        Raises:
            ValueError: for an unknown feature.
        """
        with torch.inference_mode(False), torch.no_grad(), self._precision(x_BCHW.device):
            x_BCHW = x_BCHW.to(self._dtype)
            if self.guidance.scale == 1:
                output: DenoiserOutput = self._denoiser(x_BCHW, t_B, question.conditional, features)
                return output._replace(velocity_BCHW=output.velocity_BCHW.float())
            both = concatenate(question.conditional, question.nothing)
            output = self._denoiser(x_BCHW.repeat(2, 1, 1, 1), t_B.repeat(2), both, features)
            velocities = output.velocity_BCHW.float().chunk(2)
            return DenoiserOutput(
                self.guidance.combine_at(t_B, *velocities), tuple(feature.chunk(2)[0] for feature in output.features)
            )

    def observe(
        self, latents: Sequence[Tensor], t_B: Tensor, question: Question, features: tuple[str, ...]
    ) -> list[Observed]:
        """What the network sees in noisy latents: features on the way to v_c, and nothing is computed beyond them.

        Gradients reach the latents alone.

        Args:
            latents: one or more x_BCHW, seen in one forward.
            t_B: times in [0, 1], of each of them.
            question: of :meth:`ask`.
            features: names out of ``feature_channels``.

        Returns:
            One for each of ``latents``.

        Raises:
            ValueError: for an unknown feature.
        """
        times = len(latents)
        with torch.inference_mode(False), self._precision(t_B.device):
            with torch.no_grad():
                summary_BD = question.summary_BD.masked_fill(question.nothing_B[:, None], 0.0)
                prepared = reduce(concatenate, [question.conditional] * times)
            seen = self._denoiser.observe(
                torch.cat(list(latents)).to(self._dtype), t_B.repeat(times), prepared, features
            )
        by_feature = [feature.chunk(times) for feature in seen]
        return [Observed(each, summary_BD) for each in zip(*by_feature, strict=True)]

    def _unconditional(self, condition: Condition, count: int) -> PreparedConditioning:
        """What nothing asked for comes to: made once, for everything here is frozen."""
        if self._nothing is None:
            self._nothing = self._prepared(self._conditioner.unconditional(first(condition)))
        return repeated(self._nothing, count)

    def _prepared(self, conditioning: Conditioning) -> PreparedConditioning:
        tokens_BSD, mask_BS, pooled_BP = conditioning
        pooled_BP = None if pooled_BP is None else pooled_BP.to(self._dtype)
        return self._denoiser.prepare(Conditioning(tokens_BSD.to(self._dtype), mask_BS, pooled_BP))


@runtime_checkable
class HasTeacher(Protocol):
    """A module that learns from a teacher, such as :class:`~snapgen_pl.modules.distill.Distill`.

    Attributes:
        teacher: frozen.
    """

    teacher: Teacher

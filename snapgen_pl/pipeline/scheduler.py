"""The samplers of ``flow`` as schedulers of diffusers."""

from dataclasses import replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from snapgen_pl.config_files import class_value
from snapgen_pl.flow.samplers import Euler, Sampler, StepNoise
from snapgen_pl.pipeline.building import build, opening

TRAIN_TIMESTEPS = 1000  # diffusers' timesteps are times in thousandths


class Scheduled(NamedTuple):
    """What a scheduler's step gives, by diffusers' name.

    Attributes:
        prev_sample: the state that the network is to be asked at next, or the data.
    """

    prev_sample: Tensor


class _Asked(Exception):  # noqa: N818  (nothing is wrong)
    """A sampler asks the network for what it has not said yet."""

    def __init__(self, x_BCHW: Tensor) -> None:
        super().__init__()
        self.x_BCHW = x_BCHW


class SamplerScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Any sampler of this project, asked step by step: SiT's SDE, renoising of few steps, Heun.

    Timesteps are times t, 1000 at noise, as floats that are never rounded.

    Args:
        sampler: its class and arguments, as a run's config.yaml has them.
        num_train_timesteps: what t = 1 is called.

    Attributes:
        timesteps: at which the network is to be asked, in this order; of Heun some come twice.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, sampler: dict[str, Any], num_train_timesteps: int = TRAIN_TIMESTEPS) -> None:
        self.sampler: Sampler = build(Sampler, sampler)  # type: ignore[type-abstract]
        self.set_timesteps(self.sampler.steps)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what else there is, is among the options
        cls, pretrained_model_name_or_path: str | PathLike[Any] | None, subfolder: str | None = None, **options: Any
    ) -> Any:
        """Loads it as diffusers does.

        Args:
            pretrained_model_name_or_path: its folder, or what holds that as ``subfolder``.
            subfolder: where it lies there.
            **options: as diffusers' schedulers take them.

        Raises:
            ValueError: where its file is missing or damaged.
        """
        place = Path(str(pretrained_model_name_or_path), subfolder or "")
        with opening(place / cls.config_name, cls.__name__):
            return super().from_pretrained(pretrained_model_name_or_path, subfolder, **options)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Sets the steps, and goes back to the first.

        Args:
            num_inference_steps: as in Sampler.
            device: of ``timesteps``.

        Raises:
            ValueError: for a number that the sampler does not take.
        """
        self.sampler = replace(self.sampler, steps=num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self._asked = asked_times(self.sampler)
        self.timesteps = torch.tensor(self._asked, device=device) * self.config["num_train_timesteps"]
        self._stops = list(pairwise(self.sampler.times()))
        self._calls, self._done = 0, 0
        self._start: Tensor | None = None
        self._answers: list[Tensor] = []

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        step_noise: StepNoise | None = None,
        return_dict: bool = True,
    ) -> Scheduled | tuple[Tensor]:
        """Goes on with what the network said at a timestep.

        Args:
            model_output: the velocity (B, C, H, W).
            timestep: the one of ``timesteps`` whose turn it is.
            sample: the state that the network was asked at.
            generator: draws the noise of a step, one for all samples or one each.
            step_noise: gives it, in place of a generator.
            return_dict: gives a tuple where False.

        Raises:
            ValueError: where it is not that timestep's turn, or was rounded.
        """
        scale = self.config["num_train_timesteps"]
        if self._calls == len(self._asked):
            raise ValueError("all timesteps are done; call set_timesteps to begin again")
        if abs(float(timestep) / scale - (expected := self._asked[self._calls])) > 1e-6:
            raise ValueError(f"timestep is {float(timestep)}, but {expected * scale:.7g} comes next; give it unrounded")
        if self._start is None:
            self._start = sample.to(torch.promote_types(sample.dtype, torch.float32))
        self._answers.append(model_output.to(self._start.dtype))
        self._calls += 1
        start, told = self._start, iter(self._answers)

        def velocity(x_BCHW: Tensor, t: float) -> Tensor:
            # The rule runs from its step's start again, told all that the network has said in this step.
            answer = next(told, None)
            if answer is None:
                raise _Asked(x_BCHW)
            return answer

        def draw() -> Tensor:
            if step_noise is not None:
                return step_noise(self._done)
            drawn: Tensor = randn_tensor(start.shape, generator=generator, device=start.device, dtype=start.dtype)
            return drawn

        try:
            x_BCHW = self.sampler.step(velocity, start, *self._stops[self._done], draw)
        except _Asked as asked:
            x_BCHW = asked.x_BCHW
        else:
            self._done += 1
            self._start, self._answers = None, []
        return Scheduled(x_BCHW) if return_dict else (x_BCHW,)


def asked_times(sampler: Sampler) -> list[float]:
    """The times at which a sampler asks its network, in order."""
    asked: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return x

    sampler(velocity, torch.zeros(1), lambda step: torch.zeros(1))
    return asked


def scheduler_of(sampler: Sampler) -> Any:
    """The scheduler that draws as a sampler does: diffusers' own where it has one.

    FlowMatchEulerDiscreteScheduler is ``Euler`` where it is given sigmas that fall evenly from 1, as
    :class:`~snapgen_pl.pipeline.snapgen_pipeline.SnapGenPipeline` does. Its FlowMatchLCMScheduler is ``Renoising``, but
    takes noise from generators alone, so that images could not be those of ``generate``.
    """
    if type(sampler) is Euler:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=sampler.shift)
    return SamplerScheduler(class_value(type(sampler), **vars(sampler)))

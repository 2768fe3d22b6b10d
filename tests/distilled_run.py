"""Stage one with a teacher, a copy of the network with other weights, under timestep-aware scaling. Also a script."""

import argparse
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.losses_by_time import LossesByTime
from callbacks.tensorboard import RunLogger
from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.data.source import Batch
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, Role
from snapgen_pl.distill.velocity_error import velocity_error
from snapgen_pl.flow.path import PathSample
from snapgen_pl.modules.frozen import Frozen
from snapgen_pl.modules.pretrain import Pretrain
from tests import pretrain_run


class Distilled(Pretrain):
    """Pretraining, and the teacher's velocity besides."""

    loss_roles: Mapping[str, Role] = {"task": "task", "kd": "kd"}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._teacher = Frozen(copy.deepcopy(self.denoiser))
        generator = torch.Generator().manual_seed(7)
        for parameter in self._teacher.module.parameters():
            parameter.data.normal_(0, 0.1, generator=generator)

    def loss_terms(self, batch: Batch, path: PathSample, condition: Condition) -> LossTerms:
        (task,) = super().loss_terms(batch, path, condition).terms
        conditioning = self.conditioner(condition)
        velocity = self.denoiser(path.x_BCHW, path.t_B, conditioning).velocity_BCHW
        with torch.no_grad():
            target = self._teacher.module(path.x_BCHW, path.t_B, conditioning).velocity_BCHW
        return LossTerms(path.t_B, (task, LossTerm("kd", "kd", velocity_error(velocity, target))))


class Observer(L.Callback):
    """Keeps what combined the losses, and each batch's terms and loss."""

    def __init__(self) -> None:
        self.combine: object = None
        self.terms: list[LossTerms] = []
        self.losses: list[float] = []
        self.module: Any = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: object) -> None:
        self.module, self.combine = pl_module, pl_module.combine
        self.terms.append(outputs["terms"])
        self.losses.append(outputs["loss"].item())


def train(
    images: Path, folder: Path, steps: int, scaling: TimestepAwareScaling, callbacks: tuple[Any, ...] = (), **more: Any
) -> dict[str, Any]:
    """Trains (further), logging every second step, and returns the last checkpoint."""
    logger = RunLogger(str(folder), name="", version="", default_hp_metric=False)
    options = {"callbacks": [scaling, LossesByTime(), *callbacks], "logger": logger, "log_every_n_steps": 2} | more
    return pretrain_run.train(images, folder, steps, kind=Distilled, **options)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What a run logged: by tag, the values by step."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def main() -> None:
    """Trains with ratios per bin on two processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    scaling = TimestepAwareScaling(ratio="bin")
    train(arguments.images, arguments.folder, arguments.steps, scaling, devices=2, strategy="ddp")


if __name__ == "__main__":
    sys.exit(main())

"""Every stage at its smallest, real networks throughout, trained on any number of processes that start within a second.

Processes are forked from a server that has imported everything, so that many trainings share one start. All jobs of a
call run one after another in one group of gloo; one process alone trains in a group of none.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import torch
from torch.optim import AdamW, Optimizer

from callbacks.ema import EMA
from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.checkpoints import newest
from snapgen_pl.conditioning.joined_texts import JoinedTexts
from snapgen_pl.data.captioned_folder import CaptionedFolder
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.distill.feature_loss import FeaturePair
from snapgen_pl.distill.reconstruction_loss import ReconstructionLoss
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.fsdp import FSDP2
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.distill import Distill
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.modules.step_distill import StepDistill
from snapgen_pl.modules.training import Training
from snapgen_pl.teachers.placement import Placement
from snapgen_pl.teachers.sd3 import SD3Teacher
from tests import decoder_run, pretrain_run, t2i_parts, tiny_run
from tests.conditioning import tiny_clip, tiny_sd3

BATCH = 8  # images a step, over all processes and accumulated batches
StageName = Literal["pretrain", "t2i", "distill", "step_distill", "decoder", "autoencoder"]
Strategy = Literal["ddp", "fsdp2"]


@dataclass(frozen=True)
class Job:
    """A session of training.

    Attributes:
        stage: what is trained.
        folder: the run's.
        steps: that the run has at its end, of all optimizers.
        strategy: on more than one process.
        resume: whether it goes on from the run's checkpoint.
        accumulate: batches a step.
        placement: of a teacher's weights.
        alone: images that a decoder is trained on before its discriminator joins.
    """

    stage: StageName
    folder: Path
    steps: int
    strategy: Strategy = "ddp"
    resume: bool = False
    accumulate: int = 1
    placement: Placement = "replicated"
    alone: int = 2 * BATCH


def draw(folder: Path) -> Path:
    """Makes all that the stages read: images, captions, frozen networks."""
    pretrain_run.draw_images(folder / "images")
    decoder_run.draw_photos(folder / "photographs")
    decoder_run.frozen_parts(folder / "parts")
    t2i_parts.draw_captioned(folder / "captioned")
    t2i_parts.save_pipeline(folder / "pipeline")
    return folder


def optimizer(weights: Any) -> Optimizer:
    """Adam whose first steps have not the size of the rate whatever the gradient: rounding near zero would show."""
    return AdamW(weights, lr=3e-3, eps=1e-3)


def images(made: Path, batch_size: int) -> ImageData:
    return pretrain_run.image_data(made / "images", batch_size=batch_size)


def captions(made: Path, batch_size: int) -> ImageData:
    source = CaptionedFolder(made / "captioned", validation_fraction=0.25)
    return ImageData(source, image_size=t2i_parts.SIDE, batch_size=batch_size, flip=True, condition="caption")


def photos(made: Path, batch_size: int) -> ImageData:
    return decoder_run.photo_data(made / "photographs", batch_size, validation_fraction=0.4)


def student(made: Path) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    encoders = t2i_parts.encoders(made / "pipeline")
    context = tiny_clip.WIDTH + tiny_sd3.WIDTH_G + 4
    stages = [
        Stage(32, down=[Block()], up=[Block()] * 2),
        Stage(64, down=[Block(layers=1)], up=[Block(layers=1)] * 2, self_attention=True),
    ]
    return {
        "denoiser": UNet(stages, middle_layers=1, in_channels=4, context_dim=context, head_dim=32),
        "conditioner": JoinedTexts(encoders, [["clip_l", "clip_g"], ["gemma"]], context, dropout=0.3),
        "autoencoder": KL(str(made / "pipeline"), "vae"),
        "image_size": t2i_parts.SIDE,
        "optimizer": optimizer,
        "warmup_images": 2 * BATCH,
    }


def taught(made: Path, job: Job) -> dict[str, Any]:
    teacher = SD3Teacher(
        tiny_sd3.sd3_texts(made / "pipeline"),
        str(made / "pipeline"),
        guidance=Guidance(2.0),
        dtype="float32",
        placement=job.placement,
    )
    return student(made) | {"teacher": teacher}


def pretrain(made: Path, job: Job) -> Training:
    L.seed_everything(0, verbose=False)
    return pretrain_run.pretrain(optimizer=optimizer)


def t2i(made: Path, job: Job) -> Training:
    return Pretrain(**student(made))


def distill(made: Path, job: Job) -> Training:
    return Distill(**taught(made, job), features=[FeaturePair("up.1", "block.2", 64, 16)])


def step_distill(made: Path, job: Job) -> Training:
    inputs = [HeadInput("block.0", 16), HeadInput("block.2", 16)]
    return StepDistill(
        **taught(made, job),
        discriminator=Discriminator(inputs, summary_dim=sum(tiny_sd3.PROJECTIONS), width=16),
        discriminator_optimizer=optimizer,
        accumulate=job.accumulate,
    )


# Gradients of L1 and LPIPS jump, and a last bit decides to which side: by a fiftieth, in a decoder's fourth step.
SQUARES = ReconstructionLoss(l1_weight=0.0, mse_weight=1.0, lpips_weight=0.0)


def decoder(made: Path, job: Job) -> Training:
    options: dict[str, Any] = {"optimizer": optimizer, "discriminator_optimizer": optimizer, "reconstruction": SQUARES}
    options |= {"distill_weight": 0.0, "accumulate": job.accumulate, "adversarial_from": job.alone}
    return decoder_run.train_decoder(made / "parts", **options)


def autoencoder(made: Path, job: Job) -> Training:
    return decoder_run.train_autoencoder(made / "parts", optimizer=optimizer, reconstruction=SQUARES)


@dataclass(frozen=True)
class Kind:
    """How a stage is trained.

    Attributes:
        module: what is trained.
        data: on what, so many images at once.
        averaged: what the average is of.
        turns: whether two networks take turns, so that accumulation is the module's.
        callbacks: beside those of every run.
    """

    module: Callable[[Path, Job], Training]
    data: Callable[[Path, int], ImageData]
    averaged: tuple[str, ...] = ("denoiser", "conditioner")
    turns: bool = False
    callbacks: tuple[type[L.Callback], ...] = ()


KINDS: dict[StageName, Kind] = {
    "pretrain": Kind(pretrain, images),
    "t2i": Kind(t2i, captions),
    "distill": Kind(distill, captions, callbacks=(TimestepAwareScaling,)),
    "step_distill": Kind(step_distill, captions, turns=True, callbacks=(TimestepAwareScaling,)),
    "decoder": Kind(decoder, photos, ("decoder",), turns=True),
    "autoencoder": Kind(autoencoder, photos, ("network",)),
}


class Logged(L.Callback):
    """Keeps in the checkpoint what each batch changed of what the module logs."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self._last: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        metrics = trainer.callback_metrics.items()
        # What the module logs: EMA's batch ends after this one's.
        found = {n: float(v) for n, v in metrics if n.startswith("train/") and n != "train/ema_half_life"}
        changed = {name: value for name, value in found.items() if value != self._last.get(name)}
        self._last |= found
        if changed:
            self.values.append(changed)

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self.values), "last": dict(self._last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values, self._last = list(state_dict["values"]), dict(state_dict["last"])


def train(made: Path, job: Job, processes: int) -> None:
    """One of the processes of a session."""
    kind = KINDS[job.stage]
    strategy: Any = "auto"
    if processes > 1 and job.strategy == "fsdp2":
        strategy = FSDP2()
    elif processes > 1:
        strategy = "ddp_find_unused_parameters_true" if kind.turns else "ddp"
    trainer = tiny_run.trainer_for(
        job.folder,
        job.steps,
        every_n_steps=1000,
        accumulate=1 if kind.turns else job.accumulate,
        averaged=kind.averaged,
        val_check_interval=3,  # batches, so that accumulated ones are not all of a step
        devices=processes,
        strategy=strategy,
        callbacks=[Logged(), *(callback() for callback in kind.callbacks)],
    )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA):
            callback.ramp_up = 1.0  # so slow that weights and average differ
    data = kind.data(made, BATCH // job.accumulate if kind.turns else BATCH)
    trainer.fit(kind.module(made, job), datamodule=data, ckpt_path=newest(job.folder) if job.resume else None)


def train_all(made: Path, jobs: Sequence[Job], processes: int) -> None:
    """Trains jobs one after another, on so many processes each.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with what went wrong in one of them.
    """
    multiprocessing.set_forkserver_preload([__name__])
    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _process, (made, list(jobs), processes, Path(folder)), nprocs=processes, start_method="forkserver"
        )


def _process(rank: int, made: Path, jobs: Sequence[Job], processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    if processes > 1:
        group = torch.distributed.FileStore(str(folder / "store"), processes)
        torch.distributed.init_process_group("gloo", store=group, rank=rank, world_size=processes)
    for job in jobs:
        train(made, job, processes)
    if processes > 1:
        torch.distributed.destroy_process_group()

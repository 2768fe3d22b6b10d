"""Stage one at its smallest: the real module, network, autoencoder and data, over a folder of drawn images."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from snapgen_pl import rng
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.pretrain import Pretrain
from tests import tiny_run

IMAGES, SIDE, BATCH = 24, 16, 8


def draw_images(folder: Path) -> Path:
    pixels = (rng.uniform(3, 0, torch.arange(IMAGES), (SIDE, SIDE, 3)) * 255).to(torch.uint8)
    for index, image in enumerate(pixels):
        path = folder / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    return folder


def pretrain(kind: type[Pretrain] = Pretrain, classes: int = 2, **options: Any) -> Pretrain:
    stages = [
        Stage(32, down=[Block()], up=[Block()] * 2),
        Stage(64, down=[Block(layers=1)], up=[Block(layers=1)] * 2, self_attention=True),
    ]
    unet = UNet(stages, middle_layers=1, in_channels=4, context_dim=32, head_dim=32)
    autoencoder = PatchPCA(patch=4, channels=4)
    conditioner = ClassTokens(classes, context_dim=32, dropout=0.5)
    return kind(unet, conditioner, autoencoder, SIDE, **({"warmup_images": 40} | options))


def image_data(images: Path, workers: int = 0, batch_size: int = BATCH) -> ImageData:
    return ImageData(ImageFolder(str(images)), image_size=SIDE, batch_size=batch_size, flip=True, workers=workers)


def train(
    images: Path,
    folder: Path,
    steps: int,
    resume: bool = False,
    workers: int = 0,
    kind: type[Pretrain] = Pretrain,
    **options: Any,
) -> dict[str, Any]:
    """Trains (further) and returns the last checkpoint."""
    L.seed_everything(123 if resume else 0, verbose=False)
    trainer = tiny_run.trainer_for(folder, steps, **options)
    data = image_data(images, workers)
    trainer.fit(pretrain(kind), datamodule=data, ckpt_path=newest(folder) if resume else None)
    return tiny_run.load(folder / LAST)


def main() -> None:
    """Trains with worker processes, and ends its whole process group as a cluster or Ctrl-C does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--signal", choices=["SIGTERM", "SIGINT"], required=True)
    arguments = parser.parse_args()

    class SignalGroup(tiny_run.KillAt):
        def send(self) -> None:
            # From outside, as a cluster or a terminal does: workers tell their parent's signals from others'.
            code = f"import os; os.killpg({os.getpgrp()}, {int(self.number)})"
            subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True)

    group = SignalGroup(3, signal.Signals[arguments.signal])
    train(arguments.images, arguments.folder, 10, workers=1, accumulate=2, callbacks=[group])


if __name__ == "__main__":
    main()

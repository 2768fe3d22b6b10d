"""Stage one on images of three shapes in buckets, at its smallest. Also a script, for more than one process."""

import argparse
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from snapgen_pl import rng
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import ImageFolder
from tests import pretrain_run, tiny_run

# Of sizes 8x24, 16x16 and 24x8; of the first, fewer training images than a group has.
BUCKETS = Buckets(pretrain_run.SIDE, step=8, ratio=3, group=8)
SHAPES = {"wide": ((10, 30), 3), "square": ((20, 18), 14), "tall": ((50, 16), 9)}


def draw_images(folder: Path) -> Path:
    """A training and a validation set of random images; of each shape a class, which its first pixel tells too."""
    for split, first in (("train", 0), ("val", 100)):
        for label, (name, ((height, width), count)) in enumerate(SHAPES.items()):
            positions = torch.arange(first, first + (count if split == "train" else 2))
            pixels = (rng.uniform(label, 0, positions, (height, width, 3)) * 255).to(torch.uint8)
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(pixels):
                Image.fromarray(image.numpy()).save(folder / split / name / f"{index:02d}.png")
    return folder


def image_data(images: Path, workers: int = 0, **options: Any) -> ImageData:
    defaults = {"batch_size": 8, "buckets": BUCKETS}
    return ImageData(
        ImageFolder(str(images)), image_size=pretrain_run.SIDE, flip=True, workers=workers, **(defaults | options)
    )


def train(
    images: Path, folder: Path, steps: int, resume: bool = False, workers: int = 0, **options: Any
) -> dict[str, Any]:
    """Trains (further) and returns the last checkpoint."""
    L.seed_everything(123 if resume else 0, verbose=False)
    trainer = tiny_run.trainer_for(folder, steps, limit_val_batches=1.0, **options)
    data = image_data(images, workers)
    trainer.fit(
        pretrain_run.pretrain(classes=len(SHAPES)), datamodule=data, ckpt_path=newest(folder) if resume else None
    )
    return tiny_run.load(folder / LAST)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()
    train(arguments.images, arguments.folder, arguments.steps, devices=2, strategy="ddp")


if __name__ == "__main__":
    sys.exit(main())

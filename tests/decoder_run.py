"""The training of a decoder at its smallest: real networks, photographs of any size."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from snapgen_pl import rng
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.photo_data import PhotoData
from snapgen_pl.distill.reconstruction_loss import ReconstructionLoss
from snapgen_pl.models.decoder import Decoder, Stage
from snapgen_pl.models.patch_discriminator import PatchDiscriminator
from snapgen_pl.modules.autoencoder import TrainAutoencoder
from snapgen_pl.modules.decoder import TrainDecoder
from tests import tiny_run
from tests.metrics.lpips_files import random_trunk_file
from tests.tiny_kl import kl

PHOTOS, SIDE, BATCH = 16, 32, 4
ALONE = 3 * BATCH  # images before the discriminator joins
CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "latent_channels": 4,
}


def draw_photos(folder: Path) -> Path:
    """Images of colours that change from place to place, of several sizes."""
    grids = (rng.uniform(3, 0, torch.arange(PHOTOS), (6, 6, 3)) * 255).to(torch.uint8)
    for index, grid in enumerate(grids):
        path = folder / "photos" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 40 + 7 * (index % 3), 35 + 5 * (index % 4)
        Image.fromarray(grid.numpy()).resize(size, Image.Resampling.BICUBIC).save(path)
    return folder


def frozen_parts(folder: Path) -> Path:
    """Saves an autoencoder and weights of LPIPS, random."""
    kl().save_pretrained(folder / "vae")
    random_trunk_file(folder, "alex")
    return folder


def lpips_trunk(parts: Path) -> Path:
    return parts / "alex-trunk.pth"


def reconstruction_loss(parts: Path) -> ReconstructionLoss:
    return ReconstructionLoss(mse_weight=0.5, backbone="alex", trunk=lpips_trunk(parts))


def photo_data(photos: Path, batch_size: int = BATCH, validation_fraction: float = 0.25) -> PhotoData:
    source = ImageFolder(str(photos), validation_fraction=validation_fraction)
    return PhotoData(multiple=4, largest=48, source=source, image_size=SIDE, batch_size=batch_size, flip=True)


def train_decoder(parts: Path, **options: Any) -> TrainDecoder:
    L.seed_everything(0, verbose=False)
    return TrainDecoder(
        Decoder([Stage(32, 1)] * 3, in_channels=4),
        discriminator=PatchDiscriminator(32, layers=2),
        **{
            "autoencoder": KL(str(parts / "vae")),
            "reconstruction": reconstruction_loss(parts),
            "distill_weight": 0.25,
            "adversarial_from": ALONE,
            "warmup_images": 2 * BATCH,
        }
        | options,
    )


def train_autoencoder(parts: Path, **options: Any) -> TrainAutoencoder:
    L.seed_everything(0, verbose=False)
    defaults = {"reconstruction": reconstruction_loss(parts), "kl_weight": 1e-3, "warmup_images": 2 * BATCH}
    return TrainAutoencoder(CONFIG, **(defaults | options))


def train(
    module: TrainDecoder,
    photos: Path,
    folder: Path,
    steps: int,
    resume: bool = False,
    data: L.LightningDataModule | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains (further) and returns the last checkpoint."""
    L.seed_everything(123 if resume else 0, verbose=False)
    trainer = tiny_run.trainer_for(folder, steps, averaged=("decoder",), **options)
    trainer.fit(module, datamodule=data or photo_data(photos), ckpt_path=newest(folder) if resume else None)
    return tiny_run.load(folder / LAST)

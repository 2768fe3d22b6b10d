"""The real module on a folder of small PNGs, for callbacks that draw samples. Also a script: see `main`."""

import argparse
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.ema import EMA
from callbacks.image_writer import ImageWriter
from callbacks.sample_grid import SampleGrid
from callbacks.sample_metrics import SampleMetrics
from snapgen_pl import rng
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.flow.samplers import Euler
from snapgen_pl.metrics.effnet_distances import EffNetDistances
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.png import to_pil, write_png

SIZE = 32
CLASSES = {"apple": 30, "bell": 20, "crane": 14}


def image_folder(root: Path) -> Path:
    """A training and a validation set of smooth random images."""
    for split, share in (("train", 1), ("val", 10)):
        for label, (name, count) in enumerate(CLASSES.items()):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            coarse = rng.uniform(label, 0, torch.arange(count // share) + 1000 * share, (3, 4, 4))
            pixels = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear").mul(255).byte()
            for index, image in enumerate(pixels):
                write_png(to_pil(image), folder / f"{index}.png")
    return root


def data(root: Path, **options: Any) -> ImageData:
    return ImageData(ImageFolder(root), image_size=SIZE, batch_size=8, **options)


def module(**options: Any) -> Pretrain:
    torch.manual_seed(0)
    stages = [Stage(32, down=[Block(layers=1)], up=[Block(layers=1)] * 2)]
    unet = UNet(stages, middle_layers=1, in_channels=8, context_dim=16, head_dim=16)
    autoencoder = PatchPCA(patch=4, channels=8)
    return Pretrain(unet, ClassTokens(3, 1, 16), autoencoder, SIZE, sampler=Euler(2), **options)


def metrics(**options: Any) -> SampleMetrics:
    counts = {"samples": 20, "test_samples": 24, "batch_size": 8, "control_images": 20}
    return SampleMetrics([EffNetDistances(subsets=5, subset_size=16)], **(counts | options))


def trainer(folder: Path, callbacks: list[L.Callback], steps: int = 2, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "val_check_interval": 1}
    return L.Trainer(
        **(defaults | options),
        callbacks=[*callbacks, EMA(half_life_images=20)],
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    """Trains, tests or predicts on two processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["fit", "test", "predict"])
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    ddp: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    if arguments.verb == "fit":
        callbacks: list[L.Callback] = [metrics(samples=21), SampleGrid(every_n_images=1000)]
        trainer(arguments.folder, callbacks, **ddp).fit(module(), data(arguments.images))
    elif arguments.verb == "test":
        trainer(arguments.folder, [metrics(keep="npz")], **ddp).test(module(), data(arguments.images))
    else:
        trainer(arguments.folder, [ImageWriter()], **ddp).predict(module(), data(arguments.images, samples=11))


if __name__ == "__main__":
    sys.exit(main())

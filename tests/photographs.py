"""Real photographs for the way from images to latents, at the size of a laptop. A script; nothing here is a test.

python -m tests.photographs cut FOLDER IMAGES            # class folders of 64 px squares, a class a photograph
python -m tests.photographs autoencoder IMAGES OUT       # an AutoencoderKL trained on them for some minutes
"""

import random
import time
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor

from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.transforms import to_pixels
from snapgen_pl.images import from_uint8


def cut(folder: Path, out: Path, size: int = 64, height: int = 512) -> None:
    """Cuts each photograph into squares.

    Args:
        folder: of JPEG files.
        out: a folder a photograph goes here.
        size: side of the squares, in pixels.
        height: what the photographs are scaled to before.
    """
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        photo = photo.resize((round(photo.width * height / photo.height), height), Image.Resampling.LANCZOS)
        target = out / path.stem.split("_by_")[0].lower()
        target.mkdir(parents=True, exist_ok=True)
        for top in range(0, height - size + 1, size):
            for left in range(0, photo.width - size + 1, size):
                photo.crop((left, top, left + size, top + size)).save(target / f"{top:04d}-{left:04d}.png")


def autoencoder(images: Path, out: Path, minutes: float = 4.0, batch: int = 8) -> None:
    """Trains a small AutoencoderKL, 4 pixels and 4 channels a latent position, and saves it as diffusers does.

    Args:
        images: class folders.
        out: where to.
        minutes: how long.
        batch: images a step.
    """
    torch.manual_seed(0)
    data = ImageFolder(images).open()
    train, held = (from_uint8(torch.stack([to_pixels(s.load(i)) for i in range(len(s))])) for s in data[1:3])
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    draw, start, steps = random.Random(0), time.monotonic(), 0
    while (left := 1 - (time.monotonic() - start) / (60 * minutes)) > 0:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 3 * left)
        x = train[draw.sample(range(len(train)), batch)]
        posterior = network.encode(x).latent_dist
        error = network.decode(posterior.sample()).sample - x
        loss = error.square().mean() + 0.2 * error.abs().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        steps += 1
    with torch.no_grad():
        latents = torch.cat([network.encode(x).latent_dist.mean for x in train.split(64)])
        rebuilt = torch.cat([network.decode(network.encode(x).latent_dist.mean).sample for x in held.split(64)])
    network.register_to_config(scaling_factor=1 / latents.std().item())
    network.save_pretrained(out)
    print(f"{steps} steps; {len(held)} held-out squares: PSNR {psnr(rebuilt, held):.2f} dB")


def psnr(x: Tensor, y: Tensor) -> float:
    """Of images in [-1, 1], in dB."""
    return float(10 * torch.log10(4 / (x.clamp(-1, 1) - y).square().mean()))


if __name__ == "__main__":
    auto_cli([cut, autoencoder], as_positional=True)

"""What text-to-image reads, real and tiny: captioned images, Stable Diffusion 3's parts, Gemma."""

from pathlib import Path

import torch

from snapgen_pl import rng
from snapgen_pl.conditioning.clip_text import CLIPText
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.png import to_pil, write_png
from tests.conditioning import tiny_gemma, tiny_sd3, tiny_t5
from tests.teachers.tiny import mmdit
from tests.tiny_kl import kl

COUNT, SIDE = 24, 32


def draw_captioned(folder: Path) -> Path:
    """Images, every third of them oblong, each beside its caption."""
    pixels = (rng.uniform(0, 0, torch.arange(COUNT), (3, 8, 8)) * 255).to(torch.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        across = 4 if i % 3 else 6
        write_png(to_pil(image.repeat_interleave(4, 1).repeat_interleave(across, 2)), folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a photo of " + " and ".join(["cat", "dog"] * (1 + i % 3)), encoding="utf-8")
    return folder


def save_pipeline(folder: Path) -> Path:
    """Saves Stable Diffusion 3's parts and Gemma."""
    tiny_sd3.save_sd3(folder)
    tiny_gemma.save_gemma(folder / "gemma")
    network = mmdit(context_dim=tiny_t5.WIDTH, pooled_dim=sum(tiny_sd3.PROJECTIONS)).network
    network.save_pretrained(folder / "transformer")
    kl(scaling_factor=1.5305, shift_factor=0.0609).save_pretrained(folder / "vae")
    return folder


def encoders(folder: Path) -> dict[str, TextEncoder]:
    """The student's: both CLIPs and Gemma."""
    path = str(folder)
    return {
        "clip_l": CLIPText(path, "text_encoder", "tokenizer", "penultimate", truncate=True),
        "clip_g": CLIPText(path, "text_encoder_2", "tokenizer_2", "penultimate", truncate=True),
        "gemma": tiny_gemma.gemma_text(folder / "gemma", truncate=True),
    }

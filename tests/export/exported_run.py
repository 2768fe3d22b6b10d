"""Runs at their smallest, of classes and of texts, exported."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from snapgen_pl import rng
from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.with_decoder import with_decoder
from snapgen_pl.export.folder import export_run
from snapgen_pl.export.options import Options
from snapgen_pl.export.report import GraphRecord
from snapgen_pl.png import to_pil, write_png
from snapgen_pl.trained_run import open_run
from tests.conditioning import tiny_sd3
from tests.tiny_kl import kl

IMAGES, SIDE = 8, 16
CLASSES = ("cat", "dog")
OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-2}}
MINILM_WIDTH, MINILM_TOKENS = 384, 8


class Exported(NamedTuple):
    run: Path
    folder: Path
    records: dict[str, GraphRecord]


def export(run: Path, folder: Path, decoder: Path | None = None) -> Exported:
    source = with_decoder(open_run(str(run)), None if decoder is None else str(decoder))
    records = export_run(source, folder, Options())
    return Exported(run, folder, {record.onnx.graph: record for record in records})


def photos(folder: Path) -> Path:
    pixels = (rng.uniform(3, 0, torch.arange(IMAGES), (3, SIDE, SIDE)) * 255).to(torch.uint8)
    for index, image in enumerate(pixels):
        file = folder / CLASSES[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(to_pil(image), file)
        file.with_suffix(".txt").write_text(f"a photo of {CLASSES[index % 2]}", encoding="utf-8")
    return folder


def part(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"snapgen_pl.{kind}", "init_args": arguments}


def fit(folder: Path, name: str, model: dict[str, Any], source: dict[str, Any], averaged: tuple[str, ...] = ()) -> Path:
    """Trains for two steps, each of which moves the weights far."""
    data = part("data.datamodule.ImageData", source=source, image_size=SIDE, batch_size=4)
    data["init_args"]["condition"] = "caption" if "captioned" in source["class_path"] else "label"
    model["init_args"]["optimizer"] = OPTIMIZER
    content = {
        "name": name,
        "runs": str(folder),
        "model": model,
        "data": data,
        "ema": {"modules": list(averaged)} if averaged else {},
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["fit", "--config", str(file)]) == 0
    return folder / name


def pretrain(**parts: Any) -> dict[str, Any]:
    sampler = part("flow.samplers.Euler", steps=2)
    return part("modules.pretrain.Pretrain", **parts, image_size=SIDE, sampler=sampler, guidance={"scale": 2.0})


def patch_pca() -> dict[str, Any]:
    return part("autoencoders.patch_pca.PatchPCA", patch=4, channels=4)


def class_run(folder: Path, images: Path) -> Path:
    """Two stages with self-attention and rotary positions, behind EDM's preconditioning; no mask, nothing pooled."""
    stages = [
        {"channels": 32, "down": [{"layers": 0}], "up": [{"layers": 0}, {"layers": 0}]},
        {"channels": 64, "down": [{"layers": 1}], "up": [{"layers": 0}, {"layers": 0}], "self_attention": True},
    ]
    unet = part("models.unet.UNet", stages=stages, middle_layers=0, in_channels=4, context_dim=16, head_dim=32)
    conditioner = part("conditioning.class_tokens.ClassTokens", num_classes=3, tokens=2, context_dim=16)
    model = pretrain(denoiser=unet, conditioner=conditioner, autoencoder=patch_pca(), sigma_data=0.5)
    return fit(folder, "classes", model, part("data.image_folder.ImageFolder", root=str(images)))


def decoder_run(folder: Path, images: Path) -> Path:
    """A decoder on the latents of the run of classes, alone."""
    model = part(
        "modules.decoder.TrainDecoder",
        decoder=part("models.decoder.Decoder", stages=[{"channels": 32, "blocks": 1}] * 3, in_channels=4),
        autoencoder=patch_pca(),
        discriminator=part("models.patch_discriminator.PatchDiscriminator", width=32, layers=2),
        reconstruction=part("distill.reconstruction_loss.ReconstructionLoss", lpips_weight=0.0),
        adversarial_from=1_000,
        discriminator_optimizer=OPTIMIZER,
    )
    source = part("data.image_folder.ImageFolder", root=str(images))
    return fit(folder, "decoder", model, source, averaged=("decoder",))


def text_run(folder: Path, images: Path) -> Path:
    """One stage; a mask and a pooled vector of CLIP-L and MiniLM; an AutoencoderKL with shift and scale."""
    tiny_sd3.save_sd3(folder / "sd3")
    kl(scaling_factor=1.5, shift_factor=0.06).save_pretrained(folder / "sd3" / "vae")
    clip = {
        "path": str(folder / "sd3"),
        "subfolder": "text_encoder",
        "tokenizer_subfolder": "tokenizer",
        "layer": "penultimate",
        "pooled": True,
    }
    encoders = {
        "clip_l": part("conditioning.clip_text.CLIPText", **clip),
        "minilm": part("conditioning.minilm.MiniLM", tokens=MINILM_TOKENS, truncate=True, pooled=True),
    }
    texts = part(
        "conditioning.joined_texts.JoinedTexts",
        encoders=encoders,
        blocks=[["clip_l"], ["minilm"]],
        context_dim=MINILM_WIDTH,
        dropout=0.3,
        pooled=True,
    )
    stage = {"channels": 32, "down": [{"layers": 1}], "up": [{"layers": 0}, {"layers": 0}]}
    unet = part(
        "models.unet.UNet",
        stages=[stage],
        middle_layers=0,
        in_channels=4,
        context_dim=MINILM_WIDTH,
        pooled_dim=tiny_sd3.PROJECTIONS[0] + MINILM_WIDTH,
        head_dim=32,
    )
    autoencoder = part("autoencoders.kl.KL", path=str(folder / "sd3"), subfolder="vae")
    model = pretrain(denoiser=unet, conditioner=texts, autoencoder=autoencoder)
    return fit(folder, "texts", model, part("data.captioned_folder.CaptionedFolder", root=str(images)))

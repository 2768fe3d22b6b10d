"""What lies in a pipeline's folder."""

from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors.torch import save_file

from snapgen_pl.diffusers_weights import read_tensors
from snapgen_pl.pipeline.parts import PipelineAutoencoder, PipelineConditioner, PipelineDenoiser
from snapgen_pl.pipeline.scheduler import SamplerScheduler
from snapgen_pl.pipeline.snapgen_pipeline import SnapGenPipeline
from snapgen_pl.whole_files import write_json
from tests.export.exported_run import part
from tests.fuzz.target import Target

logging.disable_progress_bar()

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def write_pipeline(folder: Path) -> None:
    stage = {"channels": 32, "down": [{"layers": 0}], "up": [{"layers": 0}, {"layers": 0}]}
    unet = part("models.unet.UNet", stages=[stage], middle_layers=0, context_dim=8, head_dim=32)
    SnapGenPipeline(
        PipelineDenoiser(unet),
        PipelineConditioner(
            part("conditioning.class_tokens.ClassTokens", num_classes=2, context_dim=8), ["cat", "dog"]
        ),
        PipelineAutoencoder(part("autoencoders.patch_pca.PatchPCA", patch=4, channels=4)),
        SamplerScheduler(part("flow.samplers.Heun", steps=2)),
        image_size=8,
    ).save_pretrained(folder)


def read_pipeline(folder: Path) -> None:
    pipeline = SnapGenPipeline.from_pretrained(folder)
    assert isinstance(pipeline.unet, PipelineDenoiser)


def read_unet(folder: Path) -> None:
    assert PipelineDenoiser.from_pretrained(folder / "unet").in_channels > 0


def read_conditioner(folder: Path) -> None:
    part = PipelineConditioner.from_pretrained(folder / "conditioner")
    assert all(isinstance(name, str) for name in part.config["classes"])


def read_scheduler(folder: Path) -> None:
    assert len(SamplerScheduler.from_pretrained(folder / "scheduler").timesteps) > 0


def write_tensors(folder: Path) -> None:
    """Weights in one of several files."""
    for name in ("a", "b"):
        save_file({name: torch.ones(2)}, folder / f"{name}.safetensors")
    write_json({"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}, folder / INDEX)


def read_tensors_in(folder: Path) -> None:
    assert read_tensors(folder).keys() <= {"a", "b"}


TARGETS = {
    "pipeline_index": Target(write_pipeline, "model_index.json", read_pipeline),
    "pipeline_network": Target(write_pipeline, "unet/config.json", read_unet),
    "pipeline_conditioner": Target(write_pipeline, "conditioner/config.json", read_conditioner),
    "pipeline_scheduler": Target(write_pipeline, "scheduler/scheduler_config.json", read_scheduler),
    "pipeline_weights": Target(write_pipeline, f"conditioner/{WEIGHTS}", read_conditioner),
    "weights_index": Target(write_tensors, INDEX, read_tensors_in),
}

"""Stages two and three at their smallest: the real modules, and a run of stage one as teacher."""

from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import yaml

from snapgen_pl.__main__ import main as snapgen
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.checkpoints import LAST, newest
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.distill.feature_loss import FeaturePair
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.models.discriminator import Discriminator, HeadInput
from snapgen_pl.models.unet import Block, Stage, UNet
from snapgen_pl.modules.distill import Distill
from snapgen_pl.modules.step_distill import StepDistill
from snapgen_pl.teachers.run import RunTeacher
from tests import pretrain_run, tiny_run

D = TypeVar("D", bound=Distill)
PAIRS = (FeaturePair("up.1", "up.1", 64, 32), FeaturePair("middle", "down.0", 64, 32))


def teacher_run(images: Path, folder: Path) -> Path:
    """The folder of a run of two steps, each of which moves the weights far."""
    stage = {"channels": 32, "down": [{"layers": 1}], "up": [{"layers": 0}, {"layers": 1}]}
    content = {
        "name": "teacher",
        "runs": str(folder),
        "model": {
            "class_path": "snapgen_pl.modules.pretrain.Pretrain",
            "init_args": {
                "image_size": pretrain_run.SIDE,
                "denoiser": {
                    "class_path": "snapgen_pl.models.unet.UNet",
                    "init_args": {
                        "stages": [stage, stage],
                        "middle_layers": 1,
                        "in_channels": 4,
                        "context_dim": 16,
                        "head_dim": 16,
                    },
                },
                "conditioner": {
                    "class_path": "snapgen_pl.conditioning.class_tokens.ClassTokens",
                    "init_args": {"num_classes": 2, "context_dim": 16},
                },
                "autoencoder": {
                    "class_path": "snapgen_pl.autoencoders.patch_pca.PatchPCA",
                    "init_args": {"patch": 4, "channels": 4},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-2}},
            },
        },
        "data": {
            "class_path": "snapgen_pl.data.datamodule.ImageData",
            "init_args": {
                "source": {
                    "class_path": "snapgen_pl.data.image_folder.ImageFolder",
                    "init_args": {"root": str(images)},
                },
                "image_size": pretrain_run.SIDE,
                "batch_size": pretrain_run.BATCH,
            },
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
    }
    file = folder / "teacher.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert snapgen(["fit", "--config", str(file)]) == 0
    return folder / "teacher"


def distill(run: Path, dropout: float = 0.5, **options: Any) -> Distill:
    """The student of pretrain_run, and the run as its teacher, guided."""
    return build(Distill, run, dropout, **options)


def build(kind: type[D], run: Path, dropout: float = 0.5, **options: Any) -> D:
    """The same, of any kind."""
    L.seed_everything(0, verbose=False)
    stages = [
        Stage(32, down=[Block()], up=[Block()] * 2),
        Stage(64, down=[Block(layers=1)], up=[Block(layers=1)] * 2, self_attention=True),
    ]
    return kind(
        denoiser=UNet(stages, middle_layers=1, in_channels=4, context_dim=32, head_dim=32),
        conditioner=ClassTokens(2, context_dim=32, dropout=dropout),
        autoencoder=PatchPCA(patch=4, channels=4),
        teacher=options.pop("teacher", None) or RunTeacher(str(run), guidance=Guidance(2.0)),
        image_size=pretrain_run.SIDE,
        **({"features": PAIRS, "warmup_images": 40} | options),
    )


def step_distill(run: Path, dropout: float = 0.5, **options: Any) -> StepDistill:
    """The same as a few-step generator of four steps, before a discriminator on two of the teacher's features."""
    L.seed_everything(0, verbose=False)
    inputs = [HeadInput("down.0", 32), HeadInput("up.1", 32)]
    options = {"discriminator": Discriminator(inputs, summary_dim=16, width=32), "features": ()} | options
    return build(StepDistill, run, dropout, **options)


def train(
    module: Distill,
    images: Path,
    folder: Path,
    steps: int,
    resume: bool = False,
    data: ImageData | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains (further) and returns the last checkpoint."""
    L.seed_everything(123 if resume else 0, verbose=False)
    trainer = tiny_run.trainer_for(folder, steps, **options)
    data = data or pretrain_run.image_data(images)
    trainer.fit(module, datamodule=data, ckpt_path=newest(folder) if resume else None)
    return tiny_run.load(folder / LAST)

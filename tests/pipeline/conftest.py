"""Runs at their smallest, of classes and of texts, and pipelines made of them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from snapgen_pl.__main__ import main
from tests.conditioning import tiny_clip
from tests.export import exported_run
from tests.export.exported_run import part

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def class_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.class_run(tmp_path_factory.mktemp("classes"), photos)


@pytest.fixture(scope="session")
def text_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.text_run(tmp_path_factory.mktemp("texts"), photos)


@pytest.fixture(scope="session")
def decoder_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_run.decoder_run(tmp_path_factory.mktemp("decoder"), photos)


def export(run: Path, out: Path, *words: str) -> Path:
    assert main(["export", "diffusers", "--run", str(run), "--out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="session")
def class_pipeline(class_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(class_run, tmp_path_factory.mktemp("class_pipeline") / "classes")


@pytest.fixture(scope="session")
def text_pipeline(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(text_run, tmp_path_factory.mktemp("text_pipeline") / "texts")


def generated(run: Path, out: Path, *words: str) -> list[np.ndarray]:
    """What `generate` draws, two images of each."""
    assert main(["generate", "--run", str(run), "--out", str(out), "--count", "2", *words]) == 0
    return [np.asarray(Image.open(file)).astype(int) for file in sorted(out.glob("*-*.png"))]


def with_arguments(run: Path, folder: Path, **changed: Any) -> Path:
    """A run's copy whose module has other arguments."""
    copy = Path(shutil.copytree(run, folder / "run"))
    content = yaml.safe_load((copy / "config.yaml").read_text())
    content["model"]["init_args"] |= changed
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    return copy


def class_text_run(class_run: Path, folder: Path) -> Path:
    """The run of classes, told their names through a tiny CLIP instead, which lies beside it."""
    tiny_clip.save_pipeline(folder / "clip")
    encoder = {"path": str(folder / "clip"), "subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    texts = part("conditioning.class_texts.ClassTexts", encoder=part("conditioning.clip_text.CLIPText", **encoder))
    copy = with_arguments(class_run, folder, conditioner=texts)
    saved = torch.load(copy / "last.ckpt", weights_only=True)
    for weights in (saved["state_dict"], saved["ema"]["weights"]):
        del weights["conditioner.table.weight"]
    torch.save(saved, copy / "last.ckpt")
    return copy

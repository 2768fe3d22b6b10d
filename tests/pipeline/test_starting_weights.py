"""A pipeline's folder is as good a start as the run that it was made of."""

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.drawing import built_module
from snapgen_pl.pipeline.folder import open_trained
from snapgen_pl.starting_weights import begin
from snapgen_pl.trained_run import open_run
from tests.pipeline.conftest import WEIGHTS


@pytest.fixture(scope="module")
def negatives(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images, which another transform of patches fits."""
    folder = Path(shutil.copytree(photos, tmp_path_factory.mktemp("negatives") / "photos"))
    for file in folder.rglob("*.png"):
        with Image.open(file) as image:
            halved = ImageOps.invert(image).resize((8, 8)).resize(image.size)
        halved.save(file)
    return folder


class Outcome(NamedTuple):
    """What a run has come to after two steps more."""

    folder: Path
    weights: dict[str, torch.Tensor]
    transform: dict[str, torch.Tensor]
    validated: list[str]


def trained(name: str, run: Path, images: Path, folder: Path, *words: str) -> Outcome:
    """Trains on other images, validating after each step."""
    words = ("--config", str(run / "config.yaml"), "--runs", str(folder), "--name", name, *words)
    words += ("--data.source.root", str(images), "--trainer.val_check_interval", "1")
    words += ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(folder))
    assert main(["fit", *words, "--trainer.logger.name", f"log-{name}"]) == 0
    with next((folder / f"log-{name}").rglob("metrics.csv")).open() as file:
        validated = [row["val/loss"] for row in csv.DictReader(file) if row.get("val/loss")]
    weights = torch.load(folder / name / "last.ckpt", weights_only=True)["state_dict"]
    return Outcome(folder / name, weights, load_file(folder / name / FILE), validated)


def test_training_begins_with_either_bit_for_bit_and_in_the_same_latents(
    class_run: Path, class_pipeline: Path, negatives: Path, tmp_path: Path
) -> None:
    starts = {"run": class_run, "pipeline": class_pipeline}
    of_run, of_pipeline = (
        trained(name, class_run, negatives, tmp_path, "--model.init_from", str(start)) for name, start in starts.items()
    )
    assert len(of_run.validated) == 2
    assert of_run.validated == of_pipeline.validated
    for one, other in ((of_run.weights, of_pipeline.weights), (of_run.transform, of_pipeline.transform)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    began = json.loads((of_pipeline.folder / "manifest.json").read_text())["starts"][0]["init_from"]
    assert began == open_trained(str(class_pipeline)).weights_facts()
    assert (began["pipeline"], len(began["sha256"])) == (str(class_pipeline), 64)
    # Fitted to its own images, the transform would be another.
    alone = trained("alone", class_run, negatives, tmp_path)
    assert not torch.allclose(alone.transform["mean"], of_run.transform["mean"], atol=1e-2)


def test_they_are_the_runs_averaged_weights(class_run: Path, class_pipeline: Path) -> None:
    module = built_module(open_run(str(class_run)).config)
    parts = {"denoiser": module.denoiser, "conditioner": module.conditioner}
    assert "averaged ones of the pipeline" in begin(open_trained(str(class_pipeline)), parts, "all")
    averaged = torch.load(class_run / "last.ckpt", weights_only=True)["ema"]["weights"]
    begun = module.state_dict()
    assert all(torch.equal(begun[name], weight) for name, weight in averaged.items())


def test_a_table_of_states_is_nothing_to_begin_with(class_run: Path, class_pipeline: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(class_pipeline, tmp_path / "copy"))
    save_file({"conditioner.states_NSD": torch.zeros(3, 77, 16)}, copy / "conditioner" / WEIGHTS)
    parts = {"denoiser": built_module(open_run(str(class_run)).config).denoiser, "conditioner": torch.nn.Identity()}
    assert "averaged ones of the pipeline" in begin(open_trained(str(copy)), parts, "all")


def test_other_networks_are_refused(class_pipeline: Path) -> None:
    parts = {"conditioner": ClassTokens(5, context_dim=16)}
    with pytest.raises(ValueError, match=r"(?s)init_from .*its networks are not those of this run; .*table\.weight"):
        begin(open_trained(str(class_pipeline)), parts, "conditioner")


def test_other_latents_are_refused_before_anything_is_kept(
    class_pipeline: Path, text_pipeline: Path, text_run: Path, tmp_path: Path
) -> None:
    for source, channels, said in (
        (class_pipeline, 8, "holds 4 components of 48 values, the configuration asks for 8 components of 4x4"),
        (text_pipeline, 4, r"vae.* is of another autoencoder than a PatchPCA"),
        (text_run, 4, r"keeps no PatchPCA .*: its weights were trained on other latents"),
    ):
        with pytest.raises(ValueError, match=said):
            PatchPCA(4, channels).take_over(source, tmp_path)
    assert not list(tmp_path.iterdir())
    PatchPCA(4, 4).take_over(class_pipeline, tmp_path)
    save_file(load_file(tmp_path / FILE) | {"mean": torch.ones(48)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"makes other latents than .*vae.*choose another --name, or go on"):
        PatchPCA(4, 4).take_over(class_pipeline, tmp_path)


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run there"):
        open_trained(str(tmp_path))

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
from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.drawing import built_module
from snapgen_pl.pipeline.folder import open_trained
from snapgen_pl.starting_weights import begin, check_latents
from snapgen_pl.trained_run import open_run
from tests.pipeline.conftest import WEIGHTS, export, with_arguments
from tests.tiny_kl import kl


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


def ready(autoencoder: Autoencoder, folder: Path) -> Autoencoder:
    autoencoder.ready(folder, ())
    return autoencoder


def autoencoder_of(text_run: Path) -> Path:
    """The folder of its AutoencoderKL, which has shift 0.06 and scale 1.5."""
    return text_run.parent / "sd3" / "vae"


def without_record(run: Path, folder: Path) -> Path:
    """A copy of a run as of before manifests named autoencoders."""
    copy = Path(shutil.copytree(run, folder / "older"))
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["starts"][-1].pop("autoencoder")["channels"] == 4
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_weights_of_other_latents_are_no_start_and_those_of_the_same_are_wherever_they_lie(
    class_run: Path, text_run: Path, text_pipeline: Path, tmp_path: Path
) -> None:
    own = str(shutil.copytree(autoencoder_of(text_run), tmp_path / "elsewhere"))
    other = kl(scaling_factor=1.5, shift_factor=0.06)
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    same = [ready(KL(own), tmp_path), ready(KL(own, dtype="bfloat16", tf32=True), tmp_path)]
    strangers = {
        r"scale is 1\.5 there, 0\.18 here\. Set model\.autoencoder": KL(own, scale=0.18),
        r"shift is 0\.06 there, 0\.0 here\. Set": KL(own, shift=0.0),
        r"weights is '\w{64}' there, '\w{64}' here\. Set": KL(str(tmp_path / "other")),
        r"class is 'KL' there, 'PatchPCA' here": PatchPCA(4, 4),
    }
    for source in (text_run, without_record(text_run, tmp_path), text_pipeline):
        trained = open_trained(str(source))
        for autoencoder in same:
            check_latents(trained, autoencoder)
        for said, autoencoder in strangers.items():
            with pytest.raises(ValueError, match=rf"init_from {source}: .* on other latents than those.*: .*{said}"):
                check_latents(trained, ready(autoencoder, class_run))


def test_a_run_knows_its_latents_without_its_autoencoder_unless_it_is_older(text_run: Path, tmp_path: Path) -> None:
    """Which a copy on another machine is."""
    network = {"class_path": "snapgen_pl.autoencoders.kl.KL", "init_args": {"path": str(tmp_path / "gone")}}
    moved = with_arguments(text_run, tmp_path, autoencoder=network)
    autoencoder = ready(KL(str(autoencoder_of(text_run))), tmp_path)
    check_latents(open_run(str(moved)), autoencoder)
    older = without_record(moved, tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)nothing tells which latents {older} was trained.*no folder .*gone"):
        check_latents(open_run(str(older)), autoencoder)


def test_of_a_rounded_autoencoder_all_but_its_weights_is_compared(text_run: Path, tmp_path: Path) -> None:
    folder = str(autoencoder_of(text_run))
    network = {"class_path": "snapgen_pl.autoencoders.kl.KL", "init_args": {"path": folder, "dtype": "bfloat16"}}
    pipeline = export(with_arguments(text_run, tmp_path, autoencoder=network), tmp_path / "pipeline")
    with pytest.warns(UserWarning, match="the pipeline .* does not tell which weights its autoencoder had"):
        check_latents(open_trained(str(pipeline)), ready(KL(folder), tmp_path))
    with (
        pytest.warns(UserWarning, match="before they were rounded"),
        pytest.raises(
            ValueError, match=r"other latents than those of model\.autoencoder: scale is 1\.5 there, 2\.0 here"
        ),
    ):
        check_latents(open_trained(str(pipeline)), ready(KL(folder, scale=2.0), tmp_path))


def test_training_does_not_begin_in_other_latents(
    class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(class_run / "config.yaml"), "--runs", str(tmp_path), "--name", "whitened"]
    words += ["--model.init_from", str(class_run), "--model.autoencoder.whitening", "0.9"]
    assert main(["fit", *words]) != 0
    assert "whitening is 0.5 there, 0.9 here. Set model.autoencoder to that run's" in capsys.readouterr().err
    assert not (tmp_path / "whitened" / "last.ckpt").exists()


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run there"):
        open_trained(str(tmp_path))

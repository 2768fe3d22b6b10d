"""From a folder of images to a trained run on latents: the command line, real classes, small sizes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.latents import Latents
from snapgen_pl.data.shards import MANIFEST
from snapgen_pl.data.transforms import centre_crop, to_pixels
from snapgen_pl.images import from_uint8
from tests import sample_run
from tests.tiny_kl import kl

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "imagenet256"
TRAINING, VALIDATION = sum(sample_run.CLASSES.values()), 6


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    kl().save_pretrained(folder)
    return folder


def words(images: Path, autoencoder: Path, runs: Path, *more: str) -> list[str]:
    return [
        "predict",
        *("--config", str(EXPERIMENTS / "encode.yaml")),
        *("--runs", str(runs), "--name", "encoded"),
        *("--model.autoencoder.path", str(autoencoder)),
        *("--data.source.root", str(images), "--data.image_size", "32", "--data.workers", "0"),
        *("--data.batch_size", "6", "--data.shard_size", "16", "--trainer.accelerator", "cpu"),
        *more,
    ]


@pytest.fixture(scope="module")
def encoded(images: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(words(images, autoencoder, runs)) == 0
    return runs / "encoded" / "latents"


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def assert_equal_to_the_bit(left: Path, right: Path) -> None:
    assert json.loads((left / MANIFEST).read_text())["digests"] == json.loads((right / MANIFEST).read_text())["digests"]


def test_shards_hold_every_image_and_its_mirror_image(encoded: Path, images: Path, autoencoder: Path) -> None:
    source = Latents(str(encoded)).open()
    assert source.classes == tuple(sample_run.CLASSES)
    assert (len(source.train), len(source.validation)) == (TRAINING, VALIDATION)
    network = KL(str(autoencoder))
    network.ready(encoded, ())
    pictures = ImageFolder(images).open()
    for latents, split in ((source.train, pictures.train), (source.validation, pictures.validation)):
        assert torch.equal(latents.labels, split.labels)
        for index in (0, len(split) - 1):
            pixels = from_uint8(to_pixels(centre_crop(split.load(index), 32))[None])
            for flip, view in ((False, pixels), (True, pixels.flip(-1))):
                expected, found = network.encode(view), latents.load([index], [flip])
                torch.testing.assert_close(found.mean_BCHW.float(), expected.mean_BCHW, atol=2e-3, rtol=2e-3)
                torch.testing.assert_close(found.std_BCHW.float(), expected.std_BCHW, atol=2e-3, rtol=2e-3)


def test_whole_shards_are_kept_and_the_rest_written(
    encoded: Path, images: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(images, autoencoder, tmp_path)) == 0
    folder = tmp_path / "encoded" / "latents"
    (folder / "train-00002.safetensors").unlink()
    (folder / MANIFEST).unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert main(words(images, autoencoder, tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_equal_to_the_bit(encoded, folder)
    assert "70 images in 5 shards" in capsys.readouterr().out


def test_a_run_killed_before_its_manifest_has_only_that_left_to_write(
    encoded: Path, images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encoded" / "latents"
    shutil.copytree(encoded, folder)
    (folder / MANIFEST).unlink()
    assert main(words(images, autoencoder, tmp_path)) == 0
    assert_equal_to_the_bit(encoded, folder)


@pytest.mark.slow
def test_two_processes_killed_and_started_again_write_the_same_shards(
    encoded: Path, images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    slow = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.enable_progress_bar", "false")
    command = [sys.executable, "-m", "snapgen_pl", *words(images, autoencoder, tmp_path, *slow)]
    folder = tmp_path / "encoded" / "latents"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    while process.poll() is None and not list(folder.glob("*.safetensors")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert found
    assert not (folder / MANIFEST).exists()
    subprocess.run(command, env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in found} == found
    for name, tensors in contents(folder).items():
        for key, tensor in tensors.items():
            # One thread a process sums in another order than two.
            torch.testing.assert_close(tensor, load_file(encoded / name)[key], atol=2e-3, rtol=2e-3)
    # One shard for two processes leaves one of them without work.
    (folder / "train-00001.safetensors").unlink()
    (folder / MANIFEST).unlink()
    subprocess.run(command, env=environment, check=True)
    Latents(str(folder)).open()


def test_a_folder_of_another_encoding_is_refused_by_name(
    images: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(images, autoencoder, tmp_path)) == 0
    assert main(words(images, autoencoder, tmp_path, "--model.autoencoder.scale", "0.5")) == 1
    assert "autoencoder.scale is 0.18215 there, 0.5 here" in capsys.readouterr().err.replace("\n", " ")


def test_latents_train_resume_draw_and_decode(
    encoded: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        *("--config", str(EXPERIMENTS.parent / "quickstart.yaml"), "--runs", str(tmp_path), "--name", "latents"),
        *("--data.source", "snapgen_pl.data.latents.Latents", "--data.source.folder", str(encoded)),
        *("--data.image_size", "32", "--data.flip", "true", "--model.image_size", "32"),
        *("--model.autoencoder", "snapgen_pl.autoencoders.kl.KL", "--model.autoencoder.path", str(autoencoder)),
        *("--model.denoiser.in_channels", "4", "--model.sampler.steps", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.callbacks", "callbacks.sample_grid.SampleGrid", "--trainer.callbacks.rows", "2"),
        *("--trainer.val_check_interval", "2", "--model.decay_images", "null"),
    ]
    assert main(["fit", *small, "--trainer.max_steps", "2"]) == 0
    assert main(["fit", *small, "--trainer.max_steps", "4", "--ckpt_path", "last"]) == 0
    straight = ["--name", "straight", "--trainer.max_steps", "4"]
    assert main(["fit", *small, *straight]) == 0
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("latents", "straight")]
    for key, weight in saved[0]["ema"]["weights"].items():
        assert torch.equal(weight, saved[1]["ema"]["weights"][key]), key
    assert not any("autoencoder" in key for key in saved[0]["state_dict"])
    assert (tmp_path / "latents" / "samples" / "000000032.png").exists()
    out = tmp_path / "drawn"
    generate = ["generate", "--run", str(tmp_path / "latents"), "--classes", "apple, crane", "--count", "2"]
    assert main([*generate, "--out", str(out)]) == 0
    assert len(list(out.glob("*.png"))) == 5
    wrong = ["--name", "wrong", "--trainer.max_steps", "2", "--model.autoencoder.scale", "0.5"]
    assert main(["fit", *small, *wrong]) == 1
    assert "scale is 0.18215 in the latents' manifest, 0.5 in the run" in capsys.readouterr().err.replace("\n", " ")

"""Verbs draw from a pipeline's folder just what they draw from its run, and say what they do not take."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from snapgen_pl.__main__ import main
from snapgen_pl.data.prompt_data import PromptData
from snapgen_pl.modules.drawn import Drawn
from snapgen_pl.pipeline.folder import open_pipeline
from tests.export.exported_run import part
from tests.pipeline.conftest import WEIGHTS, class_text_run, export, generated, with_arguments

CLASSES = ["--classes", "cat, dog"]


def assert_same(run: Path, pipeline: Path, folder: Path, *words: str) -> None:
    """To the byte; and the images differ among themselves."""
    ours, theirs = (generated(each, folder / name, *words) for name, each in (("a", run), ("b", pipeline)))
    assert len(ours) == len(theirs) > 1
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert all((each != ours[0]).mean() > 0.1 for each in ours[1:])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Euler", {"steps": 10, "shift": 2.0}),
        ("SDE", {"steps": 4, "shift": 2.0, "last_step": 0.5, "last": "data"}),
    ],
)
def test_classes_under_the_runs_sampler_guidance_and_seed(
    class_run: Path, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    guidance = {"scale": 3.0, "interval": [0.7, 1.0], "channels": 3}
    sampler = part(f"flow.samplers.{name}", **settings)
    run = with_arguments(class_run, tmp_path, sampler=sampler, guidance=guidance, seed=7)
    pipeline = export(run, tmp_path / "pipeline")
    model = open_pipeline(str(pipeline)).model
    assert model["sampler"] == sampler
    assert (model["guidance"], model["seed"]) == (guidance, 7)
    assert_same(run, pipeline, tmp_path, *CLASSES)


def test_texts_with_all_that_may_be_asked_otherwise(text_run: Path, text_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of cat\na photo of dog\n")
    prompts = ["--prompts", str(tmp_path / "prompts.txt")]
    assert_same(text_run, text_pipeline, tmp_path / "plain", *prompts)
    changed = ["--seed", "3", "--steps", "3", "--guidance", "1.5", "--encoders", "minilm", "--size", "8x24"]
    assert_same(text_run, text_pipeline, tmp_path / "changed", *prompts, *changed)


def test_classes_as_texts(class_run: Path, tmp_path: Path) -> None:
    run = class_text_run(class_run, tmp_path)
    assert_same(run, export(run, tmp_path / "pipeline"), tmp_path, "--classes", "dog")


def test_decoders_inside_and_beside(class_run: Path, decoder_run: Path, class_pipeline: Path, tmp_path: Path) -> None:
    decoder = ["--decoder", str(decoder_run)]
    inside = export(class_run, tmp_path / "pipeline", *decoder)
    own, *decoded = (
        generated(folder, tmp_path / name, *CLASSES, *words)
        for name, folder, words in (
            ("own", class_run, []),
            ("run", class_run, decoder),
            ("inside", inside, []),
            ("beside", class_pipeline, decoder),
            ("instead", inside, decoder),
        )
    )
    assert not np.array_equal(own, decoded[0])
    assert all(np.array_equal(each, decoded[0]) for each in decoded[1:])
    said = json.loads((tmp_path / "beside" / "manifest.json").read_text())
    assert Path(said["pipeline"]) == class_pipeline
    assert Path(said["decoder"]["checkpoint"]).parent == decoder_run


def test_a_folder_of_its_images_goes_on_and_takes_no_others(
    class_run: Path, class_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    whole = generated(class_pipeline, out, *CLASSES)
    (out / "001-dog-0001.png").unlink()
    assert all(np.array_equal(*pair) for pair in zip(whole, generated(class_pipeline, out, *CLASSES), strict=True))
    assert "3 files of them before" in capsys.readouterr().out
    other = Path(shutil.copytree(class_pipeline, tmp_path / "other"))
    tensors = load_file(other / "unet" / WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other / "unet" / WEIGHTS)
    for folder in (other, class_run):
        assert main(["generate", "--run", str(folder), "--out", str(out), "--count", "2", *CLASSES]) == 1
        assert "holds images of another command" in capsys.readouterr().err


def test_prompts_are_measured_from_it_too(text_run: Path, text_pipeline: Path, tmp_path: Path) -> None:
    """``test`` draws as ``predict`` does; the module is what the files of text-to-image measurements name."""
    (tmp_path / "prompts.txt").write_text("a photo of cat\na photo of dog\n")

    said = []

    def predicted(folder: Path) -> torch.Tensor:
        trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
        data = PromptData(tmp_path / "prompts.txt", images=2, batch_size=2)
        module = Drawn(str(folder))
        said.append((module.origin, module.images_seen))
        batches = trainer.predict(module, data)
        assert batches is not None
        return torch.cat([batch for batch in batches if isinstance(batch, torch.Tensor)])

    images = predicted(text_pipeline)
    assert images.float().std(dim=0).mean() > 1
    assert torch.equal(images, predicted(text_run))
    assert said == [(f"EMA of the pipeline {text_pipeline}", 0), (f"EMA of {text_run / 'last.ckpt'}", 8)]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a verb that refuses says, on one line."""
    assert main(words) in (1, 2)
    return " ".join(capsys.readouterr().err.split())


def test_verbs_that_take_no_pipeline_name_the_run(
    class_run: Path, class_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = ["--run", str(class_pipeline)], ["--out", str(tmp_path / "out")]
    said = f"{class_pipeline} is a pipeline of diffusers, which `generate` and `model.init_from` take; give the folder"
    assert said in fails(capsys, "export", *run, *out)
    assert said in fails(capsys, "export", "diffusers", *run, *out)
    assert said in fails(capsys, "generate", "--run", str(class_run), *out, "--decoder", str(class_pipeline), *CLASSES)
    assert said in fails(capsys, "test", *run)
    assert "torch alone draws; leave --backend out" in fails(
        capsys, "generate", *run, *out, *CLASSES, "--backend", "onnx"
    )
    assert "the run draws from classes; give --classes" in fails(capsys, "generate", *run, *out, "--prompt", "a cat")
    assert not (tmp_path / "out").exists()


def edited(file: str, **changed: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file; None takes them out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | changed
        (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def asking(part: str, **arguments: int) -> Callable[[Path], None]:
    """Changes arguments of a part's network."""

    def change(folder: Path) -> None:
        file = folder / part / "config.json"
        content = json.loads(file.read_text())
        content["network"]["init_args"] |= arguments
        file.write_text(json.dumps(content))

    return change


EULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited("model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline; give a pipeline that `export"),
        (edited("model_index.json", image_size=None), "does not say image_size; get the folder again"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "is no JSON"),
        (edited(EULER, _class_name="DDIMScheduler"), "is of a DDIMScheduler that no sampler here stands for"),
        (edited(EULER, use_dynamic_shifting=True), "that no sampler here stands for; put back the one"),
        (edited("unet/config.json", network=None), "names no network of this project"),
        (
            edited("unet/config.json", network={"class_path": "trap.UNet"}),
            "names trap.UNet, which is not of snapgen_pl",
        ),
        (edited("vae/config.json", network={"class_path": "trap.VAE"}), "names trap.VAE, which is not of snapgen_pl"),
        (edited("conditioner/config.json", classes=[]), "does not say its classes"),
        (lambda folder: (folder / "unet" / WEIGHTS).unlink(), f"no {WEIGHTS} in"),
        (lambda folder: (folder / "vae" / WEIGHTS).write_bytes(b"no"), "is damaged"),
        (lambda folder: save_file({"denoiser.a": torch.ones(1)}, folder / "unet" / WEIGHTS), "does not fit its config"),
        (lambda folder: (folder / "decoder").mkdir(), "decoder/config.json cannot be read"),
        (asking("unet", middle_layers=1000), "unet does not fit its config.json: that asks for a network of more"),
        (asking("unet", middle_layers=10**6), "unet/config.json says middle_layers: 1,000,000, and no network"),
        (asking("conditioner", num_classes=10**12), "conditioner does not fit its config.json: that asks for"),
        (asking("vae", patch=10**6), "vae does not fit its config.json: that asks for"),
    ],
)
def test_what_is_damaged_or_of_elsewhere_is_said(
    class_pipeline: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemError")
    copy = Path(shutil.copytree(class_pipeline, tmp_path / "copy"))
    change(copy)
    assert said in fails(capsys, "generate", "--run", str(copy), "--out", str(tmp_path / "out"), *CLASSES)
    assert not list((tmp_path / "out").glob("*.png"))

"""A pipeline's folder is as good a start as the run that it was made of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from snapgen_pl.__main__ import main
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.drawing import drawing_module
from snapgen_pl.starting_weights import begin, open_weights
from snapgen_pl.trained_run import open_run


def trained_from(start: Path, run: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The raw weights after two steps more."""
    words = ["--config", str(run / "config.yaml"), "--runs", str(folder), "--name", start.name]
    assert main(["fit", *words, "--model.init_from", str(start)]) == 0
    weights: dict[str, torch.Tensor] = torch.load(folder / start.name / "last.ckpt", weights_only=True)["state_dict"]
    return weights


def test_training_begins_with_either_bit_for_bit(class_run: Path, class_pipeline: Path, tmp_path: Path) -> None:
    run, pipeline = Path(shutil.copytree(class_run, tmp_path / "run")), tmp_path / "pipeline"
    shutil.copytree(class_pipeline, pipeline)
    of_run, of_pipeline = (trained_from(start, class_run, tmp_path / "runs") for start in (run, pipeline))
    assert of_run.keys() == of_pipeline.keys()
    assert all(torch.equal(of_run[name], of_pipeline[name]) for name in of_run)
    began = json.loads((tmp_path / "runs" / "pipeline" / "manifest.json").read_text())["starts"][0]["init_from"]
    assert began == open_weights(str(pipeline)).weights_facts()
    assert (began["pipeline"], len(began["sha256"])) == (str(pipeline), 64)


def test_they_are_the_runs_averaged_weights(class_run: Path, class_pipeline: Path) -> None:
    module = drawing_module(open_run(str(class_run)).config)
    parts = {"denoiser": module.denoiser, "conditioner": module.conditioner}
    assert "averaged ones of the pipeline" in begin(open_weights(str(class_pipeline)), parts, "all")
    averaged = torch.load(class_run / "last.ckpt", weights_only=True)["ema"]["weights"]
    begun = module.state_dict()
    assert all(torch.equal(begun[name], weight) for name, weight in averaged.items())


def test_a_table_of_states_is_nothing_to_begin_with(class_pipeline: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(class_pipeline, tmp_path / "copy"))
    save_file(
        {"conditioner.states_NSD": torch.zeros(3, 2, 4)}, copy / "conditioner" / "diffusion_pytorch_model.safetensors"
    )
    denoiser = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    assert open_weights(str(copy)).weights().keys() == denoiser.keys()


def test_other_networks_are_refused(class_pipeline: Path) -> None:
    parts = {"conditioner": ClassTokens(5, context_dim=16)}
    with pytest.raises(ValueError, match=r"(?s)init_from .*its networks are not those of this run; .*table\.weight"):
        begin(open_weights(str(class_pipeline)), parts, "conditioner")


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run there"):
        open_weights(str(tmp_path))

"""Config files merge as the command line merges them: its parser makes the same of one file as of all that it is of."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from snapgen_pl.cli import Parser
from snapgen_pl.config_files import Value
from snapgen_pl.experiments import experiments_dir
from snapgen_pl.merged_config import merged_config
from tests.export.exported_run import part

STAGE = {"channels": 32, "down": [{"layers": 1}], "up": [{"layers": 0}, {"layers": 1}]}
UNET = part("models.unet.UNet", stages=[STAGE], middle_layers=1, in_channels=4, context_dim=16, head_dim=16)
ENCODERS = {name: part("conditioning.minilm.MiniLM", tokens=tokens) for name, tokens in (("a", 4), ("b", 5))}
TEXTS = part("conditioning.joined_texts.JoinedTexts", encoders=ENCODERS, blocks=[["a"], ["b"]])
BASE = {
    "model": part(
        "modules.pretrain.Pretrain",
        denoiser=UNET,
        conditioner=TEXTS,
        autoencoder=part("autoencoders.patch_pca.PatchPCA", patch=4, channels=4),
        sampler=part("flow.samplers.SDE", steps=250, last_step=0.04),
        guidance={"scale": 2.0},
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "betas": [0.9, 0.99]}},
    ),
    "data": part("data.datamodule.ImageData", source=part("data.emoji.Emoji"), image_size=32, text_states={"a": "x"}),
    "trainer": {"precision": "bf16-mixed", "callbacks": [{"class_path": "callbacks.losses_by_time.LossesByTime"}]},
}


def model(**arguments: Any) -> dict[str, Any]:
    return {"model": {"init_args": arguments}}


@pytest.fixture(scope="module")
def parser() -> Parser:
    found = Parser()
    found.add_argument("--config", action="config")
    found.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    found.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    found.add_lightning_class_args(L.Trainer, "trainer")
    return found


def parsed(parser: Parser, files: list[Path]) -> Value:
    """What it makes of files, all defaults written out."""
    words = [word for file in files for word in ("--config", str(file))]
    found: Value = yaml.safe_load(parser.dump(parser.parse_args(words), skip_unset=False))
    return found


@pytest.mark.parametrize(
    "deltas",
    [
        [model(denoiser={"init_args": {"stages": [STAGE, STAGE]}})],
        [model(denoiser={"init_args": {"stages+": [STAGE]}}), model(denoiser={"init_args": {"stages+": STAGE}})],
        [{"trainer": {"callbacks+": [{"class_path": "callbacks.timestep_scaling.TimestepAwareScaling"}]}}],
        [{"trainer": {"callbacks+": "callbacks.timestep_scaling.TimestepAwareScaling", "precision": None}}],
        [model(sampler=part("flow.samplers.Euler", shift=2.0))],
        [model(sampler={"class_path": "snapgen_pl.flow.samplers.Euler"})],
        [model(sampler="snapgen_pl.flow.samplers.Euler")],
        [model(denoiser={"class_path": "UNet", "init_args": {"middle_layers": 2}})],
        [model(denoiser=part("models.peers.dit.DiT", depth=1))],
        [model(optimizer={"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}})],
        [model(optimizer={"class_path": "torch.optim.SGD"}), model(optimizer={"init_args": {"lr": 1.0}})],
        [model(guidance={"interval": [0.2, 0.5]})],
        [model(decay_images=5, sigma_data=0.5), model(decay_images=None)],
        [model(conditioner={"init_args": {"encoders": {"c": part("conditioning.minilm.MiniLM", tokens=6)}}})],
        [{"data": {"init_args": {"text_states": {"b": "y"}}}}],
        [{"data": {"init_args": {"text_states": {}}}}],
        [{"model": {"denoiser": {"middle_layers": 2}, "image_size": 64}}],
        [{"model.image_size": 64, "model.denoiser.middle_layers": 2, "trainer.max_steps": 3}],
        [{"model": part("modules.distill.Distill", teacher=part("teachers.run.RunTeacher", run="runs/a"))}],
    ],
    ids=str,
)
def test_a_delta_is_merged_as_fit_merges_it(parser: Parser, tmp_path: Path, deltas: list[dict[str, Any]]) -> None:
    files = []
    for index, content in enumerate([BASE, *deltas]):
        files.append(tmp_path / f"{index}.yaml")
        files[-1].write_text(yaml.safe_dump(content))
    whole = tmp_path / "whole.yaml"
    merged = merged_config(files)
    assert merged != BASE
    whole.write_text(yaml.safe_dump(merged))
    assert parsed(parser, [whole]) == parsed(parser, files)


def test_a_class_that_there_is_none_of_is_named(tmp_path: Path) -> None:
    for name, content in (("a", BASE), ("b", model(sampler={"class_path": "snapgen_pl.flow.samplers.Eule"}))):
        (tmp_path / name).write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"there is no class snapgen_pl\.flow\.samplers\.Eule; check the class_path"):
        merged_config([tmp_path / "a", tmp_path / "b"])


def test_an_experiment_and_its_delta() -> None:
    folder = experiments_dir() / "t2i"
    callbacks = merged_config([folder / "kd_output.yaml", folder / "kd_timestep_aware.yaml"])["trainer"]
    assert isinstance(callbacks, dict)
    assert "TimestepAwareScaling" in str(callbacks["callbacks"])

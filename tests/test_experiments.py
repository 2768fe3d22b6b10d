"""Every YAML of experiments/ parses, is built and trains a step at small size."""

from pathlib import Path

import pytest
import yaml

import snapgen_pl
from snapgen_pl.__main__ import main
from snapgen_pl.metrics.tables import ABLATION, declared_denoiser
from snapgen_pl.models.unet import UNet
from tests import sample_run

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
ROWS = sorted((EXPERIMENTS / "imagenet256" / "ablation").glob("*.yaml"))
WHOLE = [file for file in sorted(EXPERIMENTS.rglob("*.yaml")) if file not in ROWS]
ENCODING = [file for file in WHOLE if file.stem == "encode"]  # tests/test_encode.py runs them
TRAINING = [file for file in WHOLE if file not in ENCODING]

# What makes a run small without touching what the file says of its method.
SMALL_RUN = {
    "data.source": "snapgen_pl.data.image_folder.ImageFolder",
    "data.image_size": "32",
    "model.image_size": "32",
    "data.batch_size": "8",
    "model.autoencoder": "snapgen_pl.autoencoders.patch_pca.PatchPCA",
    "model.autoencoder.patch": "8",
    "trainer.max_steps": "2",
    "trainer.val_check_interval": "2",
    "trainer.callbacks": "null",
}
# What ImageNet's files take from the hub is taken from packages.
EMBEDDED = {
    "model.conditioner.encoder": "snapgen_pl.conditioning.minilm.MiniLM",
    "model.denoiser.context_dim": "384",
    "model.autoencoder.channels": "4",
    "model.compile": "false",
    "trainer.precision": "32-true",
}
SMALL_STAGES = (
    "[{channels: 32, down: [{residual: false, layers: 1}], up: [{}, {}]},"
    " {channels: 64, down: [{layers: 1}], up: [{layers: 1}, {layers: 1}], self_attention: true}]"
)


def flags(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def fit(configs: list[Path], images: Path, runs: Path, overrides: dict[str, str]) -> int:
    words = [word for file in configs for word in ("--config", str(file))]
    settings = SMALL_RUN | {"data.source.root": str(images), "runs": str(runs), "name": "small"} | overrides
    return main(["fit", *words, *flags(settings)])


@pytest.mark.parametrize("file", TRAINING, ids=lambda file: file.stem)
def test_an_experiment_trains_at_small_size(file: Path, images: Path, tmp_path: Path) -> None:
    small = {"model.denoiser.stages": SMALL_STAGES, "model.denoiser.head_dim": "32"}
    if file.parent.name == "imagenet256":
        small |= EMBEDDED
    assert fit([file], images, tmp_path, small) == 0
    assert (tmp_path / "small" / "last.ckpt").exists()


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_a_resolved_config_names_no_folder_of_this_machine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Or a run could be resumed neither elsewhere nor after a reinstallation.
    with pytest.raises(SystemExit, match="0"):
        main(["predict" if file in ENCODING else "fit", "--config", str(file), "--print_config"])
    assert str(Path(snapgen_pl.__file__).parent) not in capsys.readouterr().out


def test_an_ablation_row_is_a_delta_to_any_experiment(images: Path, tmp_path: Path) -> None:
    small = {"model.denoiser.stages": SMALL_STAGES, "model.denoiser.head_dim": "32"}
    base, row = EXPERIMENTS / "quickstart.yaml", EXPERIMENTS / "imagenet256" / "ablation" / "5_ffn_3.yaml"
    kept = yaml.safe_load(base.read_text())["model"]["init_args"]["denoiser"]["init_args"]["in_channels"]
    assert fit([base, row], images, tmp_path, small) == 0
    resolved = yaml.safe_load((tmp_path / "small" / "config.yaml").read_text())
    denoiser = resolved["model"]["init_args"]["denoiser"]["init_args"]
    assert denoiser["kv_heads"] is None
    assert denoiser["ffn_ratio"] == 3
    assert denoiser["in_channels"] == kept


def test_the_table_holds_every_row_and_nothing_else() -> None:
    assert [file.stem for file in ROWS] == [step.file for step in ABLATION]


def test_the_last_row_is_the_class_with_its_defaults() -> None:
    declared, default = declared_denoiser(ROWS[-1]), UNet()
    assert {name: p.shape for name, p in declared.named_parameters()} == {
        name: p.shape for name, p in default.named_parameters()
    }


@pytest.mark.parametrize("file", TRAINING, ids=lambda file: file.stem)
def test_the_epochs_that_a_header_claims_are_those_it_trains(file: Path) -> None:
    import re

    text = file.read_text()
    settings = yaml.safe_load(text)
    claimed = re.search(r"([\d,]+) steps x (\d+) images = ([\d.]+) epochs of\s+#?\s*the ([\d,]+)", text)
    if claimed is None:
        assert "epochs" not in text
        return
    steps, batch, epochs, images = (float(group.replace(",", "")) for group in claimed.groups())
    assert steps == settings["trainer"]["max_steps"]
    assert batch == settings["data"]["init_args"]["batch_size"]
    assert epochs == pytest.approx(steps * batch / images, abs=0.05)

"""Every YAML of experiments/ parses, is built and trains a step at small size."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import snapgen_pl
from benchmarks.photo_decoders import save
from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.patch_pca import FILE as AUTOENCODER
from snapgen_pl.models.count import count
from snapgen_pl.models.decoder import Decoder
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.peers.ldm import LDM
from snapgen_pl.models.peers.uvit import UViT
from snapgen_pl.models.unet import UNet
from snapgen_pl.tables.declared import declared_decoder, declared_denoiser
from snapgen_pl.tables.published import ABLATION, DECODERS
from tests import decoder_run, distilled_run, sample_run
from tests.metrics.lpips_files import random_trunk_file
from tests.tiny_kl import kl

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
ROWS = sorted((EXPERIMENTS / "imagenet256" / "ablation").glob("*.yaml"))
PEERS = sorted((EXPERIMENTS / "imagenet256" / "peers").glob("*.yaml"))
LADDER = sorted((EXPERIMENTS / "decoder" / "ladder").glob("*.yaml"))
SMALL = EXPERIMENTS / "emoji" / "table"
SMALL_ROWS = sorted(set(SMALL.glob("*.yaml")) - {SMALL / "base.yaml"})
FID = EXPERIMENTS / "imagenet256" / "fid.yaml"
TEXTS = [EXPERIMENTS / "t2i", EXPERIMENTS / "emoji" / "t2i", EXPERIMENTS / "step", EXPERIMENTS / "emoji" / "step"]
TEXT_DELTAS = [
    file
    for folder in TEXTS
    for file in sorted(folder.glob("*.yaml"))
    if "class_path" not in yaml.safe_load(file.read_text()).get("data", {}).get("init_args", {}).get("source", {})
]
PHOTOGRAPHS = EXPERIMENTS / "photographs"
PHOTO_DELTAS = [PHOTOGRAPHS / f"{name}.yaml" for name in ("taesd", "long", "adversarial")]
PHOTO_DELTAS += sorted((PHOTOGRAPHS / "small").rglob("*.yaml"))
ROPE = EXPERIMENTS / "emoji" / "rope"
ROPE_DELTAS = [ROPE / "integer.yaml", ROPE / "scaled.yaml"]
DELTAS = [*ROWS, *PEERS, *LADDER, *SMALL_ROWS, *TEXT_DELTAS, *PHOTO_DELTAS, *ROPE_DELTAS, FID]
WHOLE = [file for file in sorted(EXPERIMENTS.rglob("*.yaml")) if file not in DELTAS]
ENCODING = [file for file in WHOLE if file.stem.startswith("encode")]  # tests/test_encode.py, tests/test_t2i.py
DRAWING = [file for file in WHOLE if file.parent.name == "released"]  # tests/modules/test_released.py
TRAINING = [file for file in WHOLE if file not in [*ENCODING, *DRAWING]]
DECODERS_TRAINED = [EXPERIMENTS / "decoder" / "tiny.yaml", EXPERIMENTS / "emoji" / "decoder.yaml"]
TRAINING_ON_LABELS = [  # those on texts: tests/test_t2i.py
    file for file in TRAINING if file.parent not in [*TEXTS, PHOTOGRAPHS] and file not in DECODERS_TRAINED
]

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
CLASS_TEXTS = {
    "model.conditioner.encoder": "snapgen_pl.conditioning.minilm.MiniLM",
    "model.denoiser.context_dim": "384",
}
EMBEDDED = {
    "model.autoencoder.channels": "4",
    "model.compile": "false",
}
SMALL_STAGES = (
    "[{channels: 32, down: [{residual: false, layers: 1}], up: [{}, {}]},"
    " {channels: 64, down: [{layers: 1}], up: [{layers: 1}, {layers: 1}], self_attention: true}]"
)

# The peers' sizes, by the class that takes them; their classes are learned tokens.
SMALL_TRANSFORMER = {"hidden": "32", "depth": "3", "heads": "4", "context_dim": "32"}
SMALL_PEERS: dict[type[Denoiser], dict[str, str]] = {
    DiT: SMALL_TRANSFORMER,
    UViT: SMALL_TRANSFORMER | {"latent_size": "4"},
    LDM: {"widths": "[32, 64]", "layers": "1", "context_dim": "32"},
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def flags(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def fit(configs: list[Path], images: Path, runs: Path, overrides: dict[str, str]) -> int:
    words = [word for file in configs for word in ("--config", str(file))]
    settings = SMALL_RUN | {"data.source.root": str(images), "runs": str(runs), "name": "small"} | overrides
    return main(["fit", *words, *flags(settings)])


@pytest.mark.parametrize("file", TRAINING_ON_LABELS, ids=lambda file: file.stem)
def test_an_experiment_trains_at_small_size(file: Path, images: Path, tmp_path: Path) -> None:
    small = {"model.denoiser.stages": SMALL_STAGES, "model.denoiser.head_dim": "32"}
    if file.parent.name == "imagenet256":
        small |= CLASS_TEXTS | EMBEDDED
    assert fit([file], images, tmp_path, small) == 0
    assert (tmp_path / "small" / "last.ckpt").exists()


@pytest.mark.parametrize("file", DECODERS_TRAINED, ids=lambda file: file.stem)
def test_a_decoder_trains_at_small_size(file: Path, tmp_path: Path) -> None:
    """The discriminator joins after the first step; the autoencoder and LPIPS are real classes with random weights."""
    photos = decoder_run.draw_photos(tmp_path / "photos")
    settings = yaml.safe_load(file.read_text())["model"]["init_args"]
    backbone = settings["reconstruction"]["init_args"]["backbone"]
    small = {
        "name": "small",
        "runs": str(tmp_path),
        "data.source": "snapgen_pl.data.image_folder.ImageFolder",
        "data.source.root": str(photos),
        "data.image_size": "32",
        "data.batch_size": "4",
        "data.workers": "0",
        "model.reconstruction.trunk": str(random_trunk_file(tmp_path, backbone)),
        "model.discriminator.width": "32",
        "model.discriminator.layers": "2",
        "model.adversarial_from": "4",
        "trainer.max_steps": "3",
        "trainer.val_check_interval": "3",
        "trainer.accelerator": "cpu",
    }
    if settings["autoencoder"]["class_path"].endswith(".KL"):
        kl(channels=16).save_pretrained(tmp_path / "vae")
        small |= {"model.autoencoder.path": str(tmp_path),
                  "model.decoder.stages": "[{channels: 32, blocks: 1}, {channels: 32, blocks: 1}, "
                  "{channels: 32, blocks: 1}]"}  # fmt: skip
    assert main(["fit", "--config", str(file), *flags(small)]) == 0
    saved = torch.load(tmp_path / "small" / "last.ckpt", weights_only=True)
    assert saved["steps"] == {"generator": 2, "discriminator": 1}
    assert {name.split(".")[0] for name in saved["ema"]["weights"]} == {"decoder"}
    measured = distilled_run.scalars(tmp_path / "small")
    assert {f"val/{name}{of}" for name in ("psnr", "ssim", "lpips") for of in ("", "_full")} <= measured.keys()


def test_decoders_of_photographs_train_at_small_size(tmp_path: Path) -> None:
    """One after the other, as the benchmark does: each takes up what came before."""
    photos = decoder_run.draw_photos(tmp_path / "photos")
    shared = {
        "runs": str(tmp_path),
        "data.source.root": str(photos),
        "data.image_size": "64",
        "data.batch_size": "2",
        "data.workers": "0",
        "model.reconstruction.trunk": str(random_trunk_file(tmp_path, "alex")),
        "trainer.max_steps": "2",
        "trainer.val_check_interval": "2",
        "trainer.accelerator": "cpu",
    }

    def trained(name: str, *files: str, **settings: str) -> Path:
        words = [word for file in files for word in ("--config", str(PHOTOGRAPHS / f"{file}.yaml"))]
        assert main(["fit", *words, *flags(shared | {"name": name} | settings)]) == 0
        return tmp_path / name

    autoencoder = trained("autoencoder", "autoencoder", **{"model.config.block_out_channels": "[32, 32, 32, 32]"})
    path = {"model.autoencoder.path": str(save(autoencoder))}
    stages = {"model.decoder.stages": str([{"channels": 32, "blocks": 1}] * 4)}
    discriminator = {"model.discriminator.width": "32", "model.discriminator.layers": "2"}
    trained("taesd", "decoder", "taesd", **path, **discriminator)
    trained("small", "decoder", "small/decoder", "small/taesd", **path, **{"model.discriminator.layers": "2"})
    long = trained("long", "decoder", "long", **path, **stages, **discriminator)
    adversarial = trained("adversarial", "decoder", "adversarial", **path, **stages, **discriminator,
                          **{"model.init_from": str(long)})  # fmt: skip
    assert torch.load(adversarial / "last.ckpt", weights_only=True)["steps"] == {"generator": 1, "discriminator": 1}


def test_both_forms_of_positions_go_on_in_the_same_latents(images: Path, tmp_path: Path) -> None:
    small = {"model.denoiser.stages": SMALL_STAGES}
    assert fit([ROPE / "32px.yaml"], images, tmp_path, small | {"name": "before"}) == 0
    small |= {"model.init_from": str(tmp_path / "before"), "data.image_size": "64", "model.image_size": "64"}
    for number, delta in enumerate(ROPE_DELTAS):
        files = [ROPE / "32px.yaml", *ROPE_DELTAS[: number + 1]]
        assert fit(files, images, tmp_path, small | {"name": delta.stem}) == 0
        config = yaml.safe_load((tmp_path / delta.stem / "config.yaml").read_text())["model"]["init_args"]
        assert config["denoiser"]["init_args"]["rope_size"] == (16 if delta.stem == "scaled" else None)
        kept, before = ((tmp_path / name / AUTOENCODER).read_bytes() for name in (delta.stem, "before"))
        assert kept == before


@pytest.mark.parametrize("file", PEERS, ids=lambda file: file.stem)
def test_a_peer_trains_by_the_recipe_of_pretraining_at_small_size(file: Path, images: Path, tmp_path: Path) -> None:
    base, kind = EXPERIMENTS / "imagenet256" / "pretrain.yaml", type(declared_denoiser(file))
    small = {f"model.denoiser.{name}": value for name, value in SMALL_PEERS[kind].items()}
    small |= EMBEDDED | {"model.conditioner.context_dim": "32"}
    assert fit([base, file], images, tmp_path, small) == 0
    declared, resolved = (
        yaml.safe_load(text.read_text())["model"]["init_args"] for text in (file, tmp_path / "small" / "config.yaml")
    )
    assert resolved["denoiser"]["class_path"] == declared["denoiser"]["class_path"]
    assert resolved["conditioner"]["init_args"]["tokens"] == 1


@pytest.mark.parametrize("file", PEERS, ids=lambda file: file.stem)
def test_a_peers_tokens_have_the_width_that_its_denoiser_takes(file: Path) -> None:
    model = yaml.safe_load(file.read_text())["model"]["init_args"]
    assert model["conditioner"]["init_args"]["context_dim"] == declared_denoiser(file).context_dim


# LDM's totals are those of another latent: tests/models/peers/test_ldm.py.
@pytest.mark.parametrize(
    ("file", "params_m", "gmacs"), [("uvit_l", 287, 77), ("uvit_h", 501, 133), ("dit_xl", 675, 119)]
)
def test_a_peer_declares_what_was_published(file: str, params_m: float, gmacs: float) -> None:
    cost = count(declared_denoiser(EXPERIMENTS / "imagenet256" / "peers" / f"{file}.yaml"), size=32, tokens=1)
    assert (cost.params_m, cost.gmacs) == (pytest.approx(params_m, rel=0.01), pytest.approx(gmacs, rel=0.01))


@pytest.mark.parametrize("file", SMALL_ROWS, ids=lambda file: file.stem)
def test_a_row_of_the_small_table_has_its_share_of_the_parameters(file: Path) -> None:
    """The peers are shrunk as the reference is; each ablation row declares what its row at full size does."""
    small = declared_denoiser(file, in_channels=12)
    row = EXPERIMENTS / "imagenet256" / ("ablation" if file.stem[0].isdigit() else "peers") / file.name
    large = declared_denoiser(row)
    reference = file.with_stem("8_reference"), EXPERIMENTS / "imagenet256" / "ablation" / "8_reference.yaml"
    if file in [SMALL / peer.name for peer in PEERS]:
        shrunk, full = declared_denoiser(reference[0], context_dim=192), declared_denoiser(reference[1])
        assert parameters(small) / parameters(large) == pytest.approx(parameters(shrunk) / parameters(full), rel=0.06)
    else:
        declared, whole = (
            yaml.safe_load(text.read_text())["model"]["init_args"]["denoiser"]["init_args"] for text in (file, row)
        )
        assert {key: declared[key] for key in whole if key not in ("stages", "middle_layers")} == {
            key: whole[key] for key in whole if key not in ("stages", "middle_layers")
        }


def test_the_protocol_of_fid_is_a_delta_to_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    base = EXPERIMENTS / "imagenet256" / "pretrain.yaml"
    with pytest.raises(SystemExit, match="0"):
        main(["test", "--config", str(base), "--config", str(FID), "--print_config"])
    (callback,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert callback["init_args"]["labels"] == "uniform"
    assert callback["init_args"]["test_samples"] == 50_000
    assert [guidance["scale"] for guidance in callback["init_args"]["guidances"]] == [1, 1.25, 1.5]


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_a_resolved_config_names_no_folder_of_this_machine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Or a run could be resumed neither elsewhere nor after a reinstallation.
    with pytest.raises(SystemExit, match="0"):
        main(["predict" if file in [*ENCODING, *DRAWING] else "fit", "--config", str(file), "--print_config"])
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
    assert [file.stem for file in LADDER] == list(dict.fromkeys(rung.file for rung in DECODERS))


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def test_the_last_row_is_the_class_with_its_defaults() -> None:
    assert shapes(declared_denoiser(ROWS[-1])) == shapes(UNet())
    assert shapes(declared_decoder(LADDER[-1])) == shapes(Decoder())


def test_a_rung_of_the_decoders_ladder_differs_from_the_one_before_in_what_it_is_named_for() -> None:
    rungs = [yaml.safe_load(file.read_text())["model"]["init_args"]["decoder"]["init_args"] for file in LADDER]
    changed = [{key for key in after if after[key] != before[key]} for before, after in pairwise(rungs)]
    assert changed == [
        {"middle_attention"},
        {"stages"},
        {"stages"},
        {"convolution"},
        {"stages", "middle_blocks"},
        {"shortcut"},
    ]


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

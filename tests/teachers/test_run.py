import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.models.denoiser import Conditioning
from snapgen_pl.models.unet import UNet
from snapgen_pl.teachers.run import RunTeacher
from tests import sample_run
from tests.conditioning.tiny_clip import save_pipeline
from tests.teachers.tiny import answer

CLASSES = tuple(sample_run.CLASSES)
NAMES = ("middle", "up.0")


CLASS_TOKENS = {
    "class_path": "snapgen_pl.conditioning.class_tokens.ClassTokens",
    "init_args": {"num_classes": 3, "context_dim": 16},
}


def config(images: Path, runs: Path, conditioner: dict[str, Any]) -> dict[str, Any]:
    """A run of three steps, each of which moves the weights far from their average."""
    return {
        "name": "teacher",
        "runs": str(runs),
        "model": {
            "class_path": "snapgen_pl.modules.pretrain.Pretrain",
            "init_args": {
                "denoiser": {
                    "class_path": "snapgen_pl.models.unet.UNet",
                    "init_args": {
                        "stages": [{"channels": 32, "down": [{"layers": 1}], "up": [{"layers": 1}, {"layers": 1}]}],
                        "middle_layers": 1,
                        "in_channels": 8,
                        "context_dim": 16,
                        "head_dim": 16,
                    },
                },
                "sigma_data": 0.5,
                "conditioner": conditioner,
                "autoencoder": {
                    "class_path": "snapgen_pl.autoencoders.patch_pca.PatchPCA",
                    "init_args": {"patch": 4, "channels": 8},
                },
                "image_size": 32,
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
                "image_size": 32,
                "batch_size": 8,
            },
        },
        "ema": {"half_life_images": 100.0, "ramp_up": 1.0},
        "trainer": {
            "max_steps": 3,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
    }


def trained(folder: Path, conditioner: dict[str, Any]) -> Path:
    """The folder of a trained run, whose data are gone."""
    images = sample_run.image_folder(folder / "images")
    (folder / "config.yaml").write_text(yaml.safe_dump(config(images, folder / "runs", conditioner)))
    assert main(["fit", "--config", str(folder / "config.yaml")]) == 0
    shutil.rmtree(images)
    return folder / "runs" / "teacher"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run; to be read only."""
    return trained(tmp_path_factory.mktemp("run"), CLASS_TOKENS)


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def ready(run: Path, **options: Any) -> RunTeacher:
    made = RunTeacher(str(run), **options)
    made.ready(run.parent / "student", CLASSES)
    return made


def asked() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    nothing_B = torch.tensor([False, False, False, True])
    return torch.randn(4, 8, 8, 8), torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.tensor([0, 1, 2, 0]), nothing_B


def by_hand(run: Path, key: str, label_B: Tensor) -> Tensor:
    """The velocity of a checkpoint's raw or averaged weights, preconditioned as the run's config says."""
    saved = torch.load(run / "last.ckpt", weights_only=True)
    weights = saved["state_dict"] | (saved["ema"]["weights"] if key == "ema" else {})
    made = RunTeacher(str(run))
    made._denoiser.load_state_dict({name[9:]: w for name, w in weights.items() if name.startswith("denoiser.")})
    tokens = torch.nn.functional.embedding(label_B, weights["conditioner.table.weight"])[:, None]
    x_BCHW, t_B, _, _ = asked()
    with torch.no_grad():
        velocity: Tensor = made._denoiser(x_BCHW, t_B, Conditioning(tokens)).velocity_BCHW
    return velocity


def test_a_runs_averaged_weights_teach(run: Path) -> None:
    x_BCHW, t_B, label_B, nothing_B = asked()
    taught = answer(ready(run), x_BCHW, t_B, label_B, nothing_B, NAMES)
    told_B = torch.where(nothing_B, 3, label_B)
    torch.testing.assert_close(taught.velocity_BCHW, by_hand(run, "ema", told_B))
    assert (taught.velocity_BCHW - by_hand(run, "raw", told_B)).abs().max() > 1e-3
    assert [tuple(feature.shape) for feature in taught.features] == [(4, 32, 8, 8)] * 2


def test_it_is_guided_as_the_student_asks(run: Path) -> None:
    x_BCHW, t_B, label_B, nothing_B = asked()
    conditional = by_hand(run, "ema", torch.where(nothing_B, 3, label_B))
    unconditional = by_hand(run, "ema", torch.full((4,), 3))
    taught = answer(ready(run, guidance=Guidance(3.0)), x_BCHW, t_B, label_B, nothing_B).velocity_BCHW
    torch.testing.assert_close(taught, unconditional + 3 * (conditional - unconditional), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_autocast_and_float32_is_not(run: Path) -> None:
    exact, rounded = ready(run), ready(run, dtype="bfloat16")
    wanted = answer(exact, *asked()).velocity_BCHW
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(answer(exact, *asked()).velocity_BCHW, wanted)
    taught = answer(rounded, *asked()).velocity_BCHW
    assert taught.dtype == torch.float32
    assert 0 < (taught - wanted).norm() / wanted.norm() < 0.05
    assert {p.dtype for p in rounded._denoiser.parameters()} == {torch.float32}


def test_its_shapes_are_known_before_its_weights(run: Path) -> None:
    made = RunTeacher(str(run))
    assert made.in_channels == 8
    assert made.feature_channels == {"down.0": 32, "middle": 32, "up.0": 32}
    assert set(made.feature_strides.values()) == {1}
    assert made.takes == "label"
    assert made.encoders() == {}
    with pytest.raises(ValueError, match="RunTeacher has no weights yet"):
        answer(made, *asked())
    with pytest.raises(ValueError, match=r"unknown features \['block.0'\]; UNet has"):
        made.check_features(("block.0",))
    assert made.ready(run, CLASSES) == [f"teacher: {run / 'last.ckpt'}, averaged weights"]
    assert made.ready(run, CLASSES) == []


def test_making_one_draws_nothing_from_the_students_generator(run: Path) -> None:
    torch.manual_seed(5)
    alone = torch.randn(3)
    torch.manual_seed(5)
    made = ready(run)
    made.latents()
    assert torch.equal(torch.randn(3), alone)


def test_nothing_is_written_into_the_run(run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    made = ready(run)
    made.identity()
    made.latents()
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_latents_of_another_autoencoder_are_refused(run: Path) -> None:
    made = RunTeacher(str(run))
    own, whitened = PatchPCA(4, 8), PatchPCA(4, 8, whitening=0.0)
    for autoencoder in (own, whitened):
        autoencoder.load(run / FILE)
    made.check_autoencoder(own.identity() | {"tf32": True})
    with pytest.raises(ValueError, match=r"whitening is 0\.5 of the teacher's, 0\.0 of the student's\. Set model"):
        made.check_autoencoder(whitened.identity())
    own.basis.mul_(2)
    with pytest.raises(ValueError, match="weights is"):
        made.check_autoencoder(own.identity())


def test_labels_that_mean_other_classes_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 classes, the data 2: labels would mean something else"):
        RunTeacher(str(run)).ready(tmp_path, CLASSES[:2])
    with pytest.raises(ValueError, match="has 'bell' for class 1, the data 'crane'"):
        RunTeacher(str(run)).ready(tmp_path, ("apple", "crane", "bell"))
    lost = copied(run, tmp_path)
    for text in (None, "{}", json.dumps({"starts": [{"data": None}]})):
        (lost / "manifest.json").unlink(missing_ok=True)
        if text is not None:
            (lost / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json .*; put it back"):
            RunTeacher(str(lost)).ready(tmp_path, CLASSES)


def test_identities_tell_what_answers_depend_on(run: Path, tmp_path: Path) -> None:
    first = RunTeacher(str(run)).identity()
    other = copied(run, tmp_path)
    assert RunTeacher(str(other)).identity() == first == ready(run).identity()
    saved = torch.load(other / "last.ckpt")
    saved["state_dict"]["conditioner.table.weight"] += 1  # the raw weights are not used
    torch.save(saved, other / "last.ckpt")
    assert RunTeacher(str(other)).identity() == first
    saved["ema"]["weights"]["conditioner.table.weight"] += 1
    torch.save(saved, other / "last.ckpt")
    assert RunTeacher(str(other)).identity()["weights"] != first["weights"]
    assert RunTeacher(str(run), guidance=Guidance(2.0)).identity() != first
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("sigma_data: 0.5", "sigma_data: 0.6"))
    assert RunTeacher(str(other)).identity()["configuration"] != first["configuration"]


def test_what_is_no_run_is_refused_before_anything_is_built(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run there .*; give its folder, runs/NAME"):
        RunTeacher(str(tmp_path / "nowhere"))
    damaged = copied(run, tmp_path)
    (damaged / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is truncated or no checkpoint"):
        RunTeacher(str(damaged))
    (damaged / "last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; the run has saved none yet$"):
        RunTeacher(str(damaged))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "snapgen_pl.models.unet.UNet",
            "snapgen_pl.models.unet.Unet",
            "cannot be built as a teacher: denoiser: module",
        ),
        ("denoiser:", "other:", "the run's configuration has no denoiser"),
        ("head_dim: 16", "head_dim: 32", r"last\.ckpt does not fit its configuration"),
        ("middle_layers: 1", "middle_layers: 2", r"last\.ckpt does not fit its configuration"),
    ],
)
def test_a_run_that_its_config_does_not_tell_is_refused(
    run: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    changed = copied(run, tmp_path)
    text = (changed / "config.yaml").read_text()
    assert old in text
    (changed / "config.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        ready(changed)


def test_a_run_whose_config_asks_for_more_than_its_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    other = copied(run, tmp_path)
    content = yaml.safe_load((other / "config.yaml").read_text())
    content["model"]["init_args"]["denoiser"]["init_args"]["middle_layers"] = 1000
    (other / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        ValueError, match=rf"{other} does not fit its config\.yaml: that asks for a network of more than"
    ):
        RunTeacher(str(other))


def test_a_run_without_an_average_is_refused(run: Path, tmp_path: Path) -> None:
    raw = copied(run, tmp_path)
    saved = torch.load(raw / "last.ckpt")
    del saved["ema"]
    torch.save(saved, raw / "last.ckpt")
    with pytest.raises(ValueError, match="holds no averaged weights"):
        ready(raw)


def test_texts_of_classes_are_taken_from_the_run(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "clip")
    encoder = {
        "class_path": "snapgen_pl.conditioning.clip_text.CLIPText",
        "init_args": {
            "path": str(tmp_path / "clip"),
            "subfolder": "text_encoder",
            "tokenizer_subfolder": "tokenizer",
        },
    }
    run = trained(
        tmp_path,
        {
            "class_path": "snapgen_pl.conditioning.class_texts.ClassTexts",
            "init_args": {"encoder": encoder, "num_classes": 3},
        },
    )
    (tmp_path / "clip" / "text_encoder" / "model.safetensors").unlink()  # encoded once, the texts need it no more
    made = RunTeacher(str(run))
    assert made.ready(tmp_path / "student", CLASSES)[1] == f"class texts: {run / 'class_texts.safetensors'}"
    x_BCHW, t_B, label_B, nothing_B = asked()
    velocity = answer(made, x_BCHW, t_B, label_B, nothing_B).velocity_BCHW
    other = answer(made, x_BCHW, t_B, label_B.roll(1), nothing_B).velocity_BCHW
    assert torch.equal(velocity[3], other[3])
    assert not torch.equal(velocity[:3], other[:3])


def test_the_network_is_the_runs(run: Path) -> None:
    made = RunTeacher(str(run))
    network = made._denoiser.get_submodule("denoiser")
    assert isinstance(network, UNet)
    assert not any(part.training for part in made._denoiser.modules())

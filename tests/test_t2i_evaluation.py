"""Text to image measured through the command line: the committed protocols, real judges, small sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from snapgen_pl import rng
from snapgen_pl.__main__ import main
from snapgen_pl.metrics.sample_report import read_report
from snapgen_pl.png import read_picture, to_pil, write_png
from snapgen_pl.trained_run import open_run
from tests.conditioning import tiny_clip
from tests.metrics import test_dpg, test_geneval
from tests.metrics.tiny_judges import REWARD_SIZE, reward_tensors, save_detector, save_tokenizer, save_vqa

PROTOCOLS = Path(__file__).parents[1] / "experiments" / "t2i"
SIDE = 32
STAGES = [{"channels": 32, "down": [{"residual": False, "layers": 1}], "up": [{"layers": 0}, {"layers": 0}]}]
TEXT = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer", "truncate": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of captions, trained for two steps."""
    folder = tmp_path_factory.mktemp("run")
    pixels = (rng.uniform(0, 0, torch.arange(24), (3, 8, 8)) * 255).to(torch.uint8)
    (folder / "photos").mkdir()
    for i, image in enumerate(pixels):
        write_png(to_pil(image.repeat_interleave(4, 1).repeat_interleave(4, 2)), folder / "photos" / f"{i}.png")
        (folder / "photos" / f"{i}.txt").write_text("a photo of a cat" if i % 2 else "a photo of a dog")
    tiny_clip.save_pipeline(folder / "clip")
    encoder = {"class_path": "snapgen_pl.conditioning.clip_text.CLIPText",
               "init_args": {"path": str(folder / "clip"), **TEXT}}  # fmt: skip
    config = {
        "name": "student",
        "runs": str(folder),
        "model": {
            "class_path": "snapgen_pl.modules.pretrain.Pretrain",
            "init_args": {
                "image_size": SIDE,
                "denoiser": {
                    "class_path": "snapgen_pl.models.unet.UNet",
                    "init_args": {"stages": STAGES, "middle_layers": 1, "in_channels": 8, "head_dim": 16,
                                  "context_dim": tiny_clip.WIDTH},
                },
                "conditioner": {
                    "class_path": "snapgen_pl.conditioning.joined_texts.JoinedTexts",
                    "init_args": {"context_dim": tiny_clip.WIDTH, "blocks": [["clip_l"]], "dropout": 0.1,
                                  "encoders": {"clip_l": encoder}},
                },
                "autoencoder": {
                    "class_path": "snapgen_pl.autoencoders.patch_pca.PatchPCA",
                    "init_args": {"patch": 4, "channels": 8},
                },
                "sampler": {"class_path": "snapgen_pl.flow.samplers.Euler", "init_args": {"steps": 2}},
            },
        },
        "data": {
            "class_path": "snapgen_pl.data.datamodule.ImageData",
            "init_args": {
                "source": {"class_path": "snapgen_pl.data.captioned_folder.CaptionedFolder",
                           "init_args": {"root": str(folder / "photos"), "validation_fraction": 0.2}},
                "image_size": SIDE, "batch_size": 4, "condition": "caption",
            },
        },
        "trainer": {"max_steps": 2, "val_check_interval": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }  # fmt: skip
    (folder / "student.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "student.yaml")]) == 0
    return folder / "student"


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    tiny_clip.save_whole_clip(folder / "clip")
    save_detector(folder / "detector")
    save_vqa(folder / "vqa")
    save_tokenizer(folder / "bert")
    torch.save(reward_tensors(), folder / "ImageReward.pt")
    test_geneval.write(folder)
    test_dpg.write(folder)
    (folder / "dpg").mkdir()
    (folder / "dpg" / "cat1.txt").write_text("A red cat, there with a dog\n")
    (folder / "dpg" / "dog2.txt").write_text("a dog")
    (folder / "prompts.txt").write_text("a photo of a cat\na dog\na photo of a cat and a dog and a cat and a dog\n")
    return folder


def protocol(name: str, run: Path, judges: Path, folder: Path) -> Path:
    """A delta that gives a committed protocol its paths, and makes it small."""
    metric, data, images, samples = {
        "clip_score": ({"path": str(judges / "clip")}, "prompts.txt", 2, 6),
        "image_reward": (
            {"weights": str(judges / "ImageReward.pt"), "tokenizer": str(judges / "bert"),
             "size": list(REWARD_SIZE)}, "prompts.txt", 1, 3),
        "geneval": (
            {"prompts": str(judges / "evaluation_metadata.jsonl"), "detector": str(judges / "detector"),
             "clip": str(judges / "clip")}, "evaluation_metadata.jsonl", 1, 6),
        "dpg": ({"questions": str(judges / "dpg_bench.csv"), "judge": str(judges / "vqa")}, "dpg", 4, 8),
    }[name]  # fmt: skip
    whole: dict[str, Any] = yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())
    (callback,) = whole["trainer"]["callbacks"]
    callback["init_args"]["metrics"][0]["init_args"] = metric
    callback["init_args"] |= {"test_samples": samples, "batch_size": 4}
    delta = {
        "runs": str(folder),
        "model": {"init_args": {"run": str(run)}},
        "data": {"init_args": {"prompts": str(judges / data), "images": images}},
        "trainer": {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False,
                    "callbacks": [callback]},
    }  # fmt: skip
    path = folder / f"{name}-delta.yaml"
    path.write_text(yaml.safe_dump(delta))
    return path


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("clip_score", {"clip_score", "clip_truncated"}),
        ("image_reward", {"image_reward", "image_reward_truncated"}),
        ("geneval", {"geneval@6", *(f"geneval_{task}@6" for task in test_geneval.TASKS)}),
        ("dpg", {"dpg_blip", "dpg_blip_entity", "dpg_blip_attribute", "dpg_blip_relation"}),
    ],
)
def test_a_protocol_measures_a_run_without_its_data(
    name: str, values: set[str], run: Path, judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapgen_pl.data.datamodule.ImageData.__init__", None)
    words = ["test", "--config", str(PROTOCOLS / f"{name}.yaml"), "--config"]
    words += [str(protocol(name, run, judges, tmp_path))]
    assert main(words) == 0
    (file,) = (tmp_path / yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())["name"] / "reports").iterdir()
    report = read_report(file)
    assert report.values.keys() == values
    if name == "dpg":  # its judge sees cats everywhere, whatever is drawn: tests/metrics/test_dpg.py
        assert report.values["dpg_blip"].value == 25
    assert report.controls == {}
    assert (report.measurement["labels"], report.measurement["data"]) == ("prompts", None)
    assert len(str(report.measurement["prompts"])) == 64
    assert report.weights["images_seen"] == open_run(str(run)).images_seen == 8
    assert str(report.weights["which"]).startswith("EMA of ")
    assert report.drawing["sampler"] == "Euler(steps=2, shift=1.0)"
    # What was measured is not drawn again.
    before = file.stat().st_mtime_ns
    assert main(words) == 0
    assert file.stat().st_mtime_ns == before


def test_images_are_those_that_generate_draws(run: Path, judges: Path, tmp_path: Path) -> None:
    delta = protocol("geneval", run, judges, tmp_path)
    words = ["--config", str(PROTOCOLS / "geneval.yaml"), "--config", str(delta)]
    words += ["--trainer.callbacks", "callbacks.image_writer.ImageWriter"]
    assert main(["predict", *words]) == 0
    drawn = tmp_path / "t2i-geneval" / "samples" / "predict"
    manifest = json.loads((drawn / "manifest.json").read_text())
    assert [row["asked"] for row in manifest["images"]] == [line["prompt"] for line in test_geneval.LINES]
    words = ["generate", "--run", str(run), "--prompt", "a photo of a cat", "--count", "1", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    theirs = read_picture(tmp_path / "out" / "000-a-photo-of-a-cat-0000.png")
    # Another batch sums in another order.
    assert (read_picture(drawn / "000000.png").int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("clip_score", "path", "there is no folder nowhere"),
        ("image_reward", "weights", "there is no file nowhere"),
        ("geneval", "detector", "there is no folder nowhere"),
        ("dpg", "questions", "there is no file nowhere"),
    ],
)
def test_a_missing_path_is_said_before_weights_are_read(
    name: str, key: str, said: str, run: Path, judges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("snapgen_pl.trained_run.TrainedRun.load", None)
    delta = protocol(name, run, judges, tmp_path)
    config = yaml.safe_load(delta.read_text())
    config["trainer"]["callbacks"][0]["init_args"]["metrics"][0]["init_args"][key] = "nowhere"
    delta.write_text(yaml.safe_dump(config))
    assert main(["test", "--config", str(PROTOCOLS / f"{name}.yaml"), "--config", str(delta)]) == 1
    assert said in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.run", "nowhere"], "nowhere: no run there"),
        (["--data.prompts", "nowhere.txt"], "prompts nowhere.txt cannot be read for the layout plain"),
        (["--data.images", "0"], "images must be at least 1, got 0"),
        (["--data.images", "3"], "test_samples is 6, but the data ask for 9 images"),
        (["--data", "snapgen_pl.data.label_data.LabelData"], "prompts are asked for, and LabelData has none"),
    ],
)
def test_what_is_not_there_is_said(
    words: list[str], said: str, run: Path, judges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = protocol("clip_score", run, judges, tmp_path)
    assert main(["test", "--config", str(PROTOCOLS / "clip_score.yaml"), "--config", str(delta), *words]) == 1
    assert said in capsys.readouterr().err.replace("\n", " ")

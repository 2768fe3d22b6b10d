"""Text to image through the command line: the committed experiments, real classes, small sizes."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from snapgen_pl.__main__ import main
from snapgen_pl.flow.samplers import Renoising
from snapgen_pl.pictures import read_prompts
from tests.conditioning import tiny_clip, tiny_gemma, tiny_sd3, tiny_t5
from tests.t2i_parts import SIDE, draw_captioned, save_pipeline

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
REAL, EMOJI = EXPERIMENTS / "t2i", EXPERIMENTS / "emoji" / "t2i"
STEP, EMOJI_STEP = EXPERIMENTS / "step", EXPERIMENTS / "emoji" / "step"
STAGE_SIZES = {"256": 16, "512": 32, "1024": 64}
CONTEXT = tiny_clip.WIDTH + tiny_sd3.WIDTH_G + 4
STAGES = [
    {"channels": 32, "down": [{"residual": False, "layers": 1}], "up": [{"layers": 0}, {"layers": 0}]},
    {"channels": 64, "down": [{"layers": 1}], "up": [{"layers": 1}, {"layers": 1}], "self_attention": True},
]
SMALL_TRAINER = {
    "log_every_n_steps": 1,
    "accelerator": "cpu",
    "max_steps": 2,
    "val_check_interval": 2,
    "precision": "32-true",
    "enable_progress_bar": False,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_captioned(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def run(verb: str, folder: Path, configs: list[Path], delta: dict[str, Any], name: str | None = None) -> Path:
    """Runs committed files with a delta that makes them small; returns the run's folder."""
    name = name or yaml.safe_load(configs[-1].read_text())["name"]
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "runs": str(folder), **delta}), encoding="utf-8")
    words = [word for config in [*configs, file] for word in ("--config", str(config))]
    assert main([verb, *words]) == 0
    return folder / name


def source(photos: Path) -> dict[str, Any]:
    return {"class_path": "snapgen_pl.data.captioned_folder.CaptionedFolder", "init_args": {"root": str(photos)}}


def encode(folder: Path, photos: Path, name: str, encoder: dict[str, Any], configs: list[Path]) -> Path:
    delta = {
        "model": {"init_args": {"encoder": encoder}},
        "data": {"init_args": {"source": source(photos), "batch_size": 8, "shard_size": 16}},
        "trainer": {"accelerator": "cpu"},
    }
    return run("predict", folder, configs, delta, name) / "texts"


def encoders(pipeline: Path) -> dict[str, Any]:
    declared = yaml.safe_load((REAL / "kd_output.yaml").read_text())["model"]["init_args"]["conditioner"]["init_args"]
    small: dict[str, Any] = declared["encoders"]
    for name, encoder in small.items():
        encoder["init_args"] |= {"path": str(pipeline), "dtype": "float32"}
        if name == "gemma":
            encoder["init_args"] |= {"subfolder": "gemma", "tokenizer_subfolder": "gemma", "tokens": tiny_gemma.TOKENS}
    return small


def student(pipeline: Path) -> dict[str, Any]:
    """What makes the student of all stages small."""
    network = {"stages": STAGES, "middle_layers": 1, "in_channels": 4, "context_dim": CONTEXT, "head_dim": 32}
    return {
        "denoiser": {"init_args": network},
        "conditioner": {"init_args": {"context_dim": CONTEXT, "encoders": encoders(pipeline)}},
        "autoencoder": {"init_args": {"path": str(pipeline)}},
        "compile": False,
    }


@pytest.fixture(scope="module")
def stages(photos: Path, pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The runs of 256, 512 and 1024, each at a sixteenth of its size, on images as they are; the last in buckets."""
    folder = tmp_path_factory.mktemp("stages")
    runs: list[Path] = []
    for name, size in STAGE_SIZES.items():
        model = student(pipeline) | {"image_size": size, "sampler": {"init_args": {"steps": 2}}}
        if runs:
            model["init_from"] = str(runs[-1])
        else:
            model |= {"warmup_images": 0, "optimizer": {"init_args": {"lr": 1e-2}}}
        data = {"source": source(photos), "image_size": size, "batch_size": 4, "text_states": None}
        if name == "1024":
            data["buckets"] = {"image_size": size, "step": 8, "group": 4}
        delta = {"model": {"init_args": model}, "data": {"init_args": data},
                 "trainer": {**SMALL_TRAINER, "callbacks": []}}  # fmt: skip
        if not runs:
            delta["ema"] = {"ramp_up": 1.0}  # so slow that weights and average differ
        files = list(dict.fromkeys([REAL / "256.yaml", REAL / f"{name}.yaml"]))
        runs.append(run("fit", folder, files, delta))
    return runs


def test_each_stage_goes_on_from_the_averaged_weights_of_the_one_before(stages: list[Path]) -> None:
    """Theirs is a rate that rises from 0 over more images than are seen here: what they begin with hardly moves."""
    saved = [torch.load(folder / "last.ckpt", weights_only=True) for folder in stages]
    for before, after in pairwise(saved):
        assert after["global_step"] == 2
        for name, weight in before["ema"]["weights"].items():
            torch.testing.assert_close(after["state_dict"][name], weight, atol=1e-6, rtol=0)
            torch.testing.assert_close(after["ema"]["weights"][name], weight, atol=1e-6, rtol=0)
    first = saved[0]
    assert max(float((first["state_dict"][name] - weight).abs().max())
               for name, weight in first["ema"]["weights"].items()) > 1e-3  # fmt: skip
    for folder, before in zip(stages[1:], stages, strict=False):
        (start,) = json.loads((folder / "manifest.json").read_text())["starts"]
        assert start["init_from"] == {"checkpoint": str(before / "last.ckpt"), "step": 2, "weights": "EMA"}


def test_times_are_shifted_alike_in_training_and_sampling_at_each_size(stages: list[Path]) -> None:
    for folder, shift in zip(stages, (1.0, 1.73, 3.0), strict=True):
        model = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
        assert model["timesteps"]["init_args"]["shift"] == model["sampler"]["init_args"]["shift"] == shift


def test_all_stages_have_one_student() -> None:
    first, taught = (yaml.safe_load((REAL / f"{name}.yaml").read_text()) for name in ("256", "kd_output"))
    for part in ("denoiser", "conditioner", "autoencoder"):
        assert first["model"]["init_args"][part] == taught["model"]["init_args"][part]
    assert first["data"]["init_args"]["text_states"] == taught["data"]["init_args"]["text_states"]
    followed = [yaml.safe_load((REAL / f"{name}.yaml").read_text()) for name in ("512", "1024", "kd_output")]
    names = ["t2i-256", *(each["name"] for each in followed)]
    assert [each["model"]["init_args"]["init_from"] for each in followed] == [f"runs/{name}" for name in names[:-1]]


def test_a_run_draws_images_of_other_shapes(
    stages: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--run", str(stages[-1]), "--prompt", "a dog", "--count", "2", "--steps", "2", "--out"]
    assert main([*words, str(tmp_path / "out"), "--size", "48x80"]) == 0
    with Image.open(tmp_path / "out" / "000-a-dog-0000.png") as image:
        assert (image.height, image.width) == (48, 80)
        assert image.info["size"] == "48x80"
    for size, said in {
        "48x76": "--size 48x76 is of no multiples of 8 pixels",
        "0x8": "--size 0x8 is of no multiples",
        "48": "--size '48' is no size; give HEIGHTxWIDTH",
    }.items():
        assert main([*words, str(tmp_path / "none"), "--size", size]) == 1
        assert said in capsys.readouterr().err.replace("\n", " ")
    assert main([*words, str(tmp_path / "none"), "--size", "48x80", "--backend", "onnx"]) == 1
    assert "what was exported draws images of one size" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def distilled(photos: Path, pipeline: Path, stages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of encode, encode_texts and kd_timestep_aware, in that order; the last begins with the last stage."""
    folder = tmp_path_factory.mktemp("runs")
    delta = {
        "model": {"init_args": {"autoencoder": {"init_args": {"path": str(pipeline)}}}},
        "data": {"init_args": {"source": source(photos), "image_size": SIDE, "shard_size": 16, "workers": 0}},
        "trainer": {"accelerator": "cpu"},
    }
    latents = run("predict", folder, [REAL / "encode.yaml"], delta) / "latents"
    states = {}
    for name, encoder in encoders(pipeline).items():
        files = list(dict.fromkeys([REAL / "encode_clip_l.yaml", REAL / f"encode_{name}.yaml"]))
        # What the files say of an encoder stands, but for where a small one lies.
        places = {key: value for key, value in encoder["init_args"].items() if key in ("path", "dtype", "tokens")}
        places |= {"subfolder": "gemma", "tokenizer_subfolder": "gemma"} if name == "gemma" else {}
        states[name] = str(encode(folder, photos, f"t2i-{name}", {"init_args": places}, files))
    teacher = {
        "path": str(pipeline),
        "placement": "replicated",
        "compile": False,
        "dtype": "float32",
        "conditioner": {
            "init_args": {
                "path": str(pipeline),
                "t5_tokens": tiny_sd3.T5_TOKENS,
                "context_dim": tiny_t5.WIDTH,
                "dtype": "float32",
            }
        },
    }
    delta = {
        "model": {
            "init_args": {
                **student(pipeline),
                "image_size": SIDE,
                "init_from": str(stages[-1]),
                "teacher": {"init_args": teacher},
                "features": [
                    {"student": "up.1", "teacher": "block.2", "student_channels": 64, "teacher_channels": 16}
                ],
                "sampler": {"init_args": {"steps": 2}},
            }
        },
        "data": {
            "init_args": {
                "source": {"init_args": {"folder": str(latents)}},
                "image_size": SIDE,
                "batch_size": 4,
                "text_states": states,
            }
        },
        "trainer": {
            **SMALL_TRAINER,
            "callbacks": yaml.safe_load((REAL / "kd_timestep_aware.yaml").read_text())["trainer"]["callbacks+"],
        },
    }  # fmt: skip
    files = [REAL / f"{name}.yaml" for name in ("kd_output", "kd_multilevel", "kd_timestep_aware")]
    return run("fit", folder, files, delta)


def charts_of(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The patterns of each chart, and the tags that were written."""
    events = EventAccumulator(str(folder)).Reload()
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    return charts, events.Tags()["scalars"]


def test_the_real_student_becomes_a_generator_of_four_steps(distilled: Path, tmp_path: Path) -> None:
    resolved = yaml.safe_load((distilled / "config.yaml").read_text())["model"]["init_args"]
    small = {key: resolved[key] for key in ("image_size", "denoiser", "conditioner", "autoencoder", "compile")}
    inputs = [{"feature": "block.0", "channels": 16}, {"feature": "block.2", "channels": 16}]
    small |= {"init_from": str(distilled), "teacher": {"init_args": resolved["teacher"]["init_args"]}}
    small["discriminator"] = {"init_args": {"inputs": inputs, "summary_dim": sum(tiny_sd3.PROJECTIONS), "width": 16}}
    small["accumulate"] = 1
    data = yaml.safe_load((distilled / "config.yaml").read_text())["data"]
    callbacks = yaml.safe_load((STEP / "four_step.yaml").read_text())["trainer"]["callbacks+"]
    delta = {"model": {"init_args": small}, "data": data, "trainer": {**SMALL_TRAINER, "callbacks": callbacks}}
    folder = run("fit", tmp_path, [REAL / "kd_output.yaml", STEP / "four_step.yaml"], delta)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["steps"] == {"generator": 1, "discriminator": 1}
    charts, scalars = charts_of(folder)
    assert {"train/d_real", "train/d_fake", "train/adversarial", "train/lambda", "val/kd"} <= set(scalars)
    for title in ("kd", "adversarial", "adversarial by time", "d_real by time", "d_fake by time"):
        assert any(re.match(tag, written) for tag in charts[title] for written in scalars), title
    words = ["generate", "--run", str(folder), "--prompt", "a dog", "--count", "1", "--steps", "4"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0


def test_the_real_experiments_encode_distil_and_leave_a_checkpoint_without_teachers(distilled: Path) -> None:
    saved = torch.load(distilled / "last.ckpt", weights_only=True)
    names = {name.split(".")[0] for name in saved["state_dict"]}
    assert names == {"denoiser", "conditioner", "feature_loss"}
    assert [name for name in saved["state_dict"] if name.startswith("conditioner")] == ["conditioner.null"]


def test_curves_of_the_terms_stand_together(distilled: Path) -> None:
    charts, scalars = charts_of(distilled)
    assert {"kd", "kd by time", "feature", "feature by time"} <= charts.keys()
    for title in ("kd", "kd by time", "feature", "feature by time"):
        for tag in charts[title]:
            assert any(re.match(tag, written) for written in scalars), (title, tag)
    assert {"train/lambda", "train/ratio_kd", "train/clamped_feature"} <= set(scalars)


def test_held_out_captions_are_predicted_without_reading_the_teacher(
    distilled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapgen_pl.teachers.sd3.SD3Teacher.ready", None)
    assert main(["predict", "--run", str(distilled), "--data.samples", "2"]) == 0


def test_prompts_are_drawn_without_data_or_teacher(
    distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapgen_pl.teachers.sd3.SD3Teacher.__init__", None)
    monkeypatch.setattr("snapgen_pl.data.datamodule.ImageData.__init__", None)
    words = ["generate", "--run", str(distilled), "--count", "2", "--steps", "3", "--guidance", "2"]
    assert main([*words, "--prompt", "a photo of a cat", "--out", str(tmp_path / "one")]) == 0
    with Image.open(tmp_path / "one" / "000-a-photo-of-a-cat-0001.png") as image:
        assert image.size == (SIDE, SIDE)
        assert image.info["prompt"] == "a photo of a cat"
        assert image.info["positions"] == "1"
        assert image.info["seed"] == "0"
        assert "'steps': 3" in image.info["sampler"]
        one = image.tobytes()
    (tmp_path / "prompts.txt").write_text("# mine\na dog\n\n  a photo of a cat\n", encoding="utf-8")
    assert main([*words, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "file")]) == 0
    with Image.open(tmp_path / "file" / "001-a-photo-of-a-cat-0001.png") as image:
        again = image.tobytes()
    assert max(abs(a - b) for a, b in zip(one, again, strict=True)) <= 1  # another batch sums in another order
    # A subset of the encoders draws something else.
    words += ["--encoders", "gemma"]
    assert main([*words, "--prompt", "a photo of a cat", "--out", str(tmp_path / "gemma")]) == 0
    with Image.open(tmp_path / "gemma" / "000-a-photo-of-a-cat-0001.png") as image:
        assert image.tobytes() != one


def test_drawing_goes_on_after_the_images_that_are_there(distilled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["generate", "--run", str(distilled), "--count", "3", "--prompt", "a dog", "--out", str(out)]
    assert main(words) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    kept = (out / "000-a-dog-0000.png").stat().st_mtime_ns
    (out / "000-a-dog-0001.png").unlink()
    (out / "grid.png").unlink()
    assert main(words) == 0
    assert (out / "000-a-dog-0000.png").stat().st_mtime_ns == kept
    assert whole.keys() == {path.name for path in out.iterdir()}


def test_benchmarks_find_what_they_read(distilled: Path, tmp_path: Path) -> None:
    lines = [{"tag": "counting", "include": [], "prompt": "a photo of two cat"}, {"tag": "x", "prompt": "a dog"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    words = ["generate", "--run", str(distilled), "--out"]
    geneval = ["--layout", "geneval", "--prompts", str(tmp_path / "metadata.jsonl"), "--count", "2"]
    assert main([*words, str(tmp_path / "geneval"), *geneval]) == 0
    for index, line in enumerate(lines):
        folder = tmp_path / "geneval" / f"{index:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == line
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["00000.png", "00001.png"]

    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg" / "drawtext12.txt").write_text("a cat and a dog\n")
    dpg = ["--layout", "dpg", "--prompts", str(tmp_path / "dpg")]
    assert main([*words, str(tmp_path / "images"), *dpg]) == 0
    single = ["--prompt", "a cat and a dog", "--count", "4"]
    assert main([*words, str(tmp_path / "single"), *single]) == 0
    with Image.open(tmp_path / "images" / "images" / "drawtext12.png") as grid:
        assert grid.size == (2 * SIDE, 2 * SIDE)
        third = grid.crop((0, SIDE, SIDE, 2 * SIDE)).tobytes()
    with Image.open(tmp_path / "single" / "000-a-cat-and-a-dog-0002.png") as image:
        assert image.tobytes() == third


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "cat"], "the run draws from texts; give --prompt or --prompts"),
        (["--prompt", "a", "--prompts", "b"], "give one of --classes, --prompt and --prompts"),
        (["--prompts", "nowhere.txt"], "prompts nowhere.txt cannot be read for the layout plain"),
        (["--prompt", "a", "--layout", "dpg"], "--layout dpg reads the benchmark's own prompts"),
        (["--prompt", "a", "--encoders", "t5"], "no encoders ['t5']; there are"),
        (["--prompt", "a", "--encoders", ","], "--encoders names none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["generate", "--run", str(distilled), "--out", str(tmp_path / "out"), *words]) == 1
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ['{"prompt": null}', '{"prompt": " "}', '{"tag": 1}', "[]", "a cat"])
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(f'{{"prompt": "a cat"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metadata\.jsonl"):
        read_prompts(tmp_path / "metadata.jsonl", "geneval")


def test_the_gemma_file_leaves_nothing_of_clip(capsys: pytest.CaptureFixture[str]) -> None:
    files = [word for name in ("clip_l", "gemma") for word in ("--config", str(REAL / f"encode_{name}.yaml"))]
    with pytest.raises(SystemExit, match="0"):
        main(["predict", *files, "--print_config"])
    encoder = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["encoder"]
    assert encoder["class_path"].endswith("GemmaText")
    assert (encoder["init_args"]["path"], encoder["init_args"]["subfolder"]) == ("google/gemma-2-2b", "")


def test_another_command_writes_over_nothing(
    distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--run", str(distilled), "--count", "1", "--prompt", "a dog", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main([*words, "--seed", "7"]) == 1
    assert "holds images of another command (seed differ" in capsys.readouterr().err


MINILM = {
    "class_path": "snapgen_pl.conditioning.minilm.MiniLM",
    "init_args": {"tokens": 20, "truncate": True, "pooled": True},
}


@pytest.fixture(scope="module")
def emoji_texts(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    return encode(folder, photos, "emoji-texts", MINILM, [EMOJI / "encode_texts.yaml"])


def small_emoji(photos: Path, texts: Path, denoiser: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {
            "init_args": {
                "image_size": SIDE,
                "denoiser": {"init_args": {**denoiser, "in_channels": 4}},
                "autoencoder": {"init_args": {"patch": 4, "channels": 4}},
                "sampler": {"init_args": {"steps": 2}},
            }
        },
        "data": {
            "init_args": {"source": source(photos), "image_size": SIDE, "text_states": {"minilm": str(texts)},
                          "batch_size": 4}
        },
        "trainer": {**SMALL_TRAINER, "callbacks": []},
    }  # fmt: skip


@pytest.fixture(scope="module")
def emoji_teacher(photos: Path, emoji_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    denoiser = {"layers": 6, "heads": 2, "head_dim": 8, "latent_size": 8, "largest_grid": 8}
    delta = small_emoji(photos, emoji_texts, denoiser)
    return run("fit", tmp_path_factory.mktemp("teacher"), [EMOJI / "teacher.yaml"], delta)


@pytest.mark.parametrize(
    "row",
    [
        "student",
        "timestep_aware",
        *(pytest.param(row, marks=pytest.mark.slow) for row in ("output", "multilevel", "timestep_bin", "lambda_half")),
    ],
)
def test_a_row_of_the_emojis_distillation_trains_at_small_size(
    photos: Path, emoji_texts: Path, emoji_teacher: Path, tmp_path: Path, row: str
) -> None:
    delta = small_emoji(photos, emoji_texts, {"stages": STAGES, "head_dim": 32})
    delta["model"]["init_args"]["teacher"] = {"init_args": {"run": str(emoji_teacher)}}
    files = [EMOJI / "student.yaml"]
    scaled = row not in ("student", "output", "multilevel")
    if scaled or row == "multilevel":
        files.append(EMOJI / "multilevel.yaml")
        pair = {"student": "up.1", "teacher": "block.5", "student_channels": 64, "teacher_channels": 16}
        delta["model"]["init_args"]["features"] = [pair]
    if row not in ("student", "multilevel"):
        files.append(EMOJI / f"{row}.yaml")
    if scaled:
        delta["trainer"]["callbacks"] = yaml.safe_load(files[-1].read_text())["trainer"]["callbacks+"]
    folder = run("fit", tmp_path, files, delta)
    assert (folder / "last.ckpt").exists()
    assert main(["generate", "--run", str(folder), "--prompt", "a red apple, 3d style", "--count", "1", "--out",
                 str(tmp_path / "out")]) == 0  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        "four_step",
        *(
            pytest.param(row, marks=pytest.mark.slow)
            for row in ("eight_step", "two_step", "s_only", "adversarial_only")
        ),
    ],
)
def test_a_row_of_the_emojis_step_distillation_trains_at_small_size(
    photos: Path, emoji_texts: Path, emoji_teacher: Path, tmp_path: Path, row: str
) -> None:
    """As a student would begin it; it begins with the weights of one that learned nothing yet."""
    delta = small_emoji(photos, emoji_texts, {"stages": STAGES, "head_dim": 32})
    small = delta["model"]["init_args"]
    small["teacher"] = {"init_args": {"run": str(emoji_teacher)}}
    student = run("fit", tmp_path / "student", [EMOJI / "student.yaml"], delta)
    small["init_from"] = str(student)
    del small["sampler"]
    if row != "s_only":
        inputs = [{"feature": name, "channels": 16} for name in ("block.1", "block.5")]
        small["discriminator"] = {"init_args": {"inputs": inputs, "width": 16}}
    files = [EMOJI / "student.yaml", *(EMOJI_STEP / f"{name}.yaml" for name in dict.fromkeys(("four_step", row)))]
    declared = yaml.safe_load(files[-1].read_text()).get("trainer", {}).get("callbacks")
    callbacks = declared or yaml.safe_load(files[1].read_text())["trainer"]["callbacks"]
    delta["trainer"]["callbacks"] = [each for each in callbacks if "callbacks.sample_" not in each["class_path"]]
    folder = run("fit", tmp_path, files, delta)
    config = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert config["sampler"]["init_args"]["steps"] == {"eight_step": 8, "two_step": 2}.get(row, 4)
    if row == "s_only":
        assert config["timesteps"]["init_args"]["times"] == Renoising(**config["sampler"]["init_args"]).times()
    assert main(["generate", "--run", str(folder), "--prompt", "a red apple, 3d style", "--count", "1", "--out",
                 str(tmp_path / "out")]) == 0  # fmt: skip


def test_what_the_emojis_teacher_said_once_teaches_a_student(
    photos: Path, emoji_texts: Path, emoji_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = small_emoji(photos, emoji_texts, {"stages": STAGES, "head_dim": 32})
    pair = {"student": "up.1", "teacher": "block.5", "student_channels": 64, "teacher_channels": 16}
    delta["model"]["init_args"] |= {"teacher": {"init_args": {"run": str(emoji_teacher)}}, "features": [pair]}
    files = [EMOJI / "student.yaml", EMOJI / "multilevel.yaml"]
    asking = delta | {"trainer": {"accelerator": "cpu", "enable_progress_bar": False}}
    outputs = run("predict", tmp_path, [*files, EMOJI / "encode_teacher.yaml"], asking) / "teacher_outputs"
    monkeypatch.setattr("snapgen_pl.teachers.run.RunTeacher.ready", None)
    delta["data"]["init_args"] |= {"draws": 2, "teacher_outputs": str(outputs)}
    folder = run("fit", tmp_path, files, delta)
    assert (folder / "last.ckpt").exists()

"""Pipelines of diffusers draw what their runs draw, and come back from their folders as they were."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from snapgen_pl.__main__ import main
from snapgen_pl.pipeline.parts import PipelineConditioner, PipelineDenoiser
from snapgen_pl.pipeline.scheduler import SamplerScheduler
from snapgen_pl.pipeline.snapgen_pipeline import SnapGenPipeline
from tests.export.exported_run import part
from tests.pipeline.conftest import WEIGHTS, class_text_run, export, generated, with_arguments

PROMPTS = ["a photo of cat", "a photo of dog"]


def opened(folder: Path, **options: Any) -> SnapGenPipeline:
    pipeline = SnapGenPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_alike(images: list[Image.Image], others: list[np.ndarray]) -> None:
    """Up to rounding to bytes; and no two of them are of one class and noise."""
    assert len(images) == len(others) > 1
    for image, other in zip(images, others, strict=True):
        difference = np.abs(np.asarray(image).astype(int) - other)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02
    assert all((other != others[0]).mean() > 0.1 for other in others[1:])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Euler", {"steps": 10}),
        ("Heun", {"steps": 5, "shift": 2.0}),
        ("Renoising", {"steps": 4, "shift": 7 / 3}),
        ("SDE", {"steps": 4, "shift": 2.0, "last_step": 0.5, "last": "data"}),
    ],
)
def test_classes_under_every_sampler(class_run: Path, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """Guided from a time on that the grid of Euler meets."""
    guidance = {"scale": 3.0, "interval": [0.7, 1.0], "channels": 3}
    run = with_arguments(class_run, tmp_path, sampler=part(f"flow.samplers.{name}", **settings), guidance=guidance)
    pipeline = opened(export(run, tmp_path / "pipeline"))
    assert isinstance(pipeline.scheduler, SamplerScheduler) == (name != "Euler")
    words = ["--classes", "cat, dog", "--seed", "5"]
    drawn = pipeline(class_labels=["cat", 1], num_images_per_prompt=2, seed=5).images
    assert_alike(drawn, generated(run, tmp_path / "drawn", *words))


def test_other_steps_and_guidance(class_run: Path, class_pipeline: Path, tmp_path: Path) -> None:
    fewer = {"num_inference_steps": 3, "guidance_scale": 1.5}
    drawn = opened(class_pipeline)(class_labels=["cat", "dog"], num_images_per_prompt=2, seed=5, **fewer).images
    words = ["--classes", "cat, dog", "--seed", "5", "--steps", "3", "--guidance", "1.5"]
    assert_alike(drawn, generated(class_run, tmp_path / "drawn", *words))


def test_texts(text_run: Path, text_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--seed", "3"]
    drawn = opened(text_pipeline)(PROMPTS, num_images_per_prompt=2, seed=3).images
    assert_alike(drawn, generated(text_run, tmp_path / "drawn", *words))


def test_texts_without_one_of_the_encoders(text_run: Path, text_pipeline: Path, tmp_path: Path) -> None:
    one = opened(text_pipeline, text_encoder_2=None, tokenizer_2=None)
    drawn = one(PROMPTS[0], num_images_per_prompt=2, seed=3).images
    words = ["--prompt", PROMPTS[0], "--seed", "3", "--encoders", "clip_l"]
    assert_alike(drawn, generated(text_run, tmp_path / "drawn", *words))
    with pytest.raises(ValueError, match=r"no text encoder of \['clip_l', 'minilm'\]; give one at least"):
        opened(text_pipeline, text_encoder=None, text_encoder_2=None)


def test_the_text_encoders_that_are_given_are_asked(text_pipeline: Path) -> None:
    pipeline = opened(text_pipeline)
    own = pipeline(PROMPTS[0], seed=0, output_type="latent").images
    changed = CLIPTextModelWithProjection.from_pretrained(text_pipeline / "text_encoder")
    with torch.no_grad():
        changed.text_projection.weight.mul_(3)
    other = opened(text_pipeline, text_encoder=changed)
    assert not torch.allclose(other(PROMPTS[0], seed=0, output_type="latent").images, own, atol=1e-3)
    # As diffusers shares components among pipelines.
    again = SnapGenPipeline(**pipeline.components, image_size=16, num_inference_steps=2, guidance_scale=2.0)
    assert torch.equal(again(PROMPTS[0], seed=0, output_type="latent").images, own)


def test_classes_as_texts_need_no_encoder(class_run: Path, tmp_path: Path) -> None:
    run = class_text_run(class_run, tmp_path)
    others = generated(run, tmp_path / "drawn", "--classes", "dog", "--seed", "1")
    folder = export(run, tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "clip")
    assert not (folder / "text_encoder").exists()
    assert_alike(opened(folder)(class_labels="dog", num_images_per_prompt=2, seed=1).images, others)
    kept, states = load_file(run / "class_texts.safetensors"), load_file(folder / "conditioner" / WEIGHTS)
    assert torch.equal(states["conditioner.states_NSD"], kept["tokens_BSD"])


def test_a_decoder_in_place_of_the_autoencoders_own(class_run: Path, decoder_run: Path, tmp_path: Path) -> None:
    folder = export(class_run, tmp_path / "pipeline", "--decoder", str(decoder_run))
    words = ["--classes", "cat, dog", "--seed", "1"]
    others = generated(class_run, tmp_path / "drawn", *words, "--decoder", str(decoder_run))
    drawn = opened(folder)(class_labels=["cat", "dog"], num_images_per_prompt=2, seed=1).images
    assert_alike(drawn, others)


@pytest.mark.parametrize("kind", ["class_pipeline", "text_pipeline"])
def test_it_comes_back_from_its_folder_bit_for_bit(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    asked: dict[str, Any] = {"prompt": PROMPTS} if kind == "text_pipeline" else {"class_labels": [1, 0]}
    pipeline = opened(folder)
    pipeline.save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again")
    first, second = (each(**asked, seed=2, output_type="np").images for each in (pipeline, again))
    assert np.array_equal(first, second)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.safetensors"))
    for file in files:
        old, new = load_file(folder / file), load_file(tmp_path / "again" / file)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_diffusers_and_transformers_open_what_is_theirs(text_pipeline: Path) -> None:
    index = json.loads((text_pipeline / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["unet"] == ["snapgen_pl.pipeline.parts", "PipelineDenoiser"]
    vae = AutoencoderKL.from_pretrained(text_pipeline / "vae")
    assert (vae.config["scaling_factor"], vae.config["shift_factor"]) == (1.5, 0.06)
    tokenizer = AutoTokenizer.from_pretrained(text_pipeline / "tokenizer")
    assert len(tokenizer(PROMPTS[0])["input_ids"]) == 6
    assert CLIPTextModelWithProjection.from_pretrained(text_pipeline / "text_encoder").config.hidden_size == 16


def test_no_file_tells_where_it_was_made(text_run: Path, text_pipeline: Path) -> None:
    for file in text_pipeline.rglob("*.*"):
        if file.suffix in (".json", ".md"):
            assert str(text_run.parent) not in file.read_text(), file


def changed(folder: Path, tmp_path: Path, part: str, change: Any) -> Path:
    """A copy with other weights in a part."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / part / WEIGHTS)
    save_file(change(tensors), copy / part / WEIGHTS)
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: {name: each for name, each in tensors.items() if "conv_in" not in name}, "missing: .*conv_in"),
        (lambda tensors: tensors | {"denoiser.more": torch.ones(2)}, "foreign: denoiser.more"),
        (
            lambda tensors: {
                name: each[:1] if name.endswith("conv_in.weight") else each for name, each in tensors.items()
            },
            "conv_in.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(class_pipeline: Path, tmp_path: Path, change: Any, said: str) -> None:
    names = load_file(class_pipeline / "unet" / WEIGHTS)
    assert any("conv_in" in name for name in names), sorted(names)
    with pytest.raises(ValueError, match=f"(?s)unet.*{said}"):
        opened(changed(class_pipeline, tmp_path, "unet", change))


def test_pickled_and_missing_weights_are_refused(class_pipeline: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(class_pipeline, tmp_path / "copy"))
    torch.save(load_file(copy / "unet" / WEIGHTS), copy / "unet" / "diffusion_pytorch_model.bin")
    (copy / "unet" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="unet holds no whole PipelineDenoiser"):
        opened(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"no model_index\.json in .*give a folder that `export diffusers` made"):
        opened(copy)
    with pytest.raises(ValueError, match="there is no folder"):
        SnapGenPipeline.from_pretrained(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("unet", {"middle_layers": 1000}),
        ("conditioner", {"num_classes": 10**12}),
        ("vae", {"patch": 10**6}),
    ],
)
def test_a_part_that_asks_for_more_than_its_weights_is_refused(
    class_pipeline: Path, tmp_path: Path, place: str, changed: dict[str, int]
) -> None:
    copy = Path(shutil.copytree(class_pipeline, tmp_path / "copy"))
    file = copy / place / "config.json"
    config = json.loads(file.read_text())
    config["network"]["init_args"] |= changed
    file.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=rf"{place} does not fit its config\.json: that asks for a network of more than"
    ):
        opened(copy)


def test_so_is_what_diffusers_and_transformers_load(text_pipeline: Path, tmp_path: Path) -> None:
    for place, changed in (("text_encoder", {"num_hidden_layers": 1000}), ("vae", {"layers_per_block": 1000})):
        copy = Path(shutil.copytree(text_pipeline, tmp_path / place))
        file = copy / place / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        with pytest.raises(ValueError, match=rf"{place} does not fit its config\.json"):
            opened(copy)


def test_a_class_of_elsewhere_is_not_imported(class_pipeline: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(class_pipeline, tmp_path / "copy"))
    (tmp_path / "trap.py").write_text("raise SystemError")
    file = copy / "unet" / "config.json"
    config = json.loads(file.read_text())
    for network in ("trap.UNet", config["network"] | {"class_path": "trap.UNet"}, {"class_path": [["trap.UNet"]]}):
        file.write_text(json.dumps(config | {"network": network}))
        with pytest.raises(ValueError, match=r"names trap\.UNet, which is not of snapgen_pl; import it first"):
            PipelineDenoiser.from_pretrained(copy / "unet")
    with pytest.raises(ValueError, match=r"names trap\.Sampler, which"):
        SamplerScheduler({"class_path": "trap.Sampler"})


def test_a_conditioner_without_the_text_encoders_beside_it_is_refused(text_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(text_pipeline / "conditioner", tmp_path / "conditioner")
    with pytest.raises(ValueError, match="text_encoder"):
        PipelineConditioner.from_pretrained(tmp_path / "conditioner")


def test_sixteen_bits_draw_about_the_same(class_pipeline: Path) -> None:
    exact = opened(class_pipeline)(class_labels="cat", seed=0, output_type="pt").images
    half = opened(class_pipeline, dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    drawn = half(class_labels="cat", seed=0, output_type="pt").images
    assert 0 < (drawn - exact).abs().max() < 0.1


def test_generators_and_latents_are_the_noise(class_pipeline: Path) -> None:
    pipeline = opened(class_pipeline)

    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def drawn(**noise: Any) -> torch.Tensor:
        images: torch.Tensor = pipeline(class_labels=["cat", "cat"], output_type="latent", **noise).images
        return images

    pair = drawn(generator=seeded(1, 2))
    torch.testing.assert_close(pair, drawn(generator=seeded(2, 1)).flip(0))
    whole = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn(generator=seeded(3)[0]), drawn(latents=whole))
    assert not torch.allclose(drawn(), drawn())


def test_schedulers_of_diffusers_may_take_its_place(class_pipeline: Path) -> None:
    pipeline = opened(class_pipeline)
    euler = pipeline(class_labels="cat", seed=0, output_type="latent").images
    pipeline.scheduler = FlowMatchLCMScheduler.from_config(pipeline.scheduler.config)
    first, again = (pipeline(class_labels="cat", seed=0, output_type="latent").images for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, euler, atol=1e-2)


def test_other_sizes_and_outputs(class_pipeline: Path) -> None:
    pipeline = opened(class_pipeline)
    assert pipeline(class_labels="cat", seed=0, height=8, width=24).images[0].size == (24, 8)
    (array,) = pipeline(class_labels="cat", seed=0, output_type="np", return_dict=False)
    tensor = pipeline(class_labels="cat", seed=0, output_type="pt").images
    assert array.shape == (1, 16, 16, 3)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    image = np.asarray(pipeline(class_labels="cat", seed=0).images[0])
    assert np.array_equal(image, (255 * array[0]).round())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": "a"}, "draws from a class_labels; give that, and nothing else"),
        ({}, "draws from a class_labels"),
        ({"class_labels": "cow"}, r"no class 'cow' among the 2"),
        ({"class_labels": 2}, "class label 2 is not in 0 to 1"),
        ({"class_labels": []}, "class_labels is empty; give one at least"),
        ({"class_labels": "cat", "height": 10}, "height x width 10x16 is of no multiples of 8 pixels"),
        ({"class_labels": "cat", "width": 12}, "height x width 16x12 is of no multiples of 8 pixels"),
        ({"class_labels": "cat", "output_type": "jpeg"}, "output_type is 'jpeg'; it must be one of pil"),
        ({"class_labels": "cat", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"class_labels": "cat", "num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"class_labels": "cat", "guidance_scale": -1.0}, "guidance scale is -1"),
        ({"class_labels": "cat", "latents": torch.zeros(1, 4, 2, 2)}, r"latents are .*must be \(1, 4, 4, 4\)"),
        ({"class_labels": "cat", "seed": 0, "generator": torch.Generator()}, "all say what the noise is"),
    ],
)
def test_what_cannot_be_drawn_is_refused(class_pipeline: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        opened(class_pipeline)(**asked)


def test_no_prompt_at_all_is_refused(text_pipeline: Path) -> None:
    with pytest.raises(ValueError, match="prompt is empty; give one at least"):
        opened(text_pipeline)(prompt=[], seed=0)


def test_an_export_is_whole_or_not_at_all(
    class_run: Path, class_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "diffusers", "--run", str(class_run), "--out"]
    assert main([*words, str(class_pipeline)]) == 1
    assert "is not an empty folder; choose another" in " ".join(capsys.readouterr().err.split())
    copy = Path(shutil.copytree(class_run, tmp_path / "run"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({"starts": [{"data": manifest["starts"][-1]["data"]}]}))
    (copy / "metrics.json").write_text("{")
    assert main(["export", "diffusers", "--run", str(copy), "--out", str(tmp_path / "out")]) == 1
    assert "metrics.json" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_conditioner_that_fits_no_pipeline_is_refused(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = yaml.safe_load((text_run / "config.yaml").read_text())["model"]["init_args"]["conditioner"]
    encoders = {f"minilm{i}": texts["init_args"]["encoders"]["minilm"] for i in range(4)}
    texts["init_args"] |= {"encoders": encoders, "blocks": [[name] for name in encoders]}
    copy = with_arguments(text_run, tmp_path, conditioner=texts)
    assert main(["export", "diffusers", "--run", str(copy), "--out", str(tmp_path / "out")]) == 1
    assert "fits no pipeline, which has places for 1 to 3 text encoders" in " ".join(capsys.readouterr().err.split())

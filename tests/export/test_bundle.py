"""A bundle draws, by the script that goes along with it, what its export draws; Core ML alone is not there."""

import importlib.util
import itertools
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import CLIPTokenizer

from snapgen_pl.__main__ import main
from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.conditioning.token_ids import SavedTokenizer
from snapgen_pl.export.bundle import SCRIPTS, write_tokenizer
from snapgen_pl.export.chunks import cut
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.example import read_example
from snapgen_pl.export.mac import draw_on_mac
from snapgen_pl.export.package import read_package
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.pipeline.ingredients import Ingredient
from snapgen_pl.pipeline.licences import STABILITY
from snapgen_pl.whole_files import write_json
from tests.conditioning import tiny_gemma, tiny_t5
from tests.conditioning.tiny_sd3 import save_clip_tokenizer
from tests.export.exported_run import Exported
from tests.export.test_generate_onnx import draw
from tests.test_imports import imports

PROMPT = "a photo of cat"
TEXTS = ["a photo of a cat", "  A  DOG!! 12 of 3", "", "naïve 猫 🦊", "a photo of a cat and a dog " * 30]


def evaluated(bundle: draw_on_mac.Bundle) -> dict[str, draw_on_mac.Model]:
    """The bundle's models as the script runs them, with the evaluator in the place of Core ML."""

    return {
        name: draw_on_mac.Chain([evaluator(file) for file in bundle.files(name)], about["takes"])
        for name, about in bundle.manifest["models"].items()
    }


def evaluator(compiled: Path, units: str = "ALL") -> draw_on_mac.Model:
    """The package of a compiled model, as a model; like Core ML it gives float32, whatever it computes in."""
    package = read_package(compiled.with_suffix(".mlpackage"))

    def run(inputs: Mapping[str, draw_on_mac.Array]) -> dict[str, draw_on_mac.Array]:
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: tensor.float().numpy() for name, tensor in evaluate(package, given).outputs.items()}

    return run


def drawn(bundle: draw_on_mac.Bundle, seed: int) -> draw_on_mac.Array:
    channels, height, width = bundle.manifest["latents"]["shape"]
    noises = house_noises(seed, (channels, height, width))
    return draw_on_mac.draw(bundle, evaluated(bundle), PROMPT, noises)


def house_noises(seed: int, shape: tuple[int, int, int]) -> Iterator[draw_on_mac.Array]:
    position = torch.tensor([0])
    yield initial_noise(seed, position, shape).numpy()
    for step in itertools.count():
        yield step_noise(seed, position, shape)(step).numpy()


def changed(exported: Exported, folder: Path, **model: Any) -> Path:
    """A copy of an export, as of a run that draws otherwise."""
    shutil.copytree(exported.folder, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"] |= model
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def bundled(exported: Path, out: Path, *words: str) -> draw_on_mac.Bundle:
    assert main(["export", "bundle", "--exported", str(exported), "--out", str(out), *words]) == 0
    return draw_on_mac.Bundle(out)


def sampler(kind: str, steps: int) -> dict[str, Any]:
    return {"class_path": f"snapgen_pl.flow.samplers.{kind}", "init_args": {"steps": steps, "shift": 2.0}}


@pytest.mark.parametrize(
    ("own", "guidance", "words"),
    [
        ({"sampler": sampler("Renoising", 3)}, {"scale": 1.0, "interval": [0.0, 1.0]}, []),
        ({"sampler": sampler("Euler", 4)}, {"scale": 3.0, "interval": [0.6, 1.0], "channels": 3}, []),
        ({"sampler": sampler("SDE", 5)}, {"scale": 1.0, "interval": [0.0, 1.0]}, ["--steps", "2"]),
    ],
    ids=["renoising", "guided in part", "euler for another"],
)
def test_it_draws_what_the_export_draws(
    exported_texts: Exported, tmp_path: Path, own: dict[str, Any], guidance: dict[str, Any], words: list[str]
) -> None:
    exported = changed(exported_texts, tmp_path / "exported", **own, guidance=guidance)
    bundle = bundled(exported, tmp_path / "bundle", *words)
    image = drawn(bundle, 0)
    alike = {"sampler": sampler("Euler", 2)} if words else own
    same = changed(exported_texts, tmp_path / "same", guidance=guidance, **alike)
    (expected,) = draw(same, tmp_path / "drawn", "--prompt", PROMPT, "--count", "1", "--backend", "coreml").values()
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 1
    assert expected.std() > 5


def test_halves_take_the_place_of_a_package(exported_texts: Exported, tmp_path: Path) -> None:
    exported = changed(exported_texts, tmp_path / "exported")
    path = exported / "coreml" / "denoiser.mlpackage"
    cut(read_package(path), path, read_example(exported / "examples" / "denoiser.safetensors").inputs)
    whole, halves = bundled(exported_texts.folder, tmp_path / "whole"), bundled(exported, tmp_path / "halves")
    assert [file.name for file in halves.files("denoiser")] == ["UnetChunk1.mlmodelc", "UnetChunk2.mlmodelc"]
    about = [each.manifest["models"]["denoiser"] for each in (whole, halves)]
    assert about[0]["inputs"] == about[1]["inputs"]
    assert about[0]["outputs"] == about[1]["outputs"]
    assert np.array_equal(drawn(whole, 1), drawn(halves, 1))


def test_the_manifest_says_what_it_takes_to_draw(exported_texts: Exported, tmp_path: Path) -> None:
    manifest = bundled(exported_texts.folder, tmp_path / "bundle").manifest
    assert manifest["timesteps"] == [1.0, 0.5, 0.0]
    assert manifest["guidance"]["scale"] == 2.0
    assert (manifest["latents"]["scale"], manifest["latents"]["shift"]) == (1.5, 0.06)
    assert (manifest["minimum_ios"], manifest["minimum_macos"]) == (17, 14)
    assert [each["files"] for each in manifest["models"].values()] == [
        ["Unet"], ["VAEDecoder"], ["Context"], ["TextEncoder"], ["TextEncoder2"]
    ]  # fmt: skip
    assert {each["name"]: each["licence"] for each in manifest["licences"]}[
        "sentence-transformers/all-MiniLM-L6-v2"
    ] == "Apache-2.0"
    page = (tmp_path / "bundle" / "README.md").read_text()
    assert "| Unet | denoiser |" in page
    assert "Guided by 2 at times in (0.0, 1.0)" in page
    start = json.loads((exported_texts.run / "manifest.json").read_text())["starts"][-1]
    assert (manifest["module"], manifest["commit"]) == ("Pretrain", start["code"]["commit"])
    assert manifest["image"] == {"range": [-1, 1]}
    assert "Images come in about [-1, 1]" in page


def test_what_the_export_was_made_from_goes_along(exported_texts: Exported, tmp_path: Path) -> None:
    """That of a decoder too, whose run is not at hand."""
    exported = changed(exported_texts, tmp_path / "exported")
    manifest = json.loads((exported / "manifest.json").read_text())
    decoder = Ingredient("autoencoder", "stabilityai/stable-diffusion-3.5-large", STABILITY, "decoder")
    manifest["made_from"] += [decoder.facts()]
    write_json(manifest, exported / "manifest.json")
    bundle = bundled(exported, tmp_path / "bundle")
    assert bundle.manifest["licences"][-1] == decoder.facts()
    assert "**Powered by Stability AI**" in (page := (bundle.folder / "README.md").read_text())
    assert f"| autoencoder of decoder | {decoder.name} |" in page
    assert STABILITY.notice in (bundle.folder / "NOTICE").read_text()


@pytest.mark.parametrize("listed", [None, "MIT", [{"role": "data", "name": "photos", "licence": 1, "through": ""}]])
def test_an_export_that_does_not_say_what_it_was_made_from_is_refused(
    exported_texts: Exported, tmp_path: Path, listed: object, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = changed(exported_texts, tmp_path / "exported")
    manifest = json.loads((exported / "manifest.json").read_text())
    write_json(manifest | {"made_from": listed}, exported / "manifest.json")
    assert main(["export", "bundle", "--exported", str(exported), "--out", str(tmp_path / "bundle")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "does not say what" in said
    assert "was made from; export the run again" in said
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("name", "pad"), [("clip_l", "<|endoftext|>"), ("clip_g", "!")])
def test_clip_reads_texts_as_transformers_does(tmp_path: Path, name: str, pad: str) -> None:
    save_clip_tokenizer(tmp_path / "own", pad)
    check_tokenizer(tmp_path, SavedTokenizer(str(tmp_path / "own"), "CLIPTokenizer", 12, truncate=True), name)
    read = CLIPTokenizer.from_pretrained(tmp_path / "bundle", pad_token=pad)  # of vocab.json and merges.txt alone
    own = CLIPTokenizer.from_pretrained(tmp_path / "own")
    assert read(TEXTS)["input_ids"] == own(TEXTS)["input_ids"]
    if name == "clip_g":
        assert own.pad_token_id == 0


def test_minilm_reads_texts_as_transformers_does(tmp_path: Path) -> None:
    folder = MiniLM().tokenizer_files[0].parent
    check_tokenizer(tmp_path, SavedTokenizer(str(folder), "BertTokenizer", 16, truncate=True), "minilm")


@pytest.mark.parametrize(("tiny", "kind"), [(tiny_t5, "T5Tokenizer"), (tiny_gemma, "GemmaTokenizer")])
def test_t5_and_gemma_read_texts_as_transformers_does(tmp_path: Path, tiny: ModuleType, kind: str) -> None:
    tiny.save_tokenizer(tmp_path / "own")
    check_tokenizer(tmp_path, SavedTokenizer(str(tmp_path / "own"), kind, 12, truncate=True), "other")
    assert not (tmp_path / "bundle" / "vocab.json").exists()


def check_tokenizer(folder: Path, saved: SavedTokenizer, name: str) -> None:
    expected = saved(TEXTS)
    (folder / "bundle").mkdir()
    about = write_tokenizer(saved, name, folder / "bundle")
    (folder / "bundle" / "bundle.json").write_text(json.dumps({"texts": {name: about}}))
    bundle = draw_on_mac.Bundle(folder / "bundle")
    for text, ids, mask in zip(TEXTS, *expected, strict=True):
        found = bundle.token_ids(name, text)
        assert found[0][0].tolist() == ids.tolist()
        assert found[1][0].tolist() == mask.float().tolist()
    about["truncate"] = False
    (folder / "bundle" / "bundle.json").write_text(json.dumps({"texts": {name: about}}))
    with pytest.raises(ValueError, match=f"tokens of {name}, there is room for {saved.tokens}; shorten it"):
        draw_on_mac.Bundle(folder / "bundle").token_ids(name, TEXTS[-1])


def test_the_script_that_goes_along_runs_but_for_core_ml(
    exported_texts: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundled(exported_texts.folder, tmp_path / "bundle")
    spec = importlib.util.spec_from_file_location("draw", bundle.folder / "draw_on_mac.py")
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.core_ml, script.residency = evaluator, lambda file, units: Counter(NeuralEngine=7, CPU=1)
    monkeypatch.setattr("sys.argv", ["draw", PROMPT, "--repeats", "1", "--out", str(tmp_path / "drawn.png")])
    with pytest.raises(SystemExit):
        script.main()
    assert "Unet.mlmodelc" in (said := capsys.readouterr().err)
    assert "not there; run ./compile_on_mac.sh first" in said
    for package in bundle.folder.glob("*.mlpackage"):
        package.with_suffix(".mlmodelc").mkdir()
    script.main()
    said = capsys.readouterr().out
    assert "Unet.mlmodelc: 7 on NeuralEngine, 1 on CPU" in said
    assert "median of 4, 4 an image" in said  # two steps, each under two contexts
    with Image.open(tmp_path / "drawn.png") as image:
        expected = draw_on_mac.draw(bundle, evaluated(bundle), PROMPT, draw_on_mac.seeded(bundle, 0))
        assert np.array_equal(np.asarray(image), expected)


def test_what_goes_along_stands_alone_and_parses(exported_texts: Exported, tmp_path: Path) -> None:
    bundle = bundled(exported_texts.folder, tmp_path / "bundle").folder
    shell, script = (bundle / name for name in SCRIPTS)
    subprocess.run(["bash", "-n", str(shell)], check=True)
    assert shell.stat().st_mode & 0o100
    assert not any(name.startswith(("snapgen_pl", "torch")) for name in imports(script))


def test_what_cannot_be_bundled_is_said(
    exported_classes: Exported, exported_texts: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(exported_texts, tmp_path / "sde", sampler=sampler("SDE", 5))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for exported, out, said in (
        (exported_classes.folder, "out", "draws classes, a bundle draws prompts"),
        (other, "out", "a bundle draws by Euler or Renoising: give --steps"),
        (exported_texts.folder, "full", "is not an empty folder"),
        (other, "sde/bundle", "which holds an export alone; choose another folder"),
        (exported_texts.run, "out", "holds no exported run"),
    ):
        assert main(["export", "bundle", "--exported", str(exported), "--out", str(tmp_path / out)]) == 1
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()

"""Whole runs, exported, draw in ONNX Runtime what they draw in torch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen_pl.__main__ import main
from snapgen_pl.export.folder import check_out, open_exported
from tests.export.exported_run import Exported


def draw(run: Path, out: Path, *words: str) -> dict[str, np.ndarray]:
    assert main(["generate", "--run", str(run), "--out", str(out), *words]) == 0
    images = {}
    for file in sorted(out.glob("*-*.png")):
        with Image.open(file) as image:
            images[file.name] = np.asarray(image).astype(int)
    return images


def assert_alike(exported: Exported, tmp_path: Path, *words: str) -> None:
    torch_images = draw(exported.run, tmp_path / "torch", *words)
    onnx_images = draw(exported.folder, tmp_path / "onnx", *words, "--backend", "onnx")
    assert torch_images.keys() == onnx_images.keys() != set()
    for name, image in torch_images.items():
        assert np.abs(image - onnx_images[name]).max() <= 1
    first, *others = torch_images.values()
    assert all(np.abs(first - other).max() > 2 for other in others)


def test_classes(exported_classes: Exported, tmp_path: Path) -> None:
    assert_alike(exported_classes, tmp_path, "--classes", "cat, dog", "--count", "2", "--steps", "3", "--seed", "5")


def test_texts_need_neither_checkpoint_nor_encoders_nor_autoencoder(
    exported_texts: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--prompt", "a photo of cat", "--count", "3"]
    torch_images = draw(exported_texts.run, tmp_path / "torch", *words)
    for gone in ("text_encoder.TextEncoder", "minilm.MiniLM", "joined_texts.JoinedTexts"):
        monkeypatch.setattr(f"snapgen_pl.conditioning.{gone}.__init__", None)
    monkeypatch.setattr("snapgen_pl.autoencoders.pretrained.Pretrained.__init__", None)
    monkeypatch.setattr("snapgen_pl.models.unet.UNet.__init__", None)
    moved = tmp_path / "moved"
    shutil.copytree(exported_texts.folder, moved)
    onnx_images = draw(moved, tmp_path / "onnx", *words, "--backend", "onnx")
    assert len(torch_images) == len(onnx_images) == 3
    for name, image in torch_images.items():
        assert np.abs(image - onnx_images[name]).max() <= 1


def test_some_of_the_encoders(exported_texts: Exported, tmp_path: Path) -> None:
    words = ["--prompt", "a photo of cat", "--count", "2", "--encoders", "minilm"]
    assert_alike(exported_texts, tmp_path, *words, "--guidance", "1")
    both = draw(exported_texts.folder, tmp_path / "both", *words[:4], "--backend", "onnx")
    one = draw(exported_texts.folder, tmp_path / "one", *words, "--backend", "onnx")
    assert all(np.abs(both[name] - one[name]).max() > 1 for name in both)


def test_images_say_what_drew_them_and_drawing_goes_on(exported_classes: Exported, tmp_path: Path) -> None:
    words = ["generate", "--run", str(exported_classes.folder), "--out", str(tmp_path / "out"), "--classes", "cat",
             "--count", "2", "--backend", "onnx"]  # fmt: skip
    assert main(words) == 0
    first, second = tmp_path / "out" / "000-cat-0000.png", tmp_path / "out" / "000-cat-0001.png"
    with Image.open(first) as image:
        assert (image.info["backend"], image.info["step"], image.info["weights"]) == ("onnx", "2", "EMA")
    kept, drawn = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert main(words) == 0
    assert (first.stat().st_mtime_ns, second.read_bytes()) == (kept, drawn)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a"], "the run draws from classes; give --classes"),
        (["--classes", "cow"], "no class 'cow' among the run's 2"),
        (["--classes", "cat", "--encoders", "minilm"], "has no text encoders to choose from"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    command = ["generate", "--run", str(exported_classes.folder), "--out", str(tmp_path / "out"), "--backend", "onnx"]
    assert main([*command, *words]) == 1
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_too_long_is_refused(
    exported_texts: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--run", str(exported_texts.folder), "--out", str(tmp_path / "out"), "--backend", "onnx"]
    assert main([*words, "--prompt", "a photo of " + "dog " * 30]) == 1
    assert "tokens; there is room for 12: shorten it" in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_that_is_no_export_is_named(exported_classes: Exported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no exported run there .*give the folder that `export` made"):
        open_exported(str(tmp_path), "onnx")
    with pytest.raises(ValueError, match="holds no exported run, but something else"):
        open_exported(str(exported_classes.run), "onnx")
    with pytest.raises(ValueError, match="is neither empty nor an export"):
        check_out(exported_classes.run)


def test_torch_does_not_run_an_export(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--run", str(exported_classes.folder), "--out", str(tmp_path / "out"), "--classes", "cat"]
    assert main(words) == 1
    assert "which torch does not run; give --backend onnx or coreml" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("file", ["onnx/denoiser.onnx.data", "onnx/decoder.onnx", "config.yaml", "manifest.json"])
def test_a_damaged_export_is_named(exported_classes: Exported, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported_classes.folder, folder)
    content = (folder / file).read_bytes()
    if file != "config.yaml":
        (folder / file).write_bytes(content[:-9])
        with pytest.raises(ValueError, match=rf"{file} is (damaged|no JSON).*; export the run again"):
            open_exported(str(folder), "onnx")
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} (is missing; export the run again|does not exist)"):
        open_exported(str(folder), "onnx")


@pytest.mark.parametrize("key", ["step", "decoder", "graphs"])
def test_a_manifest_without_what_it_takes_is_named(exported_classes: Exported, tmp_path: Path, key: str) -> None:
    manifest = json.loads((exported_classes.folder / "manifest.json").read_text())
    del manifest[key]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="does not say what was exported; export the run again"):
        open_exported(str(tmp_path), "onnx")


def test_the_manifest_says_what_was_exported(exported_texts: Exported) -> None:
    manifest = json.loads((exported_texts.folder / "manifest.json").read_text())
    assert (manifest["run"], manifest["step"], manifest["weights"], manifest["classes"]) == ("texts", 2, "EMA", [])
    assert set(manifest["graphs"]) == {"denoiser", "decoder", "context", "text_clip_l", "text_minilm"}
    assert manifest["graphs"]["denoiser"]["inputs"]["sample"] == [1, 4, 4, 4]
    assert manifest["encoders"]["minilm"]["tokenizer"] == "BertTokenizer"
    written = [file.relative_to(exported_texts.folder) for file in exported_texts.folder.rglob("*") if file.is_file()]
    assert not [file for file in written if ".part" in str(file) or "ckpt" in file.name]
    assert all((exported_texts.folder / file).stat().st_size for file in written)
    assert exported_texts.run.as_posix() not in (exported_texts.folder / "manifest.json").read_text()

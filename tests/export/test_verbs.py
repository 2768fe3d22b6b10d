"""``export`` and ``export verify`` as a user meets them, and the callback that exports at the end of a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from snapgen_pl.__main__ import main
from snapgen_pl.export.ane_exceptions import EXCEPTIONS
from snapgen_pl.export.example import read_example
from tests.export.exported_run import Exported
from tests.export.test_generate_onnx import draw


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_onnx_alone_leaves_the_run_as_it_is_and_replaces_an_older_export(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = files(exported_classes.run), tmp_path / "out"
    shutil.copytree(exported_classes.folder, out)
    words = ["export", "--run", str(exported_classes.run), "--out", str(out), "--formats", "[onnx]"]
    assert main(words) == 0
    assert files(exported_classes.run) == before
    assert not any((out / "coreml").iterdir())
    assert (out / "onnx" / "denoiser.onnx").read_bytes() == (
        exported_classes.folder / "onnx/denoiser.onnx"
    ).read_bytes()
    assert "| denoiser |" in capsys.readouterr().out
    assert (
        main(["generate", "--run", str(out), "--out", str(tmp_path / "x"), "--classes", "cat", "--backend", "coreml"])
        == 1
    )
    assert ".mlpackage is missing; export the run with --formats onnx,coreml" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_report_keeps_every_figure(exported_texts: Exported) -> None:
    report = json.loads((exported_texts.folder / "report.json").read_text())
    assert report["limits"] == {"onnx_max_abs": 1e-4, "float32_relative_l2": 1e-5, "float16_psnr_db": 50.0}
    denoiser = report["graphs"]["denoiser"]
    assert denoiser["coreml"]["path"] == "coreml/denoiser.mlpackage"
    assert denoiser["coreml"]["float32"]["relative_l2"] < 1e-5
    assert denoiser["coreml"]["float16"]["psnr_db"] > 50
    assert denoiser["coreml"]["float16"]["largest"][0]["largest"] > 0
    assert denoiser["coreml"]["operations"]["conv"] > 5
    (reason,) = {rule["reason"] for rule in denoiser["coreml"]["rules"] if rule["exception"] == "keys"}
    assert reason == EXCEPTIONS["keys"].reason
    first = denoiser["coreml"]["rules"][0]  # rows of four positions
    assert (first["rule"], first["exception"], first["reason"]) == ("axis", None, None)
    assert first["total"] == sum(first["operations"].values()) >= len(first["worst"]) == 3
    page = (exported_texts.folder / "report.md").read_text()
    assert "| denoiser | axis | **broken** |" in page
    assert f"- keys: {reason}." in page
    assert [line.split(" | ")[0] for line in page.splitlines()[2:7]] == [f"| {name}" for name in report["graphs"]]


def test_packages_draw_what_torch_draws(exported_texts: Exported, tmp_path: Path) -> None:
    words = ["--prompt", "a photo of cat", "--count", "2"]
    torch_images = draw(exported_texts.run, tmp_path / "torch", *words)
    images = draw(exported_texts.folder, tmp_path / "coreml", *words, "--backend", "coreml")
    for name, image in torch_images.items():
        error = float(np.mean((image - images[name]) ** 2))
        assert error == 0 or 10 * np.log10(255**2 / error) > 40


def test_verify_compares_with_torch_where_there_is_an_example(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = exported_classes.folder / "coreml" / "denoiser.mlpackage"
    assert main(["export", "verify", str(package)]) == 0
    said = capsys.readouterr().out
    assert "against torch: relative L2" in said
    assert "  axis, BROKEN: " in said
    assert f"  transpose, {EXCEPTIONS['keys'].reason}: 2 by 2 transpose; the largest is transpose '" in said
    alone = tmp_path / "alone" / "denoiser.mlpackage"
    shutil.copytree(package, alone)
    assert main(["export", "verify", str(alone)]) == 0
    assert "against itself in float32: relative L2" in capsys.readouterr().out


def test_verify_refuses_what_gives_something_else_and_what_is_no_package(
    exported_classes: Exported, exported_texts: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported_classes.folder, folder)
    file = folder / "examples" / "denoiser.safetensors"
    example = read_example(file)
    example._replace(expected={name: 1.1 * tensor for name, tensor in example.expected.items()}).write(file)
    assert main(["export", "verify", str(folder / "coreml" / "denoiser.mlpackage")]) == 1
    assert "fails gate B" in capsys.readouterr().err
    assert main(["export", "verify", str(exported_texts.run)]) == 1
    assert "holds no Manifest.json, so it is no .mlpackage" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_is_said_before_any_work(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(exported_classes.run), str(tmp_path / "out")
    for words, said in (
        (["--out", out, "--attention", "sdpa"], "attention sdpa needs iOS 18; the target is 17"),
        (["--out", run], "is neither empty nor an export; choose another folder"),
        (["--out", out, "--formats", "[]"], "--formats names none"),
    ):
        assert main(["export", "--run", run, *words]) == 1
        assert said in " ".join(capsys.readouterr().err.split())
    assert not Path(out).exists()


def fit(exported: Exported, folder: Path, callback: dict[str, object]) -> int:
    """Trains such a run anew, with a callback."""
    config = yaml.safe_load((exported.run / "config.yaml").read_text())
    config |= {"runs": str(folder), "name": "again"}
    config["trainer"]["callbacks"] = [callback]
    file = folder / "again.yaml"
    file.write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(file)])


def test_a_run_exports_itself_at_its_end(exported_classes: Exported, tmp_path: Path) -> None:
    assert fit(exported_classes, tmp_path, {"class_path": "callbacks.ane_export.ANEExport"}) == 0
    export = tmp_path / "again" / "export"
    manifest = json.loads((export / "manifest.json").read_text())
    assert (manifest["step"], manifest["run"]) == (2, "again")
    assert (export / "coreml" / "denoiser.mlpackage").is_dir()


def test_a_run_that_cannot_be_exported_says_so_before_it_trains(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {"class_path": "callbacks.ane_export.ANEExport", "init_args": {"out": str(exported_classes.run)}}
    assert fit(exported_classes, tmp_path, taken) == 1
    assert "is neither empty nor an export" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "again" / "last.ckpt").exists()

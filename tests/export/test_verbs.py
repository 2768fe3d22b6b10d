"""``export`` and ``export verify`` as a user meets them, and the callback that exports at the end of a run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from coremltools.converters.mil import Builder as mb  # noqa: N813 (coremltools' own name for it)
from coremltools.converters.mil.mil import Var, types
from coremltools.proto import Model_pb2
from torch import Tensor

import snapgen_pl
from snapgen_pl.__main__ import main
from snapgen_pl.export.ane_exceptions import EXCEPTIONS
from snapgen_pl.export.chunks import cut
from snapgen_pl.export.compress import compress
from snapgen_pl.export.descriptions import HANDED_OVER
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.evaluate_ops import OPERATIONS
from snapgen_pl.export.evaluate_ops.arguments import Arguments
from snapgen_pl.export.example import Example, read_example
from snapgen_pl.export.mil import read_graph
from snapgen_pl.export.package import read_package
from tests.export.exported_run import Exported
from tests.export.lowered import package
from tests.export.saved_program import MODEL, model_of, saved
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
    assert ".mlpackage is missing; export the run again, and leave --formats out: both are made by default" in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_export_that_fails_leaves_the_older_one_as_it_was(
    exported_classes: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported_classes.folder, out)
    monkeypatch.setattr("snapgen_pl.export.onnx.MAX_ERROR", 0.0)
    assert main(["export", "--run", str(exported_classes.run), "--out", str(out), "--formats", "[onnx]"]) == 1
    assert "denoiser differs from torch" in capsys.readouterr().err
    assert files(out) == files(exported_classes.folder)
    assert list(tmp_path.iterdir()) == [out]


def test_the_report_keeps_every_figure(exported_texts: Exported) -> None:
    report = json.loads((exported_texts.folder / "report.json").read_text())
    compressed = report["limits"].pop("compressed_psnr_db")
    assert report["limits"] == {"onnx_max_abs": 1e-4, "float32_relative_l2": 1e-5, "float16_psnr_db": 50.0}
    assert compressed == pytest.approx({"palette8": 43.8, "palette6": 31.8, "int8": 40.9}, abs=0.05)
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
    given = exported_classes.folder / "coreml" / "denoiser.mlpackage"
    assert main(["export", "verify", str(given)]) == 0
    said = capsys.readouterr().out
    assert "against torch: relative L2" in said
    assert "  axis, BROKEN: " in said
    assert f"  transpose, {EXCEPTIONS['keys'].reason}: 2 by 2 transpose; the largest is transpose '" in said
    alone = tmp_path / "alone" / "denoiser.mlpackage"
    shutil.copytree(given, alone)
    assert main(["export", "verify", str(alone)]) == 0
    assert "against itself in float32: relative L2" in capsys.readouterr().out


def test_compressed_and_cut_packages_are_checked_reported_and_drawn_from(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--compress", "int8", "--whole", "[decoder]", "--chunk_above", "0.1"]
    assert main(["export", "--run", str(exported_classes.run), "--out", str(out), *words]) == 0
    coreml = json.loads((out / "report.json").read_text())["graphs"]["denoiser"]["coreml"]
    whole, compressed = coreml["bytes"], coreml["compressed"]
    assert compressed["scheme"] == "int8"
    assert compressed["bytes"] < 0.8 * whole
    assert 40.9 < compressed["measured"]["psnr_db"] < coreml["float16"]["psnr_db"]
    assert max(coreml["chunks"]) < compressed["bytes"] < sum(coreml["chunks"]) < 1.5 * compressed["bytes"]
    names = sorted(path.stem for path in (out / "coreml").iterdir())
    assert names == ["context", "decoder", "denoiser", "denoiser_chunk1", "denoiser_chunk2"]
    page = (out / "report.md").read_text()
    assert f"int8: {compressed['bytes'] / 1e6:.1f} MB, {compressed['measured']['psnr_db']:.1f} dB" in page
    capsys.readouterr()
    assert main(["export", "verify", str(out / "coreml" / "denoiser.mlpackage")]) == 0
    assert f"PSNR {compressed['measured']['psnr_db']:.1f} dB" in capsys.readouterr().out
    images = draw(out, tmp_path / "images", "--classes", "cat", "--count", "1", "--backend", "coreml")
    assert len(images) == 1


def test_verify_judges_compressed_weights_by_their_scheme(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported_classes.folder, folder)
    path, file = folder / "coreml" / "denoiser.mlpackage", folder / "examples" / "denoiser.safetensors"
    example = read_example(file)
    noise = torch.randn(example.expected["velocity"].shape, generator=torch.Generator().manual_seed(0))
    peak = float(example.expected["velocity"].abs().max())
    example._replace(expected={"velocity": example.expected["velocity"] + 10 ** (-45 / 20) * peak * noise}).write(file)
    assert main(["export", "verify", str(path)]) == 1
    assert "fails gate B" in capsys.readouterr().err
    compress(read_package(path), tmp_path / "denoiser.mlpackage", "int8")
    shutil.rmtree(path)
    (tmp_path / "denoiser.mlpackage").rename(path)
    assert main(["export", "verify", str(path)]) == 0
    example._replace(expected={"velocity": example.expected["velocity"] + 10 ** (-35 / 20) * peak * noise}).write(file)
    assert main(["export", "verify", str(path)]) == 1
    assert "fails gate D: as int8 it has" in capsys.readouterr().err


def test_verify_does_not_compare_float32_with_itself(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(exported_classes.folder / "onnx" / "decoder.onnx", tmp_path)
    alone, example = package(tmp_path / "decoder.onnx").path, exported_classes.folder / "examples/decoder.safetensors"
    for words in ([], ["--noise", "3"]):
        assert main(["export", "verify", str(alone), *words]) == 1
        assert "would be compared with itself; give torch's outputs by --example" in " ".join(
            capsys.readouterr().err.split()
        )
    assert main(["export", "verify", str(alone), "--example", str(example)]) == 0


def test_verify_judges_a_first_half_as_float16(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_package(exported_classes.folder / "coreml" / "denoiser.mlpackage")
    inputs = read_example(exported_classes.folder / "examples" / "denoiser.safetensors").inputs
    first, _ = cut(whole, tmp_path / "denoiser.mlpackage", inputs)
    assert {declared.dtype for declared in first.outputs.values()} == {"FLOAT32"}
    assert main(["export", "verify", str(first.path)]) == 0
    assert "against itself in float32: relative L2" in capsys.readouterr().out
    own = {name: inputs[name] for name in first.inputs}
    expected, file = evaluate(first, own, "float32").outputs, tmp_path / "first.safetensors"
    words = ["export", "verify", str(first.path), "--example", str(file)]
    Example(own, expected).write(file)
    assert main(words) == 0
    Example(own, {name: 1.1 * tensor for name, tensor in expected.items()}).write(file)
    assert main(words) == 1
    assert "fails gate B" in capsys.readouterr().err


def test_verify_names_an_operation_that_it_does_not_know_before_it_evaluates_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def computed(a: Arguments) -> Tensor:
        raise AssertionError("something was computed")

    def pooled(x: Var) -> list[Var]:
        return [mb.avg_pool(x=mb.relu(x=x), kernel_sizes=[2, 2], pad_type="valid", name="pooled")]

    stranger = saved(tmp_path, model_of({"x": ((1, 4, 6, 6), types.fp16)}, pooled)).path
    monkeypatch.setitem(OPERATIONS, "relu", computed)
    assert main(["export", "verify", str(stranger)]) == 1
    assert (
        "the operation avg_pool 'pooled' is of a type that is not evaluated; export without it, or add it to "
        "snapgen_pl.export.evaluate_ops"
    ) in " ".join(capsys.readouterr().err.split())


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
        (["--out", out, "--whole", "[decoder]"], "decoder shall stay whole, but nothing is compressed; name a scheme"),
        (
            ["--out", out, "--compress", "int8", "--whole", "[denoisr]"],
            "no graph 'denoisr' to keep whole among denoiser, decoder, context",
        ),
        (["--out", out, "--chunk_above", "0"], "give a number above 0"),
        (
            ["--out", out, "--formats", "[onnx]", "--compress", "int8", "--target", "18"],
            "--target, --compress would have no effect on ONNX files alone; leave that out, or --formats",
        ),
    ):
        assert main(["export", "--run", run, *words]) == 1
        assert said in " ".join(capsys.readouterr().err.split())
    assert not Path(out).exists()


def test_a_list_that_is_none_is_shown_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--run", "r", "--out", "o", "--formats", "onnx,coreml"]) == 2
    assert "formats: expected a list such as [onnx,coreml], got 'onnx,coreml'" in capsys.readouterr().err


def test_what_no_export_wrote_is_not_deleted(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported_classes.folder, out)
    (out / "mine.txt").write_text("mine")
    (out / "bundle").mkdir()
    before = files(out)
    assert main(["export", "--run", str(exported_classes.run), "--out", str(out), "--formats", "[onnx]"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "holds what no export wrote and a new one would delete (bundle, mine.txt); move it elsewhere" in said
    assert files(out) == before


def test_files_say_which_code_trained_and_which_exported(exported_classes: Exported, tmp_path: Path) -> None:
    """A run that distilled steps, by an earlier commit; it draws as Pretrain."""
    run = Path(shutil.copytree(exported_classes.run, tmp_path / "run"))
    config, manifest = (run / name for name in ("config.yaml", "manifest.json"))
    content = yaml.safe_load(config.read_text())
    content["model"]["class_path"] = "snapgen_pl.modules.step_distill.StepDistill"
    config.write_text(yaml.safe_dump(content))
    said = json.loads(manifest.read_text())
    said["starts"][-1]["code"]["commit"] = "0123abc"
    manifest.write_text(json.dumps(said))
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out"), "--formats", "[onnx]"]) == 0
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (told["module"], told["commit"]) == ("StepDistill", "0123abc")
    assert told["exported_by"] == told["code"]["commit"] != "0123abc"
    metadata = read_graph(tmp_path / "out" / "onnx" / "denoiser.onnx").metadata
    assert (metadata["snapgen_pl.module"], metadata["snapgen_pl.commit"]) == ("StepDistill", "0123abc")


def test_all_may_read_what_the_umask_lets(exported_texts: Exported) -> None:
    (allowed,) = {path.stat().st_mode & 0o777 for path in (exported_texts.folder, exported_texts.folder / "onnx")}
    assert allowed & 0o077, "the tests' own umask keeps all to itself"
    for path in exported_texts.folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (allowed if path.is_dir() else allowed & 0o666), path


def described(package: Path) -> Model_pb2.ModelDescription:
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    return model.description


def test_packages_say_what_goes_in_and_comes_out(exported_texts: Exported, tmp_path: Path) -> None:
    for path in (exported_texts.folder / "coreml").iterdir():
        said = described(path)
        assert all(each.shortDescription for each in (*said.input, *said.output)), path
        assert said.metadata.shortDescription
        assert (said.metadata.versionString, said.metadata.license) == (snapgen_pl.__version__, "unknown")
    denoiser = exported_texts.folder / "coreml" / "denoiser.mlpackage"
    inputs = {each.name: each.shortDescription for each in described(denoiser).input}
    assert "1 is noise, 0 is data" in inputs["timestep"]
    context = described(exported_texts.folder / "coreml" / "context.mlpackage").input
    (pooled,) = (each.shortDescription for each in context if each.name == "clip_l_pooled")
    assert pooled.startswith("Of the text encoder clip_l. ")
    (image,) = described(exported_texts.folder / "coreml" / "decoder.mlpackage").output
    assert "about [-1, 1]" in image.shortDescription

    small = tmp_path / "denoiser.mlpackage"
    compress(read_package(denoiser), small, "palette8")
    whole = described(small)
    assert [each.shortDescription for each in whole.input] == list(inputs.values())
    example = read_example(exported_texts.folder / "examples" / "denoiser.safetensors")
    for half in cut(read_package(small), small, example.inputs):
        said = described(half.path)
        assert said.metadata.shortDescription == whole.metadata.shortDescription + " One of two halves."
        for each in said.input:
            assert each.shortDescription == inputs.get(each.name, HANDED_OVER)
    assert said.output[0].shortDescription == whole.output[0].shortDescription


def fit(run: Path, folder: Path, callback: Mapping[str, object]) -> int:
    """Trains such a run anew, with a callback."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"runs": str(folder), "name": "again"}
    config["trainer"]["callbacks"] = [callback]
    file = folder / "again.yaml"
    file.write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(file)])


def test_a_run_exports_itself_at_its_end(exported_classes: Exported, tmp_path: Path) -> None:
    options = {"compress": "int8", "whole": ["decoder", "context"], "chunk_above": 0.1}
    assert (
        fit(exported_classes.run, tmp_path, {"class_path": "callbacks.ane_export.ANEExport", "init_args": options}) == 0
    )
    export = tmp_path / "again" / "export"
    manifest = json.loads((export / "manifest.json").read_text())
    assert (manifest["step"], manifest["run"]) == (2, "again")
    assert (export / "coreml" / "denoiser_chunk2.mlpackage").is_dir()
    graphs = json.loads((export / "report.json").read_text())["graphs"]
    assert [name for name, graph in graphs.items() if graph["coreml"]["compressed"]] == ["denoiser"]


def test_a_run_that_cannot_be_exported_says_so_before_it_trains(
    exported_classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = str(exported_classes.run)
    for options, message in (
        ({"out": taken}, f"error: {taken} is neither empty nor an export"),
        ({"compress": "int8", "whole": ["text_minilm"]}, "no graph 'text_minilm' to keep whole among denoiser"),
    ):
        callback = {"class_path": "callbacks.ane_export.ANEExport", "init_args": options}
        assert fit(exported_classes.run, tmp_path, callback) == 1
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "again" / "last.ckpt").exists()


def test_a_run_that_draws_nothing_says_so_before_it_trains(
    decoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(decoder_run, tmp_path, {"class_path": "callbacks.ane_export.ANEExport"}) == 1
    assert "TrainDecoder draws no images to export; leave ANEExport out" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "again" / "last.ckpt").exists()

"""A trained decoder in the place of an autoencoder's own: what it draws, what records say of it, its export."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from snapgen_pl.__main__ import main
from snapgen_pl.autoencoders.patch_pca import FILE, PatchPCA
from snapgen_pl.autoencoders.with_decoder import WithDecoder
from snapgen_pl.config_files import load_config
from snapgen_pl.data.requests import Request
from snapgen_pl.digest import tensors_digest
from snapgen_pl.drawing import built_module
from snapgen_pl.images import to_uint8
from snapgen_pl.models.decoder import Decoder, Stage
from snapgen_pl.png import read_picture
from snapgen_pl.trained_run import arguments, open_run
from tests.export.exported_run import Exported, part, patch_pca
from tests.export.test_generate_onnx import draw

WORDS = ["--classes", "cat, dog", "--count", "2"]


def averaged(run: Path) -> Decoder:
    """The decoder of a run, read by hand."""
    decoder = Decoder([Stage(32, 1)] * 3, in_channels=4)
    weights = torch.load(run / "last.ckpt", weights_only=True)["ema"]["weights"]
    decoder.load_state_dict({name.removeprefix("decoder."): weight for name, weight in weights.items()})
    return decoder.eval().requires_grad_(False)


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def fitted(run: Path) -> PatchPCA:
    autoencoder = PatchPCA(4, 4)
    autoencoder.load(run / FILE)
    return autoencoder


def decoded_by(run: Path) -> dict[str, Any]:
    """The autoencoder of runs of classes with a trained decoder, as a configuration writes it."""
    return part("autoencoders.with_decoder.WithDecoder", autoencoder=patch_pca(), decoder=str(run))


def test_generate_decodes_as_by_hand(exported_classes: Exported, decoder_run: Path, tmp_path: Path) -> None:
    run = exported_classes.run
    assert main(["generate", "--run", str(run), "--out", str(tmp_path), "--decoder", str(decoder_run), *WORDS]) == 0
    source = open_run(str(run))
    module = built_module(source.config)
    module.ready(run, (), ())
    source.load(module)
    raws: list[Tensor] = []
    own = module.autoencoder.decode
    module.autoencoder.decode = lambda raw_BCHW: raws.append(raw_BCHW) or own(raw_BCHW)
    plain = module.sample(Request(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])))
    by_hand = to_uint8(averaged(decoder_run)(raws[0]))
    files = sorted(tmp_path.glob("*-*.png"))
    for file, image, other in zip(files, by_hand, plain, strict=True):
        assert torch.equal(read_picture(file), image)
        assert not torch.equal(image, other)
    about = json.loads((tmp_path / "manifest.json").read_text())["decoder"]
    assert about == {"checkpoint": str(decoder_run / "last.ckpt"), "step": 2, "weights": "EMA"}


def test_images_of_another_decoder_are_others(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--run", str(exported_classes.run), "--out", str(tmp_path / "out"), *WORDS]
    assert main(words) == 0
    assert main([*words, "--decoder", str(decoder_run)]) == 1
    assert "holds images of another command (decoder" in " ".join(capsys.readouterr().err.split())


def test_latents_stay_the_autoencoders_and_records_name_the_decoder(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path
) -> None:
    own = fitted(exported_classes.run)
    autoencoder = WithDecoder(PatchPCA(4, 4), str(decoder_run))
    with pytest.raises(ValueError, match="no weights yet; call ready"):
        autoencoder.decode(torch.zeros(1, 4, 2, 2))
    said = autoencoder.ready(exported_classes.run, ())
    assert said.splitlines()[1] == f"decoder: {decoder_run / 'last.ckpt'}, averaged weights"
    assert autoencoder.identity() == own.identity() == own.decoding()
    image, final = torch.rand(2, 3, 8, 12), torch.randn(2, 4, 2, 3)
    raw = autoencoder.encode(image).mean_BCHW
    assert torch.equal(raw, own.encode(image).mean_BCHW)
    assert torch.equal(autoencoder.to_final(raw), own.to_final(raw))
    assert torch.equal(autoencoder.to_raw(final), own.to_raw(final))
    assert torch.equal(autoencoder.decode(raw), averaged(decoder_run)(raw))
    digest = tensors_digest(averaged(decoder_run).state_dict())
    decoding = {"class": "Decoder", "weights": digest, "latents": own.weights_digest()}
    assert autoencoder.decoding() == own.identity() | decoding

    config = load_config(exported_classes.run / "config.yaml")
    config["model"]["init_args"]["autoencoder"] = decoded_by(decoder_run)
    module = built_module(config)
    module.ready(exported_classes.run, (), ())
    assert module.decoder() == autoencoder.decoding()


def test_a_config_may_name_it(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a YAML over a run's; the trainer's verbs take it."""
    file = tmp_path / "decoder.yaml"
    file.write_text(yaml.safe_dump({"model": {"init_args": {"autoencoder": decoded_by(decoder_run)}}}))
    assert main(["validate", "--run", str(exported_classes.run), "--config", str(file)]) == 0
    assert f"decoder: {decoder_run / 'last.ckpt'}, averaged weights" in caplog.text


def test_what_is_exported_decodes_as_the_decoder(
    exported_classes: Exported, exported_with_decoder: Exported, decoder_run: Path, tmp_path: Path
) -> None:
    record = exported_with_decoder.records["decoder"]
    assert record.onnx.ops["GroupNormalization"] == 3
    assert record.onnx.parameters > 1_000
    assert record.coreml is not None
    assert record.coreml.float32.difference.relative_l2 < 1e-5
    assert record.coreml.float16.difference.psnr_db > 50
    manifest = json.loads((exported_with_decoder.folder / "manifest.json").read_text())
    told = {key: manifest["decoder"][key] for key in ("class", "weights", "trained")}
    digest = tensors_digest(averaged(decoder_run).state_dict())
    trained = {"run": "decoder", "checkpoint": "last.ckpt", "step": 2, "weights": "EMA"}
    assert told == {"class": "Decoder", "weights": digest, "trained": trained}
    plain = json.loads((exported_classes.folder / "manifest.json").read_text())
    assert plain["decoder"] == fitted(exported_classes.run).identity()
    by_torch = draw(exported_classes.run, tmp_path / "torch", *WORDS, "--decoder", str(decoder_run))
    by_onnx = draw(exported_with_decoder.folder, tmp_path / "onnx", *WORDS, "--backend", "onnx")
    assert by_torch.keys() == by_onnx.keys() != set()
    assert max(np.abs(image - by_onnx[name]).max() for name, image in by_torch.items()) <= 1
    drawn = json.loads((tmp_path / "onnx" / "manifest.json").read_text())
    assert drawn["decoder"] == manifest["decoder"]


def test_what_the_decoder_was_made_from_goes_along(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path
) -> None:
    """The decoder learned from emoji, whose licences ask for something; the run from photographs."""
    decoder, out = copied(decoder_run, tmp_path), tmp_path / "out"
    config = load_config(decoder / "config.yaml")
    arguments(config["data"])["source"] = part("data.emoji.Emoji", styles=["twemoji"])
    (decoder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--run", str(exported_classes.run), "--decoder", str(decoder), "--formats", "[onnx]"]
    assert main(["export", *words, "--out", str(out)]) == 0
    shutil.rmtree(decoder)
    told = json.loads((out / "manifest.json").read_text())["made_from"]
    assert {
        "role": "data",
        "name": "Twemoji, Twitter, Inc and other contributors",
        "licence": "CC-BY-4.0",
        "through": "copy",
    } in told
    assert len(draw(out, tmp_path / "drawn", *WORDS, "--backend", "onnx")) == 4


def test_saturated_latents_keep_to_float16_or_the_gate_says_so(
    exported_with_decoder: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    package = str(exported_with_decoder.folder / "coreml" / "decoder.mlpackage")
    assert main(["export", "verify", package, "--noise", "30"]) == 0
    said = capsys.readouterr().out
    assert "against itself in float32" in said
    assert "% of float16's largest, in " in said
    assert main(["export", "verify", package, "--noise", "20000"]) == 1
    assert "fails gate C" in capsys.readouterr().err
    for words in (["--noise", "0"], ["--noise", "2", "--example", "x.safetensors"]):
        assert main(["export", "verify", package, *words]) == 1
        assert "give one above 0, and no --example beside it" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("autoencoder", "message"),
    [
        (PatchPCA(4, 8), "4 pixels of a latent position with 4 channels; the autoencoder covers 4 with 8. Give"),
        (PatchPCA(2, 4), "4 pixels of a latent position with 4 channels; the autoencoder covers 2 with 4. Give"),
    ],
)
def test_a_decoder_of_another_shape_is_refused(decoder_run: Path, autoencoder: PatchPCA, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WithDecoder(autoencoder, str(decoder_run))


def test_what_is_no_run_of_a_decoder_is_refused_before_any_work(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(exported_classes.run), tmp_path / "out"
    unfinished = copied(decoder_run, tmp_path)
    (unfinished / "last.ckpt").unlink()
    for decoder, said in (
        (run, f"{run} cannot be built as a decoder: the run's configuration has no decoder"),
        (str(tmp_path / "nowhere"), "no run there"),
        (str(unfinished), f"no checkpoint in {unfinished}; the run has saved none yet"),
    ):
        for verb in (["generate", *WORDS], ["export"]):
            assert main([*verb, "--run", run, "--out", str(out), "--decoder", decoder]) != 0
            assert said in " ".join(capsys.readouterr().err.split())
    exported = ["--run", str(exported_classes.folder), "--out", str(out), "--backend", "onnx", *WORDS]
    assert main(["generate", *exported, "--decoder", str(decoder_run)]) == 1
    assert "has its decoder inside; export the run again with --decoder" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_decoder_of_the_latents_of_other_weights_is_refused(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path
) -> None:
    other = copied(decoder_run, tmp_path)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["starts"][-1]["autoencoder"]["weights"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was trained on the latents of other weights \(0{12}\)"):
        WithDecoder(PatchPCA(4, 4), str(other)).ready(exported_classes.run, ())
    (other / "manifest.json").unlink()  # as of before it told
    save_file(load_file(other / FILE) | {"std": torch.ones(4)}, other / FILE)
    with pytest.raises(ValueError, match="was trained on the latents of other weights"):
        WithDecoder(PatchPCA(4, 4), str(other)).ready(exported_classes.run, ())


def test_weights_that_the_config_does_not_tell_are_refused(
    exported_classes: Exported, decoder_run: Path, tmp_path: Path
) -> None:
    other = copied(decoder_run, tmp_path)
    text = (other / "config.yaml").read_text()
    assert "middle_blocks: 1" in text
    (other / "config.yaml").write_text(text.replace("middle_blocks: 1", "middle_blocks: 2"))
    with pytest.raises(ValueError, match=r"last\.ckpt does not fit its configuration"):
        WithDecoder(PatchPCA(4, 4), str(other)).ready(exported_classes.run, ())

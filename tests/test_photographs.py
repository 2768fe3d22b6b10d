from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from benchmarks import photo_decoders
from benchmarks.photo_decoders import Bench, check_encoder, trained
from benchmarks.photographs import LIST, Photograph, reduce, tiles
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.tables.declared import declared_decoder
from snapgen_pl.tables.decoder_records import ADVERSARIAL, FULL, LONG, OWN, ROWS, SMALL, TAESD, DecoderRecord, Scale
from tests.tiny_kl import kl


def listed() -> list[Photograph]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [Photograph(*line.split()) for line in lines if not line.startswith("#")]


def test_no_photograph_is_listed_twice_or_in_both_splits() -> None:
    names = [photograph.name for photograph in listed()]
    assert len(names) == len(set(names)) == 37
    assert [photograph.split for photograph in listed()].count("val") == 8
    assert {photograph.split for photograph in listed()} == {"train", "val"}


def test_tiles_lie_side_by_side_around_the_centre() -> None:
    image = Image.frombytes("L", (7, 5), bytes(range(35)))
    corners = [tile.getpixel((0, 0)) for tile in tiles(image, 2)]
    assert corners == [0, 2, 4, 14, 16, 18]  # one column and one row are left over, at the end
    assert all(tile.size == (2, 2) for tile in tiles(image, 2))


def test_photographs_are_reduced_to_what_image_folders_read(tmp_path: Path) -> None:
    originals, images = tmp_path / "originals", tmp_path / "images"
    originals.mkdir()
    for split, size in (("train", (4096, 2048)), ("val", (1500, 3000))):
        photograph = Photograph(split, "package", f"usr/share/backgrounds/{split}.jpg")
        Image.new("RGB", size, "teal").save(originals / f"{photograph.name}.jpg")
        assert reduce(photograph, originals, images) == (1 if split == "val" else 4 * 2 + 2 * 1)
    opened = ImageFolder(images).open()
    assert (len(opened.train), len(opened.validation)) == (10, 1)
    assert opened.train.load(0).size == (512, 512)
    assert opened.validation.load(0).size == (1024, 2048)


@pytest.mark.parametrize(("scale", "times"), [(FULL, 5), (SMALL, 7)], ids=["full", "small"])
def test_rows_know_their_ends_and_the_autoencoder_is_one_for_all_seeds(scale: Scale, times: int) -> None:
    assert trained(scale, OWN, 3).seed == 0
    assert trained(scale, LONG, 0).steps == times * trained(scale, "snapgen", 0).steps
    assert trained(scale, ADVERSARIAL, 1).folder.name == "adversarial-seed1"
    assert len({scale.recipe(row) for row in ROWS}) == len(ROWS)
    assert trained(FULL, "sd3", 0).folder != trained(SMALL, "sd3", 0).folder


def test_in_small_all_widths_are_a_quarter() -> None:
    def stages(row: str, scale: Scale) -> list[dict[str, Any]]:
        declared: dict[str, Any] = yaml.safe_load(scale.files(row)[-1].read_text())["model"]["init_args"]["decoder"]
        return [each | {"channels": each["channels"] // width[scale]} for each in declared["init_args"]["stages"]]

    width = {FULL: 4, SMALL: 1}
    for row in ROWS[1:-3]:
        assert stages(row, FULL) == stages(row, SMALL), row
    assert [declared_decoder(*scale.files(TAESD)).last.in_channels for scale in (FULL, SMALL)] == [64, 16]


def test_records_of_another_encoder_are_found_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    kl().save_pretrained(tmp_path / "vae")
    bench = Bench(tmp_path / "vae")
    values = {size: {"psnr": 20.0, "ssim": 0.5, "lpips": 0.5} for size in ("512", "1024")}
    record = DecoderRecord(
        "sd3", 0, FULL.recipe("sd3"), 1, 1.0, "a machine", "2026", None, bench.autoencoder.weights_digest(), values
    )
    record.write(tmp_path)
    check_encoder(FULL, tmp_path, bench)
    record._replace(autoencoder="another").write(tmp_path)
    with pytest.raises(ValueError, match="sd3 are of another encoder"):
        check_encoder(FULL, tmp_path, bench)


def test_a_decoder_is_measured_as_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = tmp_path / "photographs"
    for split in ("train", "val"):
        (photographs / split / "photographs").mkdir(parents=True)
        noise = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        Image.fromarray(noise.numpy()).save(photographs / split / "photographs" / "one.png")
    kl().save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(photo_decoders, "PHOTOGRAPHS", photographs)
    monkeypatch.setattr(photo_decoders, "SIZES", (32, 48))
    bench = Bench(tmp_path / "vae")
    found = bench.measure(bench.autoencoder.decode)
    assert found.keys() == {"32", "48"}
    (image, raw) = bench.photographs[48]["one"]
    decoded = (bench.autoencoder.decode(raw) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    error = (decoded.float() - image).square().mean()
    assert found["48"]["psnr"] == pytest.approx(float(10 * torch.log10(255**2 / error)), abs=1e-3)

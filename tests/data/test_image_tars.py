import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snapgen_pl.data import image_tars
from snapgen_pl.data.conditions import Labels
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.image_tars import ImageTars, TarSet
from snapgen_pl.data.loader import EndlessOrder, ImageSamples, PositionSampler, ResumableLoader
from snapgen_pl.data.source import OpenSource

CLASSES = ("n01440764", "n01443537", "n15075141")


def draw(folder: Path, prefix: str, count: int) -> None:
    """A folder of classes with images whose pixels are all different, every third a PNG."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng([label, index]).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            extension = "png" if index % 3 == 0 else "JPEG"
            Image.fromarray(pixels).save(folder / name / f"{prefix}_{index}.{extension}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "folder", "image", 20)
    return tmp_path / "folder"


def pack(tar: Path, members: dict[str, Path]) -> Path:
    tar.parent.mkdir(exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for name, file in members.items():
            archive.add(file, name)
    return tar


def class_tars(folder: Path, target: Path) -> Path:
    for directory in folder.iterdir():
        pack(target / f"{directory.name}.tar", {file.name: file for file in sorted(directory.iterdir(), reverse=True)})
    return target


def nested(folder: Path, target: Path) -> Path:
    tars = sorted(class_tars(folder, target.parent / f"{target.stem}-classes").iterdir(), reverse=True)
    return pack(target, {tar.name: tar for tar in tars})


def tar_of_folders(folder: Path, target: Path) -> Path:
    subprocess.run(["tar", "-cf", target, "-C", folder, "."], check=True)
    return target


def below_other_folders(folder: Path, target: Path) -> Path:
    return pack(target, {"ILSVRC/Data/train": folder})


def equal(one: OpenSource, two: OpenSource) -> None:
    assert one.classes == two.classes
    for mine, others in ((one.train, two.train), (one.validation, two.validation)):
        assert torch.equal(mine.labels, others.labels)
        assert len(mine) == len(others) > 0
        for index in range(len(mine)):
            assert np.array_equal(np.asarray(mine.load(index)), np.asarray(others.load(index)))


@pytest.mark.parametrize("make", [class_tars, nested, tar_of_folders, below_other_folders])
def test_every_layout_gives_what_the_same_files_give_in_folders(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    packed = ImageTars(make(folder, tmp_path / "packed.tar"), validation_fraction=0.2).open()
    unpacked = ImageFolder(folder, 0.2).open()
    equal(packed, unpacked)
    assert packed.fingerprint == unpacked.fingerprint


def test_validation_tars_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    draw(tmp_path / "both" / "val", "held", 2)
    train, validation = nested(folder, tmp_path / "train.tar"), class_tars(tmp_path / "both" / "val", tmp_path / "val")
    (validation / f"{CLASSES[0]}.tar").unlink()
    for file in (tmp_path / "both" / "val" / CLASSES[0]).iterdir():
        file.unlink()
    (tmp_path / "both" / "val" / CLASSES[0]).rmdir()
    folder.rename(tmp_path / "both" / "train")
    packed, unpacked = ImageTars(str(train), str(validation)).open(), ImageFolder(tmp_path / "both").open()
    equal(packed, unpacked)
    assert packed.validation.labels.tolist() == [1, 1, 2, 2]
    assert packed.fingerprint == unpacked.fingerprint


def test_the_fingerprint_sees_names_sizes_and_splits_and_not_how_tars_are_cut(folder: Path, tmp_path: Path) -> None:
    first = ImageTars(nested(folder, tmp_path / "a.tar")).open().fingerprint
    assert ImageTars(class_tars(folder, tmp_path / "b")).open().fingerprint == first
    prints = [first, ImageTars(tmp_path / "a.tar", validation_fraction=0.3).open().fingerprint]
    Image.new("RGB", (60, 50), "red").save(folder / CLASSES[0] / "image_0.png")
    prints.append(ImageTars(tar_of_folders(folder, tmp_path / "c.tar")).open().fingerprint)
    (folder / CLASSES[0] / "image_0.png").rename(folder / CLASSES[0] / "image_x.png")
    prints.append(ImageTars(tar_of_folders(folder, tmp_path / "d.tar")).open().fingerprint)
    assert len(set(prints)) == 4


def batches(source: OpenSource, workers: int, count: int) -> list[torch.Tensor]:
    order = EndlessOrder(len(source.train), seed=3)
    loader = iter(
        ResumableLoader(
            ImageSamples(source.train, Labels(source.train.labels), 8, flip_seed=1), PositionSampler(order, 7), workers
        )
    )
    return [tensor for _ in range(count) for tensor in next(loader)[:3]]


def test_two_workers_load_what_none_does(folder: Path, tmp_path: Path) -> None:
    source = ImageTars(nested(folder, tmp_path / "train.tar")).open()
    alone, workers = batches(source, 0, 18), batches(source, 2, 18)
    assert all(torch.equal(one, other) for one, other in zip(alone, workers, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in alone[0]}) == 7


def test_hidden_and_other_files_are_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / CLASSES[0] / "._image_1.JPEG").write_bytes(b"what a Mac leaves")
    (folder / CLASSES[1] / "notes.txt").write_text("not an image")
    source = ImageTars(tar_of_folders(folder, tmp_path / "train.tar")).open()
    assert len(source.train) + len(source.validation) == 60


def damage(tar: Path, content: bytes) -> None:
    whole = tar.read_bytes()
    assert whole.count(content) == 1
    tar.write_bytes(whole.replace(content, content[:20] + bytes(len(content) - 20)))


def test_a_damaged_member_is_named_before_training(folder: Path, tmp_path: Path) -> None:
    tar = nested(folder, tmp_path / "train.tar")
    damage(tar, (folder / CLASSES[1] / "image_3.png").read_bytes())
    with pytest.raises(ValueError, match=rf"{CLASSES[1]}/image_3\.png in .*train\.tar cannot be read as an image"):
        ImageTars(tar).open()


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_large_set_a_damaged_member_is_named_when_it_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(image_tars, "CHECKED_UP_FRONT", 10)
    tar = tar_of_folders(folder, tmp_path / "train.tar")
    damage(tar, (folder / CLASSES[2] / "image_4.JPEG").read_bytes())
    source = ImageTars(tar).open()
    with pytest.raises(ValueError, match=rf"{CLASSES[2]}/image_4\.JPEG in .*train\.tar cannot be read as an image"):
        batches(source, workers, 18)


def test_a_tar_cut_short_after_it_was_opened_is_named(folder: Path, tmp_path: Path) -> None:
    tar = tar_of_folders(folder, tmp_path / "train.tar")
    images = ImageTars(tar).open().train
    assert isinstance(images, TarSet)
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"in .*train\.tar cannot be read as an image \(EOFError: the tar ends after 0 of"
    ):
        images.load(len(images) - 1)


def member_offsets(tar: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(tar) as archive:
        return archive.getmembers()


def test_a_tar_cut_within_a_member_is_named(folder: Path, tmp_path: Path) -> None:
    tar = nested(folder, tmp_path / "train.tar")
    last = member_offsets(tar)[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset_data + 5000])
    with pytest.raises(ValueError, match=rf"train\.tar is no intact tar \({last.name} goes on past the end\)"):
        ImageTars(tar).open()


@pytest.mark.parametrize("cut", [0, 100])
def test_a_tar_cut_at_or_within_a_header_is_named(folder: Path, tmp_path: Path, cut: int) -> None:
    tar = tar_of_folders(folder, tmp_path / "train.tar")
    offset = member_offsets(tar)[-1].offset
    tar.write_bytes(tar.read_bytes()[: offset + cut])
    with pytest.raises(
        ValueError, match=rf"train\.tar is no intact tar \(expected a header or its end at byte {offset}"
    ):
        ImageTars(tar).open()


@pytest.mark.parametrize("at", [0, 1])
def test_a_damaged_header_in_a_nested_tar_is_named(folder: Path, tmp_path: Path, at: int) -> None:
    tar = nested(folder, tmp_path / "train.tar")
    inner = member_offsets(tar)[1]
    offset = inner.offset_data + member_offsets(tmp_path / "train-classes" / inner.name)[at].offset
    content = bytearray(tar.read_bytes())
    content[offset] ^= 0x55
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.tar/{inner.name} is no intact tar .*; download or pack it again"):
        ImageTars(tar).open()


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"train\.tar is no intact tar"):
        ImageTars(tmp_path / "train.tar").open()
    (tmp_path / "train.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.tar is no intact tar \(empty file\)"):
        ImageTars(tmp_path / "train.tar").open()


def test_missing_and_empty_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; expected a \.tar, or a folder of them"):
        ImageTars(tmp_path / "nowhere").open()
    with pytest.raises(ValueError, match=r"folder holds no \.tar; expected a folder of tars"):
        ImageTars(folder).open()
    tars = class_tars(folder, tmp_path / "tars")
    pack(tars / "n02.tar", {})
    with pytest.raises(ValueError, match=r"tars/n02\.tar holds no image"):
        ImageTars(tars).open()


def test_compressed_tars_are_refused_with_the_command_that_unpacks_them(folder: Path, tmp_path: Path) -> None:
    tars = class_tars(folder, tmp_path / "tars")
    packed = tars / f"{CLASSES[0]}.tar"
    (tars / f"{CLASSES[0]}.tar.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    message = rf"{CLASSES[0]}\.tar\.gz is compressed, so that images cannot be read where they lie; unpack it: gunzip"
    with pytest.raises(ValueError, match=message):
        ImageTars(tars).open()
    inner = pack(tmp_path / "train.tar", {tar.name: tar for tar in tars.iterdir()})
    with pytest.raises(ValueError, match=rf"train\.tar/{message}"):
        ImageTars(inner).open()


def test_imagenets_own_validation_tar_is_refused(folder: Path, tmp_path: Path) -> None:
    image = folder / CLASSES[0] / "image_1.JPEG"
    flat = {f"ILSVRC2012_val_{index:08d}.JPEG": image for index in (1, 2)}
    train = nested(folder, tmp_path / "ILSVRC2012_img_train.tar")
    tar = pack(tmp_path / "ILSVRC2012_img_val.tar", flat)
    with pytest.raises(
        ValueError, match=r"ILSVRC2012_img_val\.tar holds ImageNet's validation images, which carry no cl"
    ):
        ImageTars(train, tar).open()
    with pytest.raises(ValueError, match="leave validation out to hold out training images"):
        ImageTars(tmp_path).open()  # the folder that both lie in
    sorted_into_classes = pack(tmp_path / "val" / f"{CLASSES[2]}.tar", flat)
    assert ImageTars(train, sorted_into_classes).open().validation.labels.tolist() == [2, 2]


def test_layouts_that_could_mean_two_things_are_refused(folder: Path, tmp_path: Path) -> None:
    image, inner = folder / CLASSES[0] / "image_1.JPEG", pack(tmp_path / "cat.tar", {"a.png": folder / CLASSES[0]})
    for number, members in enumerate(
        (
            {"train/cat/a.jpg": image, "val/cat/b.jpg": image},
            {"cat/a.jpg": image, "b.jpg": image},
            {"cat/a.jpg": image, "cat/more/b.jpg": image},
            {"cat.tar": inner, "b.jpg": image},
        )
    ):
        tar = pack(tmp_path / f"{number}.tar", members)
        with pytest.raises(ValueError, match=r"\d\.tar holds .*cat.* and also .*b\.jpg, that is"):
            ImageTars(tar).open()


def test_an_image_that_occurs_twice_is_named(folder: Path, tmp_path: Path) -> None:
    tars = class_tars(folder, tmp_path / "tars")
    pack(tars / "z.tar", {f"{CLASSES[1]}/image_1.JPEG": folder / CLASSES[1] / "image_1.JPEG"})
    with pytest.raises(
        ValueError, match=rf"{CLASSES[1]}/image_1\.JPEG is in .*{CLASSES[1]}\.tar and again in .*z\.tar"
    ):
        ImageTars(tars).open()


def test_links_are_refused_with_the_flags_that_pack_files(folder: Path, tmp_path: Path) -> None:
    (folder / CLASSES[0] / "link.png").symlink_to(folder / CLASSES[0] / "image_0.png")
    with pytest.raises(ValueError, match=r"link\.png in .*a\.tar is a link or sparse; .* tar --dereference"):
        ImageTars(pack(tmp_path / "a.tar", {"train": folder})).open()
    (folder / CLASSES[0] / "link.png").unlink()
    (folder / CLASSES[0] / "link.png").hardlink_to(folder / CLASSES[0] / "image_0.png")
    with pytest.raises(ValueError, match=r"b\.tar is a link or sparse"):
        ImageTars(pack(tmp_path / "b.tar", {"train": folder})).open()


def test_a_validation_set_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    tars = class_tars(folder, tmp_path / "tars")
    other = pack(tmp_path / "val.tar", {"zebra/a.png": folder / CLASSES[0] / "image_0.png"})
    with pytest.raises(ValueError, match=r"val\.tar has classes that the training set lacks: zebra"):
        ImageTars(tars, other).open()
    with pytest.raises(ValueError, match=r"validation_fraction is 0\.1, but .*val\.tar is .*, or leave validation out"):
        ImageTars(tars, other, 0.1)
    with pytest.raises(ValueError, match="validation_fraction must lie between 0 and 1, got 1"):
        ImageTars(tars, validation_fraction=1.0)
    with pytest.raises(
        ValueError, match=r"no image of the 60 in .*tars falls into the 1e-05 held out; .* as validation"
    ):
        ImageTars(tars, validation_fraction=1e-5).open()


def test_names_that_are_not_unicode_are_kept(folder: Path, tmp_path: Path) -> None:
    content = (folder / CLASSES[0] / "image_0.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in (b"cat/caf\xe9.png", b"cat/" + b"x" * 120 + b".png"):
            header = tarfile.TarInfo(name.decode(errors="surrogateescape"))
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    source = ImageTars(tmp_path / "a.tar", tmp_path / "a.tar").open()
    assert isinstance(source.train, TarSet)
    assert [source.train.name(index).split(" in ")[0] for index in range(2)] == [
        "cat/caf\udce9.png",
        "cat/" + "x" * 120 + ".png",
    ]
    assert source.train.load(0).size == (12, 9)

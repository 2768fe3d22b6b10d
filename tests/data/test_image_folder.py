import shutil
from pathlib import Path

import pytest
from PIL import Image

from snapgen_pl.data import image_folder
from snapgen_pl.data.conditions import Labels
from snapgen_pl.data.image_folder import FolderSet, ImageFolder
from snapgen_pl.data.loader import EndlessOrder, ImageSamples, PositionSampler, ResumableLoader
from snapgen_pl.data.source import OpenSource


def fill(folder: Path, classes: dict[str, int], extension: str = "png") -> Path:
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (6, 5), (label * 40, index, 7)).save(folder / name / f"{index:03d}.{extension}")
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return fill(tmp_path / "animals", {"newt": 40, "cat": 40})


def paths(source: OpenSource) -> tuple[set[str], set[str]]:
    found = []
    for images in (source.train, source.validation):
        assert isinstance(images, FolderSet)
        found.append({images.path(i).relative_to(images.folder).as_posix() for i in range(len(images))})
    return found[0], found[1]


def test_folders_are_classes_in_the_order_of_their_names(animals: Path) -> None:
    source = ImageFolder(animals).open()
    assert source.classes == ("cat", "newt")
    for images in (source.train, source.validation):
        assert isinstance(images, FolderSet)
        for index in range(len(images)):
            assert source.classes[int(images.labels[index])] == images.path(index).parent.name


def test_the_split_is_a_partition_that_new_images_and_another_place_do_not_change(animals: Path) -> None:
    train, validation = paths(ImageFolder(str(animals), 0.25).open())
    assert not train & validation
    assert len(train | validation) == 80
    moved = animals.parent / "moved"
    shutil.copytree(animals, moved)
    Image.new("RGB", (6, 5)).save(moved / "cat" / "zebra.png")
    assert paths(ImageFolder(moved, 0.25).open())[1] - {"cat/zebra.png"} == validation


@pytest.mark.parametrize("name", ["val", "validation"])
def test_train_and_validation_folders_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", {"a": 3, "b": 2, "c": 1})
    fill(tmp_path / name, {"c": 2, "b": 1}, "webp")
    source = ImageFolder(tmp_path).open()
    assert (source.classes, source.train.labels.tolist()) == (("a", "b", "c"), [0, 0, 0, 1, 1, 2])
    assert source.validation.labels.tolist() == [1, 2, 2]


def test_train_alone_is_split(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 40, "b": 40})
    assert ImageFolder(tmp_path).open().classes == ("a", "b")


def test_a_class_named_train_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, {"bus": 40, "train": 40})
    assert ImageFolder(tmp_path).open().classes == ("bus", "train")


def test_folders_within_a_class_hidden_files_and_other_files(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 40, "b": 40})
    (tmp_path / "a" / "more").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "a" / "more" / "x.JPG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "._001.png").write_bytes(b"what a file server leaves")
    (tmp_path / ".cache").mkdir()
    train, validation = paths(ImageFolder(tmp_path).open())
    assert len(train | validation) == 81
    assert "a/more/x.JPG" in train | validation


def test_images_come_upright_and_on_white(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 1})
    fill(tmp_path / "val", {"a": 1})
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "train" / "a" / "000.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (4, 2)).save(tmp_path / "val" / "a" / "000.png", exif=exif)
    source = ImageFolder(tmp_path).open()
    assert source.train.load(0).getpixel((0, 0)) == (255, 255, 255)
    assert (source.validation.load(0).size, source.validation.load(0).mode) == ((2, 4), "RGB")


def test_the_fingerprint_sees_names_sizes_and_splits(animals: Path) -> None:
    prints = [ImageFolder(animals).open().fingerprint, ImageFolder(animals, 0.3).open().fingerprint]
    Image.new("RGB", (60, 50), "red").save(animals / "cat" / "000.png")
    prints.append(ImageFolder(animals).open().fingerprint)
    (animals / "cat" / "000.png").rename(animals / "cat" / "first.png")
    prints.append(ImageFolder(animals).open().fingerprint)
    assert len(set(prints)) == 4
    assert ImageFolder(animals).open().fingerprint == prints[-1]


def test_a_damaged_image_is_named_before_training(animals: Path) -> None:
    (animals / "cat" / "003.png").write_bytes(b"\x89PNG, or so it says")
    with pytest.raises(ValueError, match=r"cat/003\.png cannot be read as an image \(UnidentifiedImageError"):
        ImageFolder(animals).open()


def test_a_damaged_chunk_is_named_before_training(animals: Path) -> None:
    path = animals / "cat" / "003.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cat/003\.png cannot be read as an image"):
        ImageFolder(animals).open()


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_large_set_a_damaged_image_is_named_when_its_turn_comes_and_not_earlier(
    animals: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(image_folder, "CHECKED_UP_FRONT", 10)
    images = ImageFolder(animals).open().train
    assert isinstance(images, FolderSet)
    order = EndlessOrder(len(images), seed=0)
    damaged = images.path(order[9])
    damaged.write_bytes(damaged.read_bytes()[:-30])
    batches = iter(
        ResumableLoader(ImageSamples(images, Labels(images.labels), 4), PositionSampler(order, micro_batch=2), workers)
    )
    for _ in range(4):
        next(batches)
    with pytest.raises(ValueError, match=rf"{damaged} cannot be read as an image"):
        next(batches)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a folder; expected one that holds a folder a class"):
        ImageFolder(tmp_path / "nowhere").open()


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"holds no class folders; expected .*/<class>/<image>"):
        ImageFolder(tmp_path).open()


def test_an_empty_class_is_named(animals: Path) -> None:
    (animals / "dog").mkdir()
    (animals / "dog" / "list.csv").write_text("")
    with pytest.raises(ValueError, match=r"animals/dog holds no image"):
        ImageFolder(animals).open()


def test_too_few_images_to_hold_any_out_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2})
    with pytest.raises(ValueError, match=r"no image of the 2 in .* falls into the 0.01 held out; change validation_fr"):
        ImageFolder(tmp_path, 0.01).open()


def test_a_class_that_would_be_held_out_whole_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 60, "b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"every image of b, c in .* is held out"):
        ImageFolder(tmp_path, 0.98).open()


def test_layouts_that_could_mean_two_things_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "one" / "train", {"a": 2})
    fill(tmp_path / "one" / "extra", {"a": 2})
    with pytest.raises(ValueError, match=r"holds train/ with folders in it and also extra"):
        ImageFolder(tmp_path / "one").open()
    fill(tmp_path / "two" / "val", {"a": 2})
    with pytest.raises(ValueError, match=r"two/val has no training set beside it; expected .*two/train"):
        ImageFolder(tmp_path / "two").open()
    for name in ("train", "val", "validation"):
        fill(tmp_path / "three" / name, {"a": 2})
    with pytest.raises(ValueError, match=r"holds both val and validation; keep one"):
        ImageFolder(tmp_path / "three").open()


def test_a_validation_set_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 2})
    fill(tmp_path / "val", {"a": 2, "z": 1})
    with pytest.raises(ValueError, match=r"val has classes that the training set lacks: z"):
        ImageFolder(tmp_path).open()
    with pytest.raises(ValueError, match=r"validation_fraction is 0.1, but .*val is the validation set"):
        ImageFolder(tmp_path, 0.1).open()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="validation_fraction must lie between 0 and 1"):
        ImageFolder("anywhere", fraction)

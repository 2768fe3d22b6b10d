import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from snapgen_pl.conditioning.condition import texts
from snapgen_pl.data.captioned_folder import CaptionedFolder, CaptionedFolderSet
from snapgen_pl.data.conditions import Captioned
from snapgen_pl.data.datamodule import ImageData

COUNT = 40


def picture(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for i in range(COUNT):
        image = root / f"album {i % 3}" / f"{i:02d}.png"
        picture(image, i)
        caption = f"  red number {i},\n as a café\tshows "
        if i % 2:
            image.with_suffix(".txt").write_text(caption, encoding="utf-8")
        else:
            image.with_suffix(".json").write_text(json.dumps({"caption": caption, "width": 8}), encoding="utf-8")
    return root


def opened(folder: Path) -> tuple[CaptionedFolderSet, CaptionedFolderSet]:
    source = CaptionedFolder(folder).open()
    assert isinstance(source.train, CaptionedFolderSet)
    assert isinstance(source.validation, CaptionedFolderSet)
    return source.train, source.validation


def test_each_image_comes_with_its_own_caption(folder: Path) -> None:
    train, validation = opened(folder)
    assert len(train) + len(validation) == COUNT
    assert len(validation) > 0
    for images in (train, validation):
        assert isinstance(images, Captioned)
        for index in range(len(images)):
            red = images.load(index).getpixel((0, 0))
            assert isinstance(red, tuple)
            assert images.caption(index) == f"red number {red[0]}, as a café shows"


def test_batches_bring_the_captions_of_their_images(folder: Path) -> None:
    data = ImageData(CaptionedFolder(folder), image_size=8, batch_size=5, condition="caption")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    reds = batch.image_BCHW[:, 0, 0, 0].tolist()
    assert texts(batch.condition).captions == tuple(f"red number {red}, as a café shows" for red in reds)


def test_a_validation_folder_is_used_as_it_is(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    picture(root / "val" / "a.png", 99)
    (root / "val" / "a.txt").write_text("held out")
    train, validation = opened(root)
    assert (len(train), len(validation), validation.caption(0)) == (COUNT, 1, "held out")


def test_a_changed_caption_changes_the_fingerprint(folder: Path) -> None:
    before = CaptionedFolder(folder).open().fingerprint
    assert CaptionedFolder(folder).open().fingerprint == before
    (folder / "album 1" / "01.txt").write_text("red number 2, as a cafe shows")
    assert CaptionedFolder(folder).open().fingerprint != before


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.unlink(), r"01\.png has no caption; write it to 01\.txt or 01\.json"),
        (lambda file: file.write_text(" \n"), r"01\.txt holds no caption but ' \\n'; write one"),
        (lambda file: file.write_bytes(b"\xff\xfe"), r"01\.txt holds no caption \(UnicodeDecodeError"),
        (lambda file: file.rename(file.with_suffix(".json")), r"01\.json holds no caption \(JSONDecodeError"),
        (lambda file: file.with_suffix(".json").write_text("{}"), r"01\.png has both 01\.txt and 01\.json"),
    ],
    ids=["missing", "empty", "not utf-8", "not json", "both"],
)
def test_each_harm_is_refused_by_name(folder: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(folder / "album 1" / "01.txt")
    with pytest.raises(ValueError, match=message):
        CaptionedFolder(folder).open()


def test_json_without_the_entry_is_refused_with_a_remedy(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"an entry 'text' \(caption_key says which\)"):
        CaptionedFolder(folder, caption_key="text").open()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        CaptionedFolder(tmp_path).open()

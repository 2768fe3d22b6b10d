import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from snapgen_pl.data import image_parquet
from snapgen_pl.data.conditions import Labels
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.image_parquet import ImageParquet
from snapgen_pl.data.loader import EndlessOrder, ImageSamples, PositionSampler, ResumableLoader
from snapgen_pl.data.source import OpenSource

CLASSES = ["cat", "newt", "zebra"]
GROUP = 7


def draw(folder: Path, count: int) -> None:
    """A folder of classes with images whose pixels are all different, every third a PNG."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng([label, index]).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.{'JPEG' if index % 3 else 'png'}")


def write(
    file: Path,
    images: list[Path | bytes],
    labels: list[int | None],
    names: list[str] | None = CLASSES,
    **columns: object,
) -> None:
    file.parent.mkdir(exist_ok=True)
    rows = [
        {"bytes": image.read_bytes(), "path": image.name} if isinstance(image, Path) else {"bytes": image, "path": None}
        for image in images
    ]
    image_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, image_type), "label": pa.array(labels, pa.int64())})
    if names is not None:
        label = {"names": names, "_type": "ClassLabel"}
        features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, file, row_group_size=GROUP)


def write_shards(folder: Path, target: Path, split: str, count: int, names: list[str] | None = CLASSES) -> Path:
    """All images of a folder of classes, in its order, cut into files."""
    images = [image for name in CLASSES for image in sorted((folder / name).iterdir())]
    for shard, indices in enumerate(np.array_split(np.arange(len(images)), count)):
        chosen = [images[index] for index in indices]
        labels: list[int | None] = [CLASSES.index(image.parent.name) for image in chosen]
        write(target / f"{split}-{shard:05d}-of-{count:05d}.parquet", [*chosen], labels, names)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "folder" / "train", 20)
    draw(tmp_path / "folder" / "val", 5)
    return tmp_path / "folder"


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Path:
    return write_shards(folder / "train", tmp_path / "parquet", "train", 4)


def pixels(source: OpenSource) -> dict[bytes, int]:
    """The label of each image, both splits together."""
    return {
        images.load(index).tobytes(): int(images.labels[index])
        for images in (source.train, source.validation)
        for index in range(len(images))
    }


def test_given_splits_are_what_the_same_files_are_in_folders(folder: Path, root: Path) -> None:
    write_shards(folder / "val", root, "validation", 2)
    packed, unpacked = ImageParquet(str(root)).open(), ImageFolder(folder).open()
    assert packed.classes == unpacked.classes
    for mine, others in ((packed.train, unpacked.train), (packed.validation, unpacked.validation)):
        assert torch.equal(mine.labels, others.labels)
        assert len(mine) == len(others) > 0
        for index in torch.randperm(len(mine), generator=torch.Generator().manual_seed(1)).tolist():
            assert mine.load(index).tobytes() == others.load(index).tobytes()


def test_the_split_is_a_partition_that_new_files_do_not_change(folder: Path, root: Path) -> None:
    source = ImageParquet(root, 0.2).open()
    assert len(source.validation) > 3
    assert pixels(source) == pixels(ImageFolder(folder).open())
    held = [source.validation.load(index).tobytes() for index in range(len(source.validation))]
    write(root / "train-more.parquet", [folder / "val" / "cat" / "004.JPEG"] * 3, [0, 0, 0])
    more = ImageParquet(root, 0.2).open()
    assert len(more.train) + len(more.validation) == 63
    assert [more.validation.load(index).tobytes() for index in range(len(held))] == held


def test_labels_without_names_are_classes_by_number(folder: Path, tmp_path: Path) -> None:
    images = [image for name in CLASSES for image in sorted((folder / "train" / name).iterdir())]
    write(tmp_path / "p" / "train-0.parquet", [*images], [12] * 20 + [2] * 20 + [700] * 20, names=None)
    write(tmp_path / "p" / "validation-0.parquet", [*images[:2]], [700, 2], names=None)
    source = ImageParquet(tmp_path / "p").open()
    assert source.classes == ("2", "12", "700")
    assert source.train.labels.tolist() == [1] * 20 + [0] * 20 + [2] * 20
    assert source.validation.labels.tolist() == [2, 0]


def test_names_that_do_not_occur_are_no_classes_and_one_that_two_have_is_numbered(folder: Path, tmp_path: Path) -> None:
    names = ["crane", "dog", "newt", "crane"]
    images = sorted((folder / "train" / "cat").iterdir())
    write(tmp_path / "p" / "train-0.parquet", [*images], [3] * 10 + [0] * 8 + [2, 2], names)
    write(tmp_path / "p" / "validation-0.parquet", [*images[:2]], [2, 3], names)
    source = ImageParquet(tmp_path / "p").open()
    assert source.classes == ("crane (0)", "newt", "crane (3)")
    assert source.train.labels.tolist() == [2] * 10 + [0] * 8 + [1, 1]
    assert source.validation.labels.tolist() == [1, 2]


def test_the_fingerprint_sees_labels_sizes_and_splits(folder: Path, root: Path) -> None:
    prints = [ImageParquet(root).open().fingerprint, ImageParquet(root, 0.3).open().fingerprint]
    assert ImageParquet(root).open().fingerprint == prints[0]
    shard = root / "train-00000-of-00004.parquet"
    images: list[Path | bytes] = [*sorted((folder / "train" / "cat").iterdir())[:15]]
    write(shard, images, [0] * 15)
    assert ImageParquet(root).open().fingerprint == prints[0]
    write(shard, images, [0] * 14 + [1])
    prints.append(ImageParquet(root).open().fingerprint)
    write(shard, [*images[:14], folder / "train" / "zebra" / "000.png"], [0] * 15)
    prints.append(ImageParquet(root).open().fingerprint)
    assert len(set(prints)) == 4


def batches(source: OpenSource, workers: int, count: int) -> list[torch.Tensor]:
    order = EndlessOrder(len(source.train), seed=3)
    loader = iter(
        ResumableLoader(
            ImageSamples(source.train, Labels(source.train.labels), 8, flip_seed=1), PositionSampler(order, 7), workers
        )
    )
    return [tensor for _ in range(count) for tensor in next(loader)[:3]]


def test_two_workers_load_what_none_does(root: Path) -> None:
    source = ImageParquet(root).open()
    source.train.load(0)  # workers inherit a row group
    alone, workers = batches(source, 0, 18), batches(source, 2, 18)
    assert all(torch.equal(one, other) for one, other in zip(alone, workers, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in alone[0]}) == 7


def test_in_order_each_row_group_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageParquet(root).open().train
    read = []
    whole = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        read.append(group)
        return whole(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for index in range(len(images)):
        images.load(index)
    assert read == [0, 1, 2] * 4  # four files of fifteen rows


def test_a_damaged_image_is_named_before_training(folder: Path, root: Path) -> None:
    images: list[Path | bytes] = [*sorted((folder / "train" / "cat").iterdir())[:15]]
    write(root / "train-00000-of-00004.parquet", [*images[:9], b"\x89PNG, or so it says", *images[10:]], [0] * 15)
    message = r"row 2 of row group 1 in .*train-00000-of-00004\.parquet cannot be read as an image \(Unidentified"
    with pytest.raises(ValueError, match=message):
        ImageParquet(root).open()


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_large_set_a_damaged_page_is_named_when_it_is_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(image_parquet, "CHECKED_UP_FRONT", 10)
    shard = root / "train-00002-of-00004.parquet"
    chunk = pq.ParquetFile(shard).metadata.row_group(1).column(0)
    content = bytearray(shard.read_bytes())
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    shard.write_bytes(content)
    source = ImageParquet(root).open()
    message = r"row \d of row group 1 in .*train-00002-of-00004\.parquet cannot be read as an image \(OSError"
    with pytest.raises(ValueError, match=message):
        batches(source, workers, 18)


def test_a_truncated_file_is_named(root: Path) -> None:
    shard = root / "train-00001-of-00004.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"train-00001-of-00004\.parquet cannot be read as parquet \(ArrowInvalid: .* again"
    ):
        ImageParquet(root).open()


def test_missing_and_superfluous_files_are_named(folder: Path, root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nowhere is not a folder; expected one that holds files such as train-00000-of"
    ):
        ImageParquet(root / "nowhere").open()
    with pytest.raises(
        ValueError, match=r"folder holds no training set; expected files such as train-00000-of-00001\.par"
    ):
        ImageParquet(folder).open()
    (root / "train-00002-of-00004-0123abcd.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 2 files named train-00002-of-00004\*\.parquet; expected one"):
        ImageParquet(root).open()
    (root / "train-00002-of-00004-0123abcd.parquet").unlink()
    (root / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds 0 files named train-00002-of-00004\*\.parquet; .*: download it"):
        ImageParquet(root).open()


def test_files_of_another_shape_are_refused(folder: Path, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "other" / "train-0.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table({"image": pa.array([b""]), "label": [0]}), file)
    with pytest.raises(
        ValueError, match=r"train-0\.parquet has the columns image, label; expected image\.bytes and label"
    ):
        ImageParquet(file.parent).open()
    write(file, [], [])
    with pytest.raises(ValueError, match=r"train-0\.parquet holds no image"):
        ImageParquet(file.parent).open()
    image = folder / "train" / "cat" / "000.png"
    for label in (-1, 3):
        write(file, [image, image], [0, label])
        with pytest.raises(ValueError, match=rf"train-0\.parquet has the label {label}, which is no class; remove"):
            ImageParquet(file.parent).open()
    write(file, [image, image], [0, None])
    with pytest.raises(ValueError, match=r"train-0\.parquet has the label None; expected integers"):
        ImageParquet(file.parent).open()
    write(root / "train-x.parquet", [image], [0], ["dog", "newt", "zebra"])
    with pytest.raises(
        ValueError, match=r"train-x\.parquet and .*train-00000-of-00004\.parquet name classes differently"
    ):
        ImageParquet(root).open()


def test_a_validation_set_that_does_not_fit_is_refused(folder: Path, root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no image of the 60 in .*parquet falls into the 1e-05 held out; .* or add files"
    ):
        ImageParquet(root, 1e-5).open()
    with pytest.raises(ValueError, match="validation_fraction must lie between 0 and 1, got 0"):
        ImageParquet(root, 0.0)
    write(root / "validation-0.parquet", [folder / "train" / "cat" / "000.png"], [3], [*CLASSES, "zorilla"])
    with pytest.raises(ValueError, match=r"validation-\*\.parquet has classes that the training set lacks: zorilla"):
        ImageParquet(root).open()
    with pytest.raises(
        ValueError, match=r"validation_fraction is 0\.1, but .*validation-\*\.parquet is the validation se"
    ):
        ImageParquet(root, 0.1).open()


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pyarrow.parquet is not installed; run `pip .* 'snapgen-pl\[parquet\]'`"):
        ImageParquet(root).open()


def test_a_set_travels_to_processes_that_are_not_forked(root: Path) -> None:
    images = ImageParquet(root).open().train
    first = images.load(0).tobytes()
    assert pickle.loads(pickle.dumps(images)).load(0).tobytes() == first

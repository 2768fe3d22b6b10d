from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.photo_data import PhotoData
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.data.transforms import to_pixels

WIDTH, HEIGHT, SIDE = 45, 38, 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs: a pixel's red tells its column, its green its row, its blue the photograph."""
    folder = tmp_path_factory.mktemp("photos") / "all"
    folder.mkdir()
    columns, rows = torch.arange(WIDTH).expand(HEIGHT, WIDTH), torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    for index in range(12):
        pixels = torch.stack((columns, rows, torch.full((HEIGHT, WIDTH), index)), dim=-1).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder.parent


def opened(photos: Path, **options: Any) -> PhotoData:
    source = ImageFolder(str(photos), validation_fraction=0.3)
    data = PhotoData(source=source, **{"image_size": SIDE, "batch_size": 4, "multiple": 8, "largest": 40} | options)
    data.setup("fit")
    return data


def training(data: PhotoData, batches: int) -> Tensor:
    loader = iter(data.train_dataloader())
    found = [next(loader) for _ in range(batches)]
    assert all(isinstance(batch, ImageBatch) for batch in found)
    return torch.cat([batch.image_BCHW for batch in found if isinstance(batch, ImageBatch)])


def test_a_crop_is_of_the_photographs_own_pixels_and_may_lie_anywhere(photos: Path) -> None:
    crops = training(opened(photos), 50)
    corner = crops[:, :2, :1, :1].int()
    offsets = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy"))
    assert torch.equal(crops[:, :2].int(), corner + offsets)
    left, top = corner[:, 0].flatten(), corner[:, 1].flatten()
    assert (left.min(), left.max(), top.min(), top.max()) == (0, WIDTH - SIDE, 0, HEIGHT - SIDE)


def test_a_crop_belongs_to_its_position(photos: Path) -> None:
    crops = training(opened(photos), 6)
    assert torch.equal(crops, training(opened(photos, batch_size=8), 3))
    assert torch.equal(crops, training(opened(photos, workers=1), 6))
    assert not torch.equal(crops, training(opened(photos, seed=1), 6))
    flipped = training(opened(photos, flip=True), 6)
    mirrored = torch.tensor([not torch.equal(a, b) for a, b in zip(flipped, crops, strict=True)])
    assert 0 < mirrored.sum() < len(crops)
    assert torch.equal(flipped[mirrored], crops[mirrored].flip(-1))


def test_held_out_photographs_come_whole_and_none_of_them_is_trained_on(photos: Path) -> None:
    data = opened(photos)
    held = []
    for index, batch in enumerate(data.val_dataloader()):
        assert isinstance(batch, ImageBatch)
        assert batch.position_B.tolist() == [index]
        whole = to_pixels(data.source.validation.load(index))  # type: ignore[call-arg, arg-type]
        assert torch.equal(batch.image_BCHW[0], whole[:, 3 : 3 + 32, 2 : 2 + 40])
        held.append(int(batch.image_BCHW[0, 2, 0, 0]))
    assert len(set(held)) == len(data.source.validation) > 1
    assert not set(held) & set(training(data, 20)[:, 2, 0, 0].tolist())


def test_a_small_photograph_is_enlarged_to_train_on_and_refused_as_a_held_out_one(photos: Path) -> None:
    assert training(opened(photos, image_size=64), 1).shape == (4, 3, 64, 64)
    data = opened(photos, multiple=40)
    with pytest.raises(ValueError, match="45 x 38 pixels, less than 40 along a side"):
        next(iter(data.val_dataloader()))


def test_buckets_are_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"PhotoData crops squares; leave data\.buckets out"):
        opened(photos, buckets=Buckets(SIDE, 8))


def test_sizes_that_no_image_fits_are_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match="multiple is 64, largest 40"):
        opened(photos, multiple=64)

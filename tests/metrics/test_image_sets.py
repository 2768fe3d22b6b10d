from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from snapgen_pl.metrics.image_sets import open_images, write_npz, write_pictures


def images(count: int = 7) -> Tensor:
    return torch.randint(0, 256, (count, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def read(path: Path, size: int = 3) -> Tensor:
    return torch.cat(list(open_images(path).batches(size)))


@pytest.mark.parametrize("size", [1, 3, 50])
def test_adms_npz_there_and_back(tmp_path: Path, size: int) -> None:
    write_npz(tmp_path / "a.npz", 7, images().split(2))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert torch.equal(torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2), images())
    assert open_images(tmp_path / "a.npz").count == 7
    assert torch.equal(read(tmp_path / "a.npz", size), images())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_numpys_own_is_read(tmp_path: Path, save: object) -> None:
    save(tmp_path / "a.npz", images().permute(0, 2, 3, 1).numpy(), np.arange(7))  # type: ignore[operator]
    assert torch.equal(read(tmp_path / "a.npz"), images())


def test_pictures_there_and_back(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", images().split(4))
    assert torch.equal(read(tmp_path / "a"), images())


def test_a_broken_set_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5 images instead of 7"):
        write_npz(tmp_path / "a.npz", 7, [images(5)])
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "a.npz", np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"arr_0 is float32 \(2, 3, 4, 4\); images are uint8"):
        open_images(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mu=np.zeros(3))
    with pytest.raises(ValueError, match="no npz with an array arr_0"):
        open_images(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="neither a folder"):
        open_images(tmp_path / "b.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        open_images(tmp_path / "empty")
    write_pictures(tmp_path / "c", [images()])
    Image.new("RGB", (9, 9)).save(tmp_path / "c" / "000003.png")
    with pytest.raises(ValueError, match=r"000003\.png is of another size"):
        read(tmp_path / "c", 7)
    (tmp_path / "c" / "000003.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000003\.png: no readable picture"):
        read(tmp_path / "c", 7)

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from callbacks.image_writer import ImageWriter
from snapgen_pl.data.requests import Request
from snapgen_pl.png import to_pil
from tests import sample_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def test_predicted_images_and_a_manifest_that_says_what_they_are_are_written(tmp_path: Path, images: Path) -> None:
    module = sample_run.module()
    trainer = sample_run.trainer(tmp_path, [ImageWriter()])
    predictions = trainer.predict(module, sample_run.data(images, samples=11))
    assert not predictions
    folder = tmp_path / "samples" / "predict"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert [row["position"] for row in manifest["images"]] == list(range(11))
    assert {row["asked"] for row in manifest["images"]} <= set(sample_run.CLASSES)
    assert manifest["sampler"] == "Euler(steps=2, shift=1.0)"
    assert manifest["images_seen"] == 0
    assert sorted(path.name for path in folder.glob("*.png")) == [row["file"] for row in manifest["images"]]

    row = manifest["images"][9]
    label = list(sample_run.CLASSES).index(row["asked"])
    again = module.sample(Request(torch.tensor([label]), torch.tensor([row["position"]])))
    with Image.open(folder / row["file"]) as image:
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(to_pil(again[0]).tobytes()))
    assert difference.abs().max() <= 1  # convolutions of another batch size differ in the last bit


def test_a_folder_that_holds_images_is_refused_with_a_remedy(tmp_path: Path, images: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds images already \(000000.png\); delete them, or set"):
        sample_run.trainer(tmp_path / "run", [ImageWriter(str(tmp_path))]).predict(
            sample_run.module(), sample_run.data(images)
        )
    assert (tmp_path / "000000.png").read_bytes() == b"precious"

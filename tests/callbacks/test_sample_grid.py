from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.sample_grid import SampleGrid, frequent_classes
from tests import sample_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def test_a_sheet_is_drawn_at_each_validation_and_at_the_end(tmp_path: Path, images: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    trainer = sample_run.trainer(
        tmp_path / "run", [SampleGrid(columns=2)], steps=3, logger=logger, val_check_interval=2
    )
    trainer.fit(sample_run.module(), sample_run.data(images))
    files = sorted((tmp_path / "run" / "samples").iterdir())
    # Eight images a step: the validation after two of them, and the end.
    assert [file.name for file in files] == ["000000016.png", "000000024.png"]
    with Image.open(files[-1]) as sheet:
        size = sheet.size
    events = EventAccumulator(str(tmp_path / "run")).Reload().Images("samples")
    assert [(event.step, event.width, event.height) for event in events] == [(1, *size), (3, *size)]


def test_the_same_weights_give_the_same_sheet(tmp_path: Path, images: Path) -> None:
    sheets = []
    for name in ("a", "b"):
        grid = SampleGrid(columns=2, every_n_images=1000)
        sample_run.trainer(tmp_path / name, [grid], steps=1).fit(sample_run.module(), sample_run.data(images))
        sheets.append((tmp_path / name / "samples" / "000000008.png").read_bytes())
    assert sheets[0] == sheets[1]


def test_beside_a_copy_stands_the_image_it_was_copied_from(tmp_path: Path, images: Path) -> None:
    data = sample_run.data(images)
    data.setup("predict")
    (training,) = data.training_images(batch_size=1000)
    module = sample_run.module()
    # A model that memorised: it gives training images 7, 8 and so on, whatever it is asked.
    module.sample = lambda request: training.image_BCHW[request.position_B + 7]  # type: ignore[method-assign]
    grid = SampleGrid(classes=["bell"], columns=3, every_n_images=1000)
    sample_run.trainer(tmp_path, [grid], steps=1).fit(module, data)
    with Image.open(tmp_path / "samples" / "000000008.png") as sheet:
        cells = torch.frombuffer(bytearray(sheet.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = cells.view(sheet.height, sheet.width, 3)[:64]
    edges = (pixels != 255).any(-1).all(0).nonzero().flatten()  # columns that lie within a cell
    assert len(edges) == 6 * 64
    cell = pixels[:, edges].unflatten(1, (6, 64)).transpose(0, 1)
    assert torch.equal(cell[0::2], cell[1::2])
    expected = training.image_BCHW[7:10].repeat_interleave(2, 2).repeat_interleave(2, 3).permute(0, 2, 3, 1)
    assert torch.equal(cell[0::2], expected)


def test_an_unknown_class_is_refused_before_training(tmp_path: Path, images: Path) -> None:
    with pytest.raises(ValueError, match=r"no classes \['dog'\]; it has apple, bell, crane"):
        sample_run.trainer(tmp_path, [SampleGrid(classes=["apple", "dog"])]).fit(
            sample_run.module(), sample_run.data(images)
        )


def test_classes_are_taken_evenly_from_the_more_frequent_half() -> None:
    counts = torch.tensor([9, 0, 1, 8, 1, 7, 1, 6, 1])
    labels = torch.arange(9).repeat_interleave(counts)
    assert frequent_classes(labels, 2) == [0, 7]
    assert frequent_classes(labels, 4) == [0, 3, 5, 7]
    assert frequent_classes(labels, 20) == [0, 2, 3, 4, 5, 6, 7, 8]

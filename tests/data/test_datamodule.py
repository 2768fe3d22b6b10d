from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from snapgen_pl.conditioning.condition import Texts, texts
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.emoji import Emoji, EmojiSet
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.loader import EndlessOrder
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import ImageBatch, ImageSource, OpenSource


class Squares:
    """Images of one colour, which tells their index."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        return Image.new("RGB", (5, 9), (index, 0, 0))


class SquareSource(ImageSource):
    def open(self) -> OpenSource:
        return OpenSource(("cat", "dog", "cow"), Squares([0] * 9 + [1] * 6 + [2] * 3), Squares([0, 1, 2, 0, 1]), "f00d")


class Recorder(L.LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        assert isinstance(batch, ImageBatch)
        self.trained += batch.position_B.tolist()
        return self.weight * batch.image_BCHW.float().mean()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.validated += batch.image_BCHW[:, 0, 0, 0].tolist()

    def predict_step(self, batch: Request, batch_idx: int) -> Request:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    endless = {"max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 2, "num_sanity_val_steps": 0}
    return L.Trainer(default_root_dir=folder, **{**quiet, **endless, "enable_checkpointing": False, **options})


def two_processes(folder: Path, **options: Any) -> L.Trainer:
    """A trainer that would start two processes; it is only asked how many."""
    return trainer(folder, devices=2, strategy="ddp", max_steps=1, **options)


def ready(**options: Any) -> ImageData:
    data = ImageData(SquareSource(), image_size=4, **{"batch_size": 4, **options})
    data.setup("fit")
    return data


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_takes_batch_size_images_a_step_and_continues_after_a_checkpoint(
    tmp_path: Path, accumulation: int
) -> None:
    def run(steps: int, ckpt_path: str | None = None) -> Recorder:
        module = Recorder()
        session = trainer(tmp_path, max_steps=steps, accumulate_grad_batches=accumulation)
        session.fit(module, ImageData(SquareSource(), image_size=4, batch_size=4), ckpt_path=ckpt_path)
        session.save_checkpoint(tmp_path / "run.ckpt")
        return module

    first = run(3)
    second = run(7, str(tmp_path / "run.ckpt"))
    assert first.trained + second.trained == list(range(28))
    assert first.validated[:5] == [0, 1, 2, 3, 4]


def test_validate_and_predict_work_without_training(tmp_path: Path) -> None:
    session, module = trainer(tmp_path), Recorder()
    session.validate(module, ImageData(SquareSource(), image_size=4, batch_size=2), verbose=False)
    assert module.validated == [0, 1, 2, 3, 4]
    requests = session.predict(module, ImageData(SquareSource(), image_size=4, batch_size=4, samples=6))
    assert requests is not None
    assert [batch.position_B.tolist() for batch in map(Request._make, requests)] == [[0, 1, 2, 3], [4, 5]]


def test_training_images_in_order_come_once_and_unflipped() -> None:
    data = ready(flip=True)
    batches = [batch[:3] for batch in data.training_images(7)]
    image_BCHW, label_B, position_B = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    assert torch.equal(image_BCHW[:, 0, 0, 0].long(), position_B)
    assert torch.equal(position_B, torch.arange(len(data.source.train)))
    assert torch.equal(label_B, data.source.train.labels)


def labels(data: ImageData) -> list[int]:
    return torch.cat([request.condition for request in data.predict_dataloader()]).tolist()


def test_requests_follow_the_frequencies_of_training_and_do_not_move_when_there_are_more() -> None:
    asked = labels(ready(samples=36))
    assert [asked.count(label) for label in range(3)] == [18, 12, 6]
    assert asked != sorted(asked)
    assert labels(ready(samples=7, batch_size=2)) == asked[:7]


def test_requests_may_be_restricted_to_classes() -> None:
    asked = labels(ready(samples=18, sample_classes=["cow", "dog"]))
    assert [asked.count(label) for label in range(3)] == [0, 12, 6]


def test_an_unknown_class_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"names 'cowe', which is none of the 3 classes; did you mean cow\?"):
        ready(sample_classes=["cowe"])
    with pytest.raises(ValueError, match=r"names 'xyzzy', .*; known: cat, cow, dog"):
        ready(sample_classes=["xyzzy"])


def test_a_training_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 20, but there are only 18 training images; set data.batch"):
        ready(batch_size=20)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    data = ImageData(SquareSource(), batch_size=6)
    data.trainer = two_processes(tmp_path, use_distributed_sampler=False, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"not divide by 2 process\(es\) x 2 accumulated .* multiple of 4, such as 8"):
        data.setup("fit")
    data.setup("validate")  # which takes no steps
    assert sum(len(batch.position_B) for batch in data.val_dataloader()) == 3  # of 5


def test_each_of_two_processes_takes_its_half(tmp_path: Path) -> None:
    data = ImageData(SquareSource(), image_size=4, batch_size=8, samples=6)
    data.trainer = two_processes(tmp_path, use_distributed_sampler=False)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).position_B.tolist() == [0, 1, 2, 3]
    assert [batch.position_B.tolist() for batch in data.val_dataloader()] == [[0, 2, 4]]
    assert [request.position_B.tolist() for request in data.predict_dataloader()] == [[0, 2, 4]]


def test_lightnings_own_sampler_is_refused_with_two_processes(tmp_path: Path) -> None:
    data = ImageData(SquareSource(), batch_size=4)
    data.trainer = two_processes(tmp_path, use_distributed_sampler=True)
    with pytest.raises(ValueError, match=r"set trainer.use_distributed_sampler: false"):
        data.setup("fit")


def test_fewer_samples_than_processes_are_refused(tmp_path: Path) -> None:
    data = ImageData(SquareSource(), batch_size=4, samples=1)
    data.trainer = two_processes(tmp_path, use_distributed_sampler=False)
    with pytest.raises(ValueError, match=r"1 samples do not go round 2 processes"):
        data.setup("predict")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"seed": 1 << 48}, "seed must lie below 2"),
        ({"sample_classes": []}, "sample_classes is empty"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(SquareSource(), **options)


def test_the_source_is_unknown_before_setup() -> None:
    with pytest.raises(AttributeError, match=r"opened by setup"):
        _ = ImageData(SquareSource()).source
    assert ready().fingerprint == "f00d"


def test_both_sources_are_made_from_yaml(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")

    def made(source: str) -> ImageData:
        config = f"{{class_path: snapgen_pl.data.datamodule.ImageData, init_args: {{source: {source}}}}}"
        data = parser.instantiate(parser.parse_args([f"--data={config}"])).data
        assert isinstance(data, ImageData)
        return data

    emoji = made("{class_path: snapgen_pl.data.emoji.Emoji, init_args: {styles: [noto, twemoji], level: group}}")
    assert isinstance(emoji.image_source, Emoji)
    assert (emoji.image_source.styles, emoji.image_source.level) == (("noto", "twemoji"), "group")
    folder = made(f"{{class_path: snapgen_pl.data.image_folder.ImageFolder, init_args: {{root: {tmp_path}}}}}")
    assert isinstance(folder.image_source, ImageFolder)
    assert folder.image_source.root == tmp_path


def test_captions_are_what_images_are_asked_for_with_where_the_data_say_so() -> None:
    data = ImageData(Emoji(styles=("noto",)), image_size=16, batch_size=4, condition="caption", samples=6)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    images = data.source.train
    assert isinstance(images, EmojiSet)
    order = EndlessOrder(len(images), seed=0)
    assert isinstance(batch.condition, Texts)
    assert batch.condition.captions == tuple(images.caption(order[position]) for position in range(4))
    held_out = data.source.validation
    assert isinstance(held_out, EmojiSet)
    asked = [caption for request in data.predict_dataloader() for caption in texts(request.condition).captions]
    assert len(set(asked)) == 6
    assert set(asked) <= {held_out.caption(index) for index in range(len(held_out))}


def test_captions_of_images_that_have_none_are_refused_with_a_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"SquareSource has no captions; give a source that has, or set data\.condition"
    ):
        ImageData(SquareSource(), batch_size=4, condition="caption").setup("fit")
    with pytest.raises(ValueError, match="sample_classes are asked for by label"):
        ImageData(SquareSource(), condition="caption", sample_classes=["cat"])

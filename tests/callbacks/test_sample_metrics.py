import contextlib
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.sample_metrics import Record, SampleMetrics
from callbacks.sampling import drawing
from snapgen_pl.metrics.kernel_distance import KernelDistance
from tests import sample_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def record(folder: Path, name: str = "metrics.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


def test_a_run_ends_with_a_record_of_the_value_its_controls_and_its_protocol(tmp_path: Path, images: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    trainer = sample_run.trainer(tmp_path / "run", [sample_run.metrics()], logger=logger, limit_val_batches=0)
    trainer.fit(sample_run.module(), sample_run.data(images))

    found = record(tmp_path / "run")
    assert found["images_seen"] == 16
    assert (found["samples"], found["references"], found["control_images"]) == (20, 44, 20)
    assert found["sampler"] == "Euler(steps=2, shift=1.0)"
    assert found["weights"].startswith("EMA, half-life 20 images")
    kid = found["metrics"]["kid_effnet"]
    assert kid["protocol"]["subset_size"] == 16
    assert kid["score"]["value"] > kid["controls"]["real"]["value"]
    assert list(kid["controls"]) == ["real", "16px", "8px"]

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith("kid_effnet")}
    assert set(logged) == {"kid_effnet", "kid_effnet/real", "kid_effnet/16px", "kid_effnet/8px"}
    assert [(event.step, event.value) for event in logged["kid_effnet"]] == [(2, pytest.approx(kid["score"]["value"]))]


def test_measuring_changes_nothing_about_training(tmp_path: Path, images: Path) -> None:
    class GlobalDice(L.Callback):
        """What dropout would draw at each step."""

        def __init__(self) -> None:
            self.drawn: list[float] = []

        def on_train_batch_start(self, *_: object) -> None:
            self.drawn.append(float(torch.rand(())))

    weights, drawn = [], []
    for name, callbacks in (("with", [sample_run.metrics(every_n_images=0)]), ("without", [])):
        torch.manual_seed(3)
        dice, module = GlobalDice(), sample_run.module()
        sample_run.trainer(tmp_path / name, [dice, *callbacks], steps=3).fit(module, sample_run.data(images))
        weights.append(module.state_dict())
        drawn.append(dice.drawn)
    assert drawn[0] == drawn[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_values_are_logged_at_the_validations_that_fall_due(tmp_path: Path, images: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    trainer = sample_run.trainer(tmp_path / "run", [sample_run.metrics(every_n_images=16)], steps=5, logger=logger)
    trainer.fit(sample_run.module(), sample_run.data(images))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    # Eight images a step, a validation each: due at 16 and 32 images, and at the end. Within a validation, Lightning's
    # own axis lags by one, so these points stand beside those of val/loss.
    assert [event.step for event in events.Scalars("kid_effnet")] == [1, 3, 5]
    assert [event.step for event in events.Scalars("kid_effnet/real")] == [1]


def test_the_same_weights_give_the_same_value(tmp_path: Path, images: Path) -> None:
    values = []
    for name in ("a", "b"):
        torch.manual_seed(len(values))
        trainer = sample_run.trainer(tmp_path / name, [sample_run.metrics()])
        trainer.test(sample_run.module(), sample_run.data(images), verbose=False)
        values.append(record(tmp_path / name, "metrics-test.json")["metrics"])
        assert "kid_effnet" in trainer.callback_metrics
    assert values[0] == values[1]
    assert record(tmp_path / "a", "metrics-test.json")["samples"] == 24


def test_a_run_that_is_stopped_early_is_not_measured(tmp_path: Path, images: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            trainer.should_stop = True

    trainer = sample_run.trainer(tmp_path, [Stop(), sample_run.metrics()], steps=9, limit_val_batches=0)
    trainer.fit(sample_run.module(), sample_run.data(images))
    assert trainer.global_step < 9
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 15}, "samples is 15, too few for kid_effnet, which takes 16 or more"),
        ({"control_images": 15}, "control_images is 15"),
        ({"control_images": 50}, r"references \(training images less control_images\) is 14"),
        ({"references": 3}, r"references \(training images less control_images\) is 3"),
    ],
)
def test_too_few_images_are_refused_before_training(
    tmp_path: Path, images: Path, options: dict[str, int], message: str
) -> None:
    module = sample_run.module()
    with pytest.raises(ValueError, match=message):
        sample_run.trainer(tmp_path, [sample_run.metrics(**options)]).fit(module, sample_run.data(images))
    assert module.images_seen == 0


def test_a_metric_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="each once"):
        SampleMetrics([KernelDistance(), KernelDistance(subsets=3)])


def test_a_module_that_draws_nothing_is_refused(tmp_path: Path, images: Path) -> None:
    with pytest.raises(ValueError, match="BoringModel draws no images"):
        L.Trainer(
            callbacks=[sample_run.metrics()], max_steps=1, default_root_dir=tmp_path, logger=False, accelerator="cpu"
        ).fit(BoringModel())


def test_drawing_puts_modes_back_part_by_part_even_after_an_error(tmp_path: Path, images: Path) -> None:
    module = sample_run.module()
    module.train()
    module.conditioner.eval()
    trainer = sample_run.trainer(tmp_path, [])
    with contextlib.suppress(RuntimeError), drawing(trainer, module):
        assert not module.denoiser.training
        raise RuntimeError
    assert module.denoiser.training
    assert not module.conditioner.training


def test_the_record_names_every_field_of_its_class(tmp_path: Path, images: Path) -> None:
    sample_run.trainer(tmp_path, [sample_run.metrics()], limit_val_batches=0).fit(
        sample_run.module(), sample_run.data(images)
    )
    assert set(record(tmp_path)) == set(Record.__dataclass_fields__)

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from callbacks.sample_metrics import SampleMetrics
from callbacks.sampling import drawing
from snapgen_pl.data.requests import Request
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Euler, Sampler
from snapgen_pl.metrics.draws import proportional
from snapgen_pl.metrics.effnet_distances import EffNetDistances
from snapgen_pl.metrics.feature_store import FeatureStore
from snapgen_pl.metrics.image_sets import open_images
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, SampleMetric, Score
from snapgen_pl.metrics.sample_report import SampleReport, check_comparable, read_report
from snapgen_pl.modules.pretrain import Pretrain
from tests import sample_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run.image_folder(tmp_path_factory.mktemp("images"))


def reports(folder: Path) -> list[SampleReport]:
    return [read_report(path) for path in sorted((folder / "reports").glob("*.json"))]


def test_a_run_ends_with_a_record_of_the_value_its_controls_and_its_protocol(tmp_path: Path, images: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    trainer = sample_run.trainer(tmp_path / "run", [sample_run.metrics()], logger=logger, limit_val_batches=0)
    trainer.fit(sample_run.module(), sample_run.data(images))

    found = read_report(tmp_path / "run" / "metrics.json")
    kid = found.values["kid_effnet"].value
    assert found.weights["images_seen"] == 16
    assert str(found.weights["which"]).startswith("EMA, half-life 20 images")
    assert [found.measurement[key] for key in ("samples", "references", "control_images")] == [20, 44, 20]
    assert found.drawing["sampler"] == "Euler(steps=2, shift=1.0)"
    assert found.measurement["metrics"]["effnet"]["subset_size"] == 16  # type: ignore[index]
    assert kid > found.controls["real"]["kid_effnet"].value
    assert list(found.controls) == ["real", "16px", "8px"]

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith("kid_effnet")}
    assert set(logged) == {"kid_effnet", "kid_effnet/real", "kid_effnet/16px", "kid_effnet/8px"}
    assert [(event.step, event.value) for event in logged["kid_effnet"]] == [(2, pytest.approx(kid))]


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
        (report,) = reports(tmp_path / name)
        values.append((report.values, report.controls, report.weights))
        assert report.measurement["samples"] == 24
        assert "kid_effnet" in trainer.callback_metrics
    assert values[0] == values[1]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, float]]:
    """Position, sampler and guidance of every sample that is drawn from now on."""
    seen: list[tuple[int, str, float]] = []
    draw = Pretrain.sample

    def sample(self: Pretrain, request: Request, sampler: Sampler | None, guidance: Guidance) -> torch.Tensor:
        seen.extend((position, repr(sampler), guidance.scale) for position in request.position_B.tolist())
        return draw(self, request, sampler, guidance)

    monkeypatch.setattr(Pretrain, "sample", sample)
    return seen


def test_a_killed_test_goes_on_where_it_was_and_what_was_measured_is_not_drawn_again(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samplers": [Euler(2), Euler(3)], "guidances": [Guidance(), Guidance(2.0)]}

    def test() -> None:
        trainer = sample_run.trainer(tmp_path, [sample_run.metrics(**options)])
        trainer.test(sample_run.module(), sample_run.data(images), verbose=False)

    class KilledError(Exception):
        pass

    seen = drawn(monkeypatch)
    write = FeatureStore.write

    def killed(self: FeatureStore, positions: range, features: dict[str, torch.Tensor]) -> None:
        if len(seen) == 24 + 16:  # in the second chunk of the second of four draws
            raise KilledError
        write(self, positions, features)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "write", killed)
        with pytest.raises(KilledError):
            test()
    assert len(reports(tmp_path)) == 1
    first = list(seen)
    test()
    assert len(reports(tmp_path)) == 4
    again = seen[len(first) :]
    assert len(set(first) & set(again)) == 8, "the chunk that was being written, and no other"
    assert len(set(seen)) == 4 * 24
    test()
    assert len(seen) == len(first) + len(again)

    straight = sample_run.trainer(tmp_path / "straight", [sample_run.metrics(**options)])
    straight.test(sample_run.module(), sample_run.data(images), verbose=False)
    for resumed, expected in zip(reports(tmp_path), reports(tmp_path / "straight"), strict=True):
        assert (resumed.values, resumed.drawing) == (expected.values, expected.drawing)


def test_samplers_and_guidances_are_compared_on_the_same_noise_and_labels(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = drawn(monkeypatch)
    options: dict[str, Any] = {"guidances": [Guidance(), Guidance(3.0, (0.5, 1.0))]}
    trainer = sample_run.trainer(tmp_path, [sample_run.metrics(**options)])
    trainer.test(sample_run.module(), sample_run.data(images), verbose=False)
    assert [position for position, _, scale in seen if scale == 1] == list(range(24))
    assert [position for position, _, scale in seen if scale == 3] == list(range(24))
    check_comparable({str(report.drawing["guidance"]): report for report in reports(tmp_path)})


@pytest.mark.parametrize("keep", ["png", "npz"])
def test_images_are_kept_as_they_were_measured(tmp_path: Path, images: Path, keep: Literal["png", "npz"]) -> None:
    trainer = sample_run.trainer(tmp_path, [sample_run.metrics(keep=keep)])
    module = sample_run.module()
    trainer.test(module, sample_run.data(images), verbose=False)
    (path,) = (tmp_path / "samples").iterdir()
    kept = torch.cat(list(open_images(path).batches(24)))
    data = sample_run.data(images)
    data.setup("test")
    requests = proportional(data.source.train.labels, 24)
    # The module of a test run keeps its weights; EMA of a module that was never trained is the module.
    assert torch.equal(kept, torch.cat([module.sample(requests.at(range(i, i + 8))) for i in (0, 8, 16)]))


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
        ({"samples": 15}, "samples is 15, too few for effnet, which takes 16 or more"),
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
        SampleMetrics([EffNetDistances(), EffNetDistances(subsets=3)])


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


class AskedFor(SampleMetric):
    """The share of images that were asked for as one class; it knows some classes alone."""

    needs_requests = True
    network, least_images, brings_reference = "asked_for", 1, True

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def protocol(self) -> Facts:
        return {"of": self.known[0]}

    def controls(self) -> Mapping[str, Mapping[str, Score]]:
        return {"real": {"share": Score(0.5)}, "shuffled": {"share": Score(0.1)}}

    def prepare(self, device: torch.device) -> None:
        pass

    def check_requests(self, asked: Sequence[str]) -> None:
        if unknown := set(asked) - set(self.known):
            raise ValueError(f"asked for {min(unknown)}")

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        assert len(asked) == len(image_BCHW)
        return {self.network: torch.tensor([[float(name == self.known[0])] for name in asked])}

    def set_reference(self, features: FeatureSet) -> None:
        pass

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        return {"share": Score(float(torch.cat(list(features.read(self.network))).mean()))}


def test_a_metric_may_hold_samples_against_what_was_asked_for(tmp_path: Path, images: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run", version="")
    both = [EffNetDistances(subsets=5, subset_size=16), AskedFor(list(sample_run.CLASSES))]
    callback = SampleMetrics(both, samples=20, batch_size=8, control_images=20, every_n_images=0)
    trainer = sample_run.trainer(tmp_path / "run", [callback], steps=2, logger=logger)
    trainer.fit(sample_run.module(), sample_run.data(images))
    found = read_report(tmp_path / "run" / "metrics.json")
    # 30 of the 64 training images are apples: 9.4 of 20, and no remainder is larger. Nobody asked for the training
    # images that controls are made of.
    assert found.values["share"].value == 10 / 20
    assert {name: set(scores) for name, scores in found.controls.items()} == {
        "real": {"kid_effnet", "share"},
        "16px": {"kid_effnet"},
        "8px": {"kid_effnet"},
        "shuffled": {"share"},
    }
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("share")] == [0, 1]
    assert [event.step for event in events.Scalars("share/shuffled")] == [0]


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_requests_that_a_metric_does_not_know_are_refused_before_work(tmp_path: Path, images: Path, verb: str) -> None:
    callback = SampleMetrics([AskedFor(["apple", "bell"])], samples=20, test_samples=20)
    trainer = sample_run.trainer(tmp_path, [callback])
    with pytest.raises(ValueError, match="asked for crane"):
        getattr(trainer, verb)(sample_run.module(), sample_run.data(images))
    assert trainer.global_step == 0

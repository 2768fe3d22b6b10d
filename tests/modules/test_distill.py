import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks.run_manifest import RunManifest
from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl import rng
from snapgen_pl.autoencoders.patch_pca import PatchPCA
from snapgen_pl.checkpoints import LAST
from snapgen_pl.distill.feature_loss import FeaturePair
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.path import sample_path
from snapgen_pl.models.denoiser import DenoiserOutput
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.teachers.run import RunTeacher
from snapgen_pl.teachers.teacher import Question
from tests import distill_run, pretrain_run, tiny_run
from tests.distill_run import PAIRS, distill, train
from tests.golden_values import StepLosses

STEPS = 6


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_run.draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's; to be read only."""
    return distill_run.teacher_run(images, tmp_path_factory.mktemp("run"))


class Steps(StepLosses):
    """Also keeps what validation logged last."""

    def __init__(self) -> None:
        super().__init__()
        self.validation: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Asked(RunTeacher):
    """A run as a teacher that keeps what it was asked."""

    def __init__(self, run: Path) -> None:
        super().__init__(str(run), guidance=Guidance(2.0))
        self.asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.answers: list[DenoiserOutput] = []

    def ask(self, condition: Any, nothing_B: Tensor) -> Question:
        self.question = condition, nothing_B
        return super().ask(condition, nothing_B)

    def __call__(self, x_BCHW: Tensor, t_B: Tensor, question: Question, features: Any = ()) -> Any:
        self.asked.append((x_BCHW, t_B, *self.question))
        self.answers.append(super().__call__(x_BCHW, t_B, question, features))
        return self.answers[-1]


def test_a_step_asks_the_teacher_once_and_compares_at_the_same_place(images: Path, run: Path, tmp_path: Path) -> None:
    teacher, steps = Asked(run), Steps()
    module = distill(run, teacher=teacher, output_weight=0.5, feature_weight=2.0)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    train(module, images, tmp_path, 1, callbacks=[steps], val_check_interval=None)
    assert len(teacher.asked) == 1
    x_BCHW, t_B, label_B, nothing_B = teacher.asked[0]

    data = pretrain_run.image_data(images)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(label_B, batch.condition)
    assert torch.equal(nothing_B, rng.uniform(0, rng.Stream.CONDITION_DROPOUT, batch.position_B) < 0.5)
    assert 0 < nothing_B.sum() < len(nothing_B)
    latent = module.autoencoder.to_final(module.autoencoder.encode(batch.image_BCHW / 127.5 - 1).mean_BCHW)
    noise = rng.normal(0, rng.Stream.NOISE, batch.position_B, module.latent_shape)
    path = sample_path(latent, noise, t_B)
    torch.testing.assert_close(x_BCHW, path.x_BCHW)

    fresh = distill(run)
    fresh.load_state_dict(before)
    told_B = torch.where(nothing_B, 2, label_B)
    with torch.no_grad():
        output = fresh.denoiser(x_BCHW, t_B, fresh.conditioner(told_B), tuple(pair.student for pair in PAIRS))
        assert fresh.feature_loss is not None
        feature = fresh.feature_loss(output.features, teacher.answers[0].features).mean()
    task = (output.velocity_BCHW - (noise - latent)).square().mean()
    kd = (output.velocity_BCHW - teacher.answers[0].velocity_BCHW).square().mean()
    assert steps.terms[0] == pytest.approx({"task": float(task), "kd": float(kd), "feature": float(feature)}, rel=1e-4)
    assert steps.losses[0] == pytest.approx(float(task + 0.5 * kd + 2 * feature), rel=1e-4)


def test_losses_are_the_golden_ones(images: Path, run: Path, tmp_path: Path) -> None:
    steps = Steps()
    train(distill(run), images, tmp_path, STEPS, callbacks=[steps, TimestepAwareScaling()])
    steps.check("distill")


def test_nothing_of_the_teacher_is_trained_or_kept(images: Path, run: Path, tmp_path: Path) -> None:
    module = distill(run)
    saved = train(module, images, tmp_path, 2)
    names = set(saved["state_dict"])
    assert names == set(module.state_dict())
    parts = {name.split(".")[0] for name in names}
    assert parts == {"denoiser", "conditioner", "feature_loss"}
    assert {name.split(".")[0] for name in saved["ema"]["weights"]} == {"denoiser", "conditioner"}
    trained = sum(weight.numel() for weight in module.parameters())
    optimizer = saved["optimizer_states"][0]
    assert len(optimizer["state"]) == len(list(module.parameters()))
    assert sum(state["exp_avg"].numel() for state in optimizer["state"].values()) == trained
    before = torch.load(run / LAST, weights_only=True)["ema"]["weights"]
    for name, weight in module.teacher._denoiser.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(weight, before[f"denoiser.{name}"])
        assert weight.grad is None
    assert module.feature_loss is not None
    fresh = distill(run)
    assert fresh.feature_loss is not None
    moved = zip(module.feature_loss.parameters(), fresh.feature_loss.parameters(), strict=True)
    assert all((after - start).abs().max() > 0 for after, start in moved)


@pytest.mark.parametrize("ratio", [pytest.param("sample", marks=pytest.mark.slow), "bin"])
def test_stopping_and_resuming_changes_nothing(images: Path, run: Path, tmp_path: Path, ratio: Any) -> None:
    def callbacks() -> list[L.Callback]:
        return [TimestepAwareScaling(ratio=ratio)]

    straight = train(distill(run), images, tmp_path / "straight", 8, callbacks=callbacks())
    train(distill(run), images, tmp_path / "parts", 3, callbacks=callbacks())
    resumed = train(distill(run), images, tmp_path / "parts", 8, resume=True, callbacks=callbacks())
    assert straight["images_seen"] == 8 * pretrain_run.BATCH
    assert tiny_run.differing(resumed, straight) == []


def test_without_weights_it_trains_as_pretraining_and_still_tells_the_distance(
    images: Path, run: Path, tmp_path: Path
) -> None:
    teacher, steps = Asked(run), Steps()
    module = distill(run, teacher=teacher, output_weight=0.0, feature_weight=0.0)
    assert dict(module.loss_roles) == {"task": "task"}
    saved = train(module, images, tmp_path / "distill", STEPS, callbacks=[steps])
    L.seed_everything(0, verbose=False)
    plain = pretrain_run.train(images, tmp_path / "plain", STEPS)
    for name, weight in plain["ema"]["weights"].items():
        assert torch.equal(weight, saved["ema"]["weights"][name]), name
    assert all(terms.keys() == {"task"} for terms in steps.terms)
    assert {"val/loss", "val/kd", "val/feature"} <= steps.validation.keys()
    assert len(teacher.asked) == STEPS // 3  # a batch a validation
    with pytest.raises(ValueError, match="needs a term of role task and one of role kd or feature"):
        train(distill(run, output_weight=0.0, feature_weight=0.0), images, tmp_path / "scaled", 1,
              callbacks=[TimestepAwareScaling()])  # fmt: skip


def test_a_teacher_that_goes_astray_is_named(images: Path, run: Path, tmp_path: Path) -> None:
    class Astray(RunTeacher):
        def __call__(self, *arguments: Any) -> DenoiserOutput:
            output = super().__call__(*arguments)
            output.velocity_BCHW[3] = torch.nan
            return output

    with pytest.raises(FloatingPointError, match=r"loss term 'kd' is nan at step \d+ for the sample at position 3"):
        train(distill(run, teacher=Astray(str(run))), images, tmp_path, 3)
    assert not (tmp_path / LAST).exists()


def test_a_teacher_of_other_latents_is_refused_before_training(images: Path, run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "teacher"))
    autoencoder = PatchPCA(patch=4, channels=4)
    data = pretrain_run.image_data(images)
    data.setup("fit")
    autoencoder.ready(tmp_path / "elsewhere", [255 - batch.image_BCHW for batch in data.training_images(24)])
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["starts"][-1]["autoencoder"] = autoencoder.identity()
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"weights is .* of the teacher's"):
        train(distill(other), images, tmp_path / "run", 1)
    assert not (tmp_path / "run" / LAST).exists()


def test_a_teacher_that_changed_is_told_of_when_a_run_resumes(images: Path, run: Path, tmp_path: Path) -> None:
    train(distill(run), images, tmp_path, 1, callbacks=[RunManifest()], every_n_steps=1)
    (start,) = json.loads((tmp_path / "manifest.json").read_text())["starts"]
    assert start["teacher"]["guidance"] == repr(Guidance(2.0))
    other = distill(run, teacher=RunTeacher(str(run), guidance=Guidance(3.0)))
    with pytest.warns(UserWarning, match=r"the teacher changed since .* guidance was 'Guidance\(scale=2\.0"):
        train(other, images, tmp_path, 2, resume=True, callbacks=[RunManifest()], every_n_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [FeaturePair("up.9", "up.1", 64, 32)]}, r"unknown features \['up\.9'\]; UNet has"),
        ({"features": [FeaturePair("up.1", "block.3", 64, 32)]}, r"unknown features \['block\.3'\]"),
        ({"features": [FeaturePair("up.1", "up.1", 64, 33)]}, "set its teacher_channels to 32"),
        ({"features": [FeaturePair("up.1", "up.1", 65, 32)]}, "set its student_channels to 64"),
        ({"output_weight": -1.0}, r"output_weight is -1\.0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_once(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distill(run, **options)


def test_a_drawing_run_needs_no_teacher(images: Path, run: Path, tmp_path: Path) -> None:
    teacher = RunTeacher(str(run))
    module = distill(run, teacher=teacher)
    assert isinstance(module, Pretrain)
    trainer = tiny_run.trainer_for(tmp_path, 1)
    trainer.predict(module, datamodule=pretrain_run.image_data(images))
    assert not teacher._has_weights

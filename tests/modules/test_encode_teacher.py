"""What a teacher said of pinned noises and times, stored once, teaches as the teacher itself does."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.shard_writer import ShardWriter
from snapgen_pl.checkpoints import LAST
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import ImageFolder
from snapgen_pl.data.source import Taught
from snapgen_pl.data.teacher_outputs import rounded
from snapgen_pl.data.teaching_data import TeachingData
from snapgen_pl.distill.feature_loss import FeaturePair
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.timesteps import LogitNormal
from snapgen_pl.modules.encode_teacher import EncodeTeacher
from snapgen_pl.teachers.run import RunTeacher
from tests import distill_run, pretrain_run, tiny_run
from tests.distill_run import build, distill, train
from tests.modules.test_distill import Steps

DRAWS, STEPS = 2, 8  # 3 steps an epoch: each draw comes back


def image_data(images: Path, **options: Any) -> ImageData:
    settings = {"image_size": pretrain_run.SIDE, "batch_size": pretrain_run.BATCH, "flip": True, "draws": DRAWS}
    return ImageData(ImageFolder(str(images)), **(settings | options))


def encode(module: EncodeTeacher, images: Path, folder: Path) -> Path:
    data = TeachingData(
        source=ImageFolder(str(images)),
        image_size=pretrain_run.SIDE,
        batch_size=5,
        flip=True,
        draws=DRAWS,
        shard_size=7,
    )
    tiny_run.trainer_for(folder, 1, ours=False, callbacks=[ShardWriter()]).predict(module, datamodule=data)
    return folder / module.folder


def _nobody_is_there(*_: object) -> None:
    raise AssertionError("the teacher was wanted")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_run.draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill_run.teacher_run(images, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def outputs(images: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(build(EncodeTeacher, run, dtype="float32"), images, tmp_path_factory.mktemp("outputs"))


def test_stored_outputs_teach_as_the_teacher_itself(
    images: Path, run: Path, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = Steps(), Steps()
    train(distill(run), images, tmp_path / "a", STEPS, data=image_data(images), callbacks=[asked])
    stored = image_data(images, teacher_outputs=str(outputs))
    monkeypatch.setattr(RunTeacher, "__call__", _nobody_is_there)
    monkeypatch.setattr(RunTeacher, "ready", _nobody_is_there)
    train(distill(run), images, tmp_path / "b", STEPS, data=stored, callbacks=[told])
    assert told.losses == pytest.approx(asked.losses, rel=1e-4)
    assert told.terms[-1] == pytest.approx(asked.terms[-1], rel=1e-4)
    for name in ("val/loss", "val/kd", "val/feature"):
        assert told.validation[name] == pytest.approx(asked.validation[name], rel=1e-4)


def test_half_precision_is_near(images: Path, run: Path, tmp_path: Path) -> None:
    outputs = encode(build(EncodeTeacher, run), images, tmp_path / "outputs")
    asked, told = Steps(), Steps()
    train(distill(run), images, tmp_path / "a", 2, data=image_data(images), callbacks=[asked])
    stored = image_data(images, teacher_outputs=str(outputs))
    train(distill(run), images, tmp_path / "b", 2, data=stored, callbacks=[told])
    assert told.losses == pytest.approx(asked.losses, rel=2e-3)
    assert told.losses != asked.losses


def test_a_student_may_learn_from_less_than_was_stored(images: Path, run: Path, outputs: Path, tmp_path: Path) -> None:
    steps = Steps()
    stored = image_data(images, teacher_outputs=str(outputs))
    train(distill(run, features=()), images, tmp_path, 1, data=stored, callbacks=[steps])
    assert set(steps.terms[0]) == {"task", "kd"}


def test_a_resumed_run_learns_what_an_unbroken_one_does(images: Path, run: Path, outputs: Path, tmp_path: Path) -> None:
    def trained(folder: str, steps: int, resume: bool = False) -> dict[str, Any]:
        stored = image_data(images, teacher_outputs=str(outputs))
        return train(distill(run), images, tmp_path / folder, steps, resume, data=stored, every_n_steps=2)

    whole = trained("whole", STEPS)
    trained("parts", 4)
    parts = trained("parts", STEPS, resume=True)
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, parts["state_dict"][name]), name


@pytest.mark.parametrize(
    ("student", "data", "said"),
    [
        ({"teacher": 3.0}, {}, r"teacher\.guidance is 'Guidance\(scale=2\.0.*' there, 'Guidance\(scale=3\.0"),
        ({"seed": 5}, {}, "seed is 0 there, 5 here"),
        ({"timesteps": LogitNormal(shift=2.0)}, {}, r"timesteps is .*shift=2\.0.* here"),
        ({"dropout": 0.25}, {}, r"dropping\.dropout is 0\.5 there, 0\.25 here"),
        ({}, {"draws": 3}, "draws is 2 there, 3 here"),
        ({}, {"flip": False}, "flip_seed is 0 there, None here"),
        ({"features": (FeaturePair("middle", "middle", 64, 32),)}, {}, "have no features middle"),
    ],
)
def test_outputs_of_another_teacher_or_of_other_draws_are_refused(
    images: Path, run: Path, outputs: Path, tmp_path: Path, student: dict[str, Any], data: dict[str, Any], said: str
) -> None:
    options = dict(student)
    if "teacher" in options:
        options["teacher"] = RunTeacher(str(run), guidance=Guidance(options["teacher"]))
    stored = image_data(images, **data, teacher_outputs=str(outputs))
    with pytest.raises(ValueError, match=said):
        train(distill(run, **options), images, tmp_path, 1, data=stored)


def test_outputs_of_another_runs_weights_are_refused(images: Path, run: Path, outputs: Path, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(run, other)
    saved = torch.load(other / LAST, weights_only=True)
    next(iter(saved["ema"]["weights"].values())).add_(1)
    torch.save(saved, other / LAST)
    with pytest.raises(ValueError, match=r"teacher\.weights is '[0-9a-f]{64}' there"):
        train(distill(other), images, tmp_path / "a", 1, data=image_data(images, teacher_outputs=str(outputs)))


def test_outputs_of_other_images_are_refused(images: Path, outputs: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(images, more)
    next(more.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match=r"the teacher outputs in .* are of other images or captions than the data's"):
        image_data(more, teacher_outputs=str(outputs)).setup("fit")


def test_settings_that_make_no_sense_are_refused(images: Path, run: Path, outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.draws to as many as they were made with"):
        image_data(images, draws=None, teacher_outputs=str(outputs))
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        image_data(images, draws=0)
    with pytest.raises(ValueError, match=r"set data\.draws, leave data\.teacher_outputs out"):
        TeachingData(source=ImageFolder(str(images)))
    trainer = tiny_run.trainer_for(tmp_path, 1, ours=False, callbacks=[ShardWriter()])
    with pytest.raises(ValueError, match=r"EncodeTeacher and TeachingData, not .* with EncodeTeacher and ImageData"):
        trainer.predict(build(EncodeTeacher, run), datamodule=image_data(images))


def test_a_divided_teacher_is_not_asked_by_several_processes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunTeacher, "divided", True)
    module = build(EncodeTeacher, run)
    module.trainer = SimpleNamespace(datamodule=TeachingData(source=ImageFolder(str(tmp_path)), draws=1), world_size=2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="set its placement to replicated, or encode in one process"):
        module.plan()


def test_outputs_are_of_no_use_without_a_teacher(images: Path, outputs: Path, tmp_path: Path) -> None:
    trainer = tiny_run.trainer_for(tmp_path, 1)
    with pytest.raises(ValueError, match=r"data\.teacher_outputs are given, but Pretrain has no use for them"):
        trainer.fit(pretrain_run.pretrain(), datamodule=image_data(images, teacher_outputs=str(outputs)))


def test_damaged_outputs_are_refused_unless_nobody_looks(
    images: Path, run: Path, outputs: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "outputs"
    shutil.copytree(outputs, damaged)
    file = sorted(damaged.glob("train-*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        train(distill(run), images, tmp_path / "a", 1, data=image_data(images, teacher_outputs=str(damaged)))
    stored = image_data(images, teacher_outputs=str(damaged), verify=False)
    train(distill(run), images, tmp_path / "b", 1, data=stored)


def test_what_a_type_cannot_hold_is_refused() -> None:
    taught = Taught(torch.full((1, 1, 1, 1), 1e5), {})
    assert rounded(taught, "float32").velocity_BCHW.item() == 1e5
    with pytest.raises(ValueError, match="what float16 cannot hold"):
        rounded(taught, "float16")

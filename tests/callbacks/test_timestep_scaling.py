from pathlib import Path

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl.checkpoints import LAST
from snapgen_pl.distill import timestep_scaling
from snapgen_pl.distill.loss_terms import LossTerms, WeightedSum
from tests import distilled_run, pretrain_run, tiny_run
from tests.distilled_run import Distilled, Observer
from tests.test_resume import in_own_process

STEPS = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_run.draw_images(tmp_path_factory.mktemp("images"))


def mean(batches: list[LossTerms], term: int) -> float:
    return torch.cat([batch.terms[term].value_B for batch in batches]).mean().item()


def test_it_combines_the_losses_of_a_run_and_of_no_other(images: Path, tmp_path: Path) -> None:
    observer = Observer()
    distilled_run.train(images, tmp_path, STEPS, TimestepAwareScaling(ratio_max=1e6), (observer,))
    assert isinstance(observer.combine, timestep_scaling.TimestepAwareScaling)
    assert observer.losses == pytest.approx([mean([batch], 0) for batch in observer.terms], rel=1e-5)
    assert isinstance(observer.module.combine, WeightedSum)


def test_the_modules_logs_tell_of_the_scaling(images: Path, tmp_path: Path) -> None:
    observer = Observer()
    distilled_run.train(images, tmp_path, STEPS, TimestepAwareScaling(lambda_max=0.25, ratio_max=0.01), (observer,))
    scalars = distilled_run.scalars(tmp_path)
    last = observer.terms[-1]
    assert scalars["train/lambda"][3] == pytest.approx(
        timestep_scaling.logit_normal_lambda(last.t_B).clamp(max=0.25).mean().item()
    )
    assert (scalars["train/ratio_kd"][3], scalars["train/clamped_kd"][3]) == (pytest.approx(0.01), 1)
    assert scalars["train/task"][3] == pytest.approx(mean([last], 0))
    assert scalars["train/kd"][3] == pytest.approx(mean([last], 1))
    assert scalars["train/loss"][3] == pytest.approx(observer.losses[-1])


@pytest.mark.slow
def test_a_run_resumed_between_two_steps_has_the_same_bins_and_weights(images: Path, tmp_path: Path) -> None:
    straight = distilled_run.train(images, tmp_path / "straight", 6, TimestepAwareScaling(ratio="bin"))
    distilled_run.train(images, tmp_path / "parts", 3, TimestepAwareScaling(ratio="bin"))
    resumed = distilled_run.train(images, tmp_path / "parts", 6, TimestepAwareScaling(ratio="bin"), resume=True)
    assert tiny_run.differing(resumed, straight) == []
    bins = straight["callbacks"]["TimestepAwareScaling"]
    assert bins["kd"].shape == (2, 16)
    assert bins["kd"][1].sum().item() == pytest.approx(6 * pretrain_run.BATCH, rel=0.02)


def test_a_module_that_does_not_distil_is_refused_before_it_trains(images: Path, tmp_path: Path) -> None:
    trainer = tiny_run.trainer_for(tmp_path, STEPS, callbacks=[TimestepAwareScaling()])
    module = pretrain_run.pretrain()
    with pytest.raises(ValueError, match=r"kd or feature; there are \{'task': 'task'\}: train a module that distils"):
        trainer.fit(module, datamodule=pretrain_run.image_data(images))
    assert list(tmp_path.iterdir()) == [], "nothing was fitted to the data"
    assert isinstance(module.combine, WeightedSum)


def test_a_module_without_room_for_it_is_refused(tmp_path: Path) -> None:
    trainer = tiny_run.trainer_for(tmp_path, STEPS, callbacks=[TimestepAwareScaling()])
    with pytest.raises(ValueError, match="Tiny lacks `combine` or `loss_roles`"):
        trainer.fit(tiny_run.Tiny(), tiny_run.Stream(6), tiny_run.Stream(6))


def test_a_run_that_breaks_leaves_the_module_as_it_was(images: Path, tmp_path: Path) -> None:
    class Break(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise RuntimeError("broken")

    module = pretrain_run.pretrain(Distilled)
    trainer = tiny_run.trainer_for(tmp_path, STEPS, callbacks=[TimestepAwareScaling(), Break()])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(module, datamodule=pretrain_run.image_data(images))
    assert isinstance(module.combine, WeightedSum)


def test_it_is_configured_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=L.Callback)
    chosen = "--callback=callbacks.timestep_scaling.TimestepAwareScaling"
    built = parser.instantiate(parser.parse_args([chosen, "--callback.ratio=bin", "--callback.lambda_max=0.5"]))
    assert isinstance(built.callback, TimestepAwareScaling)
    with pytest.raises(ArgumentError, match="median"):
        parser.parse_args([chosen, "--callback.ratio=median"])


def test_validating_alone_changes_nothing(images: Path, tmp_path: Path) -> None:
    trainer = tiny_run.trainer_for(tmp_path, STEPS, callbacks=[TimestepAwareScaling()], ours=False)
    trainer.validate(pretrain_run.pretrain(), pretrain_run.image_data(images), verbose=False)
    assert "val/loss" in trainer.callback_metrics


@pytest.mark.slow
def test_two_processes_have_the_bins_weights_and_logs_of_one(images: Path, tmp_path: Path) -> None:
    one = distilled_run.train(images, tmp_path / "one", 6, TimestepAwareScaling(ratio="bin"))
    ran = in_own_process(images, tmp_path / "two", "--steps", 6, module="tests.distilled_run")
    assert ran.returncode == 0, ran.stderr
    two = tiny_run.load(tmp_path / "two" / LAST)
    for name, bins in one["callbacks"]["TimestepAwareScaling"].items():
        torch.testing.assert_close(two["callbacks"]["TimestepAwareScaling"][name], bins, rtol=1e-4, atol=1e-4)
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, rtol=0, atol=1e-4)
    left, right = (distilled_run.scalars(tmp_path / folder) for folder in ("one", "two"))
    by_t = [tag for tag in left if tag.startswith("train_by_t/")]
    assert len(by_t) > 4
    for tag in by_t:
        assert right[tag] == pytest.approx(left[tag], rel=1e-3)

from pathlib import Path

import lightning as L
import pytest
import torch

from callbacks.nonfinite import NonFinite
from snapgen_pl.checkpoints import LAST, step_of
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms
from tests import tiny_run
from tests.tiny_run import Stream, Tiny

# Batches of 6 and a save every 4 steps: position 32 is in step 6, position 45 in step 8, whose end saves.
CASES = [(32, 6), (45, 8)]


@pytest.mark.parametrize(("position", "step"), CASES)
def test_the_sample_is_named_and_the_last_good_checkpoint_survives(tmp_path: Path, position: int, step: int) -> None:
    with pytest.raises(FloatingPointError, match=rf"'task' is nan at step {step} .* position {position}, t = 0\.\d+"):
        tiny_run.train(tmp_path, 14, make=lambda: Tiny(nan_at=position))
    assert step_of(tmp_path / LAST) == 4
    weights = tiny_run.load(tmp_path / LAST)["state_dict"].values()
    assert all(weight.isfinite().all() for weight in weights)


def test_a_loss_that_goes_bad_on_the_very_last_step_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="position 81"):
        tiny_run.train(tmp_path, 14, make=lambda: Tiny(nan_at=81))
    assert step_of(tmp_path / LAST) == 12


def test_weights_that_overflow_under_a_finite_loss_are_not_saved(tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_before_zero_grad(
            self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            if trainer.global_step == 4:
                with torch.no_grad():
                    pl_module.get_parameter("denoiser.0.bias")[3] = torch.inf

    trainer = tiny_run.trainer_for(tmp_path, 5, callbacks=[NonFinite(), Poison()])
    with pytest.raises(FloatingPointError, match=r"1 of 5 parameters .* step 5, the first is denoiser\.0\.bias"):
        trainer.fit(Tiny(), Stream(6), Stream(6))
    assert step_of(tmp_path / LAST) == 4


def test_a_training_step_that_hides_its_terms_is_refused(tmp_path: Path) -> None:
    class Silent(Tiny):
        def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:  # type: ignore[override]
            loss: torch.Tensor = super().training_step(batch, batch_idx)["loss"]  # type: ignore[arg-type]
            return loss

    with pytest.raises(ValueError, match="needs training_step of Silent to return"):
        tiny_run.train(tmp_path, 2, make=Silent)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_training_step_does_not_wait_for_the_device() -> None:
    module = Tiny().to("cuda")
    guard, trainer = NonFinite(), L.Trainer(logger=False)
    error = torch.ones(4, device="cuda", requires_grad=True)
    outputs = {"terms": LossTerms(error, (LossTerm("task", "task", error.detach()),)), "position_B": error.detach()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            guard.on_train_batch_end(trainer, module, outputs, None, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")

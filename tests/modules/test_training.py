from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from tests import pretrain_run, tiny_run
from tests.pretrain_run import image_data, pretrain

LIMIT = 1e-3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_run.draw_images(tmp_path_factory.mktemp("images"))


class Norms(L.Callback):
    """The norm of all gradients as an optimizer's step finds them, and as it is logged."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []
        self.logged: list[Tensor] = []

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        if gradients:
            self.found.append(torch.stack([gradient.norm() for gradient in gradients]).norm())

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.logged.append(trainer.callback_metrics["train/gradient_norm"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fused_optimizers_are_clipped_in_every_precision(images: Path, tmp_path: Path, precision: str) -> None:
    L.seed_everything(0, verbose=False)
    norms, module = Norms(), pretrain()
    module.make_optimizer = lambda weights: AdamW(weights, lr=1e-4, fused=True)
    trainer = tiny_run.trainer_for(tmp_path, 3, callbacks=[norms], precision=precision, gradient_clip_val=LIMIT)
    trainer.fit(module, datamodule=image_data(images))
    assert torch.stack(norms.logged).min() > 10 * LIMIT  # before
    torch.testing.assert_close(torch.stack(norms.found), torch.full((len(norms.found),), LIMIT), rtol=1e-2, atol=0)


def test_clipping_by_value_stays_lightnings(images: Path, tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    module = pretrain()
    module.make_optimizer, module.warmup_images = lambda weights: SGD(weights, lr=1.0), 0
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    trainer = tiny_run.trainer_for(
        tmp_path, 1, val_check_interval=None, gradient_clip_val=1e-4, gradient_clip_algorithm="value"
    )
    trainer.fit(module, datamodule=image_data(images))
    moved = torch.stack([(weight.detach() - before[name]).abs().max() for name, weight in module.named_parameters()])
    assert moved.max() == pytest.approx(1e-4, rel=1e-2)

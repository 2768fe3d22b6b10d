import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.ema import EMA
from callbacks.losses_by_time import LossesByTime
from callbacks.nonfinite import NonFinite
from callbacks.progress import SHOWN, StepProgress
from callbacks.throughput import Throughput
from tests.pretrain_run import draw_images, image_data, pretrain

EVERY = 4
# Adam's count of steps and batches' positions lie on the host; NonFinite reads what was copied there a step ago.
ON_THE_HOST = ("optimizer.py", "nonfinite.py", "datamodule.py", "loader.py")


class Reads(TorchDispatchMode, L.Callback):
    """Counts, by step, numbers that are read from tensors: on a GPU each makes the host wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.step: int | None = None
        self.counts: Counter[int] = Counter()

    def on_train_batch_start(self, trainer: L.Trainer, *batch: object) -> None:
        self.step = trainer.global_step

    def on_train_epoch_end(self, *ended: object) -> None:
        self.step = None

    def __torch_dispatch__(
        self, operator: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        reads = operator in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if reads and self.step is not None:
            callers = {Path(frame.filename).name for frame in traceback.extract_stack()}
            self.counts[self.step] += callers.isdisjoint(ON_THE_HOST)
        return operator(*args, **(kwargs or {}))


def test_between_logged_steps_nothing_is_read_from_the_device(tmp_path: Path) -> None:
    bar, reads = StepProgress(), Reads()
    trainer = L.Trainer(
        max_steps=11,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path),
        default_root_dir=tmp_path,
        log_every_n_steps=EVERY,
        gradient_clip_val=1.0,
        callbacks=[reads, bar, Throughput(), EMA(), NonFinite(), LossesByTime()],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with reads:
        trainer.fit(pretrain(), image_data(draw_images(tmp_path / "images")))
    assert {step for step, count in reads.counts.items() if count} == {0, EVERY - 1, 2 * EVERY - 1}
    shown = bar.get_metrics(trainer, trainer.lightning_module)
    assert {name for name in SHOWN if name in shown} == {"train/loss", "train/images_per_second"}

"""A run's page in TensorBoard: its configuration, its row among hyperparameters, and curves that belong together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from snapgen_pl.config_files import Value, flatten, load_config

CHARTS: Mapping[str, Sequence[str]] = {
    "loss": ("train/loss", "val/loss"),
    "loss by time": ("val_loss_by_t/.*",),
    "kid_effnet": ("kid_effnet$", "kid_effnet/.*"),
    "speed": ("train/images_per_second",),
}
_HPARAMS = ("model.", "data.", "ema.", "seed_everything", "trainer.max_steps", "trainer.precision")


class RunLogger(TensorBoardLogger):
    """Lightning's logger without its ``hparams.yaml``, for the run's folder holds ``config.yaml``, and without epochs.

    A run here is one endless epoch, so Lightning's ``epoch`` would be a chart that is always 0.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes all but the epoch."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def save(self) -> None:
        """Nothing; event files are flushed as they fill."""


class RunPage(L.Callback):
    """Writes the run's configuration to TensorBoard when a run starts; a continued run keeps what its start wrote.

    The configuration is read from ``config.yaml`` in the trainer's ``default_root_dir``.

    Args:
        metrics: tags that rank runs in the HPARAMS tab, by their latest value.
        charts: of the CUSTOM SCALARS tab: the tags of each, as regular expressions. Each term that a module has
            ``charted`` besides the task's gets one more, and one of it by time.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("val/loss", "kid_effnet"),
        charts: Mapping[str, Sequence[str]] = CHARTS,
    ) -> None:
        self.metrics = tuple(metrics)
        self.charts = {name: list(tags) for name, tags in charts.items()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes, on the first rank, where TensorBoard is a logger."""
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or _continues(trainer, folder):
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._write(logger.experiment, folder / "config.yaml", self.charts | _charts_of_terms(pl_module))

    def _write(self, writer: SummaryWriter, config: Path, charts: Mapping[str, list[str]]) -> None:
        writer.add_text("config", f"```yaml\n{config.read_text(encoding='utf-8')}\n```")
        writer.add_custom_scalars({"run": {name: ["Multiline", tags] for name, tags in charts.items()}})
        # By hand: SummaryWriter.add_hparams opens a run of its own, Lightning's log_hyperparams adds a point at step 0.
        # Of the metrics only the names count.
        for summary in hparams(hyperparameters(load_config(config)), dict.fromkeys(self.metrics, 0)):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]


def hyperparameters(config: Value) -> dict[str, bool | int | float | str]:
    """The scalars of a configuration that tell one experiment from another, by dotted path without ``init_args``."""
    return {
        key.replace(".init_args", ""): value
        for key, value in flatten(config).items()
        if key.startswith(_HPARAMS) and isinstance(value, bool | int | float | str)
    }


def _charts_of_terms(pl_module: L.LightningModule) -> dict[str, list[str]]:
    terms = [name for name in getattr(pl_module, "charted", ()) if name != "task"]
    return {name: [f"train/{name}$", f"val/{name}$"] for name in terms} | {
        f"{name} by time": [f"val_{name}_by_t/.*", f"train_by_t/{name}/.*"] for name in terms
    }


def _continues(trainer: L.Trainer, folder: Path) -> bool:
    checkpoint = trainer.ckpt_path
    return checkpoint is not None and Path(checkpoint).resolve().parent == folder.resolve()

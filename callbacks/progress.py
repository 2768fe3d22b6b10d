"""A progress bar over the steps of a run."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

SHOWN = ("train/loss", "train/images_per_second", "train/mfu")


class StepProgress(RichProgressBar):
    """Counts batches up to ``max_steps``: training data comes as one endless epoch, which Lightning's bar would count.

    Where training takes several batches an optimizer step, the bar counts batches. What it shows of training, it reads
    from the device at the first step and at those that are logged: with Lightning's ``prog_bar`` every step would wait
    for the device, whether there is a bar or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}

    @property
    def total_train_batches(self) -> int | float:
        """The batches of the whole run, those of sessions before this one included."""
        batches = self.trainer.num_training_batches
        if self.trainer.max_epochs != -1 or self.trainer.max_steps < 0:
            return batches
        return min(batches, self.trainer.max_steps * self.trainer.accumulate_grad_batches)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        if trainer.training and (trainer._logger_connector.should_update_logs or not self._shown):
            logged = trainer.logged_metrics
            self._shown = {name: float(logged[name]) for name in SHOWN if name in logged}
        return {**super().get_metrics(trainer, pl_module), **self._shown}

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))

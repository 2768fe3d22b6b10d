"""A progress bar over the steps of a run."""

from lightning.pytorch.callbacks import RichProgressBar


class StepProgress(RichProgressBar):
    """Counts batches up to ``max_steps``: training data comes as one endless epoch, which Lightning's bar would count.

    Where training takes several batches an optimizer step, the bar counts batches.
    """

    @property
    def total_train_batches(self) -> int | float:
        """The batches of the whole run, those of sessions before this one included."""
        batches = self.trainer.num_training_batches
        if self.trainer.max_epochs != -1 or self.trainer.max_steps < 0:
            return batches
        return min(batches, self.trainer.max_steps * self.trainer.accumulate_grad_batches)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))

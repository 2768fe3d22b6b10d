"""Shows which losses are paid at which time."""

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT

from callbacks.sampling import logged_step
from callbacks.step_output import step_terms
from callbacks.step_watch import StepWatch
from snapgen_pl.metrics.binned_mean import BinnedMean

BINS = 10


class LossesByTime(L.Callback):
    """Logs the raw means of a training step's terms in ten bins of t, as ``train_by_t/<term>/0.3``.

    They are over all samples of all processes since the last logged step (``log_every_n_steps``). Under timestep-aware
    scaling they alone tell how near the student is, for S has the value of the task's loss whatever it does; of a
    discriminator, ``d_real`` and ``d_fake`` are -log D of real latents and -log(1 - D) of generated ones.
    """

    def __init__(self) -> None:
        self._by_t: dict[str, BinnedMean] = {}
        self._watch = StepWatch()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to count."""
        self._by_t = {}
        self._watch.start(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Adds a batch, on its device; logs at the steps that are logged, once an optimizer stepped.

        Raises:
            ValueError: where the training step returns no terms.
        """
        terms, _ = step_terms(outputs, self, pl_module)
        for term in terms.terms:
            if term.name not in self._by_t:
                self._by_t[term.name] = BinnedMean(BINS).to(pl_module.device)
            self._by_t[term.name].update(terms.t_B, term.value_B)
        if self._watch.new_steps(trainer) and trainer._logger_connector.should_update_logs:
            self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        # Not by self.log, which would repeat the last value of a bin that has met no sample since.
        for name, means in self._by_t.items():
            if not means.update_called:  # of the network that had no turn since
                continue
            values = {tag: mean.item() for tag, mean in means.tagged(f"train_by_t/{name}").items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=logged_step(trainer))
            means.reset()

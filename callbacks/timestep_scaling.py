"""Trains a module under timestep-aware scaling, and shows what it does at which time."""

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from callbacks.sampling import logged_step
from callbacks.step_output import step_terms
from callbacks.step_watch import StepWatch
from snapgen_pl.distill import timestep_scaling
from snapgen_pl.distill.loss_terms import CombinesLosses, LossCombiner
from snapgen_pl.metrics.binned_mean import BinnedMean

BINS = 10


class TimestepAwareScaling(L.Callback):
    """Puts :class:`~snapgen_pl.distill.timestep_scaling.TimestepAwareScaling` where the module combines its losses.

    Its running means, if it has any, go into the checkpoint. Its logs are the module's to log. Beside them stand the
    raw means of the terms in ten bins of t as ``train_by_t/<term>/0.3``, over all samples of all processes since the
    last logged step (``log_every_n_steps``), for S itself has the value of the task's loss whatever it does.

    Args:
        lambda_max: lambda is at most this, in [0, 1].
        ratio_max: the ratio of L_task to L_kd or L_featkd is at most this.
        ratio: whether it is each sample's own, or that of running means in 16 bins of t over all processes.
    """

    def __init__(
        self, lambda_max: float = 1.0, ratio_max: float = 50.0, ratio: timestep_scaling.Ratio = "sample"
    ) -> None:
        self._scaling = timestep_scaling.TimestepAwareScaling(lambda_max, ratio_max, ratio)
        self._replaced: LossCombiner | None = None
        self._by_t: dict[str, BinnedMean] = {}
        self._watch = StepWatch()

    def state_dict(self) -> dict[str, Tensor]:
        """The scaling's running means."""
        return self._scaling.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Takes them up."""
        self._scaling.load_state_dict(state_dict)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Puts the scaling in place, for ``fit``.

        Raises:
            ValueError: where the module leaves no room for it, or has not the terms that it needs.
        """
        if stage != "fit":
            return
        module = _combining(pl_module)
        timestep_scaling.check_roles(module.loss_roles)
        self._replaced, module.combine = module.combine, self._scaling

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Puts back what was there."""
        if self._replaced is not None:
            _combining(pl_module).combine, self._replaced = self._replaced, None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Puts back what was there: Lightning leaves teardown out."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to count."""
        self._by_t = {name: BinnedMean(BINS).to(pl_module.device) for name in _combining(pl_module).loss_roles}
        self._watch.start(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Adds a batch, on its device; logs at the steps that are logged, once the optimizer stepped.

        Raises:
            ValueError: where the training step returns no terms.
        """
        terms, _ = step_terms(outputs, self, pl_module)
        for term in terms.terms:
            self._by_t[term.name].update(terms.t_B, term.value_B)
        if self._watch.new_steps(trainer) and trainer._logger_connector.should_update_logs:
            self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        # Not by self.log, which would repeat the last value of a bin that has met no sample since.
        for name, means in self._by_t.items():
            values = {tag: mean.item() for tag, mean in means.tagged(f"train_by_t/{name}").items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=logged_step(trainer))
            means.reset()


def _combining(pl_module: L.LightningModule) -> CombinesLosses:
    if not isinstance(pl_module, CombinesLosses):
        raise ValueError(
            f"{type(pl_module).__name__} lacks `combine` or `loss_roles`, so its losses cannot be scaled by timestep; "
            "take TimestepAwareScaling out of the callbacks, or give it these"
        )
    return pl_module

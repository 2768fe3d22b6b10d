"""Trains a module under timestep-aware scaling."""

import lightning as L
from torch import Tensor

from snapgen_pl.distill import timestep_scaling
from snapgen_pl.distill.loss_terms import CombinesLosses, LossCombiner


class TimestepAwareScaling(L.Callback):
    """Puts :class:`~snapgen_pl.distill.timestep_scaling.TimestepAwareScaling` where the module combines its losses.

    Its running means, if it has any, go into the checkpoint. Its logs are the module's to log;
    :class:`~callbacks.losses_by_time.LossesByTime` shows the terms by time.

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


def _combining(pl_module: L.LightningModule) -> CombinesLosses:
    if not isinstance(pl_module, CombinesLosses):
        raise ValueError(
            f"{type(pl_module).__name__} lacks `combine` or `loss_roles`, so its losses cannot be scaled by timestep; "
            "take TimestepAwareScaling out of the callbacks, or give it these"
        )
    return pl_module

"""Stops a run at the first loss that is not finite, says whose it was, and keeps the last good checkpoint."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from callbacks.step_output import step_terms
from snapgen_pl.distill.loss_terms import LossTerms
from snapgen_pl.fsdp import local


class NonFinite(L.Callback):
    """Raises FloatingPointError on a loss or, when saving, on weights that are not finite.

    The training step never waits for the device: each batch's verdict is a flag that travels to the host beside the
    computation and is read a batch later, or whenever it has arrived. Before a checkpoint is written all flags are
    waited for and the weights are checked too (a gradient can overflow where its loss does not), so that a poisoned
    checkpoint never replaces a good one.

    The module's ``training_step`` must return ``{"loss", "terms": LossTerms, "position_B"}``.
    """

    def __init__(self) -> None:
        self._pending: deque[_Verdict] = deque()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Reads the verdicts that have arrived, then asks for this batch's.

        Raises:
            FloatingPointError: naming term, timestep and position of the sample.
            ValueError: where the training step returns something else than is told above.
        """
        self._read(wait=False)
        self._pending.append(_ask(trainer.global_step, *step_terms(outputs, self, pl_module)))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to save what is not finite; runs before anything is written.

        Raises:
            FloatingPointError: naming the sample, or the first of the weights.
        """
        self._read(wait=True)
        names, weights = zip(*pl_module.named_parameters(), strict=True)
        # Each process looks at its own parts; of a small weight, it may have none.
        finite = torch.stack([local(weight).isfinite().all() for weight in weights]).int()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite.all():
            name = names[int(finite.argmin())]
            raise FloatingPointError(
                f"{int((1 - finite).sum())} of {len(names)} parameters are not finite at step {trainer.global_step}, "
                f"the first is {name}: no checkpoint was written, the one before stands. {_REMEDY}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the last verdicts."""
        self._read(wait=True)

    def _read(self, wait: bool) -> None:
        while self._pending and self._pending[0].arrived(wait):
            verdict = self._pending.popleft()
            if not verdict.finite:
                self._pending.clear()
                raise FloatingPointError(_blame(verdict))


_REMEDY = "Lower the learning rate, clip gradients, or look at that sample; then resume"


@dataclass(frozen=True)
class _Verdict:
    """One batch's flag on its way to the host, and what is needed to name the culprit."""

    step: int
    flag: Tensor
    event: torch.cuda.Event | None
    terms: LossTerms
    position_B: Tensor

    def arrived(self, wait: bool) -> bool:
        if self.event is None:
            return True
        if wait:
            self.event.synchronize()
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    @property
    def finite(self) -> bool:
        return bool(self.flag)


def _ask(step: int, terms: LossTerms, position_B: Tensor) -> _Verdict:
    flag = torch.stack([term.value_B.isfinite().all() for term in terms.terms]).all()
    if flag.device.type != "cuda":
        return _Verdict(step, flag, None, terms, position_B)
    host = torch.empty((), dtype=torch.bool, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return _Verdict(step, host, event, terms, position_B)


def _blame(verdict: _Verdict) -> str:
    for term in verdict.terms.terms:
        bad = (~term.value_B.isfinite()).nonzero().flatten().tolist()
        if bad:
            first = bad[0]
            return (
                f"loss term {term.name!r} is {term.value_B[first].item()} at step {verdict.step} for the sample at "
                f"position {int(verdict.position_B[first])}, t = {verdict.terms.t_B[first].item():.6f} "
                f"({len(bad)} of {len(term.value_B)} samples of the batch). {_REMEDY}"
            )
    raise AssertionError("a batch was called non-finite, but none of its terms is")

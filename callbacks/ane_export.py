"""Exports a run when it is at its end."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L

from callbacks.sampling import ended_early
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.export.extra import require_all
from snapgen_pl.export.folder import check_out, check_whole, export_run
from snapgen_pl.export.options import IOS, AttentionLayout, Options, Scheme
from snapgen_pl.export.report import report_markdown
from snapgen_pl.export.verbs import say
from snapgen_pl.trained_run import open_run


class ANEExport(L.Callback):
    """Writes the averaged weights as ONNX files and Core ML packages for the Apple Neural Engine, each checked.

    It reads the checkpoint that the run has just written, as ``python -m snapgen_pl export`` does: nothing of the
    training is touched, and what is exported is what can be exported again. A run that was told to stop before its end
    is not exported.

    Args:
        out: the folder to write to; by default ``export`` in the run's.
        attention: see :class:`~snapgen_pl.export.options.Options`.
        target: likewise.
        compress: likewise.
        whole: likewise.
        chunk_above: likewise.

    Raises:
        ValueError: where the target does not have that attention, or an option would have no effect.
    """

    def __init__(
        self,
        out: str | None = None,
        attention: AttentionLayout = "split",
        target: IOS = 17,
        compress: Scheme | None = None,
        whole: Sequence[str] = (),
        chunk_above: float = 500.0,
    ) -> None:
        self.out = out
        self.options = Options(
            attention=attention, target=target, compress=compress, whole=tuple(whole), chunk_above=chunk_above
        )
        self.options.check()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Says before training what would be missing after it.

        Raises:
            ValueError: where a package of the ``export`` extra is not installed, the folder is another's, the module
                draws nothing, or a graph that is to stay whole is none of its.
        """
        if stage == "fit":
            require_all()
            check_out(self._folder(trainer))
            conditioner = getattr(pl_module, "conditioner", None)
            if not isinstance(conditioner, Conditioner):
                raise ValueError(f"{type(pl_module).__name__} draws no images to export; leave ANEExport out")
            check_whole(self.options.whole, conditioner)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports, on the first process."""
        if not trainer.is_global_zero or ended_early(trainer):
            return
        folder = self._folder(trainer)
        records = export_run(open_run(trainer.default_root_dir), folder, self.options, say)
        print(f"{report_markdown(records)}\nWritten to {folder}", flush=True)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.out) if self.out is not None else Path(trainer.default_root_dir) / "export"

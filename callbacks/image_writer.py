"""Writes the images that ``predict`` draws."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.sampling import class_names, drawing_module, samples_folder, weights_name
from snapgen_pl.conditioning.condition import in_words
from snapgen_pl.data.requests import Request
from snapgen_pl.png import to_pil, write_png
from snapgen_pl.processes import gather
from snapgen_pl.whole_files import write_json

MANIFEST = "manifest.json"


class ImageWriter(L.Callback):
    """Writes each predicted image to ``<position>.png``, and at the end ``manifest.json``, which says what they are.

    Every process writes its own images; the folder must be one that all of them see. Predictions go to files only, so
    ``predict`` returns none: they need not fit into memory.

    Args:
        folder: where to; by default ``samples/predict`` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._rows: list[tuple[int, str]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the folder.

        Raises:
            ValueError: if it holds images.
        """
        if stage != "predict":
            return
        drawing_module(pl_module)
        folder = self._folder(trainer)
        found = next(
            (path for path in sorted(folder.glob("*")) if path.suffix == ".png" or path.name == MANIFEST), None
        )
        if found is not None:
            raise ValueError(
                f"{folder} holds images already ({found.name}); delete them, or set ImageWriter's folder to another one"
            )
        # Nobody may write before everybody has looked.
        trainer.strategy.barrier("image_writer")
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = []
        trainer.predict_loop.return_predictions = False

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch."""
        images, request = _checked(outputs, batch)
        folder = self._folder(trainer)
        names, positions = in_words(request.condition, class_names(trainer)), request.position_B.tolist()
        for image_CHW, name, position in zip(images.cpu(), names, positions, strict=True):
            write_png(to_pil(image_CHW), folder / _name(position))
            self._rows.append((position, name))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the manifest, once all processes are done."""
        rows = sorted(row for part in gather(self._rows, trainer.world_size) for row in part)
        if not trainer.is_global_zero:
            return
        folder, module = self._folder(trainer), drawing_module(pl_module)
        manifest = {
            "run": Path(trainer.default_root_dir).name,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "images_seen": module.images_seen,
            "weights": weights_name(trainer),
            "sampler": repr(module.sampler),
            "guidance": repr(module.guidance),
            "seed": module.seed,
            "images": [{"file": _name(position), "asked": name, "position": position} for position, name in rows],
        }
        write_json(manifest, folder / MANIFEST)
        print(f"{len(rows)} images in {folder}", flush=True)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder) if self.folder else samples_folder(trainer) / "predict"


def _name(position: int) -> str:
    return f"{position:06d}.png"


def _checked(outputs: object, batch: object) -> tuple[Tensor, Request]:
    if not (isinstance(outputs, Tensor) and outputs.dtype == torch.uint8 and isinstance(batch, Request)):
        raise ValueError(
            "ImageWriter writes uint8 images drawn for a Request, but predict gave "
            f"{type(outputs).__name__} for {type(batch).__name__}"
        )
    return outputs, batch

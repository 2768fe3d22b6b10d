"""A sheet of samples, each beside the training image that it is most like."""

from textwrap import shorten

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from callbacks.sampling import (
    NowAndThen,
    drawing,
    drawing_module,
    ended_early,
    image_data,
    logged_step,
    samples_folder,
    training_images,
)
from snapgen_pl.at_least import check_at_least
from snapgen_pl.conditioning.condition import in_words
from snapgen_pl.contact_sheet import Pair, Row, contact_sheet
from snapgen_pl.data.conditions import Conditions, Labels, Prompts
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.requests import Request, Requests
from snapgen_pl.data.source import OpenSource
from snapgen_pl.metrics.draws import disjoint
from snapgen_pl.metrics.nearest import NearestImages
from snapgen_pl.png import write_png

TITLE = 60  # characters


class SampleGrid(NowAndThen):
    """Draws the same labels or texts from the same noise with the EMA weights, again and again while a run goes on.

    A row a class, or a caption; to the right of each sample stands its nearest training image, so that memorising
    shows. Each sheet goes to ``samples/<images seen>.png`` in the run's folder, and to TensorBoard as ``samples``.

    Args:
        classes: names of the classes to draw, or texts, where the data give captions. By default ``rows`` classes of
            the more frequent half, or held-out captions, evenly spaced.
        rows: how many, where they are not named.
        columns: samples a row.
        neighbours: at most so many training images are searched for the nearest.
        every_n_images: draw at validations when so many images were trained on since the last time; 0 is at every
            validation. The end of the run is drawn in any case.
    """

    def __init__(
        self,
        classes: list[str] | None = None,
        rows: int = 8,
        columns: int = 4,
        neighbours: int = 20_000,
        every_n_images: int = 0,
    ) -> None:
        if classes is not None and not classes:
            raise ValueError("classes is empty; name a class, or leave it out")
        check_at_least(1, rows=rows, columns=columns, neighbours=neighbours)
        super().__init__(every_n_images)
        self.classes, self.rows, self.columns, self.neighbours = classes, rows, columns, neighbours
        self._requests: list[Request] = []
        self._searched: list[int] = []
        self._nearest: NearestImages | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Chooses what to ask for.

        Raises:
            ValueError: naming a class that the data lacks.
        """
        if stage != "fit":
            return
        drawing_module(pl_module)
        data = image_data(trainer)
        conditions, rows = self._captions(data) if data.condition == "caption" else self._labels(data.source)
        requests = Requests(conditions, [row for row in rows for _ in range(self.columns)])
        self._requests = [
            requests.at(range(first, first + self.columns)) for first in range(0, len(requests), self.columns)
        ]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws, unless the last validation just did."""
        if not ended_early(trainer) and self._last < drawing_module(pl_module).images_seen:
            self._now(trainer, pl_module)

    def _now(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = drawing_module(pl_module)
        with drawing(trainer, pl_module):
            # On every process, for weights may be sharded over all of them.
            images = [module.sample(request) for request in self._requests]
        self._last = module.images_seen
        if not trainer.is_global_zero:
            return
        sheet = self._sheet(image_data(trainer), pl_module, images)
        folder = samples_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_png(sheet, folder / f"{module.images_seen:09d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
                logger.experiment.add_image(
                    "samples", pixels.view(sheet.height, sheet.width, 3), logged_step(trainer), dataformats="HWC"
                )

    def _labels(self, source: OpenSource) -> tuple[Conditions, list[int]]:
        every = Labels(torch.arange(len(source.classes)))
        if self.classes is None:
            return every, frequent_classes(source.train.labels, self.rows)
        unknown = [name for name in self.classes if name not in source.classes]
        if unknown:
            raise ValueError(f"the data has no classes {unknown}; it has {', '.join(source.classes[:50])}")
        return every, [source.classes.index(name) for name in self.classes]

    def _captions(self, data: ImageData) -> tuple[Conditions, list[int]]:
        if self.classes is not None:
            return Prompts(self.classes), list(range(len(self.classes)))
        held_out = data.conditions("validation")
        picked = torch.linspace(0, len(held_out) - 1, min(self.rows, len(held_out))).round().long()
        return held_out, picked.tolist()

    def _sheet(self, data: ImageData, module: L.LightningModule, images: list[Tensor]) -> Image.Image:
        if self._nearest is None:
            (self._searched,) = disjoint(len(data.source.train), (self.neighbours,))
            self._nearest = NearestImages(batch.cpu() for batch in training_images(data, module, self._searched))
        rows = []
        for request, image_BCHW in zip(self._requests, images, strict=True):
            found = [self._searched[i] for i in self._nearest.search(image_BCHW).index_B.tolist()]
            (neighbours,) = training_images(data, module, found, batch_size=len(found))
            pairs = [Pair(*pair) for pair in zip(image_BCHW.cpu(), neighbours.cpu(), strict=True)]
            name = shorten(in_words(request.condition, data.classes)[0], TITLE, placeholder=" ...")
            rows.append(Row(name, pairs))
        legend = f"left: sample; right: nearest of {len(self._nearest)} training images (L2 at 16 px, mirrored or not)"
        return contact_sheet(rows, legend)


def frequent_classes(labels: Tensor, count: int) -> list[int]:
    """At most ``count`` classes, evenly spaced in the order of labels, out of the more frequent half (or ``count``)."""
    counts = torch.bincount(labels)
    present = int((counts > 0).sum())
    keep = min(present, max(count, present // 2))
    frequent = counts.argsort(descending=True, stable=True)[:keep].sort().values
    picked = torch.linspace(0, keep - 1, min(count, keep)).round().long()
    return [int(label) for label in frequent[picked]]

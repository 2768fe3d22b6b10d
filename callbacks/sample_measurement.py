"""Draws images for metrics and measures them, on all processes: what tracking in training and ``test`` share."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.sampling import (
    DrawsImages,
    class_names,
    drawing,
    drawing_module,
    image_data,
    training_images,
    weights_name,
)
from snapgen_pl.data.source import LabelBatch, LatentSet
from snapgen_pl.digest import values_digest
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Sampler
from snapgen_pl.metrics.comparison import Comparison
from snapgen_pl.metrics.controls import CONTROLS, REAL, Control
from snapgen_pl.metrics.draws import LabelPolicy, disjoint, proportional, uniform
from snapgen_pl.metrics.feature_store import FeatureStore
from snapgen_pl.metrics.fid_report import PIXELS, FIDReport, made
from snapgen_pl.metrics.sample_metric import Facts, Score

IMAGES = "images"
_SECONDS_BETWEEN_NOTICES = 10.0

ImagesAt: TypeAlias = Callable[[range], Tensor]


@dataclass(frozen=True)
class Draw:
    """One set of samples.

    Attributes:
        count: how many.
        labels: how their classes are chosen.
        sampler: draws them; None is the module's.
        guidance: guides the sampler; None is the module's.
    """

    count: int
    labels: LabelPolicy
    sampler: Sampler | None = None
    guidance: Guidance | None = None


class SampleMeasurement:
    """Measures a trainer's model.

    Features go to ``features`` in the run's folder chunk by chunk, so a killed measurement goes on where it was, also
    on another number of processes. The first process compares.

    Args:
        comparison: prepared metrics.
        batch_size: images drawn at once by each process.
        references: at most so many training images are compared with, by metrics that bring no reference.
        control_images: training images set aside as controls.
    """

    def __init__(self, comparison: Comparison, batch_size: int, references: int, control_images: int) -> None:
        self.comparison, self.batch_size = comparison, batch_size
        self.references, self.control_images = references, control_images
        self.controls: dict[str, dict[str, Score]] = {}

    def identity(self, trainer: L.Trainer, draw: Draw) -> Facts:
        """All that the report of a draw depends on; call it inside :func:`~callbacks.sampling.drawing`."""
        module = drawing_module(trainer.lightning_module)
        identity: Facts = {
            "measurement": self._measurement(trainer, draw),
            "drawing": _drawing(trainer, module, draw),
            "weights": _weights(trainer, module),
        }
        # The first process alone has the reference, whose hash belongs to it.
        return trainer.strategy.broadcast(identity)

    def report(
        self, trainer: L.Trainer, draw: Draw, take: Callable[[Iterator[Tensor]], None] | None = None
    ) -> FIDReport:
        """Draws, measures and reports; the same on every process.

        Args:
            trainer: whose model is measured.
            draw: what to draw.
            take: given on the first process all images, uint8 (B, 3, H, W) in the order of positions.
        """
        module = drawing_module(trainer.lightning_module)
        began = time.monotonic()
        with drawing(trainer, trainer.lightning_module):
            self.measure_references(trainer)
            identity, request = self.identity(trainer, draw), _request(trainer, draw)
            keep = {**identity, "images_kept": take is not None}
            store = self._store(trainer, keep, draw.count)

            def images_at(positions: range) -> Tensor:
                part = LabelBatch(*(tensor[positions.start : positions.stop] for tensor in request))
                return module.sample(part, draw.sampler, draw.guidance)

            self._fill(trainer, store, images_at, "samples drawn", keep_images=take is not None)
        report = FIDReport(
            model=Path(trainer.default_root_dir).name,
            values=self._scores(trainer, store),
            controls=self.controls,
            **identity,  # type: ignore[arg-type]
            seconds=round(time.monotonic() - began, 1),
            made=made(trainer.world_size),
        )
        if trainer.is_global_zero:
            if take is not None:
                take(store.read(IMAGES))
            store.remove()
        return report

    def measure_references(self, trainer: L.Trainer) -> None:
        """Once a session, inside ``drawing``: takes features of references and controls, and measures these."""
        if self.comparison.has_references:
            return
        data = image_data(trainer)
        controls, references = disjoint(len(data.source.train), (self.control_images, self.references))
        store = self._training_store(trainer, references, REAL)
        self._fill(trainer, store, self._training_images(trainer, references, REAL), "references seen")
        if trainer.is_global_zero:
            self.comparison.set_references(store)
        self.comparison.has_references = True
        for control in CONTROLS if controls else ():
            shown = self._training_store(trainer, controls, control)
            self._fill(trainer, shown, self._training_images(trainer, controls, control), "controls seen")
            for name, score in self._scores(trainer, shown).items():
                self.controls.setdefault(control.name, {})[name] = score

    def _fill(
        self, trainer: L.Trainer, store: FeatureStore, images_at: ImagesAt, what: str, keep_images: bool = False
    ) -> None:
        """Writes what is missing of a store, each process its part.

        Every process works equally often, for those of a sharded network must: where chunks run out, some make one
        again and drop it.
        """
        missing = store.missing()
        trainer.strategy.barrier("all know what is missing")
        noticed = time.monotonic()
        for turn in range(math.ceil(len(missing) / trainer.world_size)):
            mine = turn * trainer.world_size + trainer.global_rank
            positions = missing[mine % len(missing)]
            image_BCHW = images_at(positions)
            features = self.comparison.features(image_BCHW)
            if mine < len(missing):
                store.write(positions, {**features, IMAGES: image_BCHW} if keep_images else features)
            if time.monotonic() - noticed > _SECONDS_BETWEEN_NOTICES:
                rank_zero_info(f"{what}: {min(positions.stop, store.count)} of {store.count}")
                noticed = time.monotonic()
        trainer.strategy.barrier("all is written")

    def _scores(self, trainer: L.Trainer, store: FeatureStore) -> dict[str, Score]:
        scores = self.comparison.measure(store) if trainer.is_global_zero else None
        scores = trainer.strategy.broadcast(scores)
        assert scores is not None
        return scores

    def _training_images(self, trainer: L.Trainer, indices: Sequence[int], shown: Control) -> ImagesAt:
        """The training images at these indices, degraded, by their place in the list."""
        module, data = trainer.lightning_module, image_data(trainer)

        def images_at(positions: range) -> Tensor:
            chosen = indices[positions.start : positions.stop]
            image_BCHW = torch.cat(list(training_images(data, module, chosen)))
            return shown.degrade(image_BCHW.to(trainer.strategy.root_device))

        return images_at

    def _training_store(self, trainer: L.Trainer, indices: Sequence[int], shown: Control) -> FeatureStore:
        module, data = drawing_module(trainer.lightning_module), image_data(trainer)
        latents = isinstance(data.source.train, LatentSet)
        identity: Facts = {
            "data": data.source.fingerprint,
            "image_size": module.image_size,
            "decoder": module.decoder() if latents else None,
            "indices": values_digest({"indices": list(indices)}),
            "shown": shown.name,
            "metrics": self.comparison.protocol(),
        }
        return self._store(trainer, trainer.strategy.broadcast(identity), len(indices))

    def _store(self, trainer: L.Trainer, identity: Facts, count: int) -> FeatureStore:
        return FeatureStore(Path(trainer.default_root_dir) / "features", identity, count, self.batch_size)

    def _measurement(self, trainer: L.Trainer, draw: Draw) -> Facts:
        needs = self.comparison.needs_references
        source = image_data(trainer).source if needs else None
        return {
            "samples": draw.count,
            "labels": draw.labels,
            "pixels": PIXELS,
            "image_size": drawing_module(trainer.lightning_module).image_size,
            "data": source.fingerprint if source else None,
            "references": min(self.references, len(source.train) - self.control_images) if source else None,
            "control_images": self.control_images if source else None,
            "metrics": self.comparison.protocol(),
        }


def _drawing(trainer: L.Trainer, module: DrawsImages, draw: Draw) -> Facts:
    sampler = draw.sampler or module.sampler
    return {
        "sampler": repr(sampler),
        "network_calls": sampler.network_calls,
        "guidance": repr(draw.guidance or module.guidance),
        "seed": module.seed,
        "precision": str(trainer.precision),
        "decoder": module.decoder(),
    }


def _weights(trainer: L.Trainer, module: DrawsImages) -> Facts:
    return {
        "which": weights_name(trainer),
        "sha256": module.weights_digest(),
        "images_seen": module.images_seen,
    }


def _request(trainer: L.Trainer, draw: Draw) -> LabelBatch:
    if draw.labels == "frequencies":
        return proportional(image_data(trainer).source.train.labels, draw.count)
    return uniform(len(class_names(trainer)), draw.count)

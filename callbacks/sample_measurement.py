"""Draws images for metrics and measures them, on all processes: what tracking in training and ``test`` share."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

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
    prompt_data,
    training_images,
    weights_name,
)
from snapgen_pl.conditioning.condition import in_words
from snapgen_pl.data.conditions import Labels
from snapgen_pl.data.requests import Requests
from snapgen_pl.data.source import LatentSet
from snapgen_pl.digest import values_digest
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Sampler
from snapgen_pl.metrics.comparison import Comparison
from snapgen_pl.metrics.controls import CONTROLS, REAL, Control
from snapgen_pl.metrics.draws import LabelPolicy, disjoint, in_order, proportional, spread, uniform
from snapgen_pl.metrics.feature_store import FeatureStore
from snapgen_pl.metrics.sample_metric import Facts, Score
from snapgen_pl.metrics.sample_report import PIXELS, SampleReport, made
from snapgen_pl.runs import Run

IMAGES = "images"
SECONDS = "seconds"
PROTOCOL = 1  # to be raised by whoever changes what a value is: reports of before are then measured again
_SECONDS_BETWEEN_NOTICES = 10.0

# Of positions: images, and what each was asked for with, nothing where they are of the training set.
ImagesAt: TypeAlias = Callable[[range], tuple[Tensor, Sequence[str]]]


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


class Plan(NamedTuple):
    """A draw from the weights as they are.

    Attributes:
        draw: what to draw.
        identity: all that its report depends on: ``measurement``, ``drawing`` and ``weights``.
        name: short for the identity.
    """

    draw: Draw
    identity: Mapping[str, Facts]
    name: str


# What is done with a report and all images, in the order of positions, before a draw's features are let go.
Finish: TypeAlias = Callable[[SampleReport, Iterator[Tensor]], None]


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
        self.controls = comparison.controls()

    def check_requests(self, trainer: L.Trainer, draw: Draw) -> None:
        """Raises ValueError where a metric cannot judge what a draw asks for."""
        if self.comparison.needs_requests:
            condition = _requests(trainer, draw).at(range(draw.count)).condition
            self.comparison.check_requests(in_words(condition, class_names(trainer)))

    def plan(self, trainer: L.Trainer, draw: Draw) -> Plan:
        """Tells a draw from all others; measures the references first, once a session."""
        module = drawing_module(trainer.lightning_module)
        with drawing(trainer, trainer.lightning_module):
            self._measure_references(trainer)
            identity = {
                "measurement": self._measurement(trainer, draw),
                "drawing": _drawing(trainer, module, draw),
                "weights": _weights(trainer, module),
            }
        # The first process alone has the reference, whose hash belongs to it.
        identity = trainer.strategy.broadcast(identity)
        return Plan(draw, identity, values_digest(identity)[:16])

    def report(
        self, trainer: L.Trainer, plan: Plan, finish: Finish | None = None, keep_images: bool = False
    ) -> SampleReport:
        """Draws, measures and reports; the same on every process.

        Args:
            trainer: whose model is measured.
            plan: of :meth:`plan`, the weights being what they were.
            finish: called on the first process.
            keep_images: whether ``finish`` is given images, rather than none.
        """
        module, draw = drawing_module(trainer.lightning_module), plan.draw
        requests = _requests(trainer, draw)
        store = self._store(trainer, {**plan.identity, "images_kept": keep_images}, draw.count)

        def images_at(positions: range) -> tuple[Tensor, Sequence[str]]:
            request = requests.at(positions)
            image_BCHW = module.sample(request, draw.sampler, draw.guidance)
            return image_BCHW, in_words(request.condition, class_names(trainer))

        with drawing(trainer, trainer.lightning_module), _claimed(trainer, store):
            self._fill(trainer, store, images_at, "samples drawn", keep_images)
            report = SampleReport(
                model=Path(trainer.default_root_dir).name,
                values=self._scores(trainer, store, drawn=True),
                controls=self.controls,
                **plan.identity,
                seconds=trainer.strategy.broadcast(_seconds(store) if trainer.is_global_zero else 0.0),
                made=made(trainer.world_size),
            )
            if trainer.is_global_zero:
                if finish is not None:
                    finish(report, store.read(IMAGES) if keep_images else iter(()))
                store.remove()
            trainer.strategy.barrier("features are let go")
        return report

    def _measure_references(self, trainer: L.Trainer) -> None:
        """Takes features of references and controls, and measures these."""
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
            for name, score in self._scores(trainer, shown, drawn=False).items():
                self.controls.setdefault(control.name, {})[name] = score

    def _fill(
        self, trainer: L.Trainer, store: FeatureStore, images_at: ImagesAt, what: str, keep_images: bool = False
    ) -> None:
        """Writes what is missing of a store, each process its part.

        Every process works equally often, for those of a sharded network must: where chunks run out, some make one
        again and drop it.
        """
        missing = trainer.strategy.broadcast(store.missing())
        noticed = time.monotonic()
        for turn in range(math.ceil(len(missing) / trainer.world_size)):
            mine = turn * trainer.world_size + trainer.global_rank
            positions = missing[mine % len(missing)]
            began = time.monotonic()
            image_BCHW, asked = images_at(positions)
            features = {name: value.cpu() for name, value in self.comparison.features(image_BCHW, asked).items()}
            features |= {SECONDS: torch.tensor([time.monotonic() - began])}
            if mine < len(missing):
                store.write(positions, {**features, IMAGES: image_BCHW} if keep_images else features)
            if time.monotonic() - noticed > _SECONDS_BETWEEN_NOTICES:
                rank_zero_info(f"{what}: {positions.stop} of {store.count}")
                noticed = time.monotonic()
        trainer.strategy.barrier("all is written")

    def _scores(self, trainer: L.Trainer, store: FeatureStore, drawn: bool) -> dict[str, Score]:
        scores = self.comparison.measure(store, drawn) if trainer.is_global_zero else None
        scores = trainer.strategy.broadcast(scores)
        assert scores is not None
        return scores

    def _training_images(self, trainer: L.Trainer, indices: Sequence[int], shown: Control) -> ImagesAt:
        """The training images at these indices, degraded, by their place in the list."""
        module, data = trainer.lightning_module, image_data(trainer)

        def images_at(positions: range) -> tuple[Tensor, Sequence[str]]:
            chosen = indices[positions.start : positions.stop]
            image_BCHW = torch.cat(list(training_images(data, module, chosen)))
            return shown.degrade(image_BCHW.to(trainer.strategy.root_device)), ()

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
        data = image_data(trainer) if needs or draw.labels in ("frequencies", "held_out") else None
        source = data.source if data else None
        captions = {"condition": data.condition} if data and data.condition == "caption" else {}
        prompts = {"prompts": prompt_data(trainer).fingerprint} if draw.labels == "prompts" else {}
        return {
            "protocol": PROTOCOL,
            "samples": draw.count,
            "labels": draw.labels,
            "pixels": PIXELS,
            "image_size": drawing_module(trainer.lightning_module).image_size,
            "data": source.fingerprint if source else None,
            "references": min(self.references, len(source.train) - self.control_images) if source and needs else None,
            "control_images": self.control_images if needs else None,
            **captions,
            **prompts,
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


def _requests(trainer: L.Trainer, draw: Draw) -> Requests:
    if draw.labels == "prompts":
        return prompt_data(trainer).requests(draw.count)
    if draw.labels == "frequencies":
        conditions = image_data(trainer).conditions("train")
        if isinstance(conditions, Labels):
            return proportional(conditions.label_N, draw.count)
        return spread(conditions, draw.count)
    if draw.labels == "held_out":
        return in_order(image_data(trainer).conditions("validation"), draw.count)
    return uniform(len(class_names(trainer)), draw.count)


def _seconds(store: FeatureStore) -> float:
    return round(float(torch.cat(list(store.read(SECONDS))).sum()), 1)


@contextmanager
def _claimed(trainer: L.Trainer, store: FeatureStore) -> Iterator[None]:
    """Keeps other commands from drawing the same at the same time; each would let the other's features go."""
    claim = Run(store.folder).claim() if trainer.is_global_zero else None
    try:
        yield
    finally:
        if claim is not None:
            claim.release()

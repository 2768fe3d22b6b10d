"""The LightningDataModule over a source of images or latents."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.at_least import check_at_least
from snapgen_pl.autoencoders.autoencoder import without_rounding
from snapgen_pl.data.bucketed import BucketOrder, BucketSamples, bucket_of, even_bucket_batches, joined
from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.conditions import Captioned, Captions, Conditions, Labels
from snapgen_pl.data.image_sizes import image_sizes
from snapgen_pl.data.loader import (
    BatchLoader,
    EndlessOrder,
    ImageSamples,
    LatentSamples,
    Order,
    PositionSampler,
    ResumableLoader,
    Sample,
    Samples,
    even_batches,
)
from snapgen_pl.data.requests import RequestBatches, Requests
from snapgen_pl.data.shards import SPLITS, Split
from snapgen_pl.data.source import Batch, ImageBatch, ImageSet, ImageSource, LatentSet, OpenSource
from snapgen_pl.data.teacher_outputs import StoredOutputs, TeacherOutputFolder
from snapgen_pl.data.text_states import TextStateFolder
from snapgen_pl.errors import did_you_mean
from snapgen_pl.modules.frozen import make_ready


class ImageData(L.LightningDataModule):
    """Images of an :class:`~snapgen_pl.data.source.ImageSource` or their latents, and what to draw samples for.

    Training is one endless epoch that resumes exactly, also with another number of processes or another accumulation.
    Validation goes through the held-out images in order. Prediction yields requests for samples whose labels occur as
    often as in training, or for those of held-out captions. All three divide the work among processes themselves: more
    than one process needs ``trainer.use_distributed_sampler: false``.

    Args:
        source: where the images come from.
        image_size: side of the images after cropping, in pixels; latents must have been encoded at it.
        batch_size: images an optimizer step, over all processes and accumulated batches.
        flip: whether to mirror half of the training images, left to right.
        workers: processes that load images, for each training process; 0 loads them in the process itself.
        condition: what images are asked for with: labels of their classes, or captions, where the source has them.
        text_states: folders of what text encoders made of the captions, by the encoder's name in the model. Captions
            of encoders that are not named are encoded as they are needed.
        draws: how many noises and times each image is seen with, epoch by epoch and over again; by default they are new
            each time.
        teacher_outputs: the folder of what a teacher said of each draw, made by ``predict`` with
            :class:`~snapgen_pl.modules.encode_teacher.EncodeTeacher`.
        verify: whether stored states and outputs are read through before a training, and compared with what was
            written.
        seed: seeds the order of images, the flips and the requests; in [0, 2^48).
        samples: number of samples that prediction asks for.
        sample_classes: names of the classes that prediction asks for; all by default. Not with captions.
        buckets: sizes that images are cut to by their shapes, for training and validation; squares by default. A batch
            holds images of one size. The sizes of all images are read when the data are opened, and kept in the run's
            folder. Whatever images are compared with samples are squares all the same. Not with latents or ``draws``.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int = 64,
        batch_size: int = 64,
        flip: bool = False,
        workers: int = 0,
        condition: Literal["label", "caption"] = "label",
        text_states: dict[str, str] | None = None,
        draws: int | None = None,
        teacher_outputs: str | None = None,
        verify: bool = True,
        seed: int = 0,
        samples: int = 64,
        sample_classes: list[str] | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, image_size=image_size, batch_size=batch_size, samples=samples)
        check_at_least(0, workers=workers, seed=seed)
        if draws is not None and draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}; leave it out for new ones each time")
        if teacher_outputs is not None and draws is None:
            raise ValueError(
                "teacher_outputs are of pinned noises and times; set data.draws to as many as they were made with"
            )
        if buckets is not None and buckets.image_size != image_size:
            raise ValueError(
                f"data.image_size is {image_size}, data.buckets.image_size {buckets.image_size}; "
                "set them to the same size"
            )
        if buckets is not None and draws is not None:
            raise ValueError("draws are of squares; leave data.buckets or data.draws out")
        if seed >= 1 << 48:
            raise ValueError(f"seed must lie below 2^48, got {seed}")
        if sample_classes is not None and not sample_classes:
            raise ValueError("sample_classes is empty; name a class, or leave it out for all of them")
        if sample_classes is not None and condition == "caption":
            raise ValueError("sample_classes are asked for by label; leave them out, or set condition: label")
        if text_states and condition == "label":
            raise ValueError("text_states are of captions, but condition is label; leave them out, or set caption")
        self.image_source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.flip = flip
        self.workers = workers
        self.condition: Literal["label", "caption"] = condition
        self.text_states = {name: Path(folder) for name, folder in (text_states or {}).items()}
        self.draws = draws
        self.teacher_outputs = None if teacher_outputs is None else Path(teacher_outputs)
        self.verify = verify
        self.seed = seed
        self.samples = samples
        self.sample_classes = sample_classes
        self.buckets = buckets
        self._bucket_of: dict[Split, Tensor] = {}
        self._opened: OpenSource | None = None
        self._taught: TeacherOutputFolder | None = None

    def setup(self, stage: str) -> None:
        """Opens the source and checks it against the settings.

        Raises:
            ValueError: where batch_size does not divide among processes, there are too few images, a class is unknown,
                or the source is damaged.
        """
        if self._opened is None:
            self._opened = self.image_source.open()
        self._check_sampler()
        self._check_latents()
        self._text_states = {name: TextStateFolder(folder) for name, folder in self.text_states.items()}
        for states in self._text_states.values():
            states.check_images(self.source.encoded_from or self.source.fingerprint)
        if self.teacher_outputs is not None and stage != "predict":
            self._taught = TeacherOutputFolder(self.teacher_outputs)
            self._taught.check_images(self.source.fingerprint)
        self._conditions = {split: self._conditions_of(split) for split in SPLITS}
        if stage == "fit":
            self.image_source.check()
            for states in self._text_states.values() if self.verify else ():
                states.check()
        if stage == "fit":
            self._check_step()
            self._check_training()
        for name, count in (("validation images", len(self.source.validation)), ("samples", self.samples)):
            if count < self._world_size:
                raise ValueError(f"{count} {name} do not go round {self._world_size} processes; have more of them")
        if self.buckets is not None and not self._bucket_of:
            self._bucket_of = self._fill(self.buckets)
        self._batches = even_batches(self.samples, self.micro_batch, self._rank, self._world_size)
        self._requests = self._ask()

    @property
    def source(self) -> OpenSource:
        """The opened source; known after setup."""
        if self._opened is None:
            raise AttributeError("the source is opened by setup(), which has not been called yet")
        return self._opened

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them. Known after setup."""
        return self.source.classes

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what identifies the data. Known after setup."""
        return self.source.fingerprint

    @property
    def taught(self) -> TeacherOutputFolder | None:
        """What a teacher said of the draws, where that is stored. Known after setup."""
        return self._taught

    @property
    def micro_batch(self) -> int:
        """Images that one process takes at once; in training they make up batch_size, elsewhere about as many."""
        return max(1, self.batch_size // (self._world_size * self._accumulation))

    def train_dataloader(self) -> Iterable[Batch]:
        """The endless stream, this process's part."""
        order: Order = EndlessOrder(len(self.source.train), self.seed)
        if self.buckets is not None:
            order = BucketOrder(self._bucket_of["train"], self.buckets.group, self.seed)
        sampler = PositionSampler(order, self.micro_batch, self._rank, self._world_size, self.draws)
        return ResumableLoader(self._studied("train"), sampler, self.workers)

    def val_dataloader(self) -> BatchLoader:
        """The held-out images in order, every world_size-th; a sample's position is its index.

        With buckets, bucket by bucket; the images of one that has fewer than processes take the next size.
        """
        part = self.micro_batch, self._rank, self._world_size
        if self.buckets is None:
            batches = even_batches(len(self.source.validation), *part)
        else:
            batches = even_bucket_batches(self._bucket_of["validation"], *part)
        return BatchLoader(
            self._studied("validation"),
            [[Sample(index, index) for index in batch] for batch in batches],
            self.workers,
        )

    def test_dataloader(self) -> BatchLoader:
        """The held-out images: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> RequestBatches:
        """Requests for ``samples`` samples, this process's part: every world_size-th position."""
        return RequestBatches(self._requests, self._batches)

    def training_images(self, batch_size: int) -> Iterator[ImageBatch]:
        """Every training image once, in order, cropped but not flipped; positions are indices.

        Raises:
            ValueError: where the source holds latents.
        """
        images = self.source.train
        if isinstance(images, LatentSet):
            raise ValueError(
                "the data are latents, so no autoencoder can be fitted to their images; use the one that encoded them "
                "(of a fitted one, copy its file from that run's folder into this run's)"
            )
        samples = ImageSamples(images, self._conditions["train"], self.image_size)
        for first in range(0, len(images), batch_size):
            indices = range(first, min(first + batch_size, len(images)))
            yield samples.__getitems__([Sample(index, index) for index in indices])

    def samples_of(self, split: Split, flip_seed: int | None = None, taught: StoredOutputs | None = None) -> Samples:
        """What loads batches of a split; of images, squares.

        Args:
            split: which.
            flip_seed: the seed of random flips; None for none.
            taught: the teacher's outputs to give along.
        """
        items, conditions = self._items(split), self._conditions[split]
        if isinstance(items, LatentSet):
            return LatentSamples(items, conditions, flip_seed, taught)
        return ImageSamples(items, conditions, self.image_size, flip_seed, taught)

    @property
    def flip_seed(self) -> int | None:
        """The seed of random flips in training; None for none."""
        return self.seed if self.flip else None

    def _studied(self, split: Split) -> Samples:
        """What loads batches to train or validate on."""
        flip_seed = self.flip_seed if split == "train" else None
        items = self._items(split)
        if self.buckets is not None and not isinstance(items, LatentSet):
            return BucketSamples(items, self._conditions[split], self.buckets, self._bucket_of[split], flip_seed)
        return self.samples_of(split, flip_seed, None if self._taught is None else self._taught.split(split))

    def _fill(self, buckets: Buckets) -> dict[Split, Tensor]:
        """The bucket of each image, by split."""
        sizes: dict[Split, Tensor] = {}

        def read(folder: Path | None) -> list[str]:
            sizes.update(image_sizes(self.source, folder))
            return []

        if self.trainer is None or self.source.streamed:  # what a stream shows is in memory
            read(None)
        else:
            make_ready(self.trainer, read)
        found = {split: bucket_of(size_N2, buckets) for split, size_N2 in sizes.items()}
        return found | {"validation": joined(found["validation"], self._world_size, buckets)}

    def conditions(self, split: Split) -> Conditions:
        """What the images of a split are asked for with."""
        return self._conditions[split]

    def stored_weights(self) -> dict[str, str]:
        """SHA-256 of the weights that stored states were made with, by the encoder's name."""
        return {name: states.facts.weights for name, states in self._text_states.items()}

    def check_autoencoder(self, identity: Mapping[str, str | int | float]) -> None:
        """Checks that latents, where the source holds them, are those of the run's autoencoder.

        Raises:
            ValueError: naming what differs.
        """
        latents = self.source.train
        if not isinstance(latents, LatentSet):
            return
        # What products were rounded to then need not bind those who decode now.
        stored, own = without_rounding(latents.autoencoder), without_rounding(identity)
        wrong = [
            f"{key} is {stored.get(key)!r} in the latents' manifest, {own.get(key)!r} in the run"
            for key in dict.fromkeys([*stored, *own])
            if stored.get(key) != own.get(key)
        ]
        if wrong:
            raise ValueError(
                f"the latents are not the run's autoencoder's: {'; '.join(wrong)}. "
                "Set model.autoencoder to the one that encoded them, or encode again"
            )

    def check_encoders(self, encoders: Mapping[str, str]) -> None:
        """Checks that stored states of captions are those of the run's encoders.

        Args:
            encoders: their identities, by name.

        Raises:
            ValueError: naming states that no encoder needs, or that are another encoder's.
        """
        for name, states in self._text_states.items():
            if name not in encoders:
                raise ValueError(
                    f"data.text_states has states of {name!r}, which no encoder of the model is called; there are "
                    f"{', '.join(encoders) or 'none'}"
                )
            states.check_encoder(name, encoders[name])

    def _ask(self) -> Requests:
        """Position i asks for what the i-th training image (held-out, with captions) has, in an order by the seed."""
        if self.condition == "caption":
            conditions = self._conditions["validation"]
        else:
            labels = self.source.train.labels
            if self.sample_classes is not None:
                wanted = torch.tensor([self._class_index(name) for name in self.sample_classes])
                labels = labels[torch.isin(labels, wanted)]
            conditions = Labels(labels)
        order = EndlessOrder(len(conditions), self.seed, rng.Stream.LABEL)
        return Requests(conditions, [order[position] for position in range(self.samples)])

    def _items(self, split: Split) -> ImageSet | LatentSet:
        return self.source.train if split == "train" else self.source.validation

    def _conditions_of(self, split: Split) -> Conditions:
        items = self._items(split)
        if self.condition == "label":
            return Labels(items.labels)
        if not isinstance(items, Captioned):
            raise ValueError(
                f"data.condition is caption, but {type(self.image_source).__name__} has no captions; "
                "give a source that has, or set data.condition label"
            )
        return Captions(items, {name: states.split(split) for name, states in self._text_states.items()})

    def _class_index(self, name: str) -> int:
        if name not in self.classes:
            hint = did_you_mean(name, self.classes)
            raise ValueError(f"sample_classes names {name!r}, which is none of the {len(self.classes)} classes{hint}")
        return self.classes.index(name)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _accumulation(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _check_step(self) -> None:
        parts = self._world_size * self._accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size is {self.batch_size}, the images of one optimizer step; it does not divide by "
                f"{self._world_size} process(es) x {self._accumulation} accumulated batch(es); "
                f"set data.batch_size to a multiple of {parts}, such as {-(-self.batch_size // parts) * parts}"
            )

    def _check_training(self) -> None:
        if len(self.source.train) < self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, but there are only {len(self.source.train)} training images; "
                "set data.batch_size to at most that"
            )
        if self.buckets is not None:
            self._check_group(self.buckets.group)

    def _check_group(self, group: int) -> None:
        if group % self.micro_batch:
            raise ValueError(
                f"data.buckets.group is {group}, but a process takes {self.micro_batch} images at once, all of one "
                f"size; set data.buckets.group to a multiple of {self.micro_batch}"
            )

    def _check_latents(self) -> None:
        latents = self.source.train
        if not isinstance(latents, LatentSet):
            return
        if self.buckets is not None:
            raise ValueError("latents are of squares; leave data.buckets out, or give the source of the images")
        if latents.image_size != self.image_size:
            raise ValueError(
                f"data.image_size is {self.image_size}, but the latents are of images of {latents.image_size} pixels; "
                f"set data.image_size to {latents.image_size}, or encode again"
            )
        if self.flip and latents.flips == 1:
            raise ValueError("data.flip is true, but no mirror images were encoded; set it to false, or encode again")

    def _check_sampler(self) -> None:
        # Lightning keeps the setting where only its own code is meant to look; nothing public tells it.
        if self._world_size > 1 and self.trainer and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "the images are divided among processes here, not by Lightning; set trainer.use_distributed_sampler: "
                "false"
            )

"""The LightningDataModule of captioned images that stream from tars, on disk or on web servers."""

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import chain, islice
from pathlib import Path

from torch import Tensor

from snapgen_pl.at_least import check_at_least
from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.data.assembler import Assembly
from snapgen_pl.data.buckets import Buckets
from snapgen_pl.data.captioned_folder import CLASSES
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.faults import Fault, Skipped
from snapgen_pl.data.loader import image_batch
from snapgen_pl.data.source import ImageBatch, ImageSource, OpenSource
from snapgen_pl.data.stored_set import StoredSet
from snapgen_pl.data.tar_loader import TarLoader
from snapgen_pl.data.tar_parts import Share
from snapgen_pl.data.tar_samples import Packed, read_packed
from snapgen_pl.data.tar_shards import identity, is_remote, list_shards
from snapgen_pl.data.tar_stream import TarStream
from snapgen_pl.data.unpacker import Unpacker
from snapgen_pl.digest import values_digest

_PATIENCE = 4096


class TarData(ImageData):
    """Images with captions from shards: tars of ``key.jpg`` (or png, webp) beside ``key.txt`` (or json).

    Needs the extra ``tars``. Training is one endless epoch that reads every shard once an epoch, resumes exactly, also
    with another number of processes, workers or accumulated batches, and holds no more than ``2 * shuffle`` encoded
    images a reader (see :mod:`~snapgen_pl.data.tar_stream`). A resumed run reopens each reader's shard, passes over
    what came before by its headers (over the web, by its bytes too), and reads at most two blocks again. Validation
    images, and some of the training images for whoever looks at those by place, are kept in memory.

    With ``buckets`` each reader makes groups of its own images (see :class:`~snapgen_pl.data.assembler.Assembler`), and
    holds encoded images of fewer than a group in each bucket besides. Those wait across the ends of epochs, so over e
    epochs each image comes e times but for what waits; a resumed run reads them again. What one process takes at once
    must divide ``buckets.group``, and the group what one process takes in an optimizer step, on however many processes
    the run goes on.

    What cannot be used (a shard that does not open, or ends in the middle; a sample without image or caption, that
    occurs twice or does not decode; a link, or a name that leads out of its shard) is skipped, named, and counted over
    all processes and sessions: the first few in warnings, all in ``skipped.jsonl`` in the run's folder. One process
    learns of the faults of the others when a checkpoint is saved.

    Args:
        shards: tars, folders of tars, or http(s) addresses of tars, with braces expanded: ``photos/{000..123}.tar``.
        validation_shards: likewise, others.
        image_size: side of the images after cropping, in pixels.
        batch_size: images an optimizer step, over all processes and accumulated batches.
        flip: whether to mirror half of the training images, left to right.
        workers: processes that load images, for each training process; 0 loads them in the process itself.
        caption_key: which entry of ``.json`` members is the caption; by default captions are ``.txt`` members.
        readers: shards that are read side by side, over all processes: a multiple of processes x workers, and at most
            as many as there are shards. Part of what a run is: another number gives another order.
        shuffle: encoded images that a reader shuffles at once.
        min_size: images with a shorter side, in pixels, are left out, and are no faults; by default none are. In
            buckets it is those that theirs would enlarge by more than image_size / min_size.
        skip_limit: so many samples or shards at fault are borne for each time that all are read; one more ends the run.
            Those of the validation shards are counted apart, at the start.
        validation_images: at most so many of the first images of the validation shards are validated on.
        references: so many of the first images of the shards are kept to be looked at by place: as the nearest to
            samples, or to measure these against.
        seed: seeds the order of images, the flips and the requests; in [0, 2^48).
        samples: number of samples that prediction asks for.
        buckets: sizes that images are cut to by their shapes, for training and validation; squares by default. A batch
            holds images of one size.
        patience: with buckets, so many images a reader reads at most while one waits for others of its shape; then all
            in its bucket join the bucket nearest in shape that holds any, and wait anew. 4,096 if not given.

    Raises:
        ValueError: for values out of range, and for ``patience`` without buckets.
    """

    def __init__(
        self,
        shards: str | list[str],
        validation_shards: str | list[str],
        image_size: int = 256,
        batch_size: int = 64,
        flip: bool = False,
        workers: int = 0,
        caption_key: str | None = None,
        readers: int = 8,
        shuffle: int = 256,
        min_size: int | None = None,
        skip_limit: int = 0,
        validation_images: int = 1000,
        references: int = 1000,
        seed: int = 0,
        samples: int = 64,
        buckets: Buckets | None = None,
        patience: int | None = None,
    ) -> None:
        check_at_least(1, readers=readers, shuffle=shuffle, min_size=min_size)
        check_at_least(1, validation_images=validation_images, references=references)
        check_at_least(0, skip_limit=skip_limit)
        if buckets is None and patience is not None:
            raise ValueError(f"patience is {patience}, but squares wait for nothing; leave it out, or set data.buckets")
        self.assembly = None if buckets is None else Assembly(buckets, _PATIENCE if patience is None else patience)
        self.unpacker = Unpacker(image_size, min_size, buckets)
        source = FirstOfShards(
            [shards] if isinstance(shards, str) else shards,
            [validation_shards] if isinstance(validation_shards, str) else validation_shards,
            (references, validation_images),
            caption_key,
            self.unpacker,
            self._skipped,
        )
        super().__init__(
            source, image_size, batch_size, flip, workers, "caption", seed=seed, samples=samples, buckets=buckets
        )
        self.first, self.caption_key = source, caption_key
        self.readers, self.shuffle, self.skip_limit = readers, shuffle, skip_limit

    def train_dataloader(self) -> TarLoader:
        """The endless stream, this process's part."""
        stream = TarStream(self.first.shards, self.caption_key, self.readers, self.shuffle, self.seed)
        share = Share(self.micro_batch, self._rank, self._world_size)
        return TarLoader(stream, self.unpacker, self.flip_seed, share, self.workers, self._skipped(), self.assembly)

    def training_images(self, batch_size: int) -> Iterator[ImageBatch]:
        """Every training image of use once, shard by shard, cropped but not flipped; positions count them."""
        images, first = images_of_use(self.first.shards, self.caption_key, self.unpacker, []), 0
        while some := list(islice(images, batch_size)):
            captions = tuple(packed.caption for packed, _ in some)
            positions = range(first, first + len(some))
            yield image_batch([pixels for _, pixels in some], Texts(captions, {}), positions, None)
            first += len(some)

    def _check_training(self) -> None:
        """Instead of the number of images, which nobody knows."""
        processes = self._world_size * max(1, self.workers)
        if self.readers % processes:
            raise ValueError(
                f"data.readers is {self.readers}; it does not divide by {self._world_size} process(es) x "
                f"{max(1, self.workers)} worker(s): set data.workers to another number, or data.readers to a multiple "
                f"of {processes}, which is another order of images"
            )
        if self.readers > len(self.first.shards):
            raise ValueError(
                f"data.readers is {self.readers}, but there are only {len(self.first.shards)} shards; set it to at "
                "most that, or pack more shards"
            )
        if self.buckets is not None:
            self._check_group(self.buckets.group)
            part = self.batch_size // self._world_size
            if part % self.buckets.group:
                raise ValueError(
                    f"data.buckets.group is {self.buckets.group}, but a process's part of a step has {part} images, "
                    "made of whole groups of tars; set data.buckets.group to what divides it, and is a multiple of "
                    f"{self.micro_batch}"
                )

    def _skipped(self) -> Skipped:
        if self.trainer is None:
            return Skipped(self.skip_limit, None)
        name = f"skipped-{self._rank}.jsonl" if self._rank else "skipped.jsonl"
        return Skipped(self.skip_limit, Path(self.trainer.default_root_dir) / name)


class FirstOfShards(ImageSource):
    """The first images of shards, kept in memory; what else is in them, their names alone tell.

    Args:
        names: of the training shards; see :func:`~snapgen_pl.data.tar_shards.list_shards`.
        validation_names: of the validation shards.
        counts: images to keep of the former and of the latter, at most.
        caption_key: see :func:`~snapgen_pl.data.tar_samples.read_packed`.
        unpacker: tells which images are of use.
        skipped: makes what counts the faults of the validation shards; those of the others are found in training.

    Attributes:
        shards: the training shards, once opened.
    """

    shards: tuple[str, ...]

    def __init__(
        self,
        names: Sequence[str],
        validation_names: Sequence[str],
        counts: tuple[int, int],
        caption_key: str | None,
        unpacker: Unpacker,
        skipped: Callable[[], Skipped],
    ) -> None:
        self.names, self.validation_names, self.counts = names, validation_names, counts
        self.caption_key, self.unpacker, self.skipped = caption_key, unpacker, skipped

    def open(self) -> OpenSource:
        """Lists the shards and reads the first; the sets are of :class:`KeptSet`.

        Raises:
            ValueError: where the names are no shards, both sets have one, or there is no image of use.
        """
        self.shards, validation = list_shards(self.names), list_shards(self.validation_names)
        if both := set(self.shards) & set(validation):
            raise ValueError(f"{min(both)} is among the training and the validation shards; keep it in one of them")
        train, validated = self.counts
        self._check_there()
        faults: list[Fault] = []
        sets = self._keep(self.shards, train, []), self._keep(validation, validated, faults)
        self.skipped().add(faults)
        facts = {
            "shards": [identity(shard) for shard in self.shards],
            "validation": [identity(shard) for shard in validation],
            "caption_key": self.caption_key,
        }
        return OpenSource(CLASSES, *sets, values_digest(facts), streamed=True)

    def _check_there(self) -> None:
        missing = [shard for shard in self.shards if not (is_remote(shard) or Path(shard).is_file())]
        if len(missing) > self.skipped().limit:
            raise ValueError(
                f"{len(missing)} of {len(self.shards)} shards do not exist, {missing[0]} for one; name those that do, "
                "or raise data.skip_limit"
            )

    def _keep(self, shards: Sequence[str], count: int, faults: list[Fault]) -> "KeptSet":
        images = images_of_use(shards, self.caption_key, self.unpacker, faults)
        kept = [packed for packed, _ in islice(images, count)]
        if not kept:
            why = f": {faults[0]}" if faults else f", all being smaller than min_size, {self.unpacker.min_size}"
            raise ValueError(f"{shards[0]} and the shards after it hold no image of use{why}")
        return KeptSet(kept)


class KeptSet(StoredSet):
    """Captioned images in memory; also a :class:`~snapgen_pl.data.conditions.Captioned`.

    Args:
        samples: the images, in order; at least one.
    """

    def __init__(self, samples: Sequence[Packed]) -> None:
        super().__init__(Path(samples[0].shard), [0] * len(samples))
        self.samples = samples

    def name(self, index: int) -> str:
        """Its key and its shard."""
        return f"{self.samples[index].key} in {self.samples[index].shard}"

    def encoded(self, index: int) -> BytesIO:
        """Its bytes."""
        return BytesIO(self.samples[index].image)

    def caption(self, index: int) -> str:
        """Its caption."""
        return self.samples[index].caption


def images_of_use(
    shards: Sequence[str], caption_key: str | None, unpacker: Unpacker, faults: list[Fault]
) -> Iterator[tuple[Packed, Tensor]]:
    """The samples of shards, in order, with their pixels.

    Args:
        shards: their names.
        caption_key: see :func:`~snapgen_pl.data.tar_samples.read_packed`.
        unpacker: makes pixels.
        faults: what is wrong with others is appended to it.
    """
    for sample in chain.from_iterable(read_packed(shard, caption_key) for shard in shards):
        loaded = sample if isinstance(sample, Fault) else unpacker.pixels(sample)
        if isinstance(loaded, Fault):
            faults.append(loaded)
        elif isinstance(sample, Packed) and loaded is not None:
            yield sample, loaded

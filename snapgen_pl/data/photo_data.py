"""The LightningDataModule of photographs of any size: crops to train on, and whole ones to be held against."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from snapgen_pl import rng
from snapgen_pl.data.conditions import Conditions
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.loader import BatchLoader, ImageSamples, Sample, Samples, even_batches
from snapgen_pl.data.shards import Split
from snapgen_pl.data.source import ImageSet, LatentSet
from snapgen_pl.data.teacher_outputs import StoredOutputs
from snapgen_pl.data.transforms import centre_cut, crop_at, to_pixels


class CropSamples(ImageSamples):
    """Loads batches of squares from anywhere in the images, at their own resolution.

    Args:
        images: the image set.
        conditions: of the images.
        image_size: side of the crops, in pixels.
        crop_seed: the seed of their places.
        flip_seed: the seed of random flips; None for none.
    """

    def __init__(
        self, images: ImageSet, conditions: Conditions, image_size: int, crop_seed: int, flip_seed: int | None
    ) -> None:
        super().__init__(images, conditions, image_size, flip_seed)
        self.crop_seed = crop_seed

    def pixels(self, sample: Sample) -> Tensor:
        """A crop, its place by (seed, position) alone: uint8 (3, image_size, image_size)."""
        (place,) = rng.uniform(self.crop_seed, rng.Stream.CROP, torch.tensor([sample.position]), (2,)).tolist()
        return to_pixels(crop_at(self.images.load(sample.image), self.image_size, *place))


class WholeSamples(ImageSamples):
    """Loads images as large as they are, but for what a multiple and a largest size cut off around them.

    Args:
        images: the image set.
        conditions: of the images.
        multiple: of this many pixels are the sides.
        largest: side in pixels.
    """

    def __init__(self, images: ImageSet, conditions: Conditions, multiple: int, largest: int) -> None:
        super().__init__(images, conditions, largest)
        self.multiple = multiple

    def pixels(self, sample: Sample) -> Tensor:
        """The image: uint8 (3, H, W)."""
        return to_pixels(centre_cut(self.images.load(sample.image), self.multiple, self.image_size))


class PhotoData(ImageData):
    """Photographs of any size: random crops of ``image_size`` in training, whole ones in validation, one at a time.

    A photograph is in one split alone, so no crop is validated on that was trained on.

    Args:
        multiple: of this many pixels are the sides of whole images, which lose what is over around their edges.
        largest: pixels along a side that are left of larger ones, around their centre.
        **data: as in ImageData; the source holds images.

    Raises:
        ValueError: where no image fits ``multiple`` and ``largest``, and for buckets.
    """

    def __init__(self, multiple: int = 8, largest: int = 1024, **data: Any) -> None:
        super().__init__(**data)
        if self.buckets is not None:
            raise ValueError(f"{type(self).__name__} crops squares; leave data.buckets out, or give an ImageData")
        if not 1 <= multiple <= largest:
            raise ValueError(f"multiple is {multiple}, largest {largest}; need 1 <= multiple <= largest")
        self.multiple, self.largest = multiple, largest

    def val_dataloader(self) -> BatchLoader:
        """The held-out images, each a batch of its own, for their sizes differ."""
        batches = even_batches(len(self.source.validation), 1, self._rank, self._world_size)
        alone = [[Sample(index, index)] for batch in batches for index in batch]
        return BatchLoader(self.samples_of("validation"), alone, self.workers)

    def samples_of(self, split: Split, flip_seed: int | None = None, taught: StoredOutputs | None = None) -> Samples:
        """As in ImageData; crops of the training images, and the others whole.

        Raises:
            ValueError: where the source holds latents, or a teacher's outputs are given, which are of no crops.
        """
        items, conditions = self._items(split), self.conditions(split)
        if isinstance(items, LatentSet) or taught is not None:
            raise ValueError(
                f"{type(self).__name__} crops images; latents and teacher_outputs are for "
                "snapgen_pl.data.datamodule.ImageData"
            )
        if split == "validation":
            return WholeSamples(items, conditions, self.multiple, self.largest)
        return CropSamples(items, conditions, self.image_size, self.seed, flip_seed)


def check_images(trainer: L.Trainer, downsampling: int) -> ImageData:
    """The images that a trainer is given to encode and decode.

    Args:
        trainer: with its data module.
        downsampling: pixels along a side of a latent position.

    Raises:
        ValueError: where they are latents, or of sizes that do not divide by ``downsampling``.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageData) or isinstance(data.source.train, LatentSet):
        raise ValueError(
            "images are needed, of a PhotoData or ImageData, and these are latents, or of another data module: "
            f"{type(data).__name__}"
        )
    sides = {"data.image_size": data.image_size}
    if isinstance(data, PhotoData):
        sides["data.multiple"] = data.multiple
    if data.buckets is not None:
        sides["data.buckets.step"] = data.buckets.step
    for name, side in sides.items():
        if side % downsampling:
            raise ValueError(f"{name} is {side}, not a multiple of the autoencoder's {downsampling}")
    return data

"""Latents as a source of training samples.

A shard holds ``mean`` and ``std`` (N, flips, C, H, W) of the posteriors over raw latents (no ``std`` where the encoder
is certain), ``label`` (N,) and, where the images have captions, those.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.config_files import Value
from snapgen_pl.data.shards import SPLITS, Manifest, Split, SplitShards, check_share, read_manifest, read_shard
from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.strings import join_strings, string_at
from snapgen_pl.digest import values_digest

FORMAT = "snapgen_pl latents 1"


class LatentFacts(NamedTuple):
    """What latents depend on besides their images.

    Attributes:
        autoencoder: the identity of what encoded them.
        image_size: side of the centre crops, in pixels.
        flips: 2 with mirror images, else 1.
        dtype: of means and standard deviations: float16 or float32.
        classes: class names.
    """

    autoencoder: Mapping[str, str | int | float]
    image_size: int
    flips: int
    dtype: str
    classes: tuple[str, ...]

    def as_json(self) -> dict[str, Value]:
        """As a plan holds them."""
        return {
            "autoencoder": dict(self.autoencoder),
            "image_size": self.image_size,
            "crop": "centre",
            "flips": self.flips,
            "dtype": self.dtype,
            "classes": list(self.classes),
        }

    @staticmethod
    def of(folder: Path, facts: Mapping[str, Value]) -> "LatentFacts":
        """The facts of a manifest.

        Raises:
            ValueError: where one is missing or of another type.
        """
        match facts:
            case {
                "autoencoder": dict(autoencoder),
                "image_size": int(image_size),
                "flips": int(flips),
                "dtype": str(dtype),
                "classes": list(classes),
            }:
                identity = {key: value for key, value in autoencoder.items() if isinstance(value, str | int | float)}
                return LatentFacts(identity, image_size, flips, dtype, tuple(map(str, classes)))
        raise ValueError(f"the manifest in {folder} does not say what its latents are of; encode again")


def latent_tensors(
    posterior: Posterior, dtype: str, label_N: Tensor, captions: Sequence[str] | None
) -> dict[str, Tensor]:
    """What a shard holds.

    Args:
        posterior: mean and standard deviation (N, flips, C, H, W).
        dtype: float16 or float32.
        label_N: int64.
        captions: N, or None where images have none.

    Raises:
        ValueError: where the type cannot hold a value.
    """
    kind = getattr(torch, dtype)
    tensors = {"mean": posterior.mean_BCHW.to(kind), "label": label_N}
    if posterior.std_BCHW is not None:
        tensors["std"] = posterior.std_BCHW.to(kind)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(
            f"latents are not finite in {dtype}; encode with --model.dtype float32 or, where the autoencoder itself "
            "overflows, --model.autoencoder.dtype float32"
        )
    return tensors if captions is None else tensors | join_strings(captions)


class ShardSet(SplitShards):
    """The latents of one split; a :class:`~snapgen_pl.data.source.LatentSet`.

    Args:
        folder: where the shards lie.
        manifest: what they are.
        split: which.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split) -> None:
        super().__init__(folder, manifest, split)
        facts = LatentFacts.of(folder, self.plan.facts)
        self.image_size, self.flips, self.autoencoder = facts.image_size, facts.flips, facts.autoencoder
        self.labels = self.column("label")

    def load(self, indices: Sequence[int], mirrored: Sequence[bool]) -> Posterior:
        """The posteriors of these images, or of their mirror images: (B, C, H, W) as stored."""
        places = [(*self.at(index), int(flip)) for index, flip in zip(indices, mirrored, strict=True)]
        mean_BCHW = np.stack([arrays["mean"][row, flip] for arrays, row, flip in places])
        stds = [arrays["std"][row, flip] for arrays, row, flip in places if "std" in arrays]
        return Posterior(torch.from_numpy(mean_BCHW), torch.from_numpy(np.stack(stds)) if stds else None)


class CaptionedShardSet(ShardSet):
    """Latents of images that have captions; also a :class:`~snapgen_pl.data.conditions.Captioned`."""

    def caption(self, index: int) -> str:
        """A sentence that says what the image shows."""
        arrays, row = self.at(index)
        return string_at(arrays["text"], arrays["end"], row)


class Latents(ImageSource):
    """Shards that ``predict`` with :class:`~snapgen_pl.modules.encode.Encode` wrote.

    Args:
        folder: where they lie.
        verify: whether to read every shard through once before training, so that damaged bytes are told by the file's
            name; it also brings them into the system's cache. Processes share the work.
    """

    def __init__(self, folder: str, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.verify = verify

    def open(self) -> OpenSource:
        """Reads the manifest and the shards' headers; the sets are of :class:`ShardSet`."""
        manifest = read_manifest(self.folder, FORMAT)
        first = read_shard(self.folder, manifest.plan, manifest.plan.shards[0])
        kind = CaptionedShardSet if "text" in first.tensors else ShardSet
        train, validation = (kind(self.folder, manifest, split) for split in SPLITS)
        classes = LatentFacts.of(self.folder, manifest.plan.facts).classes
        fingerprint = values_digest({"shards": manifest.digests})
        return OpenSource(classes, train, validation, fingerprint, manifest.plan.source)

    def check(self) -> None:
        """Compares every byte with what was written, if asked to."""
        if self.verify:
            check_share(self.folder, read_manifest(self.folder, FORMAT), "the latents")

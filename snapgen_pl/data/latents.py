"""Latents as a source of training samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.data.latent_shards import SPLITS, Manifest, Split, check_bytes, read_manifest, read_shard
from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.digest import values_digest

FloatArray: TypeAlias = NDArray[np.float16] | NDArray[np.float32]


class ShardSet:
    """The latents of one split; a :class:`~snapgen_pl.data.source.LatentSet`.

    Shards are mapped into memory, once a process, when they are first asked for.

    Args:
        folder: where the shards lie.
        manifest: what they are.
        split: which.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split) -> None:
        self.folder, self.plan = folder, manifest.plan
        self.image_size, self.flips = self.plan.image_size, self.plan.flips
        self.autoencoder = self.plan.autoencoder
        self.shards = [shard for shard in self.plan.shards if shard.split == split]
        self.labels = torch.cat([read_shard(folder, self.plan, shard).label for shard in self.shards])
        self._open: dict[int, tuple[FloatArray, FloatArray | None]] = {}

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def load(self, indices: Sequence[int], mirrored: Sequence[bool]) -> Posterior:
        """The posteriors of these images, or of their mirror images: (B, C, H, W) as stored."""
        places = [
            (self._content(index // self.plan.shard_size), index % self.plan.shard_size, int(flip))
            for index, flip in zip(indices, mirrored, strict=True)
        ]
        # NumPy's views of one latent cost a tenth of torch's.
        mean_BCHW = np.stack([mean[row, flip] for (mean, _), row, flip in places])
        stds = [std[row, flip] for (_, std), row, flip in places if std is not None]
        return Posterior(torch.from_numpy(mean_BCHW), torch.from_numpy(np.stack(stds)) if stds else None)

    def _content(self, shard: int) -> tuple[FloatArray, FloatArray | None]:
        if shard not in self._open:
            content = read_shard(self.folder, self.plan, self.shards[shard])
            self._open[shard] = content.mean.numpy(), None if content.std is None else content.std.numpy()
        return self._open[shard]


class Latents(ImageSource):
    """Shards that ``predict`` with :class:`~callbacks.latent_writer.LatentWriter` wrote.

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
        manifest = read_manifest(self.folder)
        train, validation = (ShardSet(self.folder, manifest, split) for split in SPLITS)
        return OpenSource(manifest.plan.classes, train, validation, values_digest({"shards": manifest.digests}))

    def check(self) -> None:
        """Compares every byte with what was written, if asked to."""
        if not self.verify:
            return
        manifest = read_manifest(self.folder)
        mine = manifest.plan.shards[_rank() :: _ranks()]
        check_bytes(self.folder, manifest, track(mine, f"checking the latents in {self.folder}", transient=True))


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

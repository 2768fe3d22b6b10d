"""The features of a set of images: in memory, or on disk, so that work can be divided and resumed."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.digest import values_digest
from snapgen_pl.metrics.image_sets import StoredImages
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.whole_files import whole_file

_BATCH = 64


class MemoryFeatures:
    """Features that fit into memory, 20 kB an image for the Inception's.

    Args:
        count: images in the set.
        chunks: of features by name.
    """

    def __init__(self, count: int, chunks: list[dict[str, Tensor]]) -> None:
        self.count, self._chunks = count, chunks

    def read(self, name: str) -> Iterator[Tensor]:
        """One kind of features, chunk by chunk."""
        return (chunk[name] for chunk in self._chunks)


def stored_features(
    images: StoredImages, count: int, extract: Callable[[Tensor], dict[str, Tensor]], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Takes the features of a stored set's first images, batch by batch on the CPU, and shows how far it is."""
    starts = range(0, count, _BATCH)
    batches = zip(starts, images.batches(_BATCH), strict=False)
    for start, image_BCHW in track(batches, f"features of {images.path.name}", total=len(starts)):
        features = extract(image_BCHW[: count - start].to(device))
        yield {name: tensor.float().cpu() for name, tensor in features.items()}


class FeatureStore:
    """Features on disk, in chunks that are each whole or absent.

    A :class:`~snapgen_pl.metrics.sample_metric.FeatureSet` once all are there. Chunks are the same whatever the number
    of processes, and so is what is drawn for one. Every process must see the folder.

    Args:
        folder: holds a folder for each identity.
        identity: all that the features depend on; features of another identity are not looked at.
        count: images in the set.
        chunk: images in a chunk; part of the identity.
    """

    def __init__(self, folder: Path, identity: Facts, count: int, chunk: int) -> None:
        self.identity: Facts = {**identity, "count": count, "chunk": chunk}
        self.folder = folder / values_digest(self.identity)[:16]
        self.count = count
        self._chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]

    def missing(self) -> list[range]:
        """The positions of each chunk that is absent."""
        return [positions for positions in self._chunks if not self._file(positions).exists()]

    def write(self, positions: range, features: Mapping[str, Tensor]) -> None:
        """Adds a chunk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self._file(positions)) as part:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in features.items()}, part)

    def read(self, name: str) -> Iterator[Tensor]:
        """One kind of features, chunk by chunk.

        Raises:
            ValueError: naming a chunk that is missing or damaged.
        """
        for positions in self._chunks:
            file = self._file(positions)
            try:
                with safe_open(file, framework="pt") as opened:
                    chunk: Tensor = opened.get_tensor(name)
            except (FileNotFoundError, SafetensorError) as error:
                raise ValueError(
                    f"{file}: missing or damaged ({error}); every process must see this folder. Delete the file where "
                    "it is damaged, and run the command again"
                ) from error
            yield chunk

    def remove(self) -> None:
        """Deletes the features."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, positions: range) -> Path:
        return self.folder / f"{positions.start:08d}.safetensors"

"""Images in folders, one folder a class."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.split import held_out

# Up to this many images, each is checked before training starts; beyond, a damaged one is found when it is loaded.
CHECKED_UP_FRONT = 20_000
DEFAULT_VALIDATION_FRACTION = 0.05
_VALIDATION_NAMES = ("val", "validation")
_SPLIT_NAMES = ("train", *_VALIDATION_NAMES, "test")


class Entry(NamedTuple):
    """An image file.

    Attributes:
        path: relative to the folder of classes, with forward slashes.
        label: its class.
        size: in bytes.
    """

    path: str
    label: int
    size: int


class FolderSet:
    """The images of one split; an :class:`~snapgen_pl.data.source.ImageSet`.

    Args:
        folder: the folder of classes.
        entries: the images, in order.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self.folder = folder
        self.labels: Tensor = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        # One array of bytes: a list of a million strings would be copied into every worker, page by page.
        self._paths = np.array([os.fsencode(entry.path) for entry in entries], dtype=np.bytes_)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(self._paths[index].item())

    def load(self, index: int) -> Image.Image:
        """The image: RGB, upright, transparency on white.

        Raises:
            ValueError: naming the file, where it cannot be decoded.
        """
        path = self.path(index)
        try:
            with Image.open(path) as image:
                return to_rgb(image)
        except Exception as error:  # Pillow's decoders raise what they like on damaged files
            raise _damaged(path, error) from error

    def check(self) -> None:
        """Opens every image and checks what its format lets one check without decoding it.

        Raises:
            ValueError: naming the first file that is damaged.
        """
        for index in track(range(len(self)), f"checking the images in {self.folder}", transient=True):
            path = self.path(index)
            try:
                with Image.open(path) as image:
                    image.verify()
            except Exception as error:  # as in load
                raise _damaged(path, error) from error


class ImageFolder(ImageSource):
    """Images in one folder a class: ``root/<class>/**/<image>``, or so under ``root/train`` and ``root/val``.

    A ``root/train`` that holds folders is the training set, and ``root/val`` or ``root/validation``, if there, the
    validation set; ``root/test`` is not read. Files whose extension Pillow does not know and names that begin with a
    dot are left out. Classes are numbered in the order of their names. Sets of up to 20,000 images are checked before
    training starts.

    Args:
        root: the folder.
        validation_fraction: share of the images held out by the hash of their path, in (0, 1); 0.05 if not given. Not
            to be given where a validation folder exists.
    """

    def __init__(self, root: str | os.PathLike[str], validation_fraction: float | None = None) -> None:
        if validation_fraction is not None and not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
        self.root = Path(root)
        self.validation_fraction = validation_fraction

    def open(self) -> OpenSource:
        """Lists the files; the sets are of :class:`FolderSet`."""
        train_folder, validation_folder = find_splits(self.root)
        classes = list_classes(train_folder)
        entries = list_images(train_folder, classes)
        if validation_folder is None:
            train, validation = self._split(train_folder, classes, entries)
            folders = FolderSet(train_folder, train), FolderSet(train_folder, validation)
        else:
            train, validation = entries, self._given(validation_folder, classes)
            folders = FolderSet(train_folder, train), FolderSet(validation_folder, validation)
        if len(train) + len(validation) <= CHECKED_UP_FRONT:
            for images in folders:
                images.check()
        return OpenSource(classes, *folders, fingerprint(classes, train, validation))

    def _given(self, folder: Path, classes: tuple[str, ...]) -> list[Entry]:
        if self.validation_fraction is not None:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}, but {folder} is the validation set; "
                "leave validation_fraction out, or move that folder away"
            )
        names = list_classes(folder)
        if unknown := sorted(set(names) - set(classes)):
            raise ValueError(f"{folder} has classes that the training set lacks: {', '.join(unknown)}")
        label = {name: index for index, name in enumerate(classes)}
        return [entry._replace(label=label[names[entry.label]]) for entry in list_images(folder, names)]

    def _split(self, folder: Path, classes: tuple[str, ...], entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
        fraction = DEFAULT_VALIDATION_FRACTION if self.validation_fraction is None else self.validation_fraction
        train = [entry for entry in entries if not held_out(entry.path, fraction)]
        validation = [entry for entry in entries if held_out(entry.path, fraction)]
        remedy = "change validation_fraction, add images, or make folders train and val"
        if not validation:
            raise ValueError(
                f"no image of the {len(entries)} in {folder} falls into the {fraction:g} held out; {remedy}"
            )
        trained = {entry.label for entry in train}
        if left := [name for label, name in enumerate(classes) if label not in trained]:
            raise ValueError(f"every image of {', '.join(left)} in {folder} is held out for validation; {remedy}")
        return train, validation


def find_splits(root: Path) -> tuple[Path, Path | None]:
    """The folders of the training classes and, where there is one, of the validation classes.

    Raises:
        ValueError: where ``root`` is missing or cannot be told to be either layout.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected one that holds a folder a class")
    names = _subfolders(root)
    validation = [root / name for name in _VALIDATION_NAMES if name in names]
    if "train" not in names or not _subfolders(root / "train"):
        # Without train/ they would become classes.
        if validation and "train" not in names:
            raise ValueError(f"{validation[0]} has no training set beside it; expected {root / 'train'}")
        return root, None
    if others := [name for name in names if name not in _SPLIT_NAMES]:
        raise ValueError(
            f"{root} holds train/ with folders in it and also {', '.join(others[:5])}; "
            "expected either class folders alone or train/ and val/"
        )
    if len(validation) > 1:
        raise ValueError(f"{root} holds both {' and '.join(path.name for path in validation)}; keep one")
    return root / "train", validation[0] if validation else None


def list_classes(folder: Path) -> tuple[str, ...]:
    """The names of the class folders, sorted."""
    names = tuple(_subfolders(folder))
    if not names:
        raise ValueError(f"{folder} holds no class folders; expected {folder}/<class>/<image>")
    return names


def list_images(folder: Path, classes: tuple[str, ...]) -> list[Entry]:
    """The images of all classes, by class and path.

    Raises:
        ValueError: naming a class that has none.
    """
    extensions = readable_extensions()
    entries = []
    for label, name in enumerate(classes):
        found = sorted(_files(folder / name, name, extensions))
        if not found:
            raise ValueError(
                f"{folder / name} holds no image; expected files such as .jpg, .png or .webp (or remove the folder)"
            )
        entries += [Entry(path, label, size) for path, size in found]
    return entries


def readable_extensions() -> frozenset[str]:
    """The extensions, in lower case, of the formats that Pillow can read."""
    return frozenset(
        extension for extension, format_name in Image.registered_extensions().items() if format_name in Image.OPEN
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes an image to RGB, turned upright by its EXIF orientation, transparency composited on white."""
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def fingerprint(classes: tuple[str, ...], train: list[Entry], validation: list[Entry]) -> str:
    """SHA-256 over the classes and every file's split, path and size (not its content)."""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    for split, entries in (("train", train), ("validation", validation)):
        for entry in entries:
            digest.update(f"\n{split}\0{entry.path}\0{entry.size}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as items:
        return sorted(item.name for item in items if item.is_dir() and not item.name.startswith("."))


def _files(folder: Path, name: str, extensions: frozenset[str]) -> Iterator[tuple[str, int]]:
    """(path, size) of the images under ``folder``, paths beginning with ``name``."""
    with os.scandir(folder) as items:
        for item in items:
            path = f"{name}/{item.name}"
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _files(folder / item.name, path, extensions)
            elif os.path.splitext(item.name)[1].lower() in extensions:  # noqa: PTH122  (a million times)
                yield path, item.stat().st_size


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read as an image ({type(error).__name__}: {error}); "
        "expected an intact image in a format that Pillow decodes: replace or remove the file"
    )

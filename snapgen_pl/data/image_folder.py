"""Images in folders, one folder a class."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.split import check_fraction, check_not_both, fingerprint, hold_out, labels_of
from snapgen_pl.data.stored_set import CHECKED_UP_FRONT, StoredSet, check_up_to, readable_extensions

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


class FolderSet(StoredSet):
    """The images of one split.

    Args:
        folder: the folder of classes.
        entries: the images, in order.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        super().__init__(folder, [entry.label for entry in entries])
        self.folder = folder
        # One array of bytes: a list of a million strings would be copied into every worker, page by page.
        self._paths = np.array([os.fsencode(entry.path) for entry in entries], dtype=np.bytes_)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(self._paths[index].item())

    def name(self, index: int) -> str:
        """Its file."""
        return str(self.path(index))

    def encoded(self, index: int) -> Path:
        """Its file."""
        return self.path(index)


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
        check_fraction(validation_fraction)
        self.root = Path(root)
        self.validation_fraction = validation_fraction

    def open(self) -> OpenSource:
        """Lists the files; the sets are of :class:`FolderSet`."""
        train_folder, validation_folder = find_splits(self.root)
        classes = list_classes(train_folder)
        entries = list_images(train_folder, {name: label for label, name in enumerate(classes)})
        check_not_both(self.validation_fraction, validation_folder, "move that folder away")
        if validation_folder is None:
            train, validation = hold_out(
                entries, classes, train_folder, self.validation_fraction, "make folders train and val"
            )
        else:
            known = labels_of(list_classes(validation_folder), classes, validation_folder)
            train, validation = entries, list_images(validation_folder, known)
        sets = FolderSet(train_folder, train), FolderSet(validation_folder or train_folder, validation)
        check_up_to(CHECKED_UP_FRONT, *sets)
        return OpenSource(classes, *sets, fingerprint(classes, train, validation))


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


def list_images(folder: Path, label_of: Mapping[str, int]) -> list[Entry]:
    """The images of the given classes, class by class, each by path.

    Args:
        folder: the folder of classes.
        label_of: the label of each class, by its name.

    Raises:
        ValueError: naming a class that has none.
    """
    extensions = readable_extensions()
    entries = []
    for name, label in label_of.items():
        found = sorted(images_under(folder / name, f"{name}/", extensions))
        if not found:
            raise ValueError(
                f"{folder / name} holds no image; expected files such as .jpg, .png or .webp (or remove the folder)"
            )
        entries += [Entry(path, label, size) for path, size in found]
    return entries


def images_under(folder: Path, prefix: str, extensions: frozenset[str]) -> Iterator[tuple[str, int]]:
    """(path, size) of the images under ``folder``, in no order; paths are relative to it, behind ``prefix``."""
    with os.scandir(folder) as items:
        for item in items:
            path = f"{prefix}{item.name}"
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from images_under(folder / item.name, f"{path}/", extensions)
            elif os.path.splitext(item.name)[1].lower() in extensions:  # noqa: PTH122  (a million times)
                yield path, item.stat().st_size


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as items:
        return sorted(item.name for item in items if item.is_dir() and not item.name.startswith("."))

"""Images in folders, each with its caption in a file beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from snapgen_pl.data.caption import parse_caption
from snapgen_pl.data.image_folder import Entry, FolderSet, find_splits, images_under
from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.split import check_fraction, check_not_both, fingerprint, hold_out
from snapgen_pl.data.stored_set import CHECKED_UP_FRONT, check_up_to, readable_extensions
from snapgen_pl.data.strings import join_strings, string_at
from snapgen_pl.digest import tensors_digest, values_digest

CLASSES = ("image",)


class CaptionedFolderSet(FolderSet):
    """The images of one split; also a :class:`~snapgen_pl.data.conditions.Captioned`.

    Args:
        folder: the folder of images.
        entries: the images, in order.
        captions: of each.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], captions: Sequence[str]) -> None:
        super().__init__(folder, entries)
        # Two arrays, for the reason that paths are one.
        self._captions = join_strings(captions)
        self._text, self._end = (tensor.numpy() for tensor in self._captions.values())

    def caption(self, index: int) -> str:
        """What the image's file of text says."""
        return string_at(self._text, self._end, index)

    def captions_digest(self) -> str:
        """SHA-256 over all captions."""
        return tensors_digest(self._captions)


class CaptionedFolder(ImageSource):
    """Images under a folder, at any depth, each with its caption in ``<name>.txt`` or ``<name>.json`` beside it.

    The caption is the whole text of a ``.txt``, or the value of ``caption_key`` in a ``.json`` object, its white space
    made single blanks. ``root/train`` and ``root/val`` are read as in
    :class:`~snapgen_pl.data.image_folder.ImageFolder`, and so are names and formats. All images are of one class.

    Args:
        root: the folder.
        caption_key: which entry of JSON files is the caption.
        validation_fraction: share of the images held out by the hash of their path, in (0, 1); 0.05 if not given. Not
            to be given where a validation folder exists.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        caption_key: str = "caption",
        validation_fraction: float | None = None,
    ) -> None:
        check_fraction(validation_fraction)
        self.root = Path(root)
        self.caption_key = caption_key
        self.validation_fraction = validation_fraction

    def open(self) -> OpenSource:
        """Lists the files and reads the captions; the sets are of :class:`CaptionedFolderSet`."""
        train_folder, validation_folder = find_splits(self.root)
        check_not_both(self.validation_fraction, validation_folder, "move that folder away")
        entries = list_entries(train_folder)
        if validation_folder is None:
            train, validation = hold_out(
                entries, CLASSES, train_folder, self.validation_fraction, "make folders train and val"
            )
        else:
            train, validation = entries, list_entries(validation_folder)
        sets = self._set(train_folder, train), self._set(validation_folder or train_folder, validation)
        check_up_to(CHECKED_UP_FRONT, *sets)
        identity = {
            "images": fingerprint(CLASSES, train, validation),
            "captions": [captioned.captions_digest() for captioned in sets],
        }
        return OpenSource(CLASSES, *sets, values_digest(identity))

    def _set(self, folder: Path, entries: Sequence[Entry]) -> CaptionedFolderSet:
        shown = track(entries, f"reading the captions in {folder}", transient=True)
        captions = [read_caption(folder / entry.path, self.caption_key) for entry in shown]
        return CaptionedFolderSet(folder, entries, captions)


def list_entries(folder: Path) -> list[Entry]:
    """The images under a folder, by path.

    Raises:
        ValueError: where there are none.
    """
    found = sorted(images_under(folder, "", readable_extensions()))
    if not found:
        raise ValueError(f"{folder} holds no image; expected files such as .jpg, .png or .webp, each with a .txt")
    return [Entry(path, 0, size) for path, size in found]


def read_caption(image: Path, key: str) -> str:
    """The caption of an image, from the file beside it.

    Args:
        image: the image's file.
        key: which entry of a JSON file is the caption.

    Raises:
        ValueError: naming the file that is missing, not UTF-8 or JSON, or without a caption.
    """
    text, record = image.with_suffix(".txt"), image.with_suffix(".json")
    if text.is_file() and record.is_file():
        raise ValueError(f"{image} has both {text.name} and {record.name}; remove the one that is not its caption")
    file, json_key = (record, key) if record.is_file() else (text, None)
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{image} has no caption; write it to {text.name} or {record.name} beside it") from error
    try:
        return parse_caption(content, json_key)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error

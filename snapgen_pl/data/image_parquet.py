"""Images in parquet files, as Hugging Face packs them."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.split import check_fraction, check_not_both, fingerprint, hold_out, labels_of
from snapgen_pl.data.stored_set import CHECKED_UP_FRONT, StoredSet, check_up_to
from snapgen_pl.extra import require

_SHARD = re.compile(r"-(\d+)-of-(\d+)")


class Listing(NamedTuple):
    """What one file holds besides its images.

    Attributes:
        path: the file.
        class_names: the name of each label, in order; None where the file has no names.
        labels: the label of each row.
        group_rows: the number of rows in each row group.
        group_sizes: the encoded size of the images of each row group, in bytes.
    """

    path: Path
    class_names: tuple[str, ...] | None
    labels: list[int]
    group_rows: list[int]
    group_sizes: list[int]


class Row(NamedTuple):
    """An image in a parquet file.

    Attributes:
        path: its class, its file's name and its row there, with slashes between.
        label: its class.
        size: of the images in its row group, in bytes: to know its own, one would have to read them.
        file: which of the files.
        group: which of the file's row groups.
        row: which of the row group's rows.
    """

    path: str
    label: int
    size: int
    file: int
    group: int
    row: int


class ParquetSet(StoredSet):
    """The images of one split. Reads whole row groups and keeps the last one: fast in order, slow in a random one.

    Args:
        where: the folder of files.
        files: the files.
        rows: the images, in order.
    """

    def __init__(self, where: Path, files: Sequence[Path], rows: Sequence[Row]) -> None:
        super().__init__(where, [row.label for row in rows])
        self.files = files
        self._places = np.array([(row.file, row.group, row.row) for row in rows], dtype=np.int32).reshape(-1, 3)
        # No file stays open, so a forked worker may go on with its parent's row group.
        self._group: tuple[int, int] | None = None
        self._images: Any = None

    def name(self, index: int) -> str:
        """Its row and file."""
        file, group, row = self._places[index].tolist()
        return f"row {row} of row group {group} in {self.files[file]}"

    def encoded(self, index: int) -> BytesIO:
        """Its bytes."""
        file, group, row = self._places[index].tolist()
        if self._group != (file, group):
            # Without threads of Arrow's own, which a forked worker would not inherit.
            with _parquet().ParquetFile(self.files[file], pre_buffer=False) as opened:
                self._images = opened.read_row_group(group, columns=["image.bytes"], use_threads=False)["image"]
            self._group = (file, group)
        return BytesIO(self._images[row]["bytes"].as_py())


class ImageParquet(ImageSource):
    """Images in the parquet files of a Hugging Face data set; needs the extra ``parquet``.

    ``root/train-*.parquet`` are the training set and ``root/validation-*.parquet``, if there, the validation set, with
    columns ``image`` (a struct with ``bytes``) and ``label`` (an integer). Classes are the labels that occur in
    training, in their order, named as the files' Hugging Face features name them, else by number; of a name that
    several labels have, each is followed by its number. Sets of up to 20,000 images are checked before training starts.

    An image is read together with its row group, often a hundred images: reading in order is fast, but training on them
    in random order reads a hundred times the data.

    Args:
        root: the folder of parquet files.
        validation_fraction: share of the images held out by the hash of their class, file's name and row, in (0, 1);
            0.05 if not given. Not to be given where validation files exist.
    """

    def __init__(self, root: str | os.PathLike[str], validation_fraction: float | None = None) -> None:
        check_fraction(validation_fraction)
        self.root = Path(root)
        self.validation_fraction = validation_fraction

    def open(self) -> OpenSource:
        """Reads the labels; the sets are of :class:`ParquetSet`.

        Raises:
            ValueError: also where the package of the ``parquet`` extra is not installed.
        """
        files = find_files(self.root, "train")
        if not files:
            raise ValueError(f"{self.root} holds no training set; expected files such as train-00000-of-00001.parquet")
        validation_files = find_files(self.root, "validation")
        given = self.root / "validation-*.parquet" if validation_files else None
        check_not_both(self.validation_fraction, given, "move those files away")
        listings = read_listings(self.root, files)
        names = name_labels(listings)
        classes = tuple(names[label] for label in sorted({label for listing in listings for label in listing.labels}))
        rows = list_rows(listings, names, {name: label for label, name in enumerate(classes)})
        if given is None:
            train, validation = hold_out(
                rows,
                classes,
                self.root,
                self.validation_fraction,
                "add files such as validation-00000-of-00001.parquet",
            )
            validation_files = files
        else:
            listings = read_listings(self.root, validation_files)
            names = name_labels(listings)
            known = labels_of({names[label] for listing in listings for label in listing.labels}, classes, given)
            train, validation = rows, list_rows(listings, names, known)
        sets = ParquetSet(self.root, files, train), ParquetSet(self.root, validation_files, validation)
        check_up_to(CHECKED_UP_FRONT, *sets)
        return OpenSource(classes, *sets, fingerprint(classes, train, validation))


def find_files(root: Path, split: str) -> list[Path]:
    """The files of a split, by name; none where it has none.

    Raises:
        ValueError: where ``root`` is no folder, or one of files that are numbered is missing.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected one that holds files such as train-00000-of-00001.parquet")
    files = sorted(root.glob(f"{split}-*.parquet"))
    numbers = [match.groups() for file in files if (match := _SHARD.search(file.name))]
    for count in sorted({count for _, count in numbers}):
        found = [int(number) for number, other in numbers if other == count]
        if wrong := [number for number in range(int(count)) if found.count(number) != 1]:
            raise ValueError(
                f"{root} holds {found.count(wrong[0])} files named {split}-{wrong[0]:05d}-of-{count}*.parquet; "
                "expected one: download it, or move away what belongs to another version"
            )
    return files


def read_listings(root: Path, files: Sequence[Path]) -> list[Listing]:
    """What the files hold besides images.

    Args:
        root: their folder, for the progress.
        files: the files of one split.

    Raises:
        ValueError: naming a file that is damaged, lacks a column or a label, or names classes otherwise than the first;
            where there is no image.
    """
    listings: list[Listing] = []
    for file in track(files, f"listing the images in {root}", transient=True):
        listings.append(_read_listing(file))
        if listings[-1].class_names != listings[0].class_names:
            raise ValueError(f"{file} and {files[0]} name classes differently; expected files of one data set")
    if not any(listing.labels for listing in listings):
        raise ValueError(f"{files[0]} holds no image, nor do the other files of its split; expected one row an image")
    return listings


def name_labels(listings: Sequence[Listing]) -> dict[int, str]:
    """A name for each label that occurs, no two alike.

    Raises:
        ValueError: naming a file with a label that has no class.
    """
    found_in = {label: listing.path for listing in listings for label in listing.labels}
    names = listings[0].class_names
    count = max(found_in) + 1 if names is None else len(names)
    if wrong := [label for label in found_in if not 0 <= label < count]:
        raise ValueError(f"{found_in[wrong[0]]} has the label {wrong[0]}, which is no class; remove those rows")
    if names is None:
        return {label: str(label) for label in found_in}
    times = Counter(names)
    return {label: names[label] if times[names[label]] == 1 else f"{names[label]} ({label})" for label in found_in}


def list_rows(listings: Sequence[Listing], names: Mapping[int, str], label_of: Mapping[str, int]) -> list[Row]:
    """The images, file by file, each by row.

    Args:
        listings: the files.
        names: the class of each label in the files.
        label_of: the label that each class is to have.
    """
    rows = []
    for file, listing in enumerate(listings):
        number = 0
        for group, (count, size) in enumerate(zip(listing.group_rows, listing.group_sizes, strict=True)):
            for row in range(count):
                name = names[listing.labels[number]]
                rows.append(Row(f"{name}/{listing.path.name}/{number}", label_of[name], size, file, group, row))
                number += 1
    return rows


def _parquet() -> ModuleType:
    return require("pyarrow.parquet", "parquet")


def _read_listing(file: Path) -> Listing:
    parquet = _parquet()
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            columns = [opened.schema.column(i).path for i in range(len(opened.schema))]
            table = opened.read(columns=["label"], use_threads=False)
            groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
            class_names = _class_names(table.schema.metadata or {})
    except Exception as error:  # Arrow raises its own, OSError, and what its decoders do on damaged files
        raise ValueError(
            f"{file} cannot be read as parquet ({type(error).__name__}: {error}); download it again"
        ) from error
    if not {"image.bytes", "label"} <= set(columns):
        raise ValueError(f"{file} has the columns {', '.join(columns)}; expected image.bytes and label among them")
    labels = table["label"].to_pylist()
    if wrong := [label for label in labels if not isinstance(label, int)]:
        raise ValueError(f"{file} has the label {wrong[0]!r}; expected integers")
    image = columns.index("image.bytes")
    sizes = [group.column(image).total_compressed_size for group in groups]
    return Listing(file, class_names, labels, [group.num_rows for group in groups], sizes)


def _class_names(metadata: Mapping[bytes, bytes]) -> tuple[str, ...] | None:
    info = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {})
    names = info.get("features", {}).get("label", {}).get("names")
    return None if names is None else tuple(names)

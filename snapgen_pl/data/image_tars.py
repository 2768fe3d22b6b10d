"""Images in uncompressed tars, read where they lie."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.split import check_fraction, check_not_both, fingerprint, hold_out, labels_of
from snapgen_pl.data.stored_set import CHECKED_UP_FRONT, StoredSet, check_up_to, readable_extensions
from snapgen_pl.data.tars import TAR, Tar, find_tars, headers

_WORDNET_ID = re.compile(r"n\d{8}")


class Span(NamedTuple):
    """Where an image lies.

    Attributes:
        tar: which of the tars, the outermost where they are nested.
        offset: of its first byte there.
        size: in bytes.
    """

    tar: int
    offset: int
    size: int


class Member(NamedTuple):
    """An image in a tar.

    Attributes:
        path: its class and its name, as its path would be in a folder of classes.
        label: its class.
        span: where it lies.
    """

    path: str
    label: int
    span: Span

    @property
    def size(self) -> int:
        """In bytes."""
        return self.span.size


class TarSet(StoredSet):
    """The images of one split.

    Args:
        where: the tar, or the folder of tars.
        tars: the tars.
        members: the images, in order.
    """

    def __init__(self, where: Path, tars: Sequence[Path], members: Sequence[Member]) -> None:
        super().__init__(where, [member.label for member in members])
        self.tars = tars
        # Arrays, as in FolderSet.
        self._paths = np.array([os.fsencode(member.path) for member in members], dtype=np.bytes_)
        self._spans = np.array([member.span for member in members], dtype=np.int64).reshape(-1, 3)

    def name(self, index: int) -> str:
        """Its class and name, and its tar."""
        return f"{os.fsdecode(self._paths[index].item())} in {self.tars[self._spans[index, 0]]}"

    def encoded(self, index: int) -> BytesIO:
        """Its bytes."""
        span = Span(*self._spans[index].tolist())
        # Opened for each image: a thousand class tars kept open would use up the files that a process may have.
        with self.tars[span.tar].open("rb", buffering=0) as file:
            file.seek(span.offset)
            content = file.read(span.size)
        if len(content) != span.size:
            raise EOFError(f"the tar ends after {len(content)} of its {span.size} bytes")
        return BytesIO(content)


class ImageTars(ImageSource):
    """Images in uncompressed tars, such as ImageNet's own, without unpacking them.

    The class of an image is the folder that holds it in its tar; where a tar has no folders, the tar's name without
    extension. A tar may hold tars: ``ILSVRC2012_img_train.tar`` is read as it is. Classes are numbered in the order of
    their names and images in that of theirs, so the same files give the same data as in
    :class:`~snapgen_pl.data.image_folder.ImageFolder`, split and fingerprint included. As there, files that Pillow does
    not know and names that begin with a dot are left out, and sets of up to 20,000 images are checked up front.

    Args:
        train: a tar, or a folder of tars.
        validation: likewise, to validate on; its classes are some of the training set's.
        validation_fraction: share of the images held out by the hash of their class and name, in (0, 1); 0.05 if not
            given. Not to be given together with ``validation``.
    """

    def __init__(
        self,
        train: str | os.PathLike[str],
        validation: str | os.PathLike[str] | None = None,
        validation_fraction: float | None = None,
    ) -> None:
        self.train = Path(train)
        self.validation = None if validation is None else Path(validation)
        self.validation_fraction = validation_fraction
        check_fraction(validation_fraction)
        check_not_both(validation_fraction, self.validation, "leave validation out")

    def open(self) -> OpenSource:
        """Reads the tars' headers; the sets are of :class:`TarSet`."""
        tars = find_tars(self.train)
        index = index_tars(self.train, tars)
        classes = tuple(sorted(index))
        members = list_members(index, {name: label for label, name in enumerate(classes)})
        if self.validation is None:
            train, validation = hold_out(
                members, classes, self.train, self.validation_fraction, "give tars to validate on as validation"
            )
            sets = TarSet(self.train, tars, train), TarSet(self.train, tars, validation)
        else:
            validation_tars = find_tars(self.validation)
            index = index_tars(self.validation, validation_tars)
            train, validation = members, list_members(index, labels_of(sorted(index), classes, self.validation))
            sets = TarSet(self.train, tars, train), TarSet(self.validation, validation_tars, validation)
        check_up_to(CHECKED_UP_FRONT, *sets)
        return OpenSource(classes, *sets, fingerprint(classes, train, validation))


def index_tars(where: Path, tars: Sequence[Path]) -> dict[str, dict[str, Span]]:
    """Where each image lies, by its class and its name.

    Args:
        where: what holds the tars, for the progress.
        tars: the tars.

    Raises:
        ValueError: naming a tar that is compressed, damaged, or holds no image, two sorts of folders, or links, or an
            image that occurs twice.
    """
    index: dict[str, dict[str, Span]] = {}
    extensions = readable_extensions()
    ends = list(accumulate(tar.stat().st_size for tar in tars))
    with Progress(transient=True) as progress:
        task = progress.add_task(f"listing the images in {where}", total=ends[-1])
        for number, (tar, begin, end) in enumerate(zip(tars, [0, *ends], ends, strict=False)):
            with tar.open("rb") as file:
                for name, image, offset, size in _images(Tar(file, str(tar), 0, end - begin), extensions):
                    known = index.setdefault(name, {})
                    if image in known:
                        raise ValueError(f"{name}/{image} is in {tars[known[image].tar]} and again in {tar}; keep one")
                    known[image] = Span(number, offset, size)
                    progress.update(task, completed=begin + offset)
    return index


def list_members(index: Mapping[str, Mapping[str, Span]], label_of: Mapping[str, int]) -> list[Member]:
    """The images, class by class, each by name.

    Args:
        index: where each lies, by its class and its name.
        label_of: the label of each class, in the order to list them.
    """
    return [
        Member(f"{name}/{image}", label, span)
        for name, label in label_of.items()
        for image, span in sorted(index[name].items())
    ]


def _images(tar: Tar, extensions: frozenset[str]) -> Iterator[tuple[str, str, int, int]]:
    """(class, name, offset in the file, size) of each image, those of tars within the tar included."""
    layout, first = "", ""
    for header in headers(tar):
        *folders, name = [part for part in header.name.split("/") if part not in ("", ".")] or [""]
        inner = TAR.search(name) is not None
        hidden = any(part.startswith(".") for part in (*folders, name))
        if header.isdir() or hidden or not (inner or os.path.splitext(name)[1].lower() in extensions):  # noqa: PTH122
            continue
        if not header.isreg() or header.issparse():
            raise ValueError(
                f"{header.name} in {tar.name} is a link or sparse; "
                "expected plain files: pack them with tar --dereference --hard-dereference"
            )
        own_layout = "<tar>" if inner else "/".join([*folders[:-1], "<class>", "<image>"]) if folders else "<image>"
        if layout not in ("", own_layout):
            raise ValueError(
                f"{tar.name} holds {first}, that is {layout}, and also {header.name}, that is {own_layout}; "
                "expected class folders side by side, images without folders, or tars: pack one of the two alone"
            )
        layout, first = own_layout, first or header.name
        if inner:
            start, end = header.offset_data, header.offset_data + header.size
            yield from _images(Tar(tar.file, f"{tar.name}/{header.name}", start, end), extensions)
        else:
            if not folders and name.startswith("ILSVRC2012_val_") and not _WORDNET_ID.fullmatch(tar.class_name):
                raise ValueError(
                    f"{tar.name} holds ImageNet's validation images, which carry no class; "
                    "give them in class folders or one tar a class, or leave validation out to hold out training images"
                )
            yield folders[-1] if folders else tar.class_name, name, header.offset_data, header.size
    if not layout:
        raise ValueError(f"{tar.name} holds no image; expected files such as .jpg, .png or .webp (or remove the tar)")

"""Uncompressed tars, read header by header and held against their own end."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_LONGEST = 1 << 20  # bytes that a header is read of at once: names, and what pax says
_UNPACKERS = {b"\x1f\x8b\x08": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class Tar(NamedTuple):
    """A tar in a file: all of it, or a member.

    Attributes:
        file: can seek; forwards alone, if not for a block.
        name: what to call it.
        start: of its first byte in the file.
        end: behind its last.
    """

    file: BinaryIO
    name: str
    start: int
    end: int

    @property
    def class_name(self) -> str:
        """Its name without folders and extension."""
        return TAR.sub("", self.name.rsplit("/", 1)[-1])


def find_tars(path: Path) -> list[Path]:
    """The tar itself, or the tars of a folder by name.

    Raises:
        ValueError: where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; expected a .tar, or a folder of them")
    tars = sorted(file for file in path.iterdir() if TAR.search(file.name) and not file.name.startswith("."))
    if not tars:
        raise ValueError(f"{path} holds no .tar; expected a folder of tars")
    return tars


def headers(tar: Tar) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, its file left wherever the last one ends.

    Raises:
        ValueError: where it is compressed, or cannot be read to its end.
    """
    tar.file.seek(tar.start)
    magic = tar.file.read(tarfile.BLOCKSIZE)
    for prefix, unpacker in _UNPACKERS.items():
        if magic.startswith(prefix):
            raise ValueError(
                f"{tar.name} is compressed, so that images cannot be read where they lie; unpack it: {unpacker}"
            )
    tar.file.seek(tar.start)
    try:
        # The file is the caller's to close, and typeshed asks for what writing needs.
        archive = tarfile.open(fileobj=_Bounded(tar), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        while (header := archive.next()) is not None:
            archive.members.clear()  # a million of them
            if header.size < 0 or archive.offset <= header.offset:  # the latter for ever
                raise tarfile.ReadError(f"{header.name!r} ends before it begins")
            if header.isreg() and header.offset_data + header.size > tar.end:
                raise tarfile.ReadError(f"{header.name} goes on past the end")
            yield header
        # Where a header is damaged, tarfile takes the archive to end before it.
        tar.file.seek(archive.offset)
        if archive.offset >= tar.end or any(tar.file.read(tarfile.BLOCKSIZE).ljust(tarfile.BLOCKSIZE, b"?")):
            raise tarfile.ReadError(f"expected a header or its end at byte {archive.offset}")
    # tarfile trusts what headers say of themselves.
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f"{tar.name} is no intact tar ({error}); download or pack it again") from error


class _Bounded:
    """A tar's file for tarfile, which asks for as many bytes as headers claim, and goes wherever they say."""

    def __init__(self, tar: Tar) -> None:
        self.file, self.end = tar.file, tar.end
        self.tell = tar.file.tell

    def read(self, size: int) -> bytes:
        return self.file.read(max(0, min(size, self.end - self.tell(), _LONGEST)))

    def seek(self, place: int) -> int:
        return self.file.seek(min(place, self.end))

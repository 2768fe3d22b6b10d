"""Tars of captioned images, and of classes of images."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from snapgen_pl.data.faults import Fault
from snapgen_pl.data.image_tars import TarSet, index_tars, list_members
from snapgen_pl.data.tar_samples import read_packed
from snapgen_pl.data.unpacker import Unpacker
from tests.fuzz.target import Target, answer

SIDE = 4
TAR, HEADERS = "cats.tar", "headers"
UNPACKER = Unpacker(SIDE, min_size=2)


def image(extension: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(file, {"jpg": "JPEG"}.get(extension, extension))
    return file.getvalue()


def pack(file: Path | io.BytesIO, members: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=file if isinstance(file, io.BytesIO) else file.open("wb"), mode="w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def write_samples(folder: Path) -> None:
    caption = b'{"text": "a cat"}'
    members = {f"{index}.{name}": image(name) for index, name in enumerate(("png", "jpg", "webp"))}
    captions = {f"{index}.{kind}": caption for index in range(3) for kind in ("txt", "json")}
    pack(folder / TAR, dict(sorted((members | captions).items())))


def read_samples(folder: Path) -> None:
    """Nothing is refused here, but faults are told; at least one thing is."""
    for key in (None, "text"):
        try:
            found = list(read_packed(str(folder / TAR), key))
        except ValueError as error:
            raise AssertionError from error
        assert found
        for sample in found:
            pixels = sample if isinstance(sample, Fault) else UNPACKER.pixels(sample)
            assert pixels is None or isinstance(pixels, Fault) or pixels.shape == (3, SIDE, SIDE)


def write_classes(folder: Path) -> None:
    """A tar within the tar, as ImageNet has."""
    inner = io.BytesIO()
    pack(inner, {"one.png": image("png"), "two.JPEG": image("jpg")})
    pack(folder / TAR, {"cat.tar": inner.getvalue(), "dog.tar": inner.getvalue()})


def read_classes(folder: Path) -> None:
    tars = [folder / TAR]
    index = index_tars(folder, tars)
    images = TarSet(folder, tars, list_members(index, {name: label for label, name in enumerate(sorted(index))}))
    assert len(images)
    for place in range(len(images)):
        assert images.load(place).mode == "RGB"


def mended(content: bytes) -> bytes:
    """A tar whose headers' checksums are right, as a stranger would write them."""
    blocks = [content[first : first + tarfile.BLOCKSIZE] for first in range(0, len(content), tarfile.BLOCKSIZE)]
    for place, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == tarfile.BLOCKSIZE:
            checksum, _ = tarfile.calc_chksums(block)  # type: ignore[attr-defined]  # typeshed lacks it
            blocks[place] = block[:148] + b"%06o\0 " % checksum + block[156:]
    return b"".join(blocks)


def write_headers(folder: Path) -> None:
    """Members small enough that most of the file are headers, of every kind."""
    with tarfile.open(folder / HEADERS, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in {
            "a.png": tarfile.REGTYPE,
            "l" * 120 + ".txt": tarfile.REGTYPE,
            "b.png": tarfile.SYMTYPE,
        }.items():
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "a.png"
            archive.addfile(header)
        header = tarfile.TarInfo("c.txt")
        header.pax_headers = {"comment": "a", "path": "é.txt", "GNU.sparse.size": "3"}
        archive.fileobj.write(header.tobuf(tarfile.PAX_FORMAT))


def read_headers(folder: Path) -> None:
    (folder / TAR).unlink(missing_ok=True)
    (folder / TAR).write_bytes(mended((folder / HEADERS).read_bytes()))
    read_samples(folder)
    answer(lambda: read_classes(folder))


TARGETS = {
    "tar_samples": Target(write_samples, TAR, read_samples),
    "tar_headers": Target(write_headers, HEADERS, read_headers),
    "tar_classes": Target(write_classes, TAR, read_classes),
}

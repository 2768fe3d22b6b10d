"""The captioned images of one shard, in order, and what is wrong with it."""

import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import groupby
from tarfile import TarInfo
from typing import NamedTuple, TypeAlias

from snapgen_pl.data.caption import parse_caption
from snapgen_pl.data.faults import Fault
from snapgen_pl.data.tar_shards import open_shard, webdataset
from snapgen_pl.data.tars import Tar, headers

IMAGES = ("jpg", "jpeg", "png", "webp")
_META = re.compile(r"__[^/]*__($|/)")  # of webdataset's own
_EVERY = range(sys.maxsize)
_LARGEST = 1 << 28  # bytes of a member: no image on the web is larger, but a header may say so


class Packed(NamedTuple):
    """A captioned image as a shard holds it.

    Attributes:
        shard: the shard's name.
        key: its own there.
        image: encoded.
        caption: a sentence.
    """

    shard: str
    key: str
    image: bytes
    caption: str


PackedOrFault: TypeAlias = Packed | Fault


def read_packed(shard: str, caption_key: str | None, wanted: Container[int] = _EVERY) -> Iterator[PackedOrFault]:
    """The samples of a shard, each whole or at fault; a shard without any is at fault itself. Nothing is written.

    A sample is what members side by side have in common before the first dot of their names, as webdataset has it:
    ``key.jpg`` (or ``.jpeg``, ``.png``, ``.webp``) and ``key.txt`` (or ``.json``). Other members of it are left out;
    so are folders, and names that begin with a dot or are webdataset's own (``__index__``).

    Args:
        shard: its name.
        caption_key: which entry of ``.json`` members is the caption; None where captions are ``.txt`` members.
        wanted: numbers of samples, from 0; of others, headers alone are read.
    """
    return (sample for sample in _samples(shard, caption_key, wanted) if sample is not None)


def _samples(shard: str, caption_key: str | None, wanted: Container[int]) -> Iterator[PackedOrFault | None]:
    """With None for samples that are not wanted."""
    index = -1
    seen: set[str] = set()
    split: Callable[[str], tuple[str | None, str | None]] = webdataset().tariterators.base_plus_ext

    def key_of(member: TarInfo | Fault) -> str:
        # A name without an extension is a sample by itself.
        return "" if isinstance(member, Fault) else split(member.name)[0] or member.name

    try:
        with open_shard(shard) as tar:
            for index, (key, members) in enumerate(groupby(_members(tar), key_of)):
                if index not in wanted:
                    yield None
                elif key in seen:
                    yield Fault(shard, key, "occurs twice in its shard, in different places")
                else:
                    yield _sample(tar, key, members, caption_key)
                seen.add(key)
    except (OSError, EOFError) as error:
        index = 0
        yield _broken(shard, error)
    if index < 0:
        yield Fault(shard, "", "holds no sample")


def _members(tar: Tar) -> Iterator[TarInfo | Fault]:
    """What may belong to samples; at the end, if so, what is wrong with the shard."""
    try:
        for header in headers(tar):
            parts = header.name.split("/")
            hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
            if not (hidden or _META.match(header.name) or (header.isdir() and not _leads_out(header))):
                yield header
    except ValueError as error:
        yield _broken(tar.name, error)


def _sample(tar: Tar, key: str, members: Iterable[TarInfo | Fault], caption_key: str | None) -> PackedOrFault:
    """One sample: its members are read, as far as they are needed."""
    text = "txt" if caption_key is None else "json"
    contents: dict[str, bytes] = {}
    names: set[str] = set()
    for member in members:
        if isinstance(member, Fault):
            return member
        if reason := _refusal(member, names):
            return Fault(tar.name, member.name, reason)
        names.add(member.name)
        extension = member.name.removeprefix(key).removeprefix(".").lower()
        if extension in (*IMAGES, text):
            contents[extension] = _content(tar, member)
    images = [extension for extension in contents if extension in IMAGES]
    if len(images) != 1:
        found = f"has both .{images[0]} and .{images[1]}" if images else f"has no image (.{', .'.join(IMAGES)})"
        return Fault(tar.name, key, found)
    if text not in contents:
        return Fault(tar.name, key, f"has no .{text} beside its image")
    try:
        return Packed(tar.name, key, contents[images[0]], parse_caption(contents[text], caption_key))
    except ValueError as error:
        return Fault(tar.name, f"{key}.{text}", str(error))


def _broken(shard: str, error: Exception) -> Fault:
    said = str(error)
    named = said.startswith(f"{shard} ")
    return Fault(shard, "", said[len(shard) + 1 :] if named else f"cannot be read ({type(error).__name__}: {said})")


def _content(tar: Tar, member: TarInfo) -> bytes:
    tar.file.seek(member.offset_data)
    content = tar.file.read(member.size)
    if len(content) != member.size:
        raise EOFError(f"it ends in the middle of {member.name!r}")
    return content


def _refusal(member: TarInfo, names: set[str]) -> str:
    """Why a member is not to be read; empty if it is."""
    if _leads_out(member):
        return "leads out of its shard"
    if not member.isreg() or member.issparse():
        return "is a link, a device or sparse, and no plain file"
    if member.size > _LARGEST:
        return f"has {member.size} bytes, more than the {_LARGEST} of the largest that is read"
    return "occurs twice in its shard" if member.name in names else ""


def _leads_out(member: TarInfo) -> bool:
    return member.name.startswith("/") or ".." in member.name.split("/")

"""Shards of embedded emoji, as webdataset writes them, and a web server for them."""

import io
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import webdataset

from snapgen_pl.data.buckets import Size
from snapgen_pl.data.emoji import Emoji, EmojiSet


@cache
def emoji() -> EmojiSet:
    images = Emoji().open().train
    assert isinstance(images, EmojiSet)
    return images


def encoded(index: int, extension: str = "png", side: int = 64, height: int | None = None) -> bytes:
    file = io.BytesIO()
    format_name = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension]
    emoji().load(index).resize((side, side if height is None else height)).save(file, format_name)
    return file.getvalue()


def sample(index: int, extension: str = "png", side: int = 64, height: int | None = None) -> dict[str, bytes | str]:
    content = encoded(index, extension, side, height)
    return {"__key__": f"{index:06d}", extension: content, "txt": emoji().caption(index)}


def shape(index: int) -> Size:
    """Of the three of :mod:`tests.bucket_run`: of ten images in a row six are square, three tall and one wide."""
    height, width = [(20, 18), (50, 16), (10, 30)][[0, 1, 0, 0, 2, 0, 1, 0, 1, 0][index % 10]]
    return Size(height, width)


def write_shards(
    folder: Path, sizes: Mapping[str, int] | list[int], first: int = 0, side: int = 64, shaped: bool = False
) -> list[str]:
    """One shard a size, of the images from ``first`` on, squares or of many shapes; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    named = sizes if isinstance(sizes, Mapping) else {f"{number:03d}.tar": size for number, size in enumerate(sizes)}
    for name, size in named.items():
        with webdataset.TarWriter(str(folder / name)) as writer:
            for index in range(first, first + size):
                height, width = shape(index) if shaped else (side, side)
                writer.write(sample(index, side=width, height=height))
        first += size
    return [str(folder / name) for name in named]


class Server(ThreadingHTTPServer):
    """Serves files, and breaks off as often as it is told to.

    Attributes:
        drops: how many further answers end after half of their bytes.
        wall: no answer reaches beyond this byte.
        ranges: whether a part of a file can be asked for.
        asked: the first byte that each request asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.drops, self.wall, self.ranges, self.asked = folder, 0, 1 << 30, True, list[int]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        file = self.server.folder / self.path.split("?")[0].lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        asked = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append(asked)
        start = asked if self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = min(len(content), self.server.wall)
        if self.server.drops:
            self.server.drops -= 1
            end = start + (end - start) // 2
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def undecodable(path: Path, samples: int) -> None:
    """A shard of images that are none."""
    write_files(path, [{"png": b"none", "txt": b"a cat"}] * samples)


def write_files(path: Path, samples: Iterable[Mapping[str, bytes]]) -> str:
    """A shard of samples' files, by extension, whatever is in them; returns its name."""
    members = [
        (f"{number:06d}.{extension}", content)
        for number, files in enumerate(samples)
        for extension, content in files.items()
    ]
    return str(packed(path, members))


def packed(shard: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """A tar of just these members."""
    with tarfile.open(shard, "w") as archive:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return shard

"""The names of shards, on disk or on web servers, and how they are opened."""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from snapgen_pl.data.remote_file import RemoteFile
from snapgen_pl.data.tars import Tar, find_tars
from snapgen_pl.extra import require

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # of two letters or more: one is a drive
_WEB = re.compile(r"https?://", re.IGNORECASE)
_BUFFER = 1 << 18


def webdataset() -> ModuleType:
    """The package, whose conventions shards follow.

    Raises:
        ValueError: where it is not installed.
    """
    return require("webdataset", "tars")


def list_shards(names: Sequence[str]) -> tuple[str, ...]:
    """The shards that names mean, in order.

    Args:
        names: tars, folders of tars, or http(s) addresses of tars; braces are expanded, as in ``{00000..00099}.tar``.

    Raises:
        ValueError: for a name that would run a command or is of another kind, and for a shard that is named twice.
    """
    shards: list[str] = []
    for name in names:
        _check(name)
        try:
            expanded = webdataset().shardlists.expand_urls(name)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"{name} cannot be expanded ({error})") from error
        for shard in expanded:
            _check(shard)
            shards += [str(tar) for tar in find_tars(Path(shard))] if Path(shard).is_dir() else [shard]
    if not shards:
        raise ValueError("no shard is named; give tars, folders of tars, or http(s) addresses of tars")
    if twice := [shard for shard, times in Counter(shards).items() if times > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each shard once")
    return tuple(shards)


def is_remote(shard: str) -> bool:
    """Whether a shard lies on a web server."""
    return _WEB.match(shard) is not None


def identity(shard: str) -> tuple[str, int | None]:
    """What tells a shard from others: its name without folders and queries, and its bytes where it lies on disk."""
    path = Path(re.sub(r"[?#].*", "", shard) if is_remote(shard) else shard)
    return path.name, path.stat().st_size if path.is_file() else None


@contextmanager
def open_shard(shard: str) -> Iterator[Tar]:
    """A shard to be read.

    Raises:
        OSError: where it cannot be opened.
    """
    if not is_remote(shard):
        with Path(shard).open("rb") as file:
            yield Tar(file, shard, 0, Path(shard).stat().st_size)
        return
    remote = RemoteFile(shard)
    with io.BufferedReader(remote, _BUFFER) as buffered:
        yield Tar(buffered, shard, 0, sys.maxsize if remote.length is None else remote.length)


def _check(name: str) -> None:
    """webdataset would run `pipe:` and others as commands; here nothing does, and nobody is to think so."""
    scheme = _SCHEME.match(name)
    if name.strip() in ("", "-") or name.strip() != name or (scheme and not is_remote(name)):
        raise ValueError(
            f"{name!r} is no shard that is read here; expected a path or an http(s) address (commands such as `pipe:` "
            "are never run: download, or mount, what they would read)"
        )

"""What predict computed of a source's images, on disk: shards in safetensors' format, and a manifest of them.

A shard holds tensors of consecutive samples of one split: images, or draws of them. Its header repeats the plan that it
is a part of, so that a shard of another plan, or a manifest that was changed, is told by name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.config_files import Value, differences
from snapgen_pl.digest import tensors_digest
from snapgen_pl.whole_files import read_json, whole_file, write_json

MANIFEST = "manifest.json"
Array: TypeAlias = NDArray[Any]

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """Consecutive samples of one split.

    Attributes:
        split: which.
        index: its place among the split's shards.
        first: its first sample's index in the split.
        count: its samples.
    """

    split: Split
    index: int
    first: int
    count: int

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"{self.split}-{self.index:05d}.safetensors"


class Plan(NamedTuple):
    """What is computed, by what, and how it is divided: equal plans give interchangeable shards.

    Attributes:
        format: what the shards are of, and its version.
        facts: what the values depend on besides the images, and what is needed to read them; JSON values.
        source: the image source's fingerprint.
        counts: samples of train and validation.
        shard_size: samples a shard, the last of a split excepted.
    """

    format: str
    facts: Mapping[str, Value]
    source: str
    counts: tuple[int, int]
    shard_size: int

    @property
    def shards(self) -> list[Shard]:
        """All shards, in order."""
        return [
            Shard(split, index, first, min(self.shard_size, count - first))
            for split, count in zip(SPLITS, self.counts, strict=True)
            for index, first in enumerate(range(0, count, self.shard_size))
        ]

    def as_json(self) -> dict[str, Value]:
        """The plan as a manifest and a shard's header hold it."""
        return {
            "format": self.format,
            **self.facts,
            "source": self.source,
            "counts": dict(zip(SPLITS, self.counts, strict=True)),
            "shard_size": self.shard_size,
        }


class Manifest(NamedTuple):
    """A finished set of shards.

    Attributes:
        plan: what they are.
        digests: each file's :func:`~snapgen_pl.digest.tensors_digest`.
    """

    plan: Plan
    digests: dict[str, str]


class Content(NamedTuple):
    """A shard's tensors, mapped from its file: read when they are touched.

    Attributes:
        tensors: by name.
        digest: SHA-256 over them when they were written.
    """

    tensors: dict[str, Tensor]
    digest: str


def write_shard(folder: Path, plan: Plan, shard: Shard, tensors: Mapping[str, Tensor]) -> None:
    """Writes a shard, whole or not at all.

    Args:
        folder: where to.
        plan: what it is a part of.
        shard: which part.
        tensors: by name.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = {
        "plan": json.dumps(plan.as_json()),
        "shard": json.dumps(asdict(shard)),
        "digest": tensors_digest(contiguous),
    }
    with whole_file(folder / shard.file) as part:
        save_file(contiguous, part, header)


def read_shard(folder: Path, plan: Plan, shard: Shard) -> Content:
    """Opens a shard, checked to be whole and to be this one.

    Raises:
        ValueError: where it is missing, cut short, or another one.
    """
    path = folder / shard.file
    header, tensors = _mapped(path)
    if not {"plan", "shard", "digest"} <= header.keys():
        raise ValueError(f"{path} is no shard of {plan.format}: its header lacks a plan; move it away")
    try:
        planned, found = json.loads(header["plan"]), Shard(**json.loads(header["shard"]))
        place = found.file
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no shard of {plan.format}: its header says nonsense; move it away") from error
    if changed := differences(planned, plan.as_json()):
        listed = "; ".join(
            f"{change.key} is {_brief(change.old)} there, {_brief(change.new)} here" for change in changed
        )
        raise ValueError(f"{path} is of another encoding than {MANIFEST} or the command says: {listed}")
    if found != shard:
        raise ValueError(f"{path} holds what belongs into {place}: files were renamed or swapped; put them back")
    return Content(tensors, header["digest"])


def check_bytes(folder: Path, manifest: Manifest, shards: Iterable[Shard]) -> None:
    """Reads shards through and compares them with what was written.

    Raises:
        ValueError: naming the first that differs.
    """
    for shard in shards:
        content = read_shard(folder, manifest.plan, shard)
        if not tensors_digest(content.tensors) == content.digest == manifest.digests.get(shard.file):
            raise ValueError(
                f"{folder / shard.file} is damaged: its content is not what was written; "
                f"delete it and {MANIFEST} and encode again: whole shards are kept"
            )


def write_manifest(folder: Path, plan: Plan, made: Mapping[str, object]) -> None:
    """Writes the manifest of shards that are all there.

    Args:
        folder: where they lie.
        plan: what they are.
        made: how and when, for the reader.
    """
    digests = {shard.file: read_shard(folder, plan, shard).digest for shard in plan.shards}
    write_json({**plan.as_json(), "made": made, "digests": digests}, folder / MANIFEST)


def read_manifest(folder: Path, format_name: str) -> Manifest:
    """The manifest of a folder.

    Args:
        folder: where the shards lie.
        format_name: what they have to be of.

    Raises:
        ValueError: where there is none, or it is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give a folder that `predict` with callbacks.shard_writer.ShardWriter has "
            "finished (the same command again goes on with it)"
        )
    content = read_json(path, "encode again")
    if content.pop("format", None) != format_name:
        raise ValueError(f"{path} is not of format {format_name!r}; give another folder, or encode again")
    match content:
        case {
            "source": str(source),
            "counts": {"train": int(train), "validation": int(validation)},
            "shard_size": int(shard_size),
            "digests": dict(digests),
            "made": dict(),
            **facts,
        } if min(train, validation) >= 0 and shard_size > 0:
            manifest = Manifest(Plan(format_name, facts, source, (train, validation), shard_size), digests)
        case _:
            raise ValueError(f"{path} lacks what a manifest says of shards; encode again")
    # Before shards are listed, of which a damaged count may promise more than memory holds.
    if sum(-(-count // shard_size) for count in (train, validation)) != len(digests):
        raise ValueError(f"{path} counts other samples than its {len(digests)} shards hold; encode again")
    return manifest


class SplitShards:
    """The shards of one split, each mapped into memory, once a process, when it is first asked for.

    Args:
        folder: where the shards lie.
        manifest: what they are.
        split: which.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split) -> None:
        self.folder, self.plan = folder, manifest.plan
        self.shards = [shard for shard in self.plan.shards if shard.split == split]
        self._open: dict[int, dict[str, Array]] = {}

    def __len__(self) -> int:
        """The number of samples."""
        return sum(shard.count for shard in self.shards)

    def column(self, name: str) -> Tensor:
        """One tensor of all shards, which has a row a sample.

        Raises:
            ValueError: naming a shard that has none.
        """
        parts = [read_shard(self.folder, self.plan, shard).tensors.get(name) for shard in self.shards]
        for shard, part in zip(self.shards, parts, strict=True):
            if part is None or part.shape[:1] != (shard.count,):
                raise ValueError(
                    f"{self.folder / shard.file} is damaged: no {name} a sample; delete it and encode again"
                )
        return torch.cat([part for part in parts if part is not None])

    def at(self, index: int) -> tuple[dict[str, Array], int]:
        """The arrays of the shard that has an image, and the image's row in them."""
        number, row = divmod(index, self.plan.shard_size)
        if number not in self._open:
            tensors = read_shard(self.folder, self.plan, self.shards[number]).tensors
            # NumPy's views of one row cost a tenth of torch's.
            self._open[number] = {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._open[number], row


class ShardFolder:
    """A finished set of shards that lies beside the images that it is of.

    Args:
        folder: where they lie.
        format_name: what they have to be of.
        what: what messages call them.

    Raises:
        ValueError: where there are none, or they are of something else.
    """

    def __init__(self, folder: Path, format_name: str, what: str) -> None:
        self.folder, self.what = folder, what
        self.manifest = read_manifest(folder, format_name)

    def check_images(self, origin: str) -> None:
        """Checks that the images are those of a source, by its fingerprint.

        Raises:
            ValueError: where they are not.
        """
        if (found := self.manifest.plan.source) != origin:
            raise ValueError(
                f"the {self.what} in {self.folder} are of other images or captions than the data's (source "
                f"{found[:12]} there, {origin[:12]} here); make them of the data's, or leave them out"
            )

    def check(self) -> None:
        """Compares this process's share with what was written, byte by byte."""
        check_share(self.folder, self.manifest, f"the {self.what}")


def check_share(folder: Path, manifest: Manifest, verb: str) -> None:
    """Compares this process's share of the shards with what was written, showing progress.

    Raises:
        ValueError: naming the first that differs.
    """
    mine = manifest.plan.shards[_rank() :: _ranks()]
    check_bytes(folder, manifest, track(mine, f"checking {verb} in {folder}", transient=True))


def _brief(value: Value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _mapped(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """A safetensors file's header and its tensors, which stay in the file until they are touched."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; encode again: whole shards are kept")
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and encode again: whole shards are kept") from error


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

"""Latents on disk: shards in safetensors' format, and a manifest that says what they are.

A shard holds, of consecutive images of one split, ``mean`` and ``std`` (N, flips, C, H, W) of the posteriors over raw
latents (no ``std`` where the encoder is certain) and ``label`` (N,). Its header repeats the plan that it is a part of,
so that a shard of another plan, or a manifest that was changed, is told by name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.config_files import Value, differences
from snapgen_pl.digest import tensors_digest
from snapgen_pl.whole_files import whole_file, write_json

FORMAT = "snapgen_pl latents 1"
MANIFEST = "manifest.json"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """Consecutive images of one split.

    Attributes:
        split: which.
        index: its place among the split's shards.
        first: its first image's index in the split.
        count: its images.
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
    """What is encoded, by what, and how it is divided: equal plans give interchangeable shards.

    Attributes:
        autoencoder: its identity.
        image_size: side of the centre crops, in pixels.
        flips: 2 with mirror images, else 1.
        dtype: of means and standard deviations: float16 or float32.
        source: the image source's fingerprint.
        classes: class names.
        counts: images of train and validation.
        shard_size: images a shard, the last of a split excepted.
    """

    autoencoder: Mapping[str, str | int | float]
    image_size: int
    flips: int
    dtype: str
    source: str
    classes: tuple[str, ...]
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
            "format": FORMAT,
            "autoencoder": dict(self.autoencoder),
            "image_size": self.image_size,
            "crop": "centre",
            "flips": self.flips,
            "dtype": self.dtype,
            "source": self.source,
            "counts": dict(zip(SPLITS, self.counts, strict=True)),
            "shard_size": self.shard_size,
            "classes": list(self.classes),
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
        mean: of the posteriors, (N, flips, C, H, W).
        std: their standard deviation; None where the encoder is certain.
        label: int64 (N,).
        digest: SHA-256 over the tensors when they were written.
    """

    mean: Tensor
    std: Tensor | None
    label: Tensor
    digest: str


def write_shard(folder: Path, plan: Plan, shard: Shard, posterior: Posterior, label_N: Tensor) -> None:
    """Writes a shard, whole or not at all.

    Args:
        folder: where to.
        plan: what it is a part of.
        shard: which part.
        posterior: mean and standard deviation (N, flips, C, H, W).
        label_N: int64.
    """
    dtype = getattr(torch, plan.dtype)
    std = None if posterior.std_BCHW is None else posterior.std_BCHW.to(dtype)
    content = Content(posterior.mean_BCHW.to(dtype), std, label_N, "")
    tensors = _tensors(content)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(
            f"latents of {shard.file} are not finite in {plan.dtype}; encode with --model.dtype float32 or, where the "
            "autoencoder itself overflows, --model.autoencoder.dtype float32"
        )
    header = {
        "plan": json.dumps(plan.as_json()),
        "shard": json.dumps(asdict(shard)),
        "digest": _digest(content),
    }
    with whole_file(folder / shard.file) as part:
        save_file(tensors, part, header)


def read_shard(folder: Path, plan: Plan, shard: Shard) -> Content:
    """Opens a shard, checked to be whole and to be this one.

    Raises:
        ValueError: where it is missing, cut short, or another one.
    """
    path = folder / shard.file
    header, tensors = _mapped(path)
    if not {"plan", "shard", "digest"} <= header.keys():
        raise ValueError(f"{path} is no shard of latents: its header lacks a plan; move it away")
    if changed := differences(json.loads(header["plan"]), plan.as_json()):
        listed = "; ".join(
            f"{change.key} is {_brief(change.old)} there, {_brief(change.new)} here" for change in changed
        )
        raise ValueError(f"{path} is of another encoding than {MANIFEST} or the command says: {listed}")
    if (found := Shard(**json.loads(header["shard"]))) != shard:
        raise ValueError(f"{path} holds what belongs into {found.file}: files were renamed or swapped; put them back")
    return Content(tensors["mean"], tensors.get("std"), tensors["label"], header["digest"])


def check_bytes(folder: Path, manifest: Manifest, shards: Iterable[Shard]) -> None:
    """Reads shards through and compares them with what was written.

    Raises:
        ValueError: naming the first that differs.
    """
    for shard in shards:
        content = read_shard(folder, manifest.plan, shard)
        if not _digest(content) == content.digest == manifest.digests.get(shard.file):
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


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ValueError: where there is none, or it is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; give a folder that `predict` with callbacks.latent_writer.LatentWriter has "
            "finished (the same command again goes on with it)"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT!r} but {content.get('format')!r}; encode again")
    try:
        plan = Plan(
            content["autoencoder"],
            content["image_size"],
            content["flips"],
            content["dtype"],
            content["source"],
            tuple(content["classes"]),
            (content["counts"]["train"], content["counts"]["validation"]),
            content["shard_size"],
        )
        return Manifest(plan, content["digests"])
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}; encode again") from error


def _brief(value: Value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tensors(content: Content) -> dict[str, Tensor]:
    tensors = {"mean": content.mean.contiguous(), "label": content.label.contiguous()}
    return tensors if content.std is None else tensors | {"std": content.std.contiguous()}


def _digest(content: Content) -> str:
    return tensors_digest(_tensors(content))


def _mapped(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """A safetensors file's header and its tensors, which stay in the file until they are touched."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; encode again: whole shards are kept")
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and encode again: whole shards are kept") from error

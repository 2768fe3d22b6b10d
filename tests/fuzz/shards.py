"""Shards of latents, of text states and of teacher outputs, and their manifests."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen_pl.conditioning.condition import TextStates
from snapgen_pl.data import teacher_outputs, text_states
from snapgen_pl.data.latents import FORMAT, CaptionedShardSet, Latents
from snapgen_pl.data.shards import (
    MANIFEST,
    SPLITS,
    Plan,
    Shard,
    check_bytes,
    read_manifest,
    write_manifest,
    write_shard,
)
from snapgen_pl.data.source import Taught
from snapgen_pl.data.teacher_outputs import TeacherOutputFolder, output_tensors
from snapgen_pl.data.text_states import TextFacts, TextStateFolder, packed, text_tensors
from tests.data.test_latents import write as write_latents
from tests.fuzz.target import Target

FEATURES = ("mid",)


def write_shards(plan: Plan, tensors_of: Callable[[Shard], Mapping[str, Tensor]], folder: Path) -> None:
    for shard in plan.shards:
        write_shard(folder, plan, shard, tensors_of(shard))
    write_manifest(folder, plan, {"by": "a test"})


def texts_of(shard: Shard) -> Mapping[str, Tensor]:
    """States of texts of other lengths."""
    mask_BS = torch.arange(3) <= torch.arange(shard.count)[:, None] % 3
    tokens_BSD = torch.arange(shard.count * 6.0).view(-1, 3, 2)
    return text_tensors([packed(TextStates(tokens_BSD, mask_BS, tokens_BSD[:, 0]), "float16")])


def outputs_of(shard: Shard) -> Mapping[str, Tensor]:
    velocity_BCHW = torch.arange(shard.count * 8.0).view(-1, 2, 2, 2)
    return output_tensors([Taught(velocity_BCHW, dict.fromkeys(FEATURES, velocity_BCHW[:, :, :1]))])


TEXTS = Plan(text_states.FORMAT, TextFacts("abc", "def", 3, True, "float16").as_json(), "images", (5, 2), 4)
OUTPUTS = Plan(teacher_outputs.FORMAT, {"features": list(FEATURES), "dtype": "float32"}, "images", (6, 2), 4)


# All that training would read, in its order; without the bars that show its progress.


def read_latents(folder: Path) -> dict[str, Any]:
    opened = Latents(str(folder)).open()
    manifest = read_manifest(folder, FORMAT)
    check_bytes(folder, manifest, manifest.plan.shards)
    content: dict[str, Any] = {"classes": opened.classes}
    for name, images in (("train", opened.train), ("validation", opened.validation)):
        assert isinstance(images, CaptionedShardSet)
        every = range(len(images))
        content[name] = [
            images.labels,
            [images.caption(index) for index in every],
            images.load(every, [False] * len(every)),
        ]
    return content


def read_texts(folder: Path) -> dict[str, Any]:
    opened = TextStateFolder(folder)
    opened.check_images("images")
    check_bytes(folder, opened.manifest, opened.manifest.plan.shards)
    sets = {split: opened.split(split) for split in SPLITS}
    return {"facts": opened.facts, **{split: texts.load(range(len(texts))) for split, texts in sets.items()}}


def read_outputs(folder: Path) -> dict[str, Any]:
    opened = TeacherOutputFolder(folder)
    opened.check_images("images")
    opened.choose(FEATURES)
    opened.check_facts({})
    check_bytes(folder, opened.manifest, opened.manifest.plan.shards)
    sets = {split: opened.split(split) for split in SPLITS}
    return {split: outputs.load(range(len(outputs))) for split, outputs in sets.items()}


def write_latents_into(folder: Path) -> None:
    folder.rmdir()
    write_latents(folder)


SHARD = "train-00001.safetensors"
TARGETS = {
    "latents_manifest": Target(write_latents_into, MANIFEST, read_latents, sealed=True),
    "latents_shard": Target(write_latents_into, SHARD, read_latents, sealed=True),
    "texts_manifest": Target(partial(write_shards, TEXTS, texts_of), MANIFEST, read_texts, sealed=True),
    "texts_shard": Target(partial(write_shards, TEXTS, texts_of), SHARD, read_texts, sealed=True),
    "outputs_manifest": Target(partial(write_shards, OUTPUTS, outputs_of), MANIFEST, read_outputs, sealed=True),
    "outputs_shard": Target(partial(write_shards, OUTPUTS, outputs_of), SHARD, read_outputs, sealed=True),
}

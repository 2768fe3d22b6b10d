"""Loading what text encoders made of captions: ``python -m benchmarks.texts --json FILE``.

Writes shards of random states of the shapes that experiments/t2i stores, CLIP-L's, CLIP-G's and Gemma's, and counts the
captions that one training process is handed, by workers. In about a minute, and half a gigabyte of the folder for
temporary files.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks.latents import CONSUMED_PER_S, Loading
from benchmarks.timing import Environment, environment
from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.data.conditions import Captions
from snapgen_pl.data.loader import worker_options
from snapgen_pl.data.shards import Plan, write_manifest, write_shard
from snapgen_pl.data.text_states import FORMAT, PackedStates, TextFacts, TextStateFolder, text_tensors
from snapgen_pl.whole_files import write_json

_SHARD = 256


class Encoder(NamedTuple):
    """The shape of an encoder's states.

    Attributes:
        width: of a token.
        tokens: that a text is padded to.
        pooled: width of the pooled vector, if any.
        stored: tokens of a caption on disk: fewer where padding is masked.
    """

    width: int
    tokens: int
    pooled: int | None
    stored: int


ENCODERS = {
    "clip_l": Encoder(768, 77, 768, 77),
    "clip_g": Encoder(1280, 77, 1280, 77),
    "gemma": Encoder(2304, 128, None, 60),
}


@dataclass(frozen=True)
class Report:
    """What was found; ``loading`` by workers, of captions seen for the first time."""

    protocol: str
    environment: Environment
    captions: int
    batch: int
    loading: list[Loading]


class Asked(Dataset[Texts]):
    """Batches of captions with their states.

    Args:
        captions: all of them.
    """

    def __init__(self, captions: Captions) -> None:
        self.captions = captions

    def __getitems__(self, indices: list[int]) -> Texts:
        """As training's samples load theirs."""
        return self.captions.batch(indices)


class Same:
    """A set whose images all have one caption.

    Args:
        count: of images.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        """The number of images."""
        return self.count

    def caption(self, index: int) -> str:
        """The caption."""
        return "a red apple"


def write(folder: Path, encoder: Encoder, captions: int) -> None:
    """Writes the states of captions in fp16."""
    folder.mkdir()
    masked = encoder.stored < encoder.tokens
    facts = TextFacts("random", "random", encoder.tokens, masked, "float16")
    plan = Plan(FORMAT, facts.as_json(), "random", (captions, 1), _SHARD)
    for shard in plan.shards:
        tokens_TD = torch.randn(shard.count * encoder.stored, encoder.width).half()
        pooled_BP = None if encoder.pooled is None else torch.randn(shard.count, encoder.pooled).half()
        states = PackedStates(tokens_TD, torch.full((shard.count,), encoder.stored), pooled_BP)
        write_shard(folder, plan, shard, text_tensors([states]))
    write_manifest(folder, plan, {})


def load(folder: Path, captions: int, batch: int, workers: int) -> Loading:
    """Counts the captions that are handed out after the first batch of each worker, in a random order, once each."""
    states = {name: TextStateFolder(folder / name).split("train") for name in ENCODERS}
    order = torch.randperm(captions, generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(Asked(Captions(Same(captions), states)), batch, sampler=order, **worker_options(workers))
    batches: Iterator[Texts] = iter(loader)
    for _ in range(max(1, workers)):
        next(batches)
    start = time.perf_counter()
    count = sum(len(texts.captions) for texts in islice(batches, captions // batch - max(1, workers)))
    rate = count / (time.perf_counter() - start)
    return Loading(workers, rate, rate / CONSUMED_PER_S)


def main(json: Path | None = None, captions: int = 1024, batch: int = 64, workers: tuple[int, ...] = (0, 1, 2)) -> None:
    """Measures loading from shards of text states.

    Args:
        json: file for the record; none is written if not given.
        captions: in the shards: 0.59 MB each.
        batch: captions at once.
        workers: processes that load, one number after the other; 0 is the training process itself.

    Raises:
        ValueError: for fewer batches than are left out.
    """
    if captions // batch <= max(1, *workers):
        raise ValueError(f"captions are {captions}, batch {batch}; give more than {max(1, *workers)} batches")
    where = environment("benchmarks.texts")
    with tempfile.TemporaryDirectory() as name:
        for encoder, shape in ENCODERS.items():
            write(Path(name) / encoder, shape, captions)
        loading = [load(Path(name), captions, batch, each) for each in workers]
    shown = Table(title=f"{captions} captions in batches of {batch}")
    for heading in ("workers", "captions/s", f"over {CONSUMED_PER_S}/s"):
        shown.add_column(heading, justify="right")
    for each in loading:
        shown.add_row(str(each.workers), f"{each.samples_per_s:,.0f}", f"{each.ratio:.2f}x")
    Console(width=120).print(shown)
    if json is not None:
        protocol = (
            "states of CLIP-L, CLIP-G (77 tokens) and Gemma (60 of 128 stored) in fp16, written just before; each "
            "caption once, in a random order; nothing else works meanwhile; ratio: over an assumption for the "
            "reference model on one GPU"
        )
        write_json(asdict(Report(protocol, where, captions, batch, loading)), json)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

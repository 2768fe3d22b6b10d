"""Decoders of photographs, really trained: ``python -m benchmarks.photo_decoders``, after ``benchmarks.photographs``.

The autoencoder first, whose frozen encoder all learn to undo; then every rung from SD3's decoder to SnapGen's, and
diffusers' AutoencoderTiny, for equal crops; then the reference for longer, and against a discriminator from there. What
has a record is not done again, and a run that was interrupted goes on where it was. ``python -m snapgen_pl table
decoder`` shows the records.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from benchmarks.rows import UnsampledRow, check_rows
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.autoencoders.with_decoder import WithDecoder
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.image_folder import FolderSet, ImageFolder
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.images import from_uint8, to_uint8
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.reconstruction import reconstruction
from snapgen_pl.modules.autoencoder import save
from snapgen_pl.png import to_pil, write_png
from snapgen_pl.runs import Run
from snapgen_pl.tables.decoder import SIZES
from snapgen_pl.tables.decoder_records import ADVERSARIAL, FULL, LONG, OWN, ROWS, SMALL, DecoderRecord, Scale
from snapgen_pl.trained_run import open_run

SCALES = {"full": FULL, "small": SMALL}
PHOTOGRAPHS = Path("photographs/images")
# Of these held-out photographs, squares of 512 px, so many pixels around their centre are shown.
SHOWN = ("lomiri-wallpapers-16.04-life", "lomiri-wallpapers-16.04-friends", "lomiri-wallpapers-16.04-Picture_1A")
SHOWN_SIZE, SHOWN_PIXELS = 512, 256
SHOWN_ROWS = (OWN, "snapgen", LONG, ADVERSARIAL)

Decode = Callable[[Tensor], Tensor]


def main(scale: Literal["full", "small"] = "full", rows: Sequence[str] = ROWS, seeds: Sequence[int] = (0,)) -> None:
    """Trains, measures and records rows.

    Args:
        scale: ``full`` has the published widths and half of SD3's encoder, for a GPU; ``small`` a quarter of all
            widths, for a CPU.
        rows: of the table.
        seeds: of the decoders; their autoencoder is one, and the adversarial row begins with ``long``'s first.

    Raises:
        ValueError: for a row that there is none of, or where the photographs are missing.
    """
    check_rows(rows, ROWS)
    if not PHOTOGRAPHS.is_dir():
        raise ValueError(f"{PHOTOGRAPHS} is missing; run `python -m benchmarks.photographs` first")
    chosen = SCALES[scale]
    autoencoder = trained(chosen, OWN, 0)
    autoencoder.train()
    bench = Bench(save(autoencoder.folder))
    check_encoder(chosen, chosen.results, bench)
    for seed in seeds:
        for row in rows:
            make(chosen, row, seed, bench)
    if all(trained(chosen, row, seeds[0]).ended for row in SHOWN_ROWS):
        drawn = chosen.results.with_suffix(".png")
        write_png(to_pil(picture(chosen, bench, seeds[0])), drawn)
        print(f"Drawn in {drawn}")


def check_encoder(scale: Scale, results: Path, bench: "Bench") -> None:
    """Raises ValueError where records are of another encoder: rows would be trained that do not compare."""
    digest = bench.autoencoder.weights_digest()
    if strangers := [row for row, each in scale.records(results).items() if each.autoencoder != digest]:
        raise ValueError(
            f"{results}: {', '.join(strangers)} are of another encoder than that of {trained(scale, OWN, 0).folder}; "
            "delete these records to train all rows anew, or put that run back"
        )


def trained(scale: Scale, row: str, seed: int) -> UnsampledRow:
    """A row's run; the autoencoder's is one, whatever the seed."""
    runs = Path("runs")
    if row == OWN:
        seed, folder = 0, runs / f"photo-autoencoder{scale.suffix}"
    else:
        folder = runs / f"photo-decoders{scale.suffix}" / f"{row}-seed{seed}"
    return UnsampledRow(row, seed, scale.files(row), scale.recipe(row), folder)


class Bench:
    """Held-out photographs, each square and whole, as a frozen encoder sees them.

    Args:
        path: the folder of the autoencoder.
    """

    def __init__(self, path: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autoencoder = KL(str(path))
        self.autoencoder.ready(path, ())
        self.autoencoder.to(self.device)
        self.lpips = LPIPS("alex").to(self.device)

    @cached_property
    def photographs(self) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
        """Of each size, the photographs by name, as uint8 (1, 3, size, size) and their raw latents."""
        return {size: self._photographs(size) for size in SIZES}

    @torch.no_grad()
    def _photographs(self, size: int) -> dict[str, tuple[Tensor, Tensor]]:
        data = ImageData(ImageFolder(PHOTOGRAPHS), image_size=size, batch_size=1)
        data.setup("validate")
        held_out = data.source.validation
        assert isinstance(held_out, FolderSet)
        pairs = {}
        for index, batch in enumerate(data.val_dataloader()):
            assert isinstance(batch, ImageBatch)
            image_BCHW = batch.image_BCHW.to(self.device)
            raw_BCHW = self.autoencoder.encode(from_uint8(image_BCHW)).mean_BCHW
            pairs[held_out.path(index).stem] = image_BCHW, raw_BCHW
        return pairs

    @torch.no_grad()
    def measure(self, decoder: Decode) -> dict[str, dict[str, float]]:
        """PSNR, SSIM and LPIPS (AlexNet's) by size, means over photographs, each decoded in fp32."""
        found: dict[str, dict[str, float]] = {}
        for size, pairs in self.photographs.items():
            values = [reconstruction(to_uint8(decoder(raw)), image, self.lpips) for image, raw in pairs.values()]
            found[str(size)] = {name: float(torch.cat([each[name] for each in values]).mean()) for name in values[0]}
        return found

    def decoder(self, run: UnsampledRow) -> Decode:
        """The averaged weights of a run, in fp32; for the autoencoder's, its own decoder."""
        if run.row == OWN:
            return self.autoencoder.decode
        decoded = WithDecoder(self.autoencoder, str(run.folder))
        decoded.ready(run.folder, ())
        return decoded.eval().requires_grad_(False).to(self.device).decode


@torch.no_grad()
def picture(scale: Scale, bench: Bench, seed: int) -> Tensor:
    """Originals and what decoders make of them, a column each, as uint8 (3, H, W)."""
    decoders = [bench.decoder(trained(scale, row, seed)) for row in SHOWN_ROWS]
    rows = []
    for name, (image, raw) in bench.photographs[SHOWN_SIZE].items():
        if name.startswith(SHOWN):
            images = [image, *[to_uint8(decoder(raw)) for decoder in decoders]]
            first = (SHOWN_SIZE - SHOWN_PIXELS) // 2
            cut = slice(first, first + SHOWN_PIXELS)
            rows.append(torch.cat([each[0, :, cut, cut] for each in images], dim=2))
    return torch.cat(rows, dim=1).cpu()


def make(scale: Scale, row: str, seed: int, bench: Bench) -> None:
    """Trains and records a row, where there is no record yet."""
    run = trained(scale, row, seed)
    if run.recorded(scale.results):
        return
    run.train()
    seconds = EventAccumulator(str(run.folder)).Reload().Scalars("train/seconds")[-1].value
    start = Run(run.folder).starts()[-1]
    record = DecoderRecord(
        row=row,
        seed=run.seed,
        recipe=run.recipe,
        crops=open_run(str(run.folder)).images_seen,
        training_seconds=round(seconds, 1),
        machine=start["hardware"]["gpus"] or start["hardware"]["cpu"],
        date=start["time"],
        commit=start["code"]["commit"],
        autoencoder=bench.autoencoder.weights_digest(),
        sizes=bench.measure(bench.decoder(run)),
    )
    print(f"Written to {record.write(scale.results)}", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

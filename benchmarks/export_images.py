"""What a run draws in torch, and what its exported packages draw, evaluated: ``python -m benchmarks.export_images``.

The same prompts or classes on the same noise; the PSNR of each pair of images, as 8-bit numbers.
"""

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.timing import Environment, environment
from snapgen_pl.drawing import Source
from snapgen_pl.export.difference import EQUAL_DB
from snapgen_pl.export.folder import Backend, open_exported
from snapgen_pl.generate import generate
from snapgen_pl.png import read_picture, to_pil, write_png
from snapgen_pl.whole_files import write_json

MIN_PSNR_DB = 40.0


@dataclass(frozen=True)
class Report:
    """The images of both.

    Attributes:
        environment: where, when and by which command it was made.
        run: its name and step.
        psnr_db: of each image, by what it was asked with; None for equal ones.
        least_db: of them all.
    """

    environment: Environment
    run: str
    psnr_db: dict[str, float | None]
    least_db: float


def main(
    run: Path,
    exported: Path,
    prompts: Path | None = None,
    classes: str | None = None,
    backend: Backend = "coreml",
    json: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Draws twice and compares.

    Args:
        run: the run's folder.
        exported: what ``export`` made of it.
        prompts: a file of prompts, for a run on texts.
        classes: names of classes between commas, for a run on classes.
        backend: what runs the exported networks.
        json: a file for the figures.
        picture: a file for the images, torch's above, the packages' below.

    Raises:
        ValueError: where an image is under 40 dB.
    """
    pairs = drawn(run, exported, prompts, classes, backend)
    found = {name: psnr_db(*pair) for name, pair in pairs.items()}
    least = min((value for value in found.values() if value is not None), default=EQUAL_DB)
    for name, value in found.items():
        print(f"{name:<60} {'equal' if value is None else f'{value:.1f} dB'}")
    facts = _facts(open_exported(str(exported), backend))
    if json is not None:
        report = Report(environment("benchmarks.export_images"), facts, found, least)
        write_json(asdict(report), json)
    if picture is not None:
        rows = [torch.cat([pair[row] for pair in pairs.values()], dim=2) for row in range(2)]
        write_png(to_pil(torch.cat(rows, dim=1)), picture)
    if least < MIN_PSNR_DB:
        raise ValueError(f"the least PSNR is {least:.1f} dB, {MIN_PSNR_DB:.0f} dB are needed")
    print(f"least: {least:.1f} dB")


def drawn(
    run: Path, exported: Path, prompts: Path | None = None, classes: str | None = None, backend: Backend = "coreml"
) -> dict[str, tuple[Tensor, Tensor]]:
    """The same images by torch and by what was exported, uint8 (C, H, W), by what they were asked with.

    Args:
        run: see :func:`main`, as all.
        exported: likewise.
        prompts: likewise.
        classes: likewise.
        backend: likewise.

    Raises:
        ValueError: where nothing is asked for.
    """
    asked = None if prompts is None else str(prompts)
    with tempfile.TemporaryDirectory() as folder:
        own, other = Path(folder) / "torch", Path(folder) / backend
        generate(str(run), str(own), classes=classes, prompts=asked, count=1)
        generate(str(exported), str(other), classes=classes, prompts=asked, count=1, backend=backend)
        files = sorted(file.name for file in own.glob("*-*.png"))
        return {
            name.removesuffix("-0000.png"): (read_picture(own / name), read_picture(other / name)) for name in files
        }


def psnr_db(own: Tensor, other: Tensor) -> float | None:
    """Of 8-bit images (C, H, W); None where they are equal."""
    mse = (own.double() - other.double()).square().mean().item()
    return None if mse == 0 else 10 * math.log10(255**2 / mse)


def _facts(source: Source) -> str:
    facts = source.facts()
    return f"{facts['run']}, step {facts['step']}"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

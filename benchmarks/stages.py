"""The same prompts on the same noise through stage after stage, a row each: ``python -m benchmarks.stages``."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli

from snapgen_pl.generate import generate
from snapgen_pl.png import read_picture, to_pil, write_png


def main(
    runs: Sequence[Path],
    picture: Path,
    exported: Path | None = None,
    prompts: Path = Path("experiments/prompts/emoji.txt"),
) -> None:
    """Draws an image a prompt from every run, by its own sampler, and stacks them.

    Args:
        runs: folders, from the first stage on.
        picture: a file for the images.
        exported: what ``export`` made of the last run: its packages, evaluated, are a row of their own.
        prompts: a file of them, a line each.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, run in enumerate([*runs, *([] if exported is None else [exported])]):
            out = Path(folder) / str(number)
            generate(
                str(run), str(out), prompts=str(prompts), count=1, backend="coreml" if run == exported else "torch"
            )
            images = [read_picture(file) for file in sorted(out.glob("*-*.png"))]
            rows.append(torch.cat(images, dim=-1))
    write_png(to_pil(torch.cat(rows, dim=-2)), picture)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

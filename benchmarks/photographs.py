"""Photographs to train decoders on, from packages of Debian: ``python -m benchmarks.photographs``.

Those of ``experiments/photographs/photographs.txt`` are downloaded by apt-get, without installing anything, into
``photographs/originals``, where what is there already stays. Then they are reduced with Lanczos's filter, which takes
most of JPEG's traces and the sensor's noise away: held-out ones to 2,048 px along their longer side, the others to that
and to 1,024 px, in tiles of 512 px.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jsonargparse import auto_cli
from PIL import Image
from rich.progress import track

from snapgen_pl.tables.decoder_records import LIST
from snapgen_pl.whole_files import whole_file, whole_folder

LONGER_SIDES = (2048, 1024)  # px
TILE = 512


class Photograph(NamedTuple):
    """A line of the list.

    Attributes:
        split: "train" or "val".
        package: of Debian.
        file: in it.
    """

    split: str
    package: str
    file: str

    @property
    def name(self) -> str:
        """One that no other photograph has."""
        return "-".join([self.package, *Path(self.file).with_suffix("").parts[3:]])


def main(folder: Path = Path("photographs")) -> None:
    """Downloads and reduces the photographs.

    Args:
        folder: gets originals/ and images/, which experiments read.
    """
    photographs = [Photograph(*line.split()) for line in LIST.read_text().splitlines() if not line.startswith("#")]
    originals = folder / "originals"
    missing = {each.package for each in photographs if not _original(originals, each).exists()}
    for package in sorted(missing):
        fetch(package, [each for each in photographs if each.package == package], originals)
    with whole_folder(folder / "images") as images, ProcessPoolExecutor() as pool:
        done = pool.map(partial(reduce, originals=originals, images=images), photographs)
        written = sum(track(done, "reducing photographs", total=len(photographs)))
    print(f"{written} images of {len(photographs)} photographs written to {folder}")


def fetch(package: str, photographs: Sequence[Photograph], originals: Path) -> None:
    """Downloads a package and takes its photographs out.

    Raises:
        FileNotFoundError: where there is no apt-get or dpkg-deb.
        subprocess.CalledProcessError: where they fail; they say why.
    """
    print(f"downloading {package}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["apt-get", "download", package], cwd=name, check=True)
        (archive,) = Path(name).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(archive), name], check=True)
        for photograph in photographs:
            target = _original(originals, photograph)
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as part:
                shutil.copyfile(Path(name) / photograph.file, part)


def reduce(photograph: Photograph, originals: Path, images: Path) -> int:
    """Writes what is made of a photograph, as PNG; returns the number of files."""
    target = images / photograph.split / "photographs"  # one class
    target.mkdir(parents=True, exist_ok=True)
    with Image.open(_original(originals, photograph)) as opened:
        image = opened.convert("RGB")
    if photograph.split == "val":
        reduced(image, LONGER_SIDES[0]).save(target / f"{photograph.name}.png")
        return 1
    count = 0
    for longer in LONGER_SIDES:
        for tile in tiles(reduced(image, longer), TILE):
            tile.save(target / f"{photograph.name}-{count}.png", compress_level=1)
            count += 1
    return count


def reduced(image: Image.Image, longer: int) -> Image.Image:
    """The image with so many pixels along its longer side, or as it is where it has fewer."""
    scale = longer / max(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def tiles(image: Image.Image, size: int) -> list[Image.Image]:
    """As many squares as fit beside one another, around the image's centre."""
    across, down = image.width // size, image.height // size
    left, top = (image.width - across * size) // 2, (image.height - down * size) // 2
    places = [(left + x * size, top + y * size) for y in range(down) for x in range(across)]
    return [image.crop((x, y, x + size, y + size)) for x, y in places]


def _original(originals: Path, photograph: Photograph) -> Path:
    return originals / f"{photograph.name}.jpg"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

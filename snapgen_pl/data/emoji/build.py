"""Draws the vendored emoji from the packages they come from: ``python -m snapgen_pl.data.emoji.build --packages DIR``.

Needs the extra ``emoji`` and, for packages that are not in DIR yet, npm. The same packages give the same files, byte
for byte, under the same releases of Pillow and resvg.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.progress import track

from snapgen_pl.data.emoji.vendored import (
    CELL,
    CHECKSUMS_FILE,
    COLUMNS,
    CONCEPTS_FILE,
    FOLDER,
    STYLES,
    Concept,
    Style,
    sheet_name,
)

# Drawn larger, then averaged: a pixel of the sheet is the mean of what it covers, in every style.
OVERSAMPLING = 4
CANVAS = CELL * OVERSAMPLING
# Shades of skin and hair that are no pictures of their own.
SKIPPED_GROUPS = ("component",)


class Package(NamedTuple):
    """An npm package, pinned.

    Attributes:
        name: as npm knows it.
        version: as npm knows it.
        sha256: of its tar file.
    """

    name: str
    version: str
    sha256: str

    def read(self, folder: Path) -> dict[str, bytes]:
        """The files of the package; its tar file is fetched into ``folder`` unless it lies there already."""
        path = folder / f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        if not path.exists():
            fetch(f"{self.name}@{self.version}", folder)
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path}: SHA-256 is {found}, expected {self.sha256}; delete it to fetch it again")
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            return {
                member.name.removeprefix("package/"): file.read()
                for member in archive.getmembers()
                if (file := archive.extractfile(member)) is not None
            }


NOTO = Package("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad")
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
TWEMOJI = Package("@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7")
EMOJIBASE = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")

# What draws a concept, by its code point.
Drawings = dict[str, Callable[[], Image.Image]]


def fetch(package: str, folder: Path) -> None:
    """Has npm put the tar file of ``package`` (name@version) into ``folder``; npm checks its integrity."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"npm is not installed, and {folder} does not hold {package}: run `npm pack {package}` there")
    subprocess.run([npm, "pack", package, "--silent", "--pack-destination", str(folder)], check=True)


def code_key(code: str) -> str:
    """Code points as all packages agree on: lower case, without the variation selector."""
    return code.lower().replace("-fe0f", "")


def on_canvas(image: Image.Image) -> Image.Image:
    """Fits a picture into a white square of CANVAS pixels, centred, its aspect ratio kept."""
    scale = CANVAS / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    picture = image.convert("RGBA")
    if size != image.size:
        # Premultiplied, so that the colour of transparent pixels does not bleed into the edges.
        picture = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (CANVAS, CANVAS), "white")
    canvas.alpha_composite(picture, ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return canvas.convert("RGB")


def cell(image: Image.Image) -> Image.Image:
    """A picture as a cell of the sheet: CELL x CELL RGB."""
    return on_canvas(image).reduce(OVERSAMPLING)


def draw_svg(body: str, width: float, height: float) -> Image.Image:
    """Draws the inside of an SVG, its longer side CANVAS pixels."""
    import resvg_py

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, zoom=CANVAS / max(width, height), skip_system_fonts=True)
    return Image.open(io.BytesIO(png))


def iconify_drawings(package: Package, folder: Path) -> Drawings:
    """The drawings of a package in Iconify's format."""
    files = package.read(folder)
    icons = json.loads(files["icons.json"])

    def drawing(name: str) -> Callable[[], Image.Image]:
        icon = icons["icons"][name]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        return lambda: draw_svg(icon["body"], width, height)

    return {code_key(code): drawing(name) for code, name in json.loads(files["chars.json"]).items()}


def webp_drawings(package: Package, folder: Path) -> Drawings:
    """The drawings of a package of one WebP file a code point."""

    def drawing(content: bytes) -> Callable[[], Image.Image]:
        return lambda: Image.open(io.BytesIO(content))

    return {
        code_key(match[1]): drawing(content)
        for name, content in package.read(folder).items()
        if (match := re.fullmatch(r"assets/(.+)\.webp", name))
    }


def read_concepts(folder: Path) -> Iterator[Concept]:
    """All concepts of emojibase that belong to a group, in the order of Unicode."""
    files = EMOJIBASE.read(folder)
    messages = json.loads(files["en/messages.json"])
    groups = {row["order"]: row["key"] for row in messages["groups"]}
    # Number 46 is listed twice: once for an abolished subgroup, then for the one that replaced it.
    subgroups = {row["order"]: row["key"] for row in messages["subgroups"]}
    rows: list[dict[str, Any]] = [row for row in json.loads(files["en/data.json"]) if "group" in row]
    for row in sorted(rows, key=lambda row: int(row["order"])):
        if groups[row["group"]] not in SKIPPED_GROUPS:
            yield Concept(
                code=code_key(row["hexcode"]),
                label=row["label"],
                tags=tuple(row.get("tags", ())),
                group=groups[row["group"]],
                subgroup=subgroups[row["subgroup"]],
            )


def draw_sheet(concepts: list[Concept], drawings: Drawings, style: Style) -> Image.Image:
    """One image with a cell a concept, row by row."""
    sheet = Image.new("RGB", (COLUMNS * CELL, -(-len(concepts) // COLUMNS) * CELL), "white")
    for index, concept in enumerate(track(concepts, f"drawing {style}")):
        row, column = divmod(index, COLUMNS)
        picture = cell(drawings[concept.code]())
        if picture.getcolors(1) is not None:
            raise ValueError(f"{style} {concept.code} ({concept.label}) is drawn in a single colour")
        sheet.paste(picture, (column * CELL, row * CELL))
    return sheet


def build(packages: Path, out: Path) -> None:
    """Writes sheets, concepts and checksums.

    Args:
        packages: folder of the packages' tar files; what is missing is fetched into it.
        out: folder to write to; its ``licenses`` are checksummed too.
    """
    drawings: dict[Style, Drawings] = {
        "noto": iconify_drawings(NOTO, packages),
        "fluent-flat": iconify_drawings(FLUENT_FLAT, packages),
        "fluent-3d": webp_drawings(FLUENT_3D, packages),
        "twemoji": iconify_drawings(TWEMOJI, packages),
    }
    concepts = [
        concept
        for concept in read_concepts(packages)
        if all(concept.code in drawings_of_style for drawings_of_style in drawings.values())
    ]
    for style, drawings_of_style in drawings.items():
        sheet = draw_sheet(concepts, drawings_of_style, style)
        sheet.save(out / sheet_name(style), lossless=True, quality=100, method=6)
    rows = ",\n".join(json.dumps(concept._asdict(), ensure_ascii=False) for concept in concepts)
    (out / CONCEPTS_FILE).write_bytes(f"[\n{rows}\n]\n".encode())
    write_checksums(out)


def write_checksums(out: Path) -> None:
    """Writes the SHA-256 of every vendored file."""
    names = [CONCEPTS_FILE, *map(sheet_name, STYLES), *(f"licenses/{path.name}" for path in out.glob("licenses/*"))]
    checksums = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in sorted(names)}
    (out / CHECKSUMS_FILE).write_bytes((json.dumps(checksums, indent=2) + "\n").encode())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m snapgen_pl.data.emoji.build", description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages' tar files")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: this package)")
    arguments = parser.parse_args()
    for folder in (arguments.packages, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    build(arguments.packages, arguments.out)


if __name__ == "__main__":
    main()

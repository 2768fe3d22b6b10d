"""Reads the vendored emoji files and checks each against its SHA-256."""

import hashlib
import io
import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Style = Literal["noto", "fluent-flat", "fluent-3d", "twemoji"]

STYLES: tuple[Style, ...] = ("noto", "fluent-flat", "fluent-3d", "twemoji")
FOLDER = Path(__file__).parent
CELL = 64
COLUMNS = 40
CONCEPTS_FILE = "concepts.json"
CHECKSUMS_FILE = "sha256.json"


class Concept(NamedTuple):
    """What an emoji shows, whatever its style.

    Attributes:
        code: code points in lower-case hexadecimal, joined by "-", without fe0f.
        label: its CLDR name, such as "grinning face".
        tags: further words for it.
        group: the coarse class, such as "smileys-emotion".
        subgroup: the fine class, such as "face-smiling".
    """

    code: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


class Vendored:
    """The vendored files of one folder; every read is checked.

    Args:
        folder: where the files lie.

    Raises:
        ValueError: from any read, naming the file, where it is missing or not the one that was vendored.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.checksums: dict[str, str] = json.loads(self._bytes(CHECKSUMS_FILE))

    def read(self, name: str) -> bytes:
        """The content of the file ``name``."""
        content = self._bytes(name)
        found = hashlib.sha256(content).hexdigest()
        if found != self.checksums.get(name):
            raise ValueError(
                f"{self.folder / name} is damaged: its SHA-256 is {found}, expected {self.checksums.get(name)}; "
                "reinstall snapgen-pl, or restore the file with git"
            )
        return content

    def concepts(self) -> tuple[Concept, ...]:
        """All concepts, in the order of the sheets' cells."""
        return tuple(
            Concept(row["code"], row["label"], tuple(row["tags"]), row["group"], row["subgroup"])
            for row in json.loads(self.read(CONCEPTS_FILE))
        )

    def images(self, style: Style, count: int) -> Tensor:
        """The first ``count`` cells of a style's sheet: uint8 (count, 64, 64, 3)."""
        with Image.open(io.BytesIO(self.read(sheet_name(style)))) as sheet:
            pixels = torch.from_numpy(np.array(sheet.convert("RGB")))
        cells = pixels.view(-1, CELL, COLUMNS, CELL, 3).transpose(1, 2)  # (row, column, 64, 64, 3)
        return cells.flatten(0, 1)[:count].contiguous()

    def _bytes(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing; reinstall snapgen-pl, or restore the file with git") from error


def sheet_name(style: Style) -> str:
    """The file that holds a style."""
    return f"{style}.webp"

"""A labelled sheet of image pairs, a row a class."""

from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from snapgen_pl.png import to_pil

_LEAST_CELL, _LARGEST_CELL = 64, 256
_GAP, _PAIR_GAP, _TEXT = 2, 8, 12
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


class Pair(NamedTuple):
    """Two images to be compared.

    Attributes:
        left_CHW: uint8 RGB.
        right_CHW: uint8 RGB.
    """

    left_CHW: Tensor
    right_CHW: Tensor


class Row(NamedTuple):
    """Pairs under one label.

    Attributes:
        label: drawn to their left.
        pairs: at least one.
    """

    label: str
    pairs: list[Pair]


def contact_sheet(rows: list[Row], legend: str) -> Image.Image:
    """Draws the sheet.

    Args:
        rows: at least one.
        legend: a line below them.

    Returns:
        An RGB image; its cells have the images' size, within 64 to 256 pixels.
    """
    font = ImageFont.load_default(size=_TEXT)
    cell = min(max(rows[0].pairs[0].left_CHW.shape[-1], _LEAST_CELL), _LARGEST_CELL)
    margin = max(int(font.getlength(row.label)) for row in rows) + 2 * _PAIR_GAP
    pair_width = 2 * cell + _GAP + _PAIR_GAP
    width = margin + max(len(row.pairs) for row in rows) * pair_width
    width = max(width, int(font.getlength(legend)) + 2 * _PAIR_GAP)
    height = len(rows) * (cell + _GAP) + 2 * _TEXT
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = i * (cell + _GAP)
        draw.text((_PAIR_GAP, top + cell // 2), row.label, fill=_INK, font=font, anchor="lm")
        for j, pair in enumerate(row.pairs):
            left = margin + j * pair_width
            sheet.paste(_cell(pair.left_CHW, cell), (left, top))
            sheet.paste(_cell(pair.right_CHW, cell), (left + cell + _GAP, top))
    draw.text((_PAIR_GAP, height - _TEXT), legend, fill=_INK, font=font, anchor="lm")
    return sheet


def _cell(image_CHW: Tensor, side: int) -> Image.Image:
    """An image at a cell's size: small ones show their pixels."""
    image = to_pil(image_CHW)
    if image.size == (side, side):
        return image
    kind = Image.Resampling.NEAREST if image.width < side else Image.Resampling.LANCZOS
    return image.resize((side, side), kind)

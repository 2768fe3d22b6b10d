"""The embedded image set: 1,570 emoji in four styles, with captions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from snapgen_pl.data.buckets import Size
from snapgen_pl.data.emoji.vendored import CONCEPTS_FILE, FOLDER, STYLES, Concept, Style, Vendored, sheet_name
from snapgen_pl.data.source import ImageSource, OpenSource
from snapgen_pl.data.split import held_out

HELD_OUT_FRACTION = 0.1
CAPTION = "a {label}, {style} style"
# Fingerprints say nothing of this wording: emoji that are as they always were keep theirs, and runs, reports and the
# judge of them go on. Another wording is another data set.
FIRST_CAPTION = "a {label}, {style} style"


@dataclass(frozen=True, eq=False)
class EmojiSet:
    """The emoji of one split, style by style; an :class:`~snapgen_pl.data.source.ImageSet` with captions.

    Attributes:
        image_BHWC: uint8 (N, 64, 64, 3).
        labels: int64 (N,).
        concepts: what each image shows.
        styles: how each image shows it.
    """

    image_BHWC: Tensor
    labels: Tensor
    concepts: tuple[Concept, ...]
    styles: tuple[Style, ...]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """The image, 64 x 64 RGB."""
        return Image.fromarray(self.image_BHWC[index].numpy())

    def size(self, index: int) -> Size:
        """That of every image."""
        return Size(*self.image_BHWC.shape[1:3])

    def caption(self, index: int) -> str:
        """A sentence for the image, such as "a grinning face, noto style"."""
        return CAPTION.format(label=self.concepts[index].label, style=self.styles[index])


class Emoji(ImageSource):
    """1,570 emoji in up to four styles, 64 x 64 pixels on white, vendored with this package.

    A class is a kind of thing in a style, such as "animal-bird, noto". A tenth of the concepts, chosen by their code
    point, is held out for validation in every style.

    Args:
        styles: which styles to read, each once.
        level: how finely kinds of things are told apart: 9 groups or 95 subgroups of Unicode.
        folder: where the vendored files lie; by default, in this package.
    """

    def __init__(
        self,
        styles: tuple[Style, ...] = STYLES,
        level: Literal["group", "subgroup"] = "subgroup",
        folder: Path | None = None,
    ) -> None:
        if not styles or len(set(styles)) != len(styles) or not set(styles) <= set(STYLES):
            raise ValueError(f"styles must be some of {', '.join(STYLES)}, each at most once; got {list(styles)}")
        if level not in ("group", "subgroup"):
            raise ValueError(f"level must be group or subgroup, got {level!r}")
        self.styles: tuple[Style, ...] = tuple(styles)
        self.level = level
        self.folder = folder

    def open(self) -> OpenSource:
        """Reads and checks the vendored files; the sets are of :class:`EmojiSet`."""
        vendored = Vendored(self.folder or FOLDER)
        concepts = vendored.concepts()
        kinds = sorted({self._kind(concept) for concept in concepts})
        classes = tuple(f"{kind}, {style}" for style in self.styles for kind in kinds)
        image_BHWC = torch.cat([vendored.images(style, len(concepts)) for style in self.styles])
        rows = [(concept, style) for style in self.styles for concept in concepts]
        class_of = {name: index for index, name in enumerate(classes)}
        labels = torch.tensor([class_of[f"{self._kind(concept)}, {style}"] for concept, style in rows])

        def split(validation: bool) -> EmojiSet:
            keep = [i for i, (concept, _) in enumerate(rows) if held_out(concept.code, HELD_OUT_FRACTION) == validation]
            return EmojiSet(
                image_BHWC[keep],
                labels[keep],
                tuple(rows[i][0] for i in keep),
                tuple(rows[i][1] for i in keep),
            )

        return OpenSource(classes, split(False), split(True), self._fingerprint(vendored))

    def _kind(self, concept: Concept) -> str:
        return concept.group if self.level == "group" else concept.subgroup

    def _fingerprint(self, vendored: Vendored) -> str:
        parts = [self.level, vendored.checksums[CONCEPTS_FILE]]
        parts += [vendored.checksums[sheet_name(style)] for style in self.styles]
        parts += [CAPTION] if CAPTION != FIRST_CAPTION else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

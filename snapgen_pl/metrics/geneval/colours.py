"""GenEval's colours: CLIP says which of ten an object has."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.metrics.clip import CLIP
from snapgen_pl.metrics.geneval.rules import COLOURS, Detection

_GREY = 0x99  # of what is not the object
_TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class Colours:
    """Classifies objects by the nearest of ten texts' mean vectors; the rest of the image is grey, and cut off.

    Args:
        clip: sees images and texts.
    """

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        self._colours: dict[str, Tensor] = {}

    def __call__(self, image_CHW: Tensor, name: str, objects: Sequence[Detection]) -> list[str]:
        """The colour of each object.

        Args:
            image_CHW: uint8 RGB.
            name: of the objects' class.
            objects: in the image.
        """
        crops = torch.cat([self.clip.images(_cut_out(image_CHW, each)[None]) for each in objects])
        return [COLOURS[index] for index in (crops @ self._of(name).T).argmax(dim=-1).tolist()]

    def _of(self, name: str) -> Tensor:
        """The vectors of the colours of a class, (10, D); kept."""
        if name not in self._colours:
            texts = [text.format(colour=colour, name=name) for colour in COLOURS for text in _TEMPLATES]
            vector_KTD = self.clip.texts(texts).vector_BD.view(len(COLOURS), len(_TEMPLATES), -1)
            self._colours[name] = F.normalize(vector_KTD.mean(dim=1), dim=-1)
        return self._colours[name].to(self.clip.device)


def _cut_out(image_CHW: Tensor, found: Detection) -> Tensor:
    left, top, right, bottom = map(int, found.box)
    alone = torch.where(found.mask_HW.to(image_CHW.device), image_CHW, _GREY)
    return alone[:, top:bottom, left:right].to(torch.uint8)

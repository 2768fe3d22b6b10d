"""The captions that an image is judged among."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.data.emoji import EmojiSet
from snapgen_pl.data.emoji.vendored import STYLES

AMONG = 100
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Captions:
    """Captions of some emoji, as points of the space of sentences.

    Attributes:
        place: of each caption.
        styles: int64 (K,), the place of each caption's style among ``STYLES``.
        sentence_KD: fp32 on the CPU, of length 1.
    """

    place: dict[str, int]
    styles: Tensor
    sentence_KD: Tensor

    @staticmethod
    def of(images: EmojiSet, encoder: TextEncoder) -> "Captions":
        """Those of a set.

        Raises:
            ValueError: if there are fewer than 100 in a style.
        """
        texts = [images.caption(index) for index in range(len(images))]
        styles = torch.tensor([STYLES.index(style) for style in images.styles])
        if (fewest := int(styles.bincount(minlength=len(STYLES)).min())) < AMONG:
            raise ValueError(f"a style has {fewest} captions, and an image is judged among {AMONG}; give a larger set")
        return Captions({text: index for index, text in enumerate(texts)}, styles, sentences(encoder, texts))

    def find(self, asked: Sequence[str]) -> Tensor:
        """int64 (N,), the place of each caption.

        Raises:
            ValueError: naming a caption that is none of these.
        """
        if unknown := [text for text in asked if text not in self.place]:
            raise ValueError(
                f"{unknown[0]!r} is no caption of a held-out emoji, and the judge knows no others; set data.condition "
                "to caption, data.source to all styles of Emoji, and labels of SampleMetrics to held_out"
            )
        return torch.tensor([self.place[text] for text in asked])

    def top1(self, image_ND: Tensor, own_N: Tensor) -> Tensor:
        """How likely an image's own caption is the nearest of 100: fp32 (N,).

        The 99 others are any of the captions in the same style, each choice alike: with m of M others nearer than the
        own, none of the nearer is chosen with probability C(M - m, 99) / C(M, 99).

        Args:
            image_ND: the images' points, of length 1.
            own_N: the places of their captions.
        """
        similarity_NK = image_ND @ self.sentence_KD.T
        rival_NK = self.styles[own_N, None] == self.styles
        nearer_NK = similarity_NK > similarity_NK.gather(1, own_N[:, None])
        others_N = rival_NK.sum(dim=1).double() - 1
        nearer_N = (nearer_NK & rival_NK).sum(dim=1)
        chosen_J = torch.arange(AMONG - 1)
        left_NJ = (others_N - nearer_N)[:, None] - chosen_J
        return (left_NJ.clamp_min(0) / (others_N[:, None] - chosen_J)).prod(dim=1).float()


def sentences(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Texts as points of length 1, fp32 (N, D) on the CPU."""
    pooled = [encoder.encode(texts[start : start + _BATCH]).pooled_BP for start in range(0, len(texts), _BATCH)]
    return torch.cat([pooled_BP.cpu() for pooled_BP in pooled if pooled_BP is not None])

"""CLIP as a judge: images and texts as vectors of length 1 (Radford et al., 2021).

By transformers' CLIPModel: torchmetrics' functions do not run with transformers 5, and cut the end mark off long texts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.metrics.judge_network import CLIP as PIXELS
from snapgen_pl.metrics.judge_network import judge_network, judge_tokenizer, judging, padded, resized


class CLIPTexts(NamedTuple):
    """Texts as CLIP sees them.

    Attributes:
        vector_BD: of length 1.
        truncated_B: bool, which were longer than CLIP reads and lost what is over.
    """

    vector_BD: Tensor
    truncated_B: Tensor


class CLIP:
    """A whole CLIP, frozen and in fp32.

    Args:
        path: its folder, or its name on the Hugging Face hub.

    Attributes:
        digest: SHA-256 over its configuration and weights.
        tokens: that it reads of a text, marks included.

    Raises:
        ValueError: if files are missing or damaged, or are another network's.
    """

    def __init__(self, path: str) -> None:
        from transformers import CLIPTokenizer

        network, self.digest = judge_network(path, "CLIPModel", "clip")
        self._network: Any = network
        self._tokenizer = judge_tokenizer(path, CLIPTokenizer, ("vocab.json", "merges.txt"))
        self._side: int = self._network.config.vision_config.image_size
        self.tokens: int = self._network.config.text_config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        device: torch.device = self._network.device
        return device

    def to(self, device: torch.device) -> None:
        """Moves it."""
        self._network.to(device)

    def images(self, image_BCHW: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> vectors of length 1, (B, D); what is not square loses its ends."""
        with judging(self.device):
            pixels_BCHW = PIXELS(resized(image_BCHW.to(self.device), self._side))
            return F.normalize(self._network.get_image_features(pixels_BCHW).pooler_output, dim=-1)

    def texts(self, texts: Sequence[str]) -> CLIPTexts:
        """Texts -> vectors of length 1, (B, D)."""
        read = padded(self._tokenizer, texts, self.tokens, self.device)
        with judging(self.device):
            found = self._network.get_text_features(input_ids=read.ids_BS, attention_mask=read.mask_BS)
            return CLIPTexts(F.normalize(found.pooler_output, dim=-1), read.truncated_B)

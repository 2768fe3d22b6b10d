"""Answers to questions about images, by BLIP (Li et al., 2022)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snapgen_pl.metrics.judge_network import CLIP as PIXELS
from snapgen_pl.metrics.judge_network import judge_network, judge_tokenizer, judging, resized

_LONGEST = 10  # tokens of an answer


class Answers:
    """BLIP's answers to questions about square images.

    Args:
        path: the network's folder, or its name on the Hugging Face hub, such as Salesforce/blip-vqa-base.

    Attributes:
        digest: SHA-256 over its configuration and weights.

    Raises:
        ValueError: if files are missing or damaged, or are another network's.
    """

    def __init__(self, path: str) -> None:
        from transformers import BertTokenizer

        network, self.digest = judge_network(path, "BlipForQuestionAnswering", "blip")
        self._network: Any = network
        self._tokenizer: Any = judge_tokenizer(path, BertTokenizer, ("vocab.txt",))
        self._side: int = self._network.config.vision_config.image_size

    def to(self, device: torch.device) -> None:
        """Moves it."""
        self._network.to(device)

    def __call__(self, image_CHW: Tensor, questions: Sequence[str]) -> list[str]:
        """The likeliest answer to each question, token by token.

        Args:
            image_CHW: uint8 RGB, square.
            questions: one or more.
        """
        device = self._network.device
        ids = self._tokenizer(list(questions), truncation=True, max_length=self._tokens)["input_ids"]
        # The decoder looks at padding too: questions go together with those of their length.
        of_length: dict[int, list[int]] = defaultdict(list)
        for place, own in enumerate(ids):
            of_length[len(own)].append(place)
        found = [""] * len(questions)
        with judging(device):
            pixels_1CHW = PIXELS(resized(image_CHW[None].to(device), self._side))
            for places in of_length.values():
                said = self._network.generate(
                    input_ids=torch.tensor([ids[place] for place in places], device=device),
                    pixel_values=pixels_1CHW.expand(len(places), -1, -1, -1),
                    max_new_tokens=_LONGEST,
                    do_sample=False,
                    num_beams=1,
                )
                # The first token is the one that begins answers; not every tokenizer knows it for a mark.
                texts = self._tokenizer.batch_decode(said[:, 1:], skip_special_tokens=True)
                for place, text in zip(places, texts, strict=True):
                    found[place] = text.strip()
        return found

    @property
    def _tokens(self) -> int:
        tokens: int = self._network.config.text_config.max_position_embeddings
        return tokens

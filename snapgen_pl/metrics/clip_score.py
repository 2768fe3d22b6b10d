"""CLIP score: how near images are to the texts they were drawn for (Hessel et al., 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from snapgen_pl.metrics.clip import CLIP
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, RequestMetric, Score, mean_and_truncated, prepared


class CLIPScore(RequestMetric):
    """``clip_score``: the mean cosine of CLIP's vectors of an image and of its text, and its deviation over images.

    It is a cosine, as in SnapGen's table (0.332), neither times 100 nor cut off at 0. Which CLIP and which prompts that
    table is of is not known here. ``clip_truncated`` is the share of images whose text is longer than CLIP reads, 77
    tokens, and was judged by its beginning.

    Args:
        path: CLIP's folder, or its name on the Hugging Face hub, such as openai/clip-vit-large-patch14.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._clip: CLIP | None = None

    @property
    def network(self) -> str:
        """See the class."""
        return "clip"

    def protocol(self) -> Facts:
        """Weights and convention."""
        clip = prepared(self._clip, self.network)
        return {"weights": clip.digest, "tokens": clip.tokens, "value": "mean cosine"}

    def prepare(self, device: torch.device) -> None:
        """Loads CLIP; a second call only moves it."""
        if self._clip is None:
            self._clip = CLIP(self.path)
        self._clip.to(device)

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """Each image's cosine, and whether its text was cut, (B, 2)."""
        clip = prepared(self._clip, self.network)
        texts = clip.texts(asked)
        cosine_B = (clip.images(image_BCHW) * texts.vector_BD).sum(dim=-1)
        return {self.network: torch.stack([cosine_B, texts.truncated_B.float()], dim=-1)}

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """See the class."""
        score, truncated = mean_and_truncated(features, self.network)
        return {"clip_score": score, "clip_truncated": truncated}

"""Judges whether drawn emoji show what their captions say: by linear maps that saw real training images alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from snapgen_pl.conditioning.minilm import MiniLM
from snapgen_pl.data.emoji import Emoji, EmojiSet
from snapgen_pl.metrics.efficientnet import EfficientNetLite0
from snapgen_pl.metrics.emoji_judge.captions import AMONG, Captions
from snapgen_pl.metrics.emoji_judge.maps import JudgeMaps, means
from snapgen_pl.metrics.sample_metric import Facts, FeatureSet, RequestMetric, Score, prepared


class EmojiJudge(RequestMetric):
    """``judge_top1`` and ``judge_style`` of images drawn for the captions of held-out emoji.

    ``judge_top1`` is the share of images to which their own caption is the nearest of 100, the 99 others being held-out
    captions of the same style: whoever ignores captions gets 1 %, and drawing the right style does not help. It is the
    mean over every choice of the 99, so nothing is drawn. ``judge_style`` is the share that is taken for the asked one
    of four styles.

    Both come from linear maps of EfficientNet-Lite0's pooled features, which ``build.py`` beside this file trained on
    the real training images: neither they nor a model saw the held-out concepts. They are far from sure about these, so
    a value is to be read against that of the real held-out images, a control of every report, not against 1.
    """

    def __init__(self) -> None:
        self._maps = JudgeMaps.load()
        self._loaded: tuple[EfficientNetLite0, Captions] | None = None

    @property
    def network(self) -> str:
        """See the class."""
        return "emoji_judge"

    def protocol(self) -> Facts:
        """The maps, what they were made of, and how many captions an image is judged among."""
        return {"maps": self._maps.digest, "among": AMONG, **self._maps.origin._asdict()}

    def controls(self) -> Mapping[str, Mapping[str, Score]]:
        """What the real held-out images get, as they are and degraded, and under each other's captions."""
        return {control: _scores(figures) for control, figures in self._maps.figures.items()}

    def prepare(self, device: torch.device) -> None:
        """Loads EfficientNet-Lite0, and MiniLM for as long as it takes to read the captions.

        Raises:
            ValueError: if they are not installed, or are not those that the maps were trained with.
        """
        if self._loaded is None:
            origin = self._maps.origin
            network, encoder = EfficientNetLite0(origin.input_size), MiniLM(pooled=True, truncate=True)
            found = {"image_network": network.digest, "text_encoder": encoder.fingerprint()}
            for what, digest in found.items():
                if digest != (expected := getattr(origin, what)):
                    raise ValueError(
                        f"the judge was trained with another {what.replace('_', ' ')}, {expected[:12]}, than "
                        f"{digest[:12]} here; run `pip install 'snapgen-pl[demo]'`"
                    )
            held_out = Emoji().open().validation
            assert isinstance(held_out, EmojiSet)
            self._loaded = network, Captions.of(held_out, encoder)
            encoder.release()
        self._loaded[0].to(device)

    def check_requests(self, asked: Sequence[str]) -> None:
        """Raises ValueError, naming a caption that is not of a held-out emoji."""
        _, captions = prepared(self._loaded, self.network)
        captions.find(asked)

    def features(self, image_BCHW: Tensor, asked: Sequence[str] = ()) -> dict[str, Tensor]:
        """Each value of each image, (B, 2)."""
        network, captions = prepared(self._loaded, self.network)
        return {self.network: self._maps.judge(network(image_BCHW).cpu(), captions, captions.find(asked))}

    def measure(self, features: FeatureSet) -> dict[str, Score]:
        """The mean of each value."""
        return _scores(means(torch.cat(list(features.read(self.network)))))


def _scores(values: Mapping[str, float]) -> dict[str, Score]:
    return {name: Score(value) for name, value in values.items()}

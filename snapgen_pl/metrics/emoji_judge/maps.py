"""What the judge learned: two linear maps, in a file beside this one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_pl.digest import tensors_digest
from snapgen_pl.metrics.emoji_judge.captions import Captions
from snapgen_pl.metrics.emoji_judge.linear import LinearMap
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.whole_files import whole_file

FILE = Path(__file__).with_name("judge.safetensors")
KINDS = ("judge_top1", "judge_style")
_FORMAT = "snapgen-pl emoji judge 1"

# Of known images, by control: each of KINDS.
Figures: TypeAlias = Mapping[str, Mapping[str, float]]


def means(judged_NK: Tensor) -> dict[str, float]:
    """The values of a set, of what :meth:`JudgeMaps.judge` says of its images."""
    return dict(zip(KINDS, judged_NK.double().mean(dim=0).tolist(), strict=True))


class Origin(NamedTuple):
    """What the maps were made of.

    Attributes:
        data: fingerprint of the emoji, whose training split was trained on.
        image_network: SHA-256 of EfficientNet-Lite0's weights.
        input_size: side that images are resized to for it.
        text_encoder: fingerprint of MiniLM.
    """

    data: str
    image_network: str
    input_size: int
    text_encoder: str


@dataclass(frozen=True, eq=False)
class JudgeMaps:
    """Maps of EfficientNet-Lite0's pooled features, 1280 wide.

    Attributes:
        caption: to MiniLM's space of sentences, 384 wide, where an image is near its own caption.
        style: to a logit for each of ``STYLES``.
        origin: what they were made of.
        figures: what they say of the real held-out images.
        recipe: how they were trained, and what cross-validation on the training concepts said of it.
    """

    caption: LinearMap
    style: LinearMap
    origin: Origin
    figures: Figures
    recipe: Facts

    @staticmethod
    def load(path: Path = FILE) -> "JudgeMaps":
        """Reads a file; by default, the one of this package.

        Raises:
            ValueError: if it is missing, damaged or something else.
        """
        try:
            with safe_open(path, framework="pt") as opened:
                facts = json.loads((opened.metadata() or {}).get("judge", "{}"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path}: missing or damaged ({error}); reinstall snapgen-pl, or restore the file with git"
            ) from error
        if facts.get("format") != _FORMAT:
            raise ValueError(f"{path} is no judge of `python -m snapgen_pl.metrics.emoji_judge.build`")
        return JudgeMaps(
            caption=LinearMap(tensors["caption.weight"], tensors["caption.bias"]),
            style=LinearMap(tensors["style.weight"], tensors["style.bias"]),
            origin=Origin(**facts["origin"]),
            figures=facts["figures"],
            recipe=facts["recipe"],
        )

    def write(self, path: Path) -> None:
        """Writes safetensors, whole or not at all."""
        facts = {
            "format": _FORMAT,
            "origin": self.origin._asdict(),
            "figures": self.figures,
            "recipe": self.recipe,
        }
        with whole_file(path) as part:
            # One entry: safetensors writes several in an order that changes from run to run.
            save_file(self._tensors(), part, {"judge": json.dumps(facts)})

    @property
    def digest(self) -> str:
        """SHA-256 over the weights."""
        return tensors_digest(self._tensors())

    def judge(self, features_ND: Tensor, captions: Captions, own_N: Tensor) -> Tensor:
        """Each of KINDS, of each image: fp32 (N, 2).

        Args:
            features_ND: of the images, on the CPU.
            captions: those to judge among.
            own_N: the place of each image's own.
        """
        # Rounded by a run's autocast, near captions would be equally near.
        with torch.autocast("cpu", enabled=False):
            image_NE = F.normalize(self.caption(features_ND), dim=1)
            in_style_N = self.style(features_ND).argmax(dim=1) == captions.styles[own_N]
            return torch.stack([captions.top1(image_NE, own_N), in_style_N.float()], dim=1)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "caption.weight": self.caption.weight,
            "caption.bias": self.caption.bias,
            "style.weight": self.style.weight,
            "style.bias": self.style.bias,
        }

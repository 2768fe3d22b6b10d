"""The Inception of FID: the graph of 2015-12-05 in torch-fidelity's port, which rounds like TensorFlow's."""

import hashlib
import io
import textwrap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snapgen_pl.extra import require
from snapgen_pl.images import check_uint8
from snapgen_pl.tf32 import tf32

FILE = "weights-inception-2015-12-05-6726825d.pth"
_SPATIAL_CHANNELS = 7


class InceptionFeatures(NamedTuple):
    """What the metrics of ImageNet-256 are made of; fp32.

    Attributes:
        pool_BD: (B, 2048), of FID, precision and recall.
        spatial_BD: (B, 2023), of sFID: the first 7 channels of TensorFlow's ``mixed_6/conv`` after its ReLU, 17 x 17,
            flattened by row, column, channel as in ADM's statistics.
        logits_BK: (B, 1008), of the Inception Score: without the last layer's bias, as in ADM's evaluator.
    """

    pool_BD: Tensor
    spatial_BD: Tensor
    logits_BK: Tensor


class Inception(nn.Module):
    """torch-fidelity's ``inception-v3-compat``, frozen and always in eval mode.

    Args:
        weights: torch-fidelity's file of weights, read as tensors only.

    Attributes:
        digest: SHA-256 of the file.

    Raises:
        ValueError: if torch-fidelity or the file is missing, or the file is another network's.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        content = _read(weights)
        self.digest = hashlib.sha256(content).hexdigest()
        self.network = _load(content, weights)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Inception":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> InceptionFeatures:
        """Features of uint8 RGB images (B, 3, H, W), which the network resizes to 299 x 299 as TensorFlow 1 does."""
        check_uint8(image_BCHW)
        branch = self.network.get_submodule("Mixed_6d.branch1x1")  # TensorFlow's mixed_6/conv
        kept: list[Tensor] = []
        with (
            branch.register_forward_hook(lambda *call: kept.append(call[-1])),
            torch.autocast(image_BCHW.device.type, enabled=False),
            tf32(False),
        ):
            pool_BD, logits_BK = self.network(image_BCHW)
        spatial_BHWC = kept[0][:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1)
        return InceptionFeatures(pool_BD, spatial_BHWC.flatten(1), logits_BK)


def _read(weights: Path) -> bytes:
    try:
        return weights.expanduser().read_bytes()
    except OSError as error:
        raise ValueError(
            f"{weights} cannot be read ({error.strerror}); download {FILE} of torch-fidelity's release v0.2.0 from "
            "github.com/toshas/torch-fidelity and give its path"
        ) from error


def _load(content: bytes, weights: Path) -> nn.Module:
    kind = require("torch_fidelity", "fid").FeatureExtractorInceptionV3
    # torch-fidelity unpickles what it is given whole, so it is given tensors alone, written again here.
    tensors = io.BytesIO()
    torch.save(_tensors(content, weights), tensors)
    tensors.seek(0)
    try:
        # It initialises at random what it then loads; the global generator is left alone.
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = kind(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=tensors
            )
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"{weights} holds another network's weights; download {FILE} again ({reason})") from error
    return network


def _tensors(content: bytes, weights: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own
        reason = textwrap.shorten(str(error), 200)
        raise ValueError(f"{weights} is no file of weights, or damaged; download {FILE} again ({reason})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{weights} holds more than named tensors; download {FILE} again")
    return tensors

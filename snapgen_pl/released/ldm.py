"""LDM-4's released weights, through diffusers' networks and DDIM."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_pl.digest import tensors_digest
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.models.peers.ldm import ldm_unet
from snapgen_pl.released.chain_drawer import ChainDrawer
from snapgen_pl.released.compvis import unet_name, vq_name
from snapgen_pl.released.diffusion import DDIM, root_linear_schedule
from snapgen_pl.released.drawer import Decoder
from snapgen_pl.released.weights import fill, read_weights
from snapgen_pl.tf32 import tf32

_UNET, _FIRST_STAGE, _LABELS = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.embedding.weight"
# What the file holds besides: averaged weights, and tables of the schedule.
_LEFT_ALONE = re.compile(
    r"model_ema\..+|betas|(sqrt_|log_)?(recip_|recipm1_|one_minus_)?alphas_cumprod(_prev)?|posterior_\w+|logvar"
)
_SCHEDULE = "alphas_cumprod"
_CHANNELS = 3


class ReleasedLDM(ChainDrawer):
    """LDM-4-G, class-conditional at 256 px: ``cin256-v2``, the ``model.ckpt`` that latent-diffusion's repository names.

    Published is an FID of 3.60 at 250 steps of DDIM and guidance 1.5 (Rombach et al., 2022, Table 3: "250 steps, c.f.g,
    s = 1.5"). That its eta is 1 is decided here: DDPM's variance, as others sample it. As the released configuration
    says (use_ema: false), averaged weights (``model_ema``) in the file are left alone. Latents are not scaled, and
    quantised before they are decoded, in fp32 without TF32.

    Args:
        path: the checkpoint. Where it holds more than tensors it is refused: give its tensors as safetensors.
        image_size: side of the images, in pixels.
        num_classes: labels that it knows; one more stands for none.
        widths: see :func:`~snapgen_pl.models.peers.ldm.ldm_unet`.
        layers: likewise.
        context_dim: width of the label table.
        decoder_widths: channels of the autoencoder's resolutions, from the finest down.
        decoder_layers: residual blocks of a resolution on the encoder's way down.
        codes: vectors in the autoencoder's table.
        sampler: draws the latents.
        guidance: guides it.

    Raises:
        ValueError: where sizes do not fit together.
    """

    sampler: DDIM
    unet: Any  # diffusers has no types
    first_stage: Any

    def __init__(
        self,
        path: str,
        image_size: int = 256,
        num_classes: int = 1000,
        widths: tuple[int, ...] = (192, 384, 576, 960),
        layers: int = 2,
        context_dim: int = 512,
        decoder_widths: tuple[int, ...] = (128, 256, 512),
        decoder_layers: int = 2,
        codes: int = 8192,
        sampler: DDIM = DDIM(steps=250, eta=1.0),  # noqa: B008 (frozen)
        guidance: Guidance = Guidance(scale=1.5),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(image_size, num_classes, guidance)
        self.path, self.sampler = path, sampler
        self.widths, self.layers, self.context_dim = widths, layers, context_dim
        self.decoder_widths, self.decoder_layers, self.codes = decoder_widths, decoder_layers, codes
        multiple = 2 ** (len(decoder_widths) + len(widths) - 2)
        if image_size % multiple:
            raise ValueError(f"image_size {image_size} is not a multiple of {multiple}, which the networks halve away")
        self._decoder_weights = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        side = self.image_size // 2 ** (len(self.decoder_widths) - 1)
        return _CHANNELS, side, side

    def ready(self, folder: Path) -> list[str]:
        """Reads the checkpoint: UNet, label table and autoencoder."""
        if self._weights:
            return []
        tensors = read_weights(self.path, "state_dict")
        self._check(tensors)
        unet_tensors = _below(tensors, _UNET) | {name: tensors[name] for name in (_LABELS,) if name in tensors}
        first_stage_tensors = _below(tensors, _FIRST_STAGE)
        with torch.device("meta"):
            unet, first_stage = self._unet(), self._first_stage()
            labels = nn.Embedding(self.num_classes + 1, self.context_dim)
        names = {f"unet.{name}": _UNET + unet_name(name, self.layers) for name in unet.state_dict()}
        fill(
            nn.ModuleDict({"unet": unet, "labels": labels}), unet_tensors, names | {"labels.weight": _LABELS}, self.path
        )
        names = {name: _FIRST_STAGE + vq_name(name, len(self.decoder_widths)) for name in first_stage.state_dict()}
        fill(
            first_stage,
            {name: _as_linear(name, tensor) for name, tensor in first_stage_tensors.items()},
            names,
            self.path,
        )
        self.unet, self.labels, self.first_stage = unet, labels, first_stage
        self._weights, self._decoder_weights = tensors_digest(unet_tensors), tensors_digest(first_stage_tensors)
        return [f"LDM: {self.path}"]

    def _check(self, tensors: dict[str, Tensor]) -> None:
        ours = (_UNET, _FIRST_STAGE, _LABELS)
        foreign = [name for name in tensors if not (name.startswith(ours) or _LEFT_ALONE.fullmatch(name))]
        if foreign:
            raise ValueError(f"{self.path} is not this network's: foreign: {min(foreign)}, one of {len(foreign)}")
        kept = torch.tensor(root_linear_schedule())
        if _SCHEDULE in tensors and not torch.allclose(tensors[_SCHEDULE], kept, rtol=1e-3):
            raise ValueError(f"{self.path} is not this network's: {_SCHEDULE} is another schedule than LDM-4's")

    def _unet(self) -> nn.Module:
        return ldm_unet(_CHANNELS, self.widths, self.layers, context_dim=self.context_dim)

    def _first_stage(self) -> nn.Module:
        from diffusers.models.autoencoders.vq_model import VQModel

        resolutions = len(self.decoder_widths)
        network: nn.Module = VQModel(
            down_block_types=("DownEncoderBlock2D",) * resolutions,
            up_block_types=("UpDecoderBlock2D",) * resolutions,
            block_out_channels=self.decoder_widths,
            layers_per_block=self.decoder_layers,
            latent_channels=_CHANNELS,
            num_vq_embeddings=self.codes,
        )
        return network

    def _predicted(self, x_BCHW: Tensor, k: int, label_B: Tensor) -> Tensor:
        predicted: Tensor = self.unet(x_BCHW, k, self.labels(label_B)[:, None]).sample
        return predicted

    def _decoder(self) -> Decoder:
        return Decoder("VQModel", self._decoder_weights)

    def _decoded(self, latent_BCHW: Tensor) -> Tensor:
        with tf32(False):
            image_BCHW: Tensor = self.first_stage.decode(latent_BCHW).sample
        return image_BCHW


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """CompVis' attention has 1x1 convolutions where diffusers' has linear layers."""
    return tensor.flatten(1) if ".attn_1." in name and tensor.ndim == 4 else tensor

"""DiT's released weights, through diffusers' network and the sampling of DiT's paper."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.diffusers_weights import check_diffusers_size
from snapgen_pl.digest import tensors_digest
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.released.autoencoder_drawer import AutoencoderDrawer
from snapgen_pl.released.chain_drawer import ChainDrawer
from snapgen_pl.released.diffusion import DDPM

TRANSFORMER = "transformer"
_WEIGHTS = "diffusion_pytorch_model.*"


class ReleasedDiT(ChainDrawer, AutoencoderDrawer):
    """DiT-XL/2 at 256 px, as diffusers publishes it: a pipeline whose ``transformer`` this reads.

    The defaults are of the published FID of 2.27: 250 steps of DDPM with the learned variance, guidance 1.5 on the
    first 3 of 4 channels. ``DiTPipeline`` itself gives another number: it drops the variances, guides all channels,
    draws steps' noise from the process's generator, and spaces the sinusoid's frequencies otherwise than DiT does.

    Args:
        autoencoder: of the latents: sd-vae-ft-ema, or the pipeline's ``vae``.
        path: the pipeline's folder, or its name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        image_size: side of the images, in pixels.
        num_classes: labels that it knows; one more stands for none.
        sampler: draws the latents.
        guidance: guides it.

    Raises:
        ValueError: where sizes do not fit together.
    """

    sampler: DDPM
    network: Any  # diffusers has no types

    def __init__(
        self,
        autoencoder: Autoencoder,
        path: str = "facebook/DiT-XL-2-256",
        revision: str | None = None,
        image_size: int = 256,
        num_classes: int = 1000,
        sampler: DDPM = DDPM(steps=250),  # noqa: B008 (frozen)
        guidance: Guidance = Guidance(scale=1.5, channels=3),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(image_size, num_classes, guidance, autoencoder)
        self.path, self.revision, self.sampler = path, revision, sampler

    def ready(self, folder: Path) -> list[str]:
        """Reads the transformer and the autoencoder."""
        if self._weights:
            return []
        network = self._network()
        self._check(network.config)
        for block in network.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0  # DiT's frequencies; diffusers' differ a little
        self.network = network.eval().requires_grad_(False)
        lines = [f"DiT: {self.path}", self.autoencoder.ready(folder, ())]
        self._weights = tensors_digest(network.state_dict())
        return [line for line in lines if line]

    def _network(self) -> Any:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        names = [f"{TRANSFORMER}/{name}" for name in ("config.json", _WEIGHTS)]
        place = pretrained_folder(self.path, names, self.revision) / TRANSFORMER
        check_diffusers_size(DiTTransformer2DModel, place, _WEIGHTS)
        try:
            # Pickled weights, which the hub has of it, are read as tensors alone. DiT's norms take 1e-6 throughout.
            network, report = DiTTransformer2DModel.from_pretrained(
                place, norm_eps=1e-6, low_cpu_mem_usage=False, output_loading_info=True
            )
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{place} holds no transformer of a DiT pipeline, or a damaged one: {reason}") from error
        if wrong := [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]:
            raise ValueError(f"the weights in {place} are another network's: {min(map(str, wrong))}; download it again")
        return network

    def _check(self, config: Any) -> None:
        channels, side, _ = self.latent_shape
        wanted = {
            "in_channels": channels,
            "out_channels": 2 * channels,
            "sample_size": side,
            "num_embeds_ada_norm": self.num_classes,
        }
        if wrong := [
            f"{name} {config[name]} instead of {value}" for name, value in wanted.items() if config[name] != value
        ]:
            raise ValueError(
                f"{self.path} does not fit: {', '.join(wrong)}; set image_size, num_classes and autoencoder to its own"
            )

    def _predicted(self, x_BCHW: Tensor, k: int, label_B: Tensor) -> Tensor:
        predicted: Tensor = self.network(x_BCHW, torch.full_like(label_B, k), class_labels=label_B).sample
        return predicted

"""SiT's released weights, through our network, samplers and guidance."""

from pathlib import Path

import torch
from torch import Tensor, nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.conditioning.class_tokens import ClassTokens
from snapgen_pl.digest import tensors_digest
from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.samplers import SDE, Sampler, StepNoise
from snapgen_pl.models.peers.dit import DiT, position_table
from snapgen_pl.models.peers.sit import SiTVelocity
from snapgen_pl.released.autoencoder_drawer import AutoencoderDrawer
from snapgen_pl.released.weights import fill, read_weights

_POSITIONS = "pos_embed"


class ReleasedSiT(AutoencoderDrawer):
    """SiT-XL/2 at 256 px: the file ``SiT-XL-2-256x256.pt`` that its authors' repository names.

    The defaults are of the published FID of 2.06: the SDE in 250 steps, guidance 1.5 on the first 3 of 4 channels.

    Args:
        path: the checkpoint; its averaged weights, where it holds several.
        autoencoder: of the latents: sd-vae-ft-ema.
        image_size: side of the images, in pixels.
        num_classes: labels that it knows; one more stands for none.
        hidden: width of the transformer.
        depth: number of blocks.
        heads: attention heads, which no weight tells.
        patch: height and width of a patch.
        sampler: integrates the velocity.
        guidance: guides it.

    Raises:
        ValueError: where sizes do not fit together.
    """

    sampler: Sampler
    denoiser: SiTVelocity
    labels: ClassTokens

    def __init__(
        self,
        path: str,
        autoencoder: Autoencoder,
        image_size: int = 256,
        num_classes: int = 1000,
        hidden: int = 1152,
        depth: int = 28,
        heads: int = 16,
        patch: int = 2,
        sampler: Sampler = SDE(steps=250),  # noqa: B008 (frozen)
        guidance: Guidance = Guidance(scale=1.5, channels=3),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(image_size, num_classes, guidance, autoencoder, patch)
        self.path, self.sampler = path, sampler
        self.hidden, self.depth, self.heads, self.patch = hidden, depth, heads, patch

    def ready(self, folder: Path) -> list[str]:
        """Reads the checkpoint and the autoencoder."""
        if self._weights:
            return []
        tensors = read_weights(self.path, "ema")
        digest = tensors_digest(tensors)
        self._check_positions(tensors.pop(_POSITIONS, None))
        with torch.device("meta"):
            network = self._network()
            labels = ClassTokens(self.num_classes, tokens=1, context_dim=self.hidden)
        fill(nn.ModuleDict({"denoiser": network, "labels": labels}), tensors, sit_names(self.depth), self.path)
        self.denoiser, self.labels = SiTVelocity(network).eval(), labels
        lines = [f"SiT: {self.path}, {self.depth} blocks of width {self.hidden}", self.autoencoder.ready(folder, ())]
        self._weights = digest
        return [line for line in lines if line]

    def _network(self) -> DiT:
        return DiT(
            self.autoencoder.channels,
            self.hidden,
            self.depth,
            self.heads,
            self.patch,
            context_dim=self.hidden,
            learn_sigma=True,
        )

    def _sampled(self, label_B: Tensor, noise_BCHW: Tensor, step_noise: StepNoise, guidance: Guidance) -> Tensor:
        velocity = guided_velocity(self.denoiser, self.labels(label_B), self.labels.unconditional(label_B), guidance)
        return self.sampler(velocity, noise_BCHW, step_noise)

    def _check_positions(self, table_1SE: Tensor | None) -> None:
        """Positions are a fixed table, which our network computes: the file's has to be the same."""
        side = self.latent_shape[-1] // self.patch
        own = position_table(side, side, self.hidden, torch.device("cpu"))
        if table_1SE is None:
            raise ValueError(f"{self.path} is not this network's: missing: {_POSITIONS}")
        if table_1SE.shape[1:] != own.shape or not torch.allclose(table_1SE[0], own, atol=1e-4):
            raise ValueError(
                f"{self.path} is not this network's: {_POSITIONS} {tuple(table_1SE.shape)} is not the table of sines "
                f"for {side}x{side} patches of width {self.hidden}; set image_size, patch and hidden to its own"
            )


def sit_names(depth: int) -> dict[str, str]:
    """The name that SiT's repository, and DiT's, gives to each weight of our network and label table."""
    modules = {
        "denoiser.embed": "x_embedder.proj",
        "denoiser.time.mlp.0": "t_embedder.mlp.0",
        "denoiser.time.mlp.2": "t_embedder.mlp.2",
        "denoiser.modulation_out": "final_layer.adaLN_modulation.1",
        "denoiser.out": "final_layer.linear",
    }
    for block in range(depth):
        ours, theirs = f"denoiser.blocks.{block}", f"blocks.{block}"
        modules |= {
            f"{ours}.qkv": f"{theirs}.attn.qkv",
            f"{ours}.out": f"{theirs}.attn.proj",
            f"{ours}.mlp.0": f"{theirs}.mlp.fc1",
            f"{ours}.mlp.2": f"{theirs}.mlp.fc2",
            f"{ours}.modulation": f"{theirs}.adaLN_modulation.1",
        }
    names = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in modules.items() for part in ("weight", "bias")}
    return names | {"labels.table.weight": "y_embedder.embedding_table.weight"}

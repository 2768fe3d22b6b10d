"""Trains an autoencoder of diffusers' from the start, for decoders to learn from. Wiring only."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from snapgen_pl.autoencoders.autoencoder import Posterior
from snapgen_pl.config_files import Value
from snapgen_pl.data.photo_data import check_images
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, Role, no_time
from snapgen_pl.distill.reconstruction_loss import ReconstructionLoss
from snapgen_pl.images import from_uint8
from snapgen_pl.modules.reconstruction_means import ReconstructionMeans
from snapgen_pl.modules.training import Training, TrainingStep
from snapgen_pl.trained_run import open_run
from snapgen_pl.whole_files import whole_folder


class TrainAutoencoder(Training):
    """Trains encoder and decoder to give images back through a latent that stays near a standard normal.

    The loss is that of latent diffusion's autoencoders (Rombach et al., 2022, appendix G) before their discriminator:
    the reconstruction and kl_weight times the divergence of the posterior from N(0, 1). Validation decodes the
    posteriors' means to bytes, and tells PSNR, SSIM and, where it is trained on, LPIPS.

    Args:
        config: of the AutoencoderKL that is trained, from random weights and in channels_last; the keys are those of
            the config.json that diffusers saves.
        reconstruction: the distance from the images; by default as its class declares.
        kl_weight: of the divergence, a mean over pixels and channels of the image.
        optimizer: built over the network's parameters.
        warmup_images: the learning rate rises linearly over so many images.
        decay_images: it falls linearly to zero from there until so many images were seen; None keeps it.
        seed: seeds the draws from posteriors.
        inception: torch-fidelity's file of Inception weights, with which validation also tells ``rfid@N``.

    Raises:
        ValueError: for keys that the network does not know, a negative weight, or a schedule that ends before it
            begins.

    Attributes:
        loss_roles: by name, the role of every term of the loss.
    """

    def __init__(
        self,
        config: dict[str, Value],
        reconstruction: ReconstructionLoss | None = None,
        kl_weight: float = 1e-6,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda parameters: AdamW(
            parameters, lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0
        ),
        warmup_images: int = 0,
        decay_images: int | None = None,
        seed: int = 0,
        inception: Path | None = None,
    ) -> None:
        super().__init__(warmup_images, decay_images)
        if kl_weight < 0:
            raise ValueError(f"kl_weight is {kl_weight}; give 0 or more")
        self.reconstruction = reconstruction or ReconstructionLoss()
        if not self.reconstruction.weights:
            raise ValueError("reconstruction has no weight above 0; give it one")
        try:
            self.network = AutoencoderKL(**config)
        except TypeError as error:
            raise ValueError(f"config is none of an AutoencoderKL: {error}") from error
        self.network.to(memory_format=torch.channels_last)
        self.kl_weight = kl_weight
        self.loss_roles: Mapping[str, Role] = {**self.reconstruction.roles, "kl": "task"}
        self.make_optimizer, self.seed = optimizer, seed
        self._means = ReconstructionMeans(inception)

    def setup(self, stage: str) -> None:
        """Checks the data, and reads the weights of what measures.

        Raises:
            ValueError: where the data are no images of a size that fits, or weights are missing.
        """
        data = check_images(self.trainer, 2 ** (len(self.network.config["block_out_channels"]) - 1))
        self.reconstruction.ready(self.device)
        self._means.ready(self.device, len(data.source.validation))

    def sharded(self) -> Iterable[nn.Module]:
        """Its encoder, its decoder and the layers between: the network itself is never called."""
        parts: Iterable[nn.Module] = self.network.children()
        return parts

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and its schedule, counted in images."""
        optimizer = self.make_optimizer(self.network.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> TrainingStep:
        """One batch."""
        return self.learn(self.loss_terms(batch), batch.position_B)

    def loss_terms(self, batch: ImageBatch) -> LossTerms:
        """The terms of the loss per sample, in fp32; there is no time, so that all times are 0."""
        image_BCHW = from_uint8(batch.image_BCHW)
        posterior = self.posterior(image_BCHW)
        raw_BCHW = Posterior(posterior.mean, posterior.std).draw(self.seed, batch.position_B)
        decoded_BCHW = self.decoded(raw_BCHW)
        divergence_B = posterior.kl() / image_BCHW[0].numel()
        kl = LossTerm("kl", "task", divergence_B, self.kl_weight)
        terms = (*self.reconstruction.terms(decoded_BCHW, image_BCHW), kl)
        return LossTerms(no_time(batch.position_B), terms)

    def posterior(self, image_BCHW: Tensor) -> DiagonalGaussianDistribution:
        """Images in [-1, 1] -> the posterior over raw latents, in fp32 whatever the network runs in."""
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        moments_BCHW: Tensor = self.network.encode(image_BCHW).latent_dist.parameters
        return DiagonalGaussianDistribution(moments_BCHW.float())

    def decoded(self, raw_BCHW: Tensor) -> Tensor:
        """Raw latents -> images, fp32, about [-1, 1], not clamped."""
        image_BCHW: Tensor = self.network.decode(raw_BCHW).sample
        return image_BCHW.float()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Measures what comes back through the posteriors' means."""
        decoded_BCHW = self.decoded(self.posterior(from_uint8(batch.image_BCHW)).mean)
        self._means.update(decoded_BCHW, batch.image_BCHW, self.reconstruction.lpips)

    def on_validation_epoch_end(self) -> None:
        """Logs the means over images."""
        self._means.log(self)


def save(run: Path) -> Path:
    """Writes a trained autoencoder's averaged weights as diffusers does, to ``vae`` in the run, where it is missing.

    Args:
        run: the folder of a run of :class:`TrainAutoencoder`.

    Returns:
        The folder, which :class:`~snapgen_pl.autoencoders.kl.KL` reads.
    """
    folder = run / "vae"
    if not folder.exists():
        source = open_run(str(run))
        config = source.model["config"]
        assert isinstance(config, dict)
        module = TrainAutoencoder(config)
        source.load(module)
        with whole_folder(folder) as part:
            module.network.save_pretrained(part)
    return folder

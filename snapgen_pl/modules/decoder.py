"""Trains a decoder on the latents of a frozen autoencoder, as latent diffusion trains its own. Wiring only."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.autoencoders.with_decoder import check_raw_latents
from snapgen_pl.config_files import Value
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.photo_data import check_images
from snapgen_pl.data.source import ImageBatch
from snapgen_pl.distill.adversarial import AdversarialLoss
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, Role, WeightedSum, no_time
from snapgen_pl.distill.reconstruction_loss import ReconstructionLoss, mean_CHW
from snapgen_pl.fsdp import reshard
from snapgen_pl.images import from_uint8
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.patch_discriminator import PatchDiscriminator
from snapgen_pl.modules.frozen import Frozen, make_ready
from snapgen_pl.modules.reconstruction_means import ReconstructionMeans
from snapgen_pl.modules.training import Training, TrainingStep
from snapgen_pl.modules.turns import Turns, discriminator_loss
from snapgen_pl.pipeline.folder import open_trained
from snapgen_pl.starting_weights import begin

DELTA, MOST = 1e-4, 1e4  # of the adaptive weight, latent diffusion's


class TrainDecoder(Training):
    """Trains a decoder to give the images back that a frozen encoder made raw latents of.

    The decoder begins alone, on L1, MSE, LPIPS and the distance from what the autoencoder's own decoder makes of the
    same latents, each with its weight. From ``adversarial_from`` images on, a discriminator of patches takes turns with
    it, and the decoder also pays the hinge loss -l of its images, weighted anew in each batch (Esser et al., 2021) by
    |grad of the other terms| / (|grad of -l| + 1e-4), at most 1e4, of the weights of the decoder's last convolution.
    These gradients are means over processes, but of one batch: accumulated batches each have a weight of their own.

    Each step trains one network, on images of its own, and freezes the other: :class:`~snapgen_pl.modules.turns.Turns`.
    So ``trainer.max_steps`` counts the steps of both, ``images_seen`` the decoder's images alone. The average is of the
    decoder alone too: set ``ema.modules`` to [decoder]. A Trainer of your own needs ddp_find_unused_parameters_true
    under DDP; the command line sees to it.

    Validation decodes the posteriors' means to bytes, and tells PSNR, SSIM and, where it is trained on, LPIPS; and once
    a session those of the autoencoder's own decoder, as ``val/psnr_full`` and so on.

    Args:
        decoder: what is trained.
        autoencoder: whose encoder makes the latents; kept out of checkpoints.
        discriminator: of patches.
        reconstruction: the distance from the images; by default as its class declares. Its network is kept out of
            checkpoints.
        distill_weight: of the mean absolute distance from the autoencoder's own decoder; 0 leaves the term out.
        adversarial: the loss of both networks.
        adversarial_weight: of the hinge term beside the adaptive weight, above 0.
        adversarial_from: images that the decoder is trained on before; more than the run has leave the term out.
        optimizer: built over the decoder's parameters.
        discriminator_optimizer: built over the discriminator's.
        warmup_images: the learning rates rise linearly over so many images of the decoder's.
        decay_images: they fall linearly to zero from there until it has seen so many; None keeps them.
        discriminator_steps: steps of the discriminator's for one of the decoder's.
        accumulate: batches a step.
        gradient_clip: each network's gradients are clipped to this norm; None leaves them.
        seed: seeds the draws from posteriors.
        init_from: folder of a run, or of a pipeline, whose averaged weights the decoder begins with, and whose latents
            it decodes; a resumed run's checkpoint takes their place.
        inception: torch-fidelity's file of Inception weights, with which validation also tells ``rfid@N``.

    Raises:
        ValueError: where the parts do not fit together.

    Attributes:
        turns: whose step comes next, and how many each network has taken; the decoder is the generator.
        adversarial_begun: whether the decoder faces the discriminator.
        began_from: which weights ``init_from`` came to, once they were taken.
    """

    def __init__(
        self,
        decoder: LatentDecoder,
        autoencoder: Autoencoder,
        discriminator: PatchDiscriminator,
        reconstruction: ReconstructionLoss | None = None,
        distill_weight: float = 0.0,
        adversarial: AdversarialLoss = AdversarialLoss("hinge"),  # noqa: B008 (frozen)
        adversarial_weight: float = 0.5,
        adversarial_from: int = 0,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda parameters: AdamW(
            parameters, lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0
        ),
        discriminator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda parameters: AdamW(
            parameters, lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0
        ),
        warmup_images: int = 0,
        decay_images: int | None = None,
        discriminator_steps: int = 1,
        accumulate: int = 1,
        gradient_clip: float | None = 1.0,
        seed: int = 0,
        init_from: str | None = None,
        inception: Path | None = None,
    ) -> None:
        super().__init__(warmup_images, decay_images)
        _check_fit(decoder, autoencoder)
        self.reconstruction = reconstruction or ReconstructionLoss()
        if distill_weight < 0 or not (distill_weight or self.reconstruction.weights):
            raise ValueError(
                f"distill_weight is {distill_weight}, the weights of the reconstruction {self.reconstruction.weights}; "
                "give one above 0, and none below"
            )
        if adversarial_weight <= 0 or adversarial_from < 0:
            raise ValueError(
                f"adversarial_weight is {adversarial_weight}, adversarial_from {adversarial_from}; the first must be "
                "above 0, the second at least 0. To go without, set adversarial_from beyond the run's images"
            )
        self.automatic_optimization = False
        self.decoder, self.discriminator, self._autoencoder = decoder, discriminator, Frozen(autoencoder)
        self.distill_weight = distill_weight
        self.adversarial, self.adversarial_weight = adversarial, adversarial_weight
        self.adversarial_from, self.adversarial_begun = adversarial_from, adversarial_from == 0
        self.make_optimizer, self.make_discriminator_optimizer = optimizer, discriminator_optimizer
        self.seed, self.init_from = seed, init_from
        self.began_from: dict[str, Value] | None = None
        self.turns = Turns(discriminator_steps, accumulate, gradient_clip)
        self._means = ReconstructionMeans(inception)
        self._told_full = False

    @property
    def autoencoder(self) -> Autoencoder:
        """The frozen autoencoder."""
        return self._autoencoder.module

    @property
    def loss_roles(self) -> Mapping[str, Role]:
        """By name, the role of every term that the decoder is trained on."""
        taught: Mapping[str, Role] = {"distill": "kd"} if self.distill_weight else {}
        return {**self.reconstruction.roles, **taught, "adversarial": "adversarial"}

    def setup(self, stage: str) -> None:
        """Checks the data against the model, and reads the weights of what is frozen.

        Raises:
            ValueError: where they do not fit together, down to a decoder to begin with that was trained on other
                latents, or weights are missing.
        """
        data = self._data()
        images = (batch.image_BCHW for batch in data.training_images(256))
        before = open_trained(self.init_from) if stage == "fit" and self.init_from is not None else None

        def ready(folder: Path) -> list[str | None]:
            if before is not None:
                self.autoencoder.take_over(before.folder, folder)
            line = self.autoencoder.ready(folder, images)
            if before is not None:
                check_raw_latents(before, self.autoencoder)
            return [line]

        make_ready(self.trainer, ready)
        self.autoencoder.to(self.device)
        self.reconstruction.ready(self.device)
        self._means.ready(self.device, len(data.source.validation))
        if before is not None:  # a checkpoint, where there is one, comes after
            rank_zero_info(begin(before, {"decoder": self.decoder}, "decoder"))
            self.began_from = before.weights_facts()

    def configure_optimizers(self) -> Any:
        """The decoder's and the discriminator's, with one schedule: by the images that the decoder has seen."""
        optimizers = (
            self.make_optimizer(self.decoder.parameters()),
            self.make_discriminator_optimizer(self.discriminator.parameters()),
        )
        return [{"optimizer": each, "lr_scheduler": self.schedule(each)} for each in optimizers]

    def training_step(self, batch: ImageBatch, batch_idx: int) -> TrainingStep:
        """One batch, for the network whose turn it is."""
        if self.turns.between_steps:
            self.adversarial_begun = self.images_seen >= self.adversarial_from
        if not self.adversarial_begun:
            self.turns.postpone()
        step = self.decoder_step if self.turns.turn == "generator" else self.discriminator_step
        return self.turns.take(self, partial(step, batch))

    def decoder_step(self, batch: ImageBatch) -> TrainingStep:
        """What the decoder pays for a batch."""
        terms = self.loss_terms(batch)
        if self.adversarial_begun:
            self.step_means.add({"adversarial_weight": torch.as_tensor(terms.terms[-1].weight)})
        return self.learn(terms, batch.position_B)

    def discriminator_step(self, batch: ImageBatch) -> TrainingStep:
        """What the discriminator pays for a batch."""
        return discriminator_loss(self, self.discriminator_terms(batch), batch.position_B)

    def loss_terms(self, batch: ImageBatch) -> LossTerms:
        """The terms of the decoder's loss per sample, in fp32; there is no time, so that all times are 0."""
        image_BCHW, raw_BCHW = self._pair(batch)
        decoded_BCHW: Tensor = self.decoder(raw_BCHW).float()
        chosen = self.reconstruction.terms(decoded_BCHW, image_BCHW)
        if self.distill_weight:
            distance_B = mean_CHW((decoded_BCHW - self._decoded_in_full(raw_BCHW)).abs())
            chosen = (*chosen, LossTerm("distill", "kd", distance_B, self.distill_weight))
        terms = LossTerms(no_time(batch.position_B), chosen)
        if not self.adversarial_begun:
            return terms
        fool_B = self.adversarial.fool([self.discriminator(decoded_BCHW)])
        adaptive = self.adaptive_weight(WeightedSum()(terms).loss, fool_B.mean())
        term = LossTerm("adversarial", "adversarial", fool_B, self.adversarial_weight * adaptive)
        return LossTerms(terms.t_B, (*chosen, term))

    def adaptive_weight(self, others: Tensor, adversarial: Tensor) -> Tensor:
        """What brings the adversarial term's gradient to the length of the others', as the class says; a constant.

        Args:
            others: the weighted sum of the other terms.
            adversarial: the mean of the adversarial one.
        """
        weight = self.decoder.last.weight
        lengths = []
        for loss in (others, adversarial):
            (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
            lengths.append(self.trainer.strategy.reduce(gradient, reduce_op="mean").norm())
        reconstruction_length, adversarial_length = lengths
        return torch.clamp(reconstruction_length / (adversarial_length + DELTA), max=MOST)

    def discriminator_terms(self, batch: ImageBatch) -> LossTerms:
        """The terms of the discriminator's loss per sample, in fp32: ``d_real`` and ``d_fake``."""
        image_BCHW, raw_BCHW = self._pair(batch)
        with torch.no_grad():
            decoded_BCHW = self.decoder(raw_BCHW).float()
        reshard(self.decoder)
        losses = {
            "d_real": self.adversarial.real([self.discriminator(image_BCHW)]),
            "d_fake": self.adversarial.fake([self.discriminator(decoded_BCHW)]),
        }
        return LossTerms(
            no_time(batch.position_B), tuple(LossTerm(name, "adversarial", loss_B) for name, loss_B in losses.items())
        )

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Measures what is decoded of the posteriors' means, and, until that was told, by the autoencoder itself."""
        raw_BCHW = self._posterior(from_uint8(batch.image_BCHW)).mean_BCHW
        lpips = self.reconstruction.lpips
        self._means.update(self.decoder(raw_BCHW), batch.image_BCHW, lpips)
        if not self._told_full:
            self._means.update(self._decoded_in_full(raw_BCHW), batch.image_BCHW, lpips, "_full")

    def on_validation_epoch_end(self) -> None:
        """Logs the means over images."""
        self._means.log(self)
        self._told_full = True

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """What validation measures."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """See on_validation_epoch_end."""
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also keeps whose turn it is."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps"], checkpoint["alone"] = dict(self.turns.steps), self.turns.alone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up."""
        super().on_load_checkpoint(checkpoint)
        self.turns.steps, self.turns.alone = checkpoint["steps"], checkpoint["alone"]

    def _pair(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """The images in [-1, 1], and raw latents of theirs."""
        image_BCHW = from_uint8(batch.image_BCHW)
        return image_BCHW, self._posterior(image_BCHW).draw(self.seed, batch.position_B)

    @torch.no_grad()
    def _posterior(self, image_BCHW: Tensor) -> Posterior:
        # The autoencoder has a precision of its own, whatever the decoder runs in.
        with torch.autocast(self.device.type, enabled=False):
            return self.autoencoder.encode(image_BCHW)

    @torch.no_grad()
    def _decoded_in_full(self, raw_BCHW: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.autoencoder.decode(raw_BCHW).float()

    def _data(self) -> ImageData:
        data = check_images(self.trainer, self.autoencoder.downsampling)
        if data.image_size < self.discriminator.least:
            raise ValueError(
                f"data.image_size is {data.image_size}, too small for the discriminator, which takes "
                f"{self.discriminator.least} pixels or more; set it to that, or discriminator.layers to fewer"
            )
        return data


def _check_fit(decoder: LatentDecoder, autoencoder: Autoencoder) -> None:
    if decoder.in_channels != autoencoder.channels:
        raise ValueError(
            f"decoder.in_channels is {decoder.in_channels}, the autoencoder has {autoencoder.channels} channels; "
            f"set --model.decoder.in_channels {autoencoder.channels}"
        )
    if decoder.upsampling != autoencoder.downsampling:
        raise ValueError(
            f"the decoder makes {decoder.upsampling} pixels of a latent position, the autoencoder covers "
            f"{autoencoder.downsampling}; give decoder.stages so many that 2^(stages - 1) is that"
        )

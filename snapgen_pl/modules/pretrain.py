"""Stage one: rectified-flow pretraining under class labels or texts. Wiring only; the maths is in flow/ and models/."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from snapgen_pl import rng
from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.config_files import Value
from snapgen_pl.data.buckets import Size
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import Batch, ImageBatch, LatentBatch
from snapgen_pl.digest import tensors_digest
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, Role
from snapgen_pl.distill.velocity_error import velocity_error
from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.flow.path import PathSample, sample_path
from snapgen_pl.flow.samplers import Euler, Sampler
from snapgen_pl.flow.timesteps import LogitNormal, TimestepDistribution, even_times
from snapgen_pl.fsdp import whole
from snapgen_pl.images import from_uint8, to_uint8
from snapgen_pl.metrics.binned_mean import BinnedMean
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.models.count import count
from snapgen_pl.models.denoiser import Denoiser, DenoiserOutput
from snapgen_pl.models.preconditioned import preconditioned
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.modules.frozen import Frozen, make_ready
from snapgen_pl.modules.training import Training, TrainingStep
from snapgen_pl.pipeline.folder import open_trained
from snapgen_pl.rng import Stream
from snapgen_pl.starting_weights import begin, check_latents

VALIDATION_SEED = 0  # not the run's: validation losses compare across runs
VALIDATION_BINS = 10


class Pretrain(Training):
    """Trains a denoiser on the velocity of rectified flow, given class labels or texts.

    Randomness is drawn per sample from (seed, position in the stream of images), so the same images give the same
    loss on any number of processes and any accumulation.

    Args:
        denoiser: the network; its context_dim and in_channels must match the conditioner's and the autoencoder's.
        conditioner: from labels or texts to context tokens.
        autoencoder: frozen, kept out of checkpoints.
        image_size: side of square images, in pixels; the data's image_size, whose buckets have about its area.
        sigma_data: wraps the denoiser in :class:`~snapgen_pl.models.preconditioned.Preconditioned`; None leaves it.
        timesteps: density of training times.
        optimizer: built over the parameters of denoiser and conditioner.
        warmup_images: the learning rate rises linearly over so many images.
        decay_images: it falls linearly to zero from there until so many images were seen; None keeps it.
        sampler: draws images for grids, metrics and predict.
        guidance: guides the sampler.
        compile: compiles the denoiser with torch.compile.
        seed: seeds timesteps, noise and the dropping of conditions.
        init_from: folder of a run, or of a pipeline of diffusers, whose averaged weights denoiser and conditioner begin
            with, and so their average; the stages follow one another so. They must have been trained on the
            autoencoder's latents; what that keeps in the folder goes on too. A resumed run's checkpoint takes their
            place; give null where that folder is gone.

    Attributes:
        origin: of the weights, for records.
        loss_roles: by name, the role of every term of the loss.
        began_from: which weights ``init_from`` came to, once they were taken.
        takes_teacher_outputs: whether what a teacher said before is of use to it.

    Raises:
        ValueError: where the parts do not fit together.
    """

    origin = "as trained, no EMA"
    loss_roles: Mapping[str, Role] = {"task": "task"}
    takes_teacher_outputs: ClassVar[bool] = False

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioner,
        autoencoder: Autoencoder,
        image_size: int = 256,
        sigma_data: float | None = None,
        timesteps: TimestepDistribution = LogitNormal(),  # noqa: B008 (frozen)
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda parameters: AdamW(
            parameters, lr=1e-4, weight_decay=0.0
        ),
        warmup_images: int = 0,
        decay_images: int | None = None,
        sampler: Sampler = Euler(steps=50),  # noqa: B008 (frozen)
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
        compile: bool = False,  # noqa: A002 (torch's word for it)
        seed: int = 0,
        init_from: str | None = None,
    ) -> None:
        super().__init__(warmup_images, decay_images)
        _check_fit(denoiser, conditioner, autoencoder, image_size)
        self.denoiser = preconditioned(denoiser, sigma_data)
        self.conditioner = conditioner
        self._autoencoder = Frozen(autoencoder)
        self.image_size, self.timesteps = image_size, timesteps
        self.sampler, self.guidance = sampler, guidance
        self.make_optimizer = optimizer
        self.seed, self.init_from = seed, init_from
        self.began_from: dict[str, Value] | None = None
        self.macs_per_image = count(denoiser, self.latent_shape[-1], conditioner.tokens).macs
        self._validation_losses: dict[str, BinnedMean] = {}
        self.compile_denoiser = compile

    @property
    def autoencoder(self) -> Autoencoder:
        """The frozen autoencoder."""
        return self._autoencoder.module

    def decoder(self) -> Facts:
        """What its samples owe to the autoencoder, for records."""
        return self.autoencoder.decoding()

    def weights_digest(self) -> str:
        """SHA-256 over the weights as they are, gathered where they are sharded: every process must ask."""
        return tensors_digest({name: whole(tensor) for name, tensor in self.state_dict().items()})

    @property
    def takes(self) -> Literal["label", "caption"]:
        """What it is asked with."""
        return self.conditioner.takes

    @property
    def validated(self) -> Collection[str]:
        """The names of all terms that validation tells."""
        return self.loss_roles.keys()

    @property
    def charted(self) -> Collection[str]:
        """The names of all terms that have curves."""
        return self.validated

    def trained(self) -> list[nn.Module]:
        """What the optimizer trains, the denoiser first."""
        return [self.denoiser, self.conditioner]

    def keep(self, condition: Condition, encoders: Sequence[str]) -> Condition:
        """The condition through some of the conditioner's text encoders alone."""
        return self.conditioner.keep(condition, encoders)

    def encoders(self) -> Mapping[str, str]:
        """The identities of the text encoders whose states it takes, by name."""
        return self.conditioner.encoders()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one square image's latent."""
        return self.latent_of(Size(self.image_size, self.image_size))

    def latent_of(self, size: Size) -> tuple[int, int, int]:
        """(C, H, W) of the latent of an image of a size."""
        height, width = (side // self.autoencoder.downsampling for side in size)
        return self.autoencoder.channels, height, width

    def check_sides(self, name: str, *sides: int) -> None:
        """See Denoiser.check_sides."""
        self.denoiser.check_sides(name, sides, self.autoencoder.downsampling)

    def setup(self, stage: str) -> None:
        """Checks the data against the model, and makes the model ready for them.

        Raises:
            ValueError: where they do not fit together, down to latents of another autoencoder, states of other text
                encoders, and weights to begin with that were trained on other latents.
        """
        data = self._data()
        if data.image_size != self.image_size:
            raise ValueError(
                f"data.image_size is {data.image_size}, model.image_size {self.image_size}; set them to the same size"
            )
        if data.buckets is not None:
            self.check_sides("data.buckets.step", data.buckets.step)
        if data.condition != self.conditioner.takes:
            raise ValueError(
                f"data.condition is {data.condition}, but {type(self.conditioner).__name__} takes "
                f"{self.conditioner.takes}s; set --data.condition {self.conditioner.takes}, or another conditioner"
            )
        if data.taught is not None and not self.takes_teacher_outputs:
            raise ValueError(
                f"data.teacher_outputs are given, but {type(self).__name__} has no use for them; leave them out, or "
                "train a Distill"
            )
        images = (batch.image_BCHW for batch in data.training_images(256))
        before = open_trained(self.init_from) if stage == "fit" and self.init_from is not None else None

        def ready(folder: Path) -> list[str]:
            if before is not None:
                self.autoencoder.take_over(before.folder, folder)
            return self.ready(folder, images, data.classes)

        make_ready(self.trainer, ready)
        data.check_autoencoder(self.autoencoder.identity())
        data.check_encoders(self.encoders())
        if before is not None:  # a checkpoint, where there is one, comes after
            check_latents(before, self.autoencoder)
            parts = {"denoiser": self.denoiser, "conditioner": self.conditioner}
            rank_zero_info(begin(before, parts, "denoiser, conditioner and sigma_data"))
            self.began_from = before.weights_facts()
        self.autoencoder.to(self.device)
        self._validation_losses = {name: BinnedMean(VALIDATION_BINS).to(self.device) for name in self.validated}
        # Tables of conditioners are the same on all processes; DDP would send them round before every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def ready(self, folder: Path, images: Iterable[Tensor], classes: tuple[str, ...]) -> list[str]:
        """Makes autoencoder and conditioner usable: fits them to the data, or loads what they are made of.

        Args:
            folder: the run's folder, for what is kept with the run.
            images: the training images, uint8 (B, 3, image_size, image_size); not needed where the run has kept what
                was fitted to them.
            classes: names of the classes; labels index them.

        Returns:
            Lines for the user.
        """
        lines = self.autoencoder.ready(folder, images), self.conditioner.ready(folder, classes)
        return [line for line in lines if line]

    def configure_model(self) -> None:
        """Also compiles the denoiser, where asked to; once."""
        super().configure_model()
        if self.compile_denoiser:
            buckets = self._data().buckets
            # Each size in training and in validation, whose batches may be whole or what is left.
            compile_regions(self.denoiser, shapes=4 * (1 if buckets is None else len(buckets.sizes)))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and its schedule, counted in images."""
        optimizer = self.make_optimizer([weight for part in self.trained() for weight in part.parameters()])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> TrainingStep:
        """One batch: draws times, noise and what the samples do without, and predicts the velocity."""
        return self.learn(self.loss_terms(batch, *self.training_sample(batch)), batch.position_B)

    def training_sample(self, batch: Batch) -> tuple[PathSample, Condition]:
        """A batch at drawn times under drawn noise, and what is left of what it is asked for with."""
        t_B = self.timesteps.sample(rng.uniform(self.seed, Stream.TIMESTEP, batch.position_B))
        condition = self.conditioner.drop(batch.condition, self.seed, batch.position_B)
        return self._path(batch, t_B, self.seed), condition

    def validation_sample(self, batch: Batch) -> tuple[PathSample, Condition]:
        """A batch at times that fill [0, 1] evenly, under noise of its own, and all it is asked for with; pinned."""
        return self._path(batch, even_times(batch.position_B), VALIDATION_SEED), batch.condition

    @property
    def asked_features(self) -> tuple[str, ...]:
        """The features that terms are taken of, besides the velocity."""
        return ()

    def loss_terms(self, batch: Batch, path: PathSample, condition: Condition) -> LossTerms:
        """The terms of the loss, per sample, in fp32.

        Args:
            batch: as it came.
            path: of its latents.
            condition: what is left of the batch's.
        """
        output: DenoiserOutput = self.denoiser(path.x_BCHW, path.t_B, self.conditioner(condition), self.asked_features)
        return LossTerms(path.t_B, tuple(self.terms(output, batch, path, condition)))

    def terms(self, output: DenoiserOutput, batch: Batch, path: PathSample, condition: Condition) -> list[LossTerm]:
        """What the denoiser's output is worth: L_task = mean over C, H, W of (v_theta(x_t, t) - (noise - data))^2.

        Args:
            output: with ``asked_features``.
            batch: as it came.
            path: of its latents.
            condition: what is left of the batch's.
        """
        return [LossTerm("task", "task", velocity_error(output.velocity_BCHW, path.velocity_BCHW))]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The raw terms on pinned noise, and on pinned times that fill [0, 1] evenly."""
        terms = self.loss_terms(batch, *self.validation_sample(batch))
        for term in terms.terms:
            self._validation_losses[term.name].update(terms.t_B, term.value_B)

    def on_validation_epoch_end(self) -> None:
        """Logs each term over all times and per bin of time; the task's as ``val/loss``."""
        for name, losses in self._validation_losses.items():
            label = "loss" if name == "task" else name
            self.log(f"val/{label}", losses.mean(), prog_bar=name == "task", rank_zero_only=True)
            self.log_dict(losses.tagged(f"val_{label}_by_t"), rank_zero_only=True)
            losses.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """What validation measures; callbacks add what takes samples."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """See on_validation_epoch_end."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        """Images for what is asked for."""
        return self.sample(batch)

    @torch.no_grad()
    def sample(
        self,
        request: Request,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """Draws images from the weights as they are.

        Args:
            request: labels or texts, and the positions that noise is drawn from. The same request gives the same
                images.
            sampler: in place of the module's.
            guidance: in place of the module's.
            size: of the images, in place of a square of the module's ``image_size``.

        Returns:
            uint8 (B, 3, H, W).

        Raises:
            ValueError: for a size that the networks do not take.
        """
        shape = self.latent_shape
        if size is not None:
            self.check_sides("a size of", *size)
            shape = self.latent_of(size)
        request = move_data_to_device(request, self.device)
        velocity = guided_velocity(
            self.denoiser,
            self.conditioner(request.condition),
            self.conditioner.unconditional(request.condition),
            guidance or self.guidance,
        )
        noise = initial_noise(self.seed, request.position_B, shape)
        draw = sampler or self.sampler
        final = draw(velocity, noise, step_noise(self.seed, request.position_B, shape))
        return self._decoded(self.autoencoder.to(self.device).to_raw(final.float()))

    @torch.no_grad()
    def images_of(self, batch: Batch) -> Tensor:
        """The images that a batch means, decoded where it holds latents: uint8 (B, 3, H, W)."""
        if isinstance(batch, ImageBatch):
            return batch.image_BCHW
        return self._decoded(batch.posterior.mean_BCHW.to(self.device).float())

    def _decoded(self, raw_BCHW: Tensor) -> Tensor:
        # The autoencoder has a precision of its own, whatever the network runs in.
        with torch.autocast(self.device.type, enabled=False):
            return to_uint8(self.autoencoder.to(self.device).decode(raw_BCHW))

    def _posterior(self, batch: Batch) -> Posterior:
        if isinstance(batch, LatentBatch):
            return batch.posterior
        return self.autoencoder.encode(from_uint8(batch.image_BCHW))

    def _path(self, batch: Batch, t_B: Tensor, seed: int) -> PathSample:
        # Latents, path and target stay in fp32: only the network runs under autocast.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            data = self.autoencoder.to_final(self._posterior(batch).draw(seed, batch.position_B))
            noise = rng.normal(seed, Stream.NOISE, batch.position_B, tuple(data.shape[1:]))
            return sample_path(data, noise, t_B)

    def _data(self) -> ImageData:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            raise ValueError(f"Pretrain needs an ImageData as its data, not {type(data).__name__}")
        return data


def _check_fit(denoiser: Denoiser, conditioner: Conditioner, autoencoder: Autoencoder, image_size: int) -> None:
    if denoiser.in_channels != autoencoder.channels:
        raise ValueError(
            f"denoiser.in_channels is {denoiser.in_channels}, the autoencoder has {autoencoder.channels} channels; "
            f"set --model.denoiser.in_channels {autoencoder.channels}"
        )
    if denoiser.context_dim != conditioner.context_dim:
        raise ValueError(
            f"denoiser.context_dim is {denoiser.context_dim}, conditioner.context_dim {conditioner.context_dim}; "
            "set them to the same width"
        )
    if image_size % autoencoder.downsampling:
        raise ValueError(f"image_size {image_size} is not a multiple of the autoencoder's {autoencoder.downsampling}")

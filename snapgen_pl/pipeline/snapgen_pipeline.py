"""Drawing from a pipeline's folder, as users of diffusers do."""

import inspect
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import diffusers
import numpy as np
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.import_utils import is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from snapgen_pl.conditioning.condition import Condition, Texts
from snapgen_pl.diffusers_weights import check_diffusers_size
from snapgen_pl.errors import did_you_mean
from snapgen_pl.flow.guidance import Guidance, guided_velocity
from snapgen_pl.flow.noise import initial_noise, step_noise
from snapgen_pl.flow.samplers import StepNoise
from snapgen_pl.pipeline.building import opening
from snapgen_pl.pipeline.parts import PipelineAutoencoder, PipelineConditioner, PipelineDecoder, PipelineDenoiser
from snapgen_pl.pipeline.places import AGAIN, TEXT_ENCODERS, TOKENIZERS
from snapgen_pl.pipeline.scheduler import SamplerScheduler
from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.pretrained_network import check_transformers_size
from snapgen_pl.tf32 import tf32
from snapgen_pl.whole_files import read_json

OUTPUTS = ("pil", "np", "pt", "latent")
FILES = ("*.md", "*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


class _Noise(NamedTuple):
    """Where a drawing's noise comes from.

    Attributes:
        latents_BCHW: the state at t = 1.
        generator: of each step's noise.
        step_noise: in place of a generator.
    """

    latents_BCHW: Tensor
    generator: Generators
    step_noise: StepNoise | None


class SnapGenPipeline(DiffusionPipeline):
    """Draws images of texts or classes; made by ``export diffusers`` and opened by ``from_pretrained``.

    Args:
        unet: the denoiser; a transformer, if that is what was trained.
        conditioner: from labels or texts to what the denoiser is told.
        vae: diffusers' autoencoder of its latents, or one of this project's.
        scheduler: any flow-matching scheduler of diffusers, or a sampler of this project.
        text_encoder: of the conditioner's first encoder; None does without it, as training did now and then.
        tokenizer: of it.
        text_encoder_2: of the second, where it has one.
        tokenizer_2: of it.
        text_encoder_3: of the third.
        tokenizer_3: of it.
        decoder: makes the images in place of the autoencoder's own decoder.
        image_size: side of the images that it was trained on, in pixels.
        num_inference_steps: by default.
        guidance_scale: by default; 1 is no guidance.
        guidance_interval: the times at which guidance acts, ends included.
        guidance_channels: guides only the first so many channels; None guides all.
        seed: what ``python -m snapgen_pl generate`` draws with by default; calls of the pipeline are given theirs.
    """

    _optional_components = [*TEXT_ENCODERS, *TOKENIZERS, "decoder"]  # noqa: RUF012  (diffusers' own way)

    def __init__(
        self,
        unet: PipelineDenoiser,
        conditioner: PipelineConditioner,
        vae: nn.Module,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
        decoder: PipelineDecoder | None = None,
        image_size: int = 256,
        num_inference_steps: int = 28,
        guidance_scale: float = 1.0,
        guidance_interval: list[float] | tuple[float, ...] = (0.0, 1.0),
        guidance_channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        networks, tokenizers = (text_encoder, text_encoder_2, text_encoder_3), (tokenizer, tokenizer_2, tokenizer_3)
        self.register_modules(
            unet=unet,
            conditioner=conditioner,
            vae=vae,
            scheduler=scheduler,
            **dict(zip(TEXT_ENCODERS, networks, strict=True)),
            **dict(zip(TOKENIZERS, tokenizers, strict=True)),
            decoder=decoder,
        )
        self.register_to_config(
            image_size=image_size,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=list(guidance_interval),
            guidance_channels=guidance_channels,
            seed=seed,
        )
        self.downsampling = (
            vae.downsampling
            if isinstance(vae, PipelineAutoencoder)
            else 2 ** (len(self.vae.config.block_out_channels) - 1)
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.downsampling)
        self._asked: list[str] = []
        encoders = conditioner.text_encoders
        for (name, encoder), network, words in zip(encoders.items(), networks, tokenizers, strict=False):
            if network is not None:
                encoder.hold(words, network)
                self._asked.append(name)
        if encoders and not self._asked:
            raise ValueError(f"there is no text encoder of {list(encoders)}; give one at least, with its tokenizer")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[Any], **options: Any) -> Self:
        """Opens a folder, or a repository of the Hugging Face hub that holds one, downloaded whole.

        Args:
            pretrained_model_name_or_path: a folder that ``export diffusers`` or ``save_pretrained`` made, or a name on
                the hub.
            **options: as diffusers' pipelines take them; ``text_encoder_3=None`` does without the third encoder.

        Raises:
            ValueError: where there is no such folder, or a part of it is missing, damaged, of another shape, or larger
                than its weights.
        """
        path = str(pretrained_model_name_or_path)
        folder = pretrained_folder(path, FILES, options.pop("revision", None))
        if not (folder / cls.config_name).is_file():
            raise ValueError(f"no {cls.config_name} in {folder}; give a folder that `export diffusers` made")
        # What diffusers does by itself, but warns of.
        options.setdefault("low_cpu_mem_usage", is_accelerate_available())
        with opening(folder / cls.config_name, cls.__name__):
            _check_sizes(folder)
            pipeline: Self = super().from_pretrained(folder, use_safetensors=True, **options)
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: str | int | Sequence[str | int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws images.

        Args:
            prompt: a text or several; of pipelines on texts.
            class_labels: a class or several, by name or by label; of pipelines on classes.
            num_inference_steps: steps from noise to data; None takes the pipeline's.
            guidance_scale: s of v_uncond + s (v_cond - v_uncond); None takes the pipeline's.
            num_images_per_prompt: images of each text or class, one after another.
            height: in pixels; None takes what it was trained on, from which others draw worse.
            width: likewise.
            generator: draws the noise; one for all images, or one each.
            seed: draws the noise as ``python -m snapgen_pl generate`` does with it, in place of a generator: the i-th
                image of a prompt is the same whatever else is asked for.
            latents: the noise to begin with, (B, C, height / downsampling, width / downsampling).
            output_type: pil; np (B, H, W, 3) or pt (B, 3, H, W) in [0, 1]; or latent, the final latents.
            return_dict: gives a tuple where False.

        Raises:
            ValueError: for what does not go together, or is out of range.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUTS)}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; it must be at least 1")
        guidance = self._guidance(guidance_scale)
        asked = self._condition(prompt, class_labels, num_images_per_prompt)
        count = len(asked.captions) if isinstance(asked, Texts) else len(asked)
        noise = self._noise(count, num_images_per_prompt, self._latent_size(height, width), generator, seed, latents)
        final_BCHW = self._final(asked, guidance, noise, num_inference_steps)
        images: Any = final_BCHW
        if output_type != "latent":
            images = self.image_processor.postprocess(self._decoded(final_BCHW), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _guidance(self, scale: float | None) -> Guidance:
        return Guidance(
            self.config["guidance_scale"] if scale is None else scale,
            tuple(self.config["guidance_interval"]),
            self.config["guidance_channels"],
        )

    def _condition(
        self, prompt: str | Sequence[str] | None, class_labels: str | int | Sequence[str | int] | None, images: int
    ) -> Condition:
        """What each image is asked for with."""
        conditioner = self.conditioner.conditioner
        texts_wanted = conditioner.takes == "caption"
        wanted = "prompt" if texts_wanted else "class_labels"
        given, other = (prompt, class_labels) if texts_wanted else (class_labels, prompt)
        if given is None or other is not None:
            raise ValueError(f"this pipeline draws from a {wanted}; give that, and nothing else")
        if not isinstance(given, str | int) and len(given) == 0:
            raise ValueError(f"{wanted} is empty; give one at least")
        if class_labels is not None:
            named = [class_labels] if isinstance(class_labels, str | int) else class_labels
            labels = torch.tensor([self._label(each) for each in named for _ in range(images)], dtype=torch.long)
            return labels.to(self._execution_device)
        texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        asked = Texts(tuple(text for text in texts for _ in range(images)), {})
        all_of_them = len(self._asked) == len(self.conditioner.text_encoders)
        kept = asked if all_of_them else conditioner.keep(asked, self._asked)
        assert isinstance(kept, Texts)
        return kept

    def _label(self, given: str | int) -> int:
        classes = self.conditioner.config.classes
        if isinstance(given, str):
            if given not in classes:
                raise ValueError(f"no class {given!r} among the {len(classes)}{did_you_mean(given, classes)}")
            return int(classes.index(given))
        if not 0 <= given < len(classes):
            raise ValueError(f"class label {given} is not in 0 to {len(classes) - 1}")
        return given

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        sides = [self.config["image_size"] if side is None else side for side in (height, width)]
        self.unet.check_sides("height x width", sides, self.downsampling)
        return sides[0] // self.downsampling, sides[1] // self.downsampling

    def _noise(
        self,
        count: int,
        images: int,
        size: tuple[int, int],
        generator: Generators,
        seed: int | None,
        latents: Tensor | None,
    ) -> _Noise:
        shape, device = (self.unet.in_channels, *size), self._execution_device
        if latents is not None and tuple(latents.shape) != (count, *shape):
            raise ValueError(f"latents are {tuple(latents.shape)}; they must be {(count, *shape)}")
        if seed is None:
            first = randn_tensor((count, *shape), generator, device) if latents is None else latents.to(device).float()
            return _Noise(first, generator, None)
        if generator is not None or latents is not None:
            raise ValueError("seed, generator and latents all say what the noise is; leave seed out, or the others")
        position_B = torch.arange(count, device=device) % images
        # Schedulers of diffusers take no noise but a generator's.
        own = torch.Generator().manual_seed(seed)
        return _Noise(initial_noise(seed, position_B, shape), own, step_noise(seed, position_B, shape))

    def _final(self, asked: Condition, guidance: Guidance, noise: _Noise, steps: int | None) -> Tensor:
        """The final latents, by the scheduler."""
        device = self._execution_device
        dtype = self.unet.dtype
        self._schedule(self.config["num_inference_steps"] if steps is None else steps)
        told: dict[str, Any] = {}
        if isinstance(self.scheduler, SamplerScheduler):
            told = {"generator": noise.generator, "step_noise": noise.step_noise}
        elif "generator" in inspect.signature(self.scheduler.step).parameters:
            told = {"generator": noise.generator}
        x_BCHW = noise.latents_BCHW
        # As runs train: weights of 16 bits compute by autocast, between latents in fp32.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            velocity = guided_velocity(
                self.unet,
                self.conditioner(asked),
                self.conditioner.conditioner.unconditional(asked),
                guidance,
            )
            for timestep in self.progress_bar(self.scheduler.timesteps):
                v_BCHW = velocity(x_BCHW, float(timestep) / self.scheduler.config.num_train_timesteps)
                (x_BCHW,) = self.scheduler.step(v_BCHW, timestep, x_BCHW, **told, return_dict=False)
        return x_BCHW

    def _schedule(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}; it must be at least 1")
        if "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters:
            # Without them diffusers ends a step's breadth above 0, and shifts what is shifted.
            self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=self._execution_device)
        else:
            self.scheduler.set_timesteps(steps, device=self._execution_device)

    def _decoded(self, final_BCHW: Tensor) -> Tensor:
        """Images, about [-1, 1]."""
        if isinstance(self.vae, PipelineAutoencoder):
            raw_BCHW = self.vae.to_raw(final_BCHW)
        else:
            raw_BCHW = final_BCHW / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0)
        with tf32(False):
            if self.decoder is not None:
                image_BCHW: Tensor = self.decoder(raw_BCHW.to(self.decoder.dtype))
            else:
                image_BCHW = self.vae.decode(raw_BCHW.to(self.vae.dtype)).sample
        return image_BCHW.float()


def _check_sizes(folder: Path) -> None:
    """Holds the parts that libraries load by themselves against their weights; those of this project hold their own."""
    for place, named in read_json(folder / SnapGenPipeline.config_name, AGAIN).items():
        match named:
            case ["transformers", str(name)]:
                check_transformers_size(getattr(transformers, name, None), folder / place, {})
            case ["diffusers", str(name)]:
                check_diffusers_size(getattr(diffusers, name, None), folder / place)

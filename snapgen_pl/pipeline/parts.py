"""Networks of this project as components of a pipeline of diffusers: a config.json and weights in safetensors."""

import inspect
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Self

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from snapgen_pl.asked_size import check_size_by_files
from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.conditioning.partial_texts import PartialTexts
from snapgen_pl.conditioning.text_encoder import TextEncoder
from snapgen_pl.models.denoiser import Conditioning, Denoiser, PreparedConditioning
from snapgen_pl.models.latent_decoder import LatentDecoder
from snapgen_pl.models.preconditioned import preconditioned
from snapgen_pl.models.wrapped import Wrapped
from snapgen_pl.pipeline.building import build, opening
from snapgen_pl.pipeline.places import TEXT_ENCODERS, config_of, placed


class Part(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """What diffusers saves and loads, and here loads whole or not at all."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[Any] | None, **options: Any) -> Self:
        """Loads it as diffusers does, from safetensors alone.

        Args:
            pretrained_model_name_or_path: its folder, or what holds that as ``subfolder``.
            **options: as diffusers' models take them.

        Raises:
            ValueError: where files are missing or damaged, or weights are missing, foreign or misshapen.
        """
        # diffusers' faster way of loading would leave what a constructor computes without values.
        options |= {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
        place = Path(str(pretrained_model_name_or_path), options.get("subfolder") or "")
        with opening(place / cls.config_name, cls.__name__):
            given = {key: value for key, value in options.items() if key in inspect.signature(cls).parameters}
            check_size_by_files(lambda: cls.from_config(config_of(place), **given), place / cls.config_name)
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, **options)
        part: Self
        part, report = loaded
        wrong = {"missing": report["missing_keys"], "foreign": report["unexpected_keys"]}
        if any(wrong.values()):
            said = "; ".join(f"{kind}: {', '.join(sorted(names)[:5])}" for kind, names in wrong.items() if names)
            raise ValueError(f"the weights in {place} are not those of its config.json ({said}); get the folder again")
        return part


class PipelineDenoiser(Wrapped, Part):  # type: ignore[misc]
    """A denoiser, behind its preconditioning.

    Args:
        network: its class and arguments, as a run's config.yaml has them.
        sigma_data: of :class:`~snapgen_pl.models.preconditioned.Preconditioned`; None for none.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, network: dict[str, Any], sigma_data: float | None = None) -> None:
        super().__init__(preconditioned(build(Denoiser, network), sigma_data))  # type: ignore[type-abstract]

    def outputs(self, x_BCHW: Tensor, t_B: Tensor, conditioning: PreparedConditioning) -> Iterator[tuple[str, Tensor]]:
        """The denoiser's."""
        return self.denoiser.outputs(x_BCHW, t_B, conditioning)


class PipelineConditioner(Part):
    """A conditioner, and what its labels mean.

    Its text encoders, if any, lie beside it in the pipeline's folder, where transformers finds them too.

    Args:
        network: its class and arguments, as a run's config.yaml has them.
        classes: names of classes, which labels index; none where it takes texts.
        folder: of the pipeline; None where ``network`` says itself where the text encoders lie.
    """

    def __init__(
        self, network: dict[str, Any], classes: list[str] | None = None, folder: str | Path | None = None
    ) -> None:
        super().__init__()
        if folder is not None:
            network = placed(network, str(folder))
        if not all(isinstance(name, str) for name in classes or ()):
            raise ValueError(f"classes are {classes}; they must be names")
        self.conditioner: Conditioner = build(Conditioner, network)  # type: ignore[type-abstract]
        # Where the folder is now is no part of the configuration.
        self.register_to_config(network=placed(network, None), classes=list(classes or ()))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[Any] | None, **options: Any) -> Self:
        """See Part.from_pretrained; text encoders are looked for beside it, their weights are not read."""
        folder = Path(str(pretrained_model_name_or_path), options.get("subfolder") or "").parent
        return super().from_pretrained(pretrained_model_name_or_path, folder=str(folder), **options)

    @property
    def text_encoders(self) -> dict[str, TextEncoder]:
        """Those of its conditioner, by name."""
        return text_encoders(self.conditioner)

    def forward(self, condition: Condition) -> Conditioning:
        """See Conditioner.forward."""
        conditioning: Conditioning = self.conditioner(condition)
        return conditioning


class PipelineAutoencoder(Part):
    """The decoding half of an autoencoder that diffusers has no class for.

    Args:
        network: its class and arguments, as a run's config.yaml has them.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        self.autoencoder: Autoencoder = build(Autoencoder, network)  # type: ignore[type-abstract]

    @property
    def downsampling(self) -> int:
        """Pixels a latent position covers, along one side."""
        return self.autoencoder.downsampling

    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """See Autoencoder.to_raw."""
        return self.autoencoder.to_raw(final_BCHW)

    def decode(self, z: Tensor) -> DecoderOutput:
        """Raw latents -> images, about [-1, 1], as diffusers' autoencoders give them."""
        return DecoderOutput(sample=self.autoencoder.decode(z))


class PipelineDecoder(Part):
    """A decoder that stands in for the autoencoder's own.

    Args:
        network: its class and arguments, as a run's config.yaml has them.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        self.decoder: LatentDecoder = build(LatentDecoder, network)  # type: ignore[type-abstract]

    def forward(self, raw_BCHW: Tensor) -> Tensor:
        """See LatentDecoder.forward."""
        image_BCHW: Tensor = self.decoder(raw_BCHW)
        return image_BCHW


def text_encoders(conditioner: Conditioner) -> dict[str, TextEncoder]:
    """The text encoders that a conditioner asks, by name.

    Raises:
        ValueError: for a conditioner on texts that a pipeline has no place for.
    """
    if conditioner.takes == "label":
        return {}
    encoders = conditioner.text_encoders if isinstance(conditioner, PartialTexts) else {}
    own = {name: encoder for name, encoder in encoders.items() if isinstance(encoder, TextEncoder)}
    if not own or len(own) < len(encoders) or len(own) > len(TEXT_ENCODERS):
        raise ValueError(
            f"{type(conditioner).__name__} over {list(encoders)} fits no pipeline, which has places for 1 to "
            f"{len(TEXT_ENCODERS)} text encoders of a JoinedTexts; export a run that has them"
        )
    return own

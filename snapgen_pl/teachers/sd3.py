"""Stable Diffusion 3 and 3.5 as teachers, through diffusers' network."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import DeviceMesh

from snapgen_pl.asked_size import check_layers
from snapgen_pl.autoencoders.kl import KL
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.diffusers_weights import WEIGHTS, read_tensors
from snapgen_pl.digest import tensors_digest, values_digest
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.metrics.sample_metric import Facts
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.models.regions import compile_regions
from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.released.weights import fill
from snapgen_pl.teachers.placement import Placement, place
from snapgen_pl.teachers.teacher import Teacher

CONFIG = "config.json"


class SD3Teacher(Teacher):
    """The transformer of a Stable Diffusion 3 or 3.5 pipeline; the defaults are SnapGen's teacher.

    Its time and velocity are ours, and it sees the student's t, resolution shift and all. Large-Turbo, which was
    distilled with guidance, is ``path: stabilityai/stable-diffusion-3.5-large-turbo`` with ``guidance: {scale: 1}``.

    Args:
        conditioner: from captions to the tokens and the pooled vector that the transformer was trained with.
        path: the pipeline's folder, or its name on the Hugging Face hub.
        subfolder: where in it the transformer lies.
        autoencoder_subfolder: where in it the autoencoder of its latents lies; its configuration alone is read.
        revision: branch, tag or commit on the hub.
        guidance: guides the velocity.
        dtype: what weights are held in and the network computes in; 16 GB of bfloat16, Large.
        compile: compiles each block.
        placement: where the weights lie (see :data:`~snapgen_pl.teachers.placement.Placement`).

    Raises:
        ValueError: where configurations are missing or of something else, or settings do not go together.
    """

    _denoiser: MMDiT

    def __init__(
        self,
        conditioner: Conditioner,
        path: str = "stabilityai/stable-diffusion-3.5-large",
        subfolder: str = "transformer",
        autoencoder_subfolder: str = "vae",
        revision: str | None = None,
        guidance: Guidance = Guidance(scale=4.5),  # noqa: B008 (frozen)
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        compile: bool = False,  # noqa: A002 (torch's word for it)
        placement: Placement = "replicated",
    ) -> None:
        self.path, self.subfolder, self.revision = path, subfolder, revision
        self.dtype, self.compile_blocks, self.placement = dtype, compile, placement
        self._autoencoder = KL(path, autoencoder_subfolder, revision)
        self._config = self._read_config()
        try:
            with torch.device("meta"):
                denoiser = MMDiT.from_config(self._config)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # values may be anything
            raise ValueError(f"{self._place()} holds no teacher: {error}") from error
        super().__init__(denoiser, conditioner, guidance)

    def latents(self) -> Mapping[str, str | int | float]:
        """Shape, shift and scale, which tell SD3's autoencoder from all others known."""
        own = self._autoencoder
        return {"channels": own.channels, "downsampling": own.downsampling, "shift": own.shift, "scale": own.scale}

    def _read(self, folder: Path, classes: tuple[str, ...]) -> list[str]:
        network = self._denoiser.network
        fill(network, read_tensors(self._folder()), {name: name for name in network.state_dict()}, self._place(),
             remedy="download it again")  # fmt: skip
        self._denoiser.to(self._dtype)
        if self.compile_blocks:
            compile_regions(self._denoiser)
        parameters = sum(parameter.numel() for parameter in self._denoiser.parameters())
        line = f"teacher: {self._place()}, {parameters / 1e9:.2f} B parameters in {self.dtype}, {self.placement}"
        # A folder of its own: the student's conditioner may keep files of the same names.
        return [line, *filter(None, [self._conditioner.ready(folder / "teacher", classes)])]

    def place(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        """See Teacher.place.

        Raises:
            ValueError: where weights are to be divided and there is no group of processes.
        """
        self._conditioner.to(device)
        place(self._denoiser, self.placement, device, mesh)

    @property
    def divided(self) -> bool:
        """See Teacher.divided."""
        return self.placement != "replicated"

    def identity(self) -> Facts:
        """The weights' SHA-256 is of the files, which are read for it once: minutes for those of Large."""
        said = {key: value for key, value in self._config.items() if not key.startswith("_")}
        return {
            "class": type(self).__name__,
            "configuration": values_digest(said),
            "weights": self._weights_digest,
            "dtype": self.dtype,
            "guidance": repr(self.guidance),
            "conditioner": type(self._conditioner).__name__,
            "tokens": self._conditioner.tokens,
            "encoders": dict(self.encoders()),
        }

    @cached_property
    def _weights_digest(self) -> str:
        return tensors_digest(read_tensors(self._folder()))

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def _read_config(self) -> dict[str, Any]:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        inside = Path(self.subfolder)
        folder = pretrained_folder(self.path, [str(inside / CONFIG)], self.revision) / inside
        try:
            config: dict[str, Any] = SD3Transformer2DModel.load_config(folder)
        except OSError as error:
            raise ValueError(f"no {CONFIG} of a transformer in {self._place()}; give a pipeline's folder") from error
        # The weights may not be here yet, to hold its size against; `fill` does.
        check_layers(config, folder / CONFIG)
        return config

    def _folder(self) -> Path:
        inside = Path(self.subfolder)
        names = [str(inside / name) for name in (CONFIG, *WEIGHTS)]
        return pretrained_folder(self.path, names, self.revision) / inside

    def _place(self) -> str:
        return str(Path(self.path) / self.subfolder)

"""Autoencoders of diffusers: what loading and running them has in common."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder
from snapgen_pl.diffusers_weights import check_diffusers_size
from snapgen_pl.digest import tensors_digest
from snapgen_pl.precision import DType
from snapgen_pl.pretrained_folder import pretrained_folder
from snapgen_pl.tf32 import tf32

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class Pretrained(Autoencoder):
    """An autoencoder that diffusers saved, from a local folder or, by its name, from the Hugging Face hub.

    Constructing one reads its configuration alone; :meth:`ready` loads the weights (safetensors only). Final latents
    are (raw - shift) * scale. Latents and images are fp32 outside, whatever the network computes in.

    Args:
        path: a folder that holds config.json, or a name on the hub such as ``stabilityai/sd-vae-ft-ema``.
        subfolder: where in it the autoencoder lies: ``vae`` in the repositories of pipelines.
        revision: branch, tag or commit on the hub.
        dtype: what the network computes in.
        tf32: whether GPUs may round fp32 products to TF32 in it, for speed.
        shift: in place of the configuration's shift_factor.
        scale: in place of the configuration's scaling_factor.

    Raises:
        ValueError: where there is no such configuration, or it is of another class.
    """

    network: Any  # diffusers has no types

    def __init__(
        self,
        path: str,
        subfolder: str = "",
        revision: str | None = None,
        dtype: DType = "float32",
        tf32: bool = False,
        shift: float | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if scale is not None and scale <= 0:
            raise ValueError(f"scale is {scale}; it must be positive")
        self.path, self.subfolder, self.revision = path, subfolder, revision
        self.dtype, self.tf32 = dtype, tf32
        config = self._config()
        self.channels = int(config["latent_channels"])
        self.downsampling = 2 ** (len(config["block_out_channels"]) - 1)
        self.shift = float(self._default_shift(config) if shift is None else shift)
        self.scale = float(self._default_scale(config) if scale is None else scale)
        self._weights = ""

    @classmethod
    @abstractmethod
    def network_class(cls) -> Any:
        """The class of diffusers."""

    @classmethod
    def _default_shift(cls, config: dict[str, Any]) -> float:
        return float(config.get("shift_factor") or 0)

    @classmethod
    def _default_scale(cls, config: dict[str, Any]) -> float:
        return float(config.get("scaling_factor", 0.18215))  # SD's, older than the key

    def ready(self, folder: Path, images: Iterable[Tensor]) -> str | None:
        """Loads the weights, once.

        Raises:
            ValueError: where there are none in safetensors' format, or they do not fit the configuration.
        """
        if self._weights:
            return None
        network = self._network()
        self._weights = tensors_digest(network.state_dict())  # as stored, before they are rounded to dtype
        # Not network.to(...): diffusers warns there of what it calls modules to be kept in fp32, and lists none.
        self.network = nn.Module.to(network, getattr(torch, self.dtype)).eval().requires_grad_(False)
        return f"autoencoder: {self._place()}, {self.dtype}, shift {self.shift:g}, scale {self.scale:g}"

    def identity(self) -> dict[str, str | int | float]:
        """With shift and scale, and what its products are rounded to."""
        own: dict[str, str | int | float] = {"shift": self.shift, "scale": self.scale}
        return super().identity() | own | {"dtype": self.dtype, "tf32": self.tf32}

    def weights_digest(self) -> str:
        """Of the weights as stored."""
        self._check_ready()
        return self._weights

    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        """(raw - shift) * scale."""
        return (raw_BCHW - self.shift) * self.scale

    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """Undoes :meth:`to_final`."""
        return final_BCHW / self.scale + self.shift

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 3, downsampling * h, downsampling * w)."""
        self._check_ready()
        with tf32(self.tf32):
            image_BCHW: Tensor = self.network.decode(raw_BCHW.to(self.network.dtype)).sample
        return image_BCHW.float()

    def _encode(self, image_BCHW: Tensor) -> Any:
        """What the network's own encode returns."""
        self._check_ready()
        if any(side % self.downsampling for side in image_BCHW.shape[-2:]):
            raise ValueError(
                f"images of {tuple(image_BCHW.shape[-2:])} pixels do not divide by the autoencoder's "
                f"{self.downsampling}; crop them to a multiple"
            )
        with tf32(self.tf32):
            return self.network.encode(image_BCHW.to(self.network.dtype))

    def _config(self) -> dict[str, Any]:
        wanted = self.network_class().__name__
        try:
            config: dict[str, Any] = self.network_class().load_config(self._folder(CONFIG))
        except OSError as error:
            raise ValueError(
                f"no {CONFIG} of an autoencoder in {self._place()}; give a folder that diffusers saved, and its "
                "subfolder: `vae` in pipelines"
            ) from error
        if config.get("_class_name", wanted) != wanted:
            raise ValueError(f"{self._place()} holds a {config['_class_name']}; {type(self).__name__} takes a {wanted}")
        return config

    def _network(self) -> nn.Module:
        folder, kind = self._folder(CONFIG, WEIGHTS), self.network_class()
        check_diffusers_size(kind, folder)
        try:
            # diffusers' faster way of loading needs the package accelerate.
            loaded: tuple[nn.Module, dict[str, list[str]]] = kind.from_pretrained(
                folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        except RuntimeError as error:
            raise ValueError(f"{WEIGHTS} in {self._place()} does not fit its {CONFIG}: {error}") from error
        except OSError as error:
            raise ValueError(
                f"no {WEIGHTS} of an autoencoder in {self._place()}, or a damaged one; download it there (pickled "
                ".bin weights are not read)"
            ) from error
        network, report = loaded
        if missing := report["missing_keys"]:
            raise ValueError(
                f"{WEIGHTS} in {self._place()} lacks {len(missing)} weights, such as {min(missing)}; it is another "
                "network's: download it again"
            )
        return network

    def _folder(self, *names: str) -> Path:
        inside = Path(self.subfolder)
        return pretrained_folder(self.path, [str(inside / name) for name in names], self.revision) / inside

    def _place(self) -> str:
        return str(Path(self.path) / self.subfolder)

    def _check_ready(self) -> None:
        if not self._weights:
            raise ValueError(f"{type(self).__name__} has no weights yet; call ready() first")

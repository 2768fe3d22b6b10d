"""The embedded autoencoder: an orthogonal transform of image patches, fitted on the training images."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.digest import tensors_digest
from snapgen_pl.runs import PIPELINE
from snapgen_pl.whole_files import whole_file

FILE = "autoencoder.safetensors"
# Where the pipeline of a run has it, under names that begin so.
_IN_PIPELINE, _PREFIX = "vae/diffusion_pytorch_model.safetensors", "autoencoder."


class PatchPCA(Autoencoder):
    """Principal components of non-overlapping patches: a linear autoencoder that needs no weights from elsewhere.

    Raw latents are the leading components of each patch. Final latents divide each component by
    its standard deviation to the power ``whitening``, and all by one number, so that their mean variance is 1.

    Args:
        patch: pixels along a patch's side.
        channels: components kept, at most 3 * patch^2.
        whitening: 0 keeps the components' own scales (orthogonal up to one factor), 1 gives each unit variance.

    Raises:
        ValueError: for sizes out of range.
    """

    mean: Tensor
    basis: Tensor
    std: Tensor

    def __init__(self, patch: int = 8, channels: int = 32, whitening: float = 0.5) -> None:
        super().__init__()
        if patch < 1 or not 1 <= channels <= 3 * patch**2:
            raise ValueError(f"patch {patch}, channels {channels}: need patch >= 1 and 1 <= channels <= 3 * patch^2")
        if not 0 <= whitening <= 1:
            raise ValueError(f"whitening is {whitening}; it must be in [0, 1]")
        self.downsampling, self.channels, self.whitening = patch, channels, whitening
        self.register_buffer("mean", torch.zeros(3 * patch**2))
        self.register_buffer("basis", torch.zeros(channels, 3 * patch**2))
        self.register_buffer("std", torch.ones(channels))
        self.fitted = False

    def ready(self, folder: Path, images: Iterable[Tensor]) -> str:
        """Loads the transform that the folder already has, or fits it to the training images and keeps it there."""
        file = _kept_in(folder)
        if file.exists():
            self.load(file)
            return f"autoencoder: {file}"
        psnr = self.fit(images)
        self._keep(file)
        return f"autoencoder: {self._describe()} fitted on the training images, PSNR {psnr:.2f} dB, kept in {file}"

    def take_over(self, source: Path, folder: Path) -> None:
        """Keeps the transform that the other run keeps, or the pipeline that was made of it.

        Raises:
            ValueError: where the run keeps another, or the source has none, or one of other sizes.
        """
        kept, file = _kept_in(source), folder / FILE
        if not kept.exists():
            raise ValueError(f"{source} keeps no PatchPCA ({kept} does not exist): its weights were trained on other "
                             "latents; declare its autoencoder, or put the file back")  # fmt: skip
        self.load(kept)  # refuses what does not fit before anything is written
        if not file.exists():
            self._keep(file)
        elif tensors_digest(_read(file)) != self.weights_digest():
            raise ValueError(f"{file} makes other latents than {kept}, for which the weights to begin with were "
                             "trained; choose another --name, or go on without --model.init_from")  # fmt: skip

    def fit(self, images: Iterable[Tensor]) -> float:
        """Fits the transform in one pass, in fp64.

        Args:
            images: batches (B, 3, H, W) of uint8 whose H and W the patch divides.

        Returns:
            PSNR in dB of reconstructions against the images, over all of them: the dropped components' variance.
        """
        count, total, second = 0, 0.0 * self.mean.double(), self.basis.new_zeros((), dtype=torch.float64)
        for batch in images:
            patches = self._patches(batch.float().div(127.5).sub(1)).transpose(1, 2).flatten(0, 1).double()
            count += len(patches)
            total = total + patches.sum(0)
            second = second + patches.T @ patches
        if count <= self.channels:
            raise ValueError(f"{count} patches cannot fit {self.channels} components; give more or larger images")
        mean = total / count
        variance, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
        variance, vectors = variance.flip(0).clamp_min(0), vectors.flip(1)
        # eigh leaves signs open: the largest entry of each component is made positive, so that refits agree.
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        basis = (vectors * largest.sign()).T[: self.channels]
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.std.copy_(variance[: self.channels].sqrt().clamp_min(1e-4))
        self.fitted = True
        error = variance[self.channels :].sum().item() / len(mean)
        return 10 * math.log10(4 / error) if error > 0 else math.inf

    def load(self, file: Path) -> None:
        """Loads a fitted transform.

        Raises:
            ValueError: where the file is damaged, of another autoencoder, or was fitted with other sizes.
        """
        tensors = _read(file)
        if tensors.keys() != self.state_dict().keys():
            raise ValueError(f"{file} is of another autoencoder than a PatchPCA; declare that one")
        shape = tuple(tensors["basis"].shape)
        if shape != tuple(self.basis.shape):
            raise ValueError(f"{file} holds {shape[0]} components of {shape[1]} values, the configuration asks for "
                             f"{self._describe()}; use the run's own configuration, or another --name")  # fmt: skip
        self.load_state_dict(tensors)
        self.fitted = True

    def identity(self) -> dict[str, str | int | float]:
        """With the whitening, which final latents depend on."""
        return super().identity() | {"whitening": self.whitening}

    def encode(self, image_BCHW: Tensor) -> Posterior:
        """Images in [-1, 1] -> (B, channels, H / patch, W / patch), with certainty."""
        if not self.fitted:
            raise ValueError("PatchPCA is not fitted; call ready() or load() first")
        height, width = (side // self.downsampling for side in image_BCHW.shape[-2:])
        components = self.basis @ (self._patches(image_BCHW) - self.mean[:, None])
        return Posterior(components.view(-1, self.channels, height, width))

    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        """Scales components as the class says."""
        return raw_BCHW * self._scale()

    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        """Undoes :meth:`to_final`."""
        return final_BCHW / self._scale()

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """(B, channels, h, w) -> images (B, 3, patch * h, patch * w)."""
        patches = self.basis.T @ raw_BCHW.flatten(2) + self.mean[:, None]
        return F.pixel_shuffle(patches.view(*patches.shape[:2], *raw_BCHW.shape[-2:]), self.downsampling)

    def _patches(self, image_BCHW: Tensor) -> Tensor:
        if any(side % self.downsampling for side in image_BCHW.shape[-2:]):
            raise ValueError(
                f"images of {tuple(image_BCHW.shape[-2:])} pixels do not divide into patches of {self.downsampling}"
            )
        return F.unfold(image_BCHW, self.downsampling, stride=self.downsampling)

    def _scale(self) -> Tensor:
        scale = self.std**-self.whitening
        return (scale / (self.std * scale).square().mean().sqrt())[:, None, None]

    def _keep(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            save_file(self.state_dict(), part)

    def _describe(self) -> str:
        return f"{self.channels} components of {self.downsampling}x{self.downsampling} patches"


def _kept_in(folder: Path) -> Path:
    """Where a run, or a pipeline that was made of one, keeps the transform."""
    return folder / (_IN_PIPELINE if (folder / PIPELINE).is_file() else FILE)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); put it back from the run that it is of") from error

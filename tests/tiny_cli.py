"""A model and data for the command line, small and real: built from YAML by class_path, trained, saved, drawn from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from snapgen_pl import rng
from snapgen_pl.autoencoders.autoencoder import Autoencoder, Posterior
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.data.buckets import Size
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import ImageBatch, OpenSource
from snapgen_pl.distill.loss_terms import LossTerm, LossTerms
from snapgen_pl.images import from_uint8, to_uint8

SIDE = 4
CLASSES = ("cat", "dog", "red apple, noto")


@dataclass(frozen=True)
class Stage:
    """A stage.

    Args:
        channels: its channels.
        kind: its blocks.
    """

    channels: int = 4
    kind: Literal["plain", "separable"] = "plain"


class Net(nn.Linear):
    """A network.

    Args:
        width: its width.
        stages: its stages.
    """

    def __init__(self, width: int = 8, stages: tuple[Stage, ...] = ()) -> None:
        if width > 100:
            raise ValueError(f"width is {width}; it must be at most 100")
        super().__init__(3, 3)


@dataclass(frozen=True)
class Solver:
    """A sampler.

    Args:
        steps: its steps.
    """

    steps: int = 2


class Brightness(Autoencoder):
    """Latents are pixels over the brightest training pixel, which is kept with the run."""

    channels, downsampling = 3, 1

    def ready(self, folder: Path, images: Iterable[Tensor]) -> str | None:
        file = folder / "autoencoder.safetensors"
        if not file.exists():
            save_file({"top": torch.stack([from_uint8(image).amax() for image in images]).amax()[None]}, file)
        self.top = load_file(file)["top"]
        return None

    def encode(self, image_BCHW: Tensor) -> Posterior:
        return Posterior(image_BCHW / self.top)

    def to_final(self, raw_BCHW: Tensor) -> Tensor:
        return raw_BCHW

    def to_raw(self, final_BCHW: Tensor) -> Tensor:
        return final_BCHW

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        return raw_BCHW * self.top


class Tiny(L.LightningModule):
    """A stage.

    Args:
        denoiser: the network.
        learning_rate: of SGD.
        seed: of the noise.
        sampler: draws.
    """

    def __init__(
        self,
        denoiser: Net,
        learning_rate: float = 1e-5,
        seed: int = 0,
        sampler: Solver = Solver(),
    ) -> None:
        super().__init__()
        self.denoiser, self.conditioner = denoiser, nn.Embedding(len(CLASSES), 3)
        self.learning_rate, self.seed, self.sampler = learning_rate, seed, sampler
        self.autoencoder = Brightness()
        self.takes: Literal["label", "caption"] = "label"
        self.images_seen = 0

    def setup(self, stage: str) -> None:
        data: Data = self.trainer.datamodule  # type: ignore[attr-defined]
        images = (batch.image_BCHW for batch in data.training_images(4))
        self.ready(Path(self.trainer.default_root_dir), images, CLASSES)

    def ready(self, folder: Path, images: Iterable[Tensor], classes: tuple[str, ...]) -> list[str]:
        self.autoencoder.ready(folder, images)
        return []

    def keep(self, condition: Condition, encoders: Sequence[str]) -> Condition:
        raise ValueError("no text encoders to choose from")

    def velocity(self, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return self.denoiser(x_BCHW.movedim(1, -1)).movedim(-1, 1) + self.conditioner(label_B)[:, :, None, None]

    def error(self, batch: ImageBatch) -> Tensor:
        data = self.autoencoder.encode(from_uint8(batch.image_BCHW)).mean_BCHW
        return (self.velocity(data, batch.condition) - data).square().mean(dim=(1, 2, 3))

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Any]:
        error_B = self.error(batch)
        self.log("train/loss", error_B.mean())
        self.images_seen += len(error_B)
        terms = LossTerms(torch.zeros_like(error_B), (LossTerm("task", "task", error_B.detach()),))
        return {"loss": error_B.mean(), "terms": terms, "position_B": batch.position_B}

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.log("val/loss", self.error(batch).mean())

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        return self.sample(batch)

    def check_sides(self, name: str, *sides: int) -> None:
        if any(side != SIDE for side in sides):
            raise ValueError(f"{name}: only {SIDE} pixels")

    @torch.no_grad()
    def sample(self, request: Request, *, size: Size | None = None) -> Tensor:
        noise = rng.normal(self.seed, rng.Stream.SAMPLER, request.position_B, (3, SIDE, SIDE))
        x = noise - sum(self.velocity(noise, request.condition) for _ in range(self.sampler.steps)) / self.sampler.steps
        return to_uint8(self.autoencoder.decode(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class Pixels:
    """What a run's manifest asks of a set."""

    labels = torch.arange(8) % 3

    def __len__(self) -> int:
        return 8

    def load(self, index: int) -> Image.Image:
        raise NotImplementedError


class Data(L.LightningDataModule):
    """Eight images.

    Args:
        batch_size: images a step.
        folder: a folder that must exist, if given.
    """

    def __init__(self, batch_size: int = 4, folder: str | None = None) -> None:
        super().__init__()
        self.batch_size, self.folder = batch_size, folder

    def setup(self, stage: str) -> None:
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(f"data.folder {self.folder} does not exist; give a folder of images")
        # Known from here on, as in every datamodule that opens its source now.
        self.classes = CLASSES
        self.source = OpenSource(CLASSES, Pixels(), Pixels(), "f00d")

    def training_images(self, batch_size: int) -> Iterator[ImageBatch]:
        yield from self._loader(batch_size)

    def train_dataloader(self) -> "DataLoader[ImageBatch]":
        return self._loader(self.batch_size)

    val_dataloader = train_dataloader

    def predict_dataloader(self) -> "DataLoader[Request]":
        return DataLoader([Request(torch.tensor(0), torch.tensor(i)) for i in range(2)], batch_size=2)

    def _loader(self, batch_size: int) -> "DataLoader[ImageBatch]":
        return DataLoader(
            list(self._samples()),  # type: ignore[arg-type]  # batches of one
            batch_size=batch_size,
            generator=torch.Generator(),
            collate_fn=lambda parts: ImageBatch(*map(torch.stack, zip(*parts, strict=True))),
        )

    def _samples(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        pixels = rng.uniform(5, 0, torch.arange(8), (3, SIDE, SIDE)) * 255
        for position, image in enumerate(pixels.to(torch.uint8)):
            yield image, torch.tensor(position % 3), torch.tensor(position)


def config(folder: Path, **changes: Any) -> str:
    """Writes a config for a run in ``folder``; ``changes`` replace top-level keys."""
    content = {
        "name": "tiny",
        "runs": str(folder / "runs"),
        "model": {"class_path": "tests.tiny_cli.Tiny", "init_args": {"denoiser": {"class_path": "tests.tiny_cli.Net"}}},
        "data": {"class_path": "tests.tiny_cli.Data"},
        "trainer": {
            "max_steps": 3,
            "accelerator": "cpu",
            "val_check_interval": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
    return str(file)


def delta(folder: Path, text: str) -> str:
    """Writes a second config."""
    file = folder / "delta.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)

"""The verb ``generate``: images of named classes from a run, with nothing but its folder."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from snapgen_pl import checkpoints
from snapgen_pl.config_files import Value
from snapgen_pl.data.requests import Request
from snapgen_pl.data.source import NamesClasses
from snapgen_pl.errors import did_you_mean
from snapgen_pl.png import to_pil, write_png
from snapgen_pl.trained_run import arguments, built, open_run
from snapgen_pl.whole_files import write_json


@runtime_checkable
class Draws(Protocol):
    """A module that draws images, such as :class:`~snapgen_pl.modules.pretrain.Pretrain`."""

    def ready(self, folder: Path, data: Any) -> list[str]:
        """Makes what the module uses usable, given the run's folder and the data; returns lines for the user."""
        ...

    def sample(self, request: Request) -> Tensor:
        """uint8 images (B, 3, H, W), moved to where the module is."""
        ...


class _Drawing(NamedTuple):
    label: int
    name: str
    position: int

    @property
    def file(self) -> str:
        slug = re.sub(r"\W+", "-", self.name).strip("-")
        return f"{self.label:03d}-{slug}-{self.position:04d}.png"


def generate(
    run: str,
    classes: str,
    out: str,
    count: int = 4,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
) -> str:
    """Draws images from a run's averaged weights.

    The i-th image of a class is drawn from the noise at position i, whatever else is asked for.

    Args:
        run: the run's folder, such as runs/quickstart.
        classes: class names, separated by commas; a name may hold commas itself.
        out: a new or empty folder for the images, manifest.json and grid.png, a row a class.
        count: images a class.
        seed: seeds the noise; by default the run's seed.
        steps: the sampler's steps; by default the run's.
        guidance: the guidance scale; by default the run's.
        batch_size: images drawn at once.

    Returns:
        A line about what was written.

    Raises:
        ValueError: for a folder that is no run, an unknown class, a damaged checkpoint, a folder that is not empty.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {out} is not an empty folder; choose another")
    if count < 1 or batch_size < 1:
        raise ValueError(f"--count {count} and --batch_size {batch_size} must be at least 1")
    source = open_run(run)
    config = _overridden(source.config, {"seed": seed, "sampler.steps": steps, "guidance.scale": guidance})
    model, data = _built(config)
    # Asked before the seconds that the weights take.
    drawings = _plan(tuple(data.classes), classes, count)
    model.ready(source.folder, data)
    _load(model, source.weights())
    images = _draw(model, drawings, batch_size)
    checkpoint = source.checkpoint
    facts: dict[str, Value] = {"checkpoint": str(checkpoint), "step": checkpoints.step_of(checkpoint)}
    settings = arguments(config["model"])
    _write(folder, drawings, images, facts | {key: settings.get(key) for key in ("seed", "sampler", "guidance")})
    return f"{len(drawings)} images from {checkpoint} in {folder}"


def _overridden(config: dict[str, Value], changes: dict[str, int | float | None]) -> dict[str, Value]:
    """The config with arguments of the model replaced, before it is parsed again."""
    for key, value in changes.items():
        *path, last = key.split(".")
        level = arguments(config["model"])
        for name in path:
            level = arguments(level.get(name))
        if value is not None and last not in level:
            raise ValueError(f"the run's model has no argument {key}, so it cannot be set to {value}")
        if value is not None:
            level[last] = value
    return config


def _built(config: dict[str, Value]) -> tuple[Any, Any]:
    """The module and the datamodule of a config, the data opened."""
    from lightning.pytorch import LightningDataModule, LightningModule

    from snapgen_pl.terminal import quiet

    quiet()
    parts = built(config, model=LightningModule, data=LightningDataModule)
    # What a datamodule knows of classes, it knows from here on.
    parts.data.setup("predict")
    if not (isinstance(parts.model, Draws) and isinstance(parts.data, NamesClasses)):
        raise ValueError(f"{type(parts.model).__name__} with {type(parts.data).__name__} draws no images of classes")
    return parts.model, parts.data


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts the averaged weights in, where the drawing is done."""
    model.load_state_dict(weights, strict=True)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _plan(known: tuple[str, ...], classes: str, count: int) -> list[_Drawing]:
    names = list(dict.fromkeys(_names(known, classes)))
    return [_Drawing(known.index(name), name, position) for name in names for position in range(count)]


def _names(known: tuple[str, ...], classes: str) -> Iterator[str]:
    """The names in a list between commas; names may hold commas themselves, so the longest that is known counts."""
    parts = [part.strip() for part in classes.split(",")]
    while parts:
        ends = (end for end in range(len(parts), 0, -1) if ", ".join(parts[:end]) in known)
        end = next(ends, None)
        if end is None:
            raise ValueError(f"no class {parts[0]!r} among the run's {len(known)}{did_you_mean(parts[0], known)}")
        yield ", ".join(parts[:end])
        parts = parts[end:]


def _draw(model: Draws, drawings: list[_Drawing], batch_size: int) -> Tensor:
    label = torch.tensor([drawing.label for drawing in drawings])
    position = torch.tensor([drawing.position for drawing in drawings])
    requests = map(Request, torch.split(label, batch_size), torch.split(position, batch_size))
    return torch.cat([model.sample(request).cpu() for request in requests])


def _write(folder: Path, drawings: list[_Drawing], images: Tensor, facts: dict[str, Value]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for drawing, image_CHW in zip(drawings, images, strict=True):
        write_png(to_pil(image_CHW), folder / drawing.file)
    rows = len({drawing.label for drawing in drawings})
    write_png(to_pil(_grid(images, rows)), folder / "grid.png")
    entries: list[Value] = [drawing._asdict() | {"file": drawing.file} for drawing in drawings]
    write_json(facts | {"images": entries}, folder / "manifest.json")


def _grid(images: Tensor, rows: int) -> Tensor:
    """(rows x columns, C, H, W) -> (C, rows x H, columns x W)."""
    _, channels, height, width = images.shape
    tiles = images.view(rows, -1, channels, height, width)
    return tiles.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, -1)

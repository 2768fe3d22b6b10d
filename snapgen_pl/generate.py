"""The verb ``generate``: images of named classes, or of prompts, from a run, with nothing but its folder."""

import importlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from rich.progress import track
from torch import Tensor, nn

from snapgen_pl import checkpoints
from snapgen_pl.conditioning.condition import Condition, Texts
from snapgen_pl.config_files import Value, differences
from snapgen_pl.data.requests import Request
from snapgen_pl.errors import did_you_mean
from snapgen_pl.pictures import Layout, Picture, Prompt, lay_out, named, read_prompts
from snapgen_pl.png import read_picture, to_pil, write_png
from snapgen_pl.trained_run import TrainedRun, arguments, built, open_run
from snapgen_pl.whole_files import write_json, write_text

MANIFEST = "manifest.json"
GRID_IMAGES = 200


@runtime_checkable
class Draws(Protocol):
    """A module that draws images, such as :class:`~snapgen_pl.modules.pretrain.Pretrain`.

    Attributes:
        takes: what it is asked with.
    """

    @property
    def takes(self) -> Literal["label", "caption"]: ...  # noqa: D102  (documented above)

    def ready(self, folder: Path, images: Iterable[Tensor], classes: tuple[str, ...]) -> list[str]:
        """Makes what the module uses usable, given the run's folder; returns lines for the user."""
        ...

    def keep(self, condition: Condition, encoders: Sequence[str]) -> Condition:
        """The condition through some of its text encoders alone."""
        ...

    def sample(self, request: Request) -> Tensor:
        """uint8 images (B, 3, H, W), moved to where the module is."""
        ...


def generate(
    run: str,
    out: str,
    classes: str | None = None,
    prompt: str | None = None,
    prompts: str | None = None,
    layout: Layout = "plain",
    count: int = 4,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    encoders: str | None = None,
    batch_size: int = 16,
) -> str:
    """Draws images from a run's averaged weights.

    The i-th image of a class or prompt is drawn from the noise at position i, whatever else is asked for. The same
    command again goes on after the images that are there.

    Args:
        run: the run's folder, such as runs/quickstart.
        out: a folder for the images, manifest.json and, of up to 200 images, grid.png, a row a class or prompt.
        classes: class names, separated by commas; a name may hold commas itself.
        prompt: a text.
        prompts: a file of them; what of depends on the layout.
        layout: plain takes a prompt a line and writes a file an image; geneval takes GenEval's
            evaluation_metadata.jsonl and dpg the folder of DPG-Bench's prompts, and both write what the benchmark's
            evaluator reads.
        count: images a class or prompt.
        seed: seeds the noise; by default the run's seed.
        steps: the sampler's steps; by default the run's.
        guidance: the guidance scale; by default the run's.
        encoders: names of the text encoders to ask, separated by commas; by default all.
        batch_size: images drawn at once.

    Returns:
        A line about what was written.

    Raises:
        ValueError: for a folder that is no run, an unknown class, a damaged checkpoint, a folder of other images.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"--count {count} and --batch_size {batch_size} must be at least 1")
    source = open_run(run)
    config = _overridden(source.config, {"seed": seed, "sampler.steps": steps, "guidance.scale": guidance})
    model = _built(config)
    # Asked before the seconds that the weights take.
    known = source.classes() if model.takes == "label" else ()
    pictures = lay_out(_prompts(model.takes, known, classes, prompt, prompts, layout), layout, count)
    kept = None if encoders is None else [name.strip() for name in encoders.split(",") if name.strip()]
    if kept == []:
        raise ValueError("--encoders names none; name some, or leave it out for all of them")
    if kept is not None:
        model.keep(Texts(("",), {}), kept)  # says so now, if there is no such encoder
    settings = _settings(source, config, encoders)
    folder = Path(out)
    _begin(folder, {**settings, "layout": layout, "images": [_entry(picture) for picture in pictures]})
    missing = [picture for picture in pictures if not (folder / picture.file).exists()]
    if missing:
        model.ready(source.folder, (), known)
        _load(model, source.weights())
    size = max(1, batch_size // len(pictures[0].positions))
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    for batch in track(batches, "drawing", transient=True, disable=len(batches) < 2):
        for picture, image_BCHW in zip(batch, _drawn(model, batch, known, kept), strict=True):
            _write(picture, image_BCHW, folder, settings)
    _finish(pictures, folder, layout)
    before = f", {len(pictures) - len(missing)} files of them before" if len(missing) < len(pictures) else ""
    return f"{sum(len(picture.positions) for picture in pictures)} images from {source.checkpoint} in {out}{before}"


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


def _built(config: dict[str, Value]) -> Any:
    """The module of a config, or what it draws as: a student without its teacher."""
    from lightning.pytorch import LightningModule

    from snapgen_pl.terminal import quiet

    quiet()
    model = config["model"]
    assert isinstance(model, dict)
    module, _, name = str(model["class_path"]).rpartition(".")
    try:
        kind: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the run's module cannot be imported ({error}); use the code that it was made with"
        ) from error
    drawing: type = vars(kind).get("draws_as", kind)  # not of a base: a subclass may draw otherwise
    takes = inspect.signature(drawing).parameters
    init_args = {key: value for key, value in arguments(model).items() if drawing is kind or key in takes}
    path = f"{drawing.__module__}.{drawing.__qualname__}"
    model = built({"model": {"class_path": path, "init_args": init_args}}, model=LightningModule).model
    if not isinstance(model, Draws):
        raise ValueError(f"{type(model).__name__} draws no images")
    return model


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts the averaged weights in, those that drawing needs, where it is done."""
    parts = {name for name, _ in model.named_children()}
    model.load_state_dict({name: weight for name, weight in weights.items() if name.split(".")[0] in parts})
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _prompts(
    takes: Literal["label", "caption"],
    known: tuple[str, ...],
    classes: str | None,
    prompt: str | None,
    prompts: str | None,
    layout: Layout,
) -> list[Prompt]:
    if sum(given is not None for given in (classes, prompt, prompts)) != 1:
        raise ValueError("give one of --classes, --prompt and --prompts")
    if layout != "plain" and prompts is None:
        raise ValueError(f"--layout {layout} reads the benchmark's own prompts; give them as --prompts")
    if (classes is not None) != (takes == "label"):
        asked, instead = ("classes", "--classes") if takes == "label" else ("texts", "--prompt or --prompts")
        raise ValueError(f"the run draws from {asked}; give {instead}")
    if classes is not None:
        return [named(name, known.index(name)) for name in dict.fromkeys(_names(known, classes))]
    if prompt is not None:
        return [named(prompt, 0)]
    return read_prompts(Path(str(prompts)), layout)


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


def _settings(source: TrainedRun, config: dict[str, Value], encoders: str | None) -> dict[str, Value]:
    """What the images depend on besides their prompts and positions."""
    model = arguments(config["model"])
    return {
        "checkpoint": str(source.checkpoint),
        "step": checkpoints.step_of(source.checkpoint),
        "weights": "EMA",
        **{key: model.get(key) for key in ("seed", "sampler", "guidance")},
        "encoders": encoders,
    }


def _entry(picture: Picture) -> dict[str, Value]:
    return {"file": picture.file, "prompt": picture.prompt.text, "positions": list(picture.positions)}


def _begin(folder: Path, manifest: dict[str, Value]) -> None:
    """Makes the folder one of these images.

    Raises:
        ValueError: where it holds something else.
    """
    path = folder / MANIFEST
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "images" not in before and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"--out {folder} is not an empty folder; choose another")
    if before and (changed := differences(before, manifest)):
        listed = ", ".join(change.key for change in changed[:3])
        raise ValueError(f"--out {folder} holds images of another command ({listed} differ); choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(manifest, path)


def _drawn(
    model: Draws, pictures: Sequence[Picture], known: tuple[str, ...], encoders: Sequence[str] | None
) -> Iterator[Tensor]:
    """The images (positions, C, H, W) of each picture, drawn at once."""
    asked = [(picture.prompt.text, position) for picture in pictures for position in picture.positions]
    texts, positions = zip(*asked, strict=True)
    condition: Condition = torch.tensor([known.index(text) for text in texts]) if known else Texts(texts, {})
    if encoders is not None:
        condition = model.keep(condition, encoders)
    image_BCHW = model.sample(Request(condition, torch.tensor(positions))).cpu()
    yield from torch.split(image_BCHW, [len(picture.positions) for picture in pictures])


def _write(picture: Picture, image_BCHW: Tensor, folder: Path, settings: Mapping[str, Value]) -> None:
    """Writes a picture, which says itself what it is."""
    path = folder / picture.file
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"prompt": picture.prompt.text, "positions": ", ".join(map(str, picture.positions))}
    about |= {key: str(value) for key, value in settings.items() if value is not None}
    write_png(to_pil(_grid(image_BCHW, round(len(image_BCHW) ** 0.5))), path, about)


def _finish(pictures: Sequence[Picture], folder: Path, layout: Layout) -> None:
    """Writes what stands beside the images."""
    prompts = list(dict.fromkeys(picture.prompt for picture in pictures))
    if layout == "geneval":
        for prompt in prompts:
            write_text(f"{prompt.record}\n", folder / prompt.name / "metadata.jsonl")
    if layout == "plain" and len(pictures) <= GRID_IMAGES:
        images = torch.stack([read_picture(folder / picture.file) for picture in pictures])
        write_png(to_pil(_grid(images, len(prompts))), folder / "grid.png")


def _grid(images: Tensor, rows: int) -> Tensor:
    """(rows x columns, C, H, W) -> (C, rows x H, columns x W)."""
    _, channels, height, width = images.shape
    tiles = images.view(rows, -1, channels, height, width)
    return tiles.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, -1)

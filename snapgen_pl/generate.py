"""The verb ``generate``: images of classes or prompts from a run, or what was exported of it, by its folder alone."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor

from snapgen_pl.autoencoders.with_decoder import with_decoder
from snapgen_pl.conditioning.condition import Condition, Texts
from snapgen_pl.config_files import Value, differences
from snapgen_pl.data.buckets import Size
from snapgen_pl.data.requests import Request
from snapgen_pl.drawing import Draws, Source, built_module
from snapgen_pl.errors import did_you_mean
from snapgen_pl.export.folder import Backend, is_export, open_exported
from snapgen_pl.pictures import Layout, Picture, Prompt, lay_out, named, read_prompts
from snapgen_pl.pipeline.folder import open_trained
from snapgen_pl.png import read_picture, to_pil, write_png
from snapgen_pl.runs import PIPELINE
from snapgen_pl.trained_run import arguments
from snapgen_pl.whole_files import check_empty, write_json, write_text

MANIFEST = "manifest.json"
GRID_IMAGES = 200


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
    size: str | None = None,
    batch_size: int = 16,
    backend: Literal["torch"] | Backend = "torch",
    decoder: str | None = None,
) -> str:
    """Draws images from a run's averaged weights.

    The i-th image of a class or prompt is drawn from the noise at position i, whatever else is asked for. The same
    command again goes on after the images that are there.

    Args:
        run: the run's folder, such as runs/quickstart, or the pipeline that `export diffusers` made of it; for another
            backend than torch, what `export` made of it.
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
        size: of the images, HEIGHTxWIDTH in pixels, such as 768x1344; by default the run's square. A run draws best
            about the area that it was trained on, and other shapes where it was trained on buckets.
        batch_size: images drawn at once.
        backend: what runs the networks: torch; onnx is ONNX Runtime, on the CPU and image by image; coreml evaluates
            the packages, which shows what a phone would draw and takes long.
        decoder: the folder of a decoder's run, which makes the images in place of the autoencoder's own decoder.

    Returns:
        A line about what was written.

    Raises:
        ValueError: for a folder that is no run, an unknown class, a size that the run does not draw, a damaged
            checkpoint, a folder of other images.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"--count {count} and --batch_size {batch_size} must be at least 1")
    asked = None if size is None else _size(size, backend)
    source = _source(run, backend, decoder)
    config = _overridden(source.config, {"seed": seed, "sampler.steps": steps, "guidance.scale": guidance})
    model = built_module(config)
    if asked is not None:
        model.check_sides("--size", *asked)
    # Asked before the seconds that the weights take.
    known = source.classes() if model.takes == "label" else ()
    pictures = lay_out(_prompts(model.takes, known, classes, prompt, prompts, layout), layout, count)
    kept = None if encoders is None else [name.strip() for name in encoders.split(",") if name.strip()]
    if kept == []:
        raise ValueError("--encoders names none; name some, or leave it out for all of them")
    if kept is not None:
        model.keep(Texts(("",), {}), kept)  # says so now, if there is no such encoder
    settings = _settings(source, config, encoders) | {"size": size}
    folder = Path(out)
    manifest: dict[str, Value] = {**settings, "layout": layout, "images": [_entry(picture) for picture in pictures]}
    _check(folder, manifest)
    missing = [picture for picture in pictures if not (folder / picture.file).exists()]
    if missing:
        model.ready(source.folder, (), known)
        source.load(model)
        model.to("cuda" if torch.cuda.is_available() and backend == "torch" else "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(manifest, folder / MANIFEST)
    at_once = max(1, batch_size // len(pictures[0].positions))
    batches = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]
    for batch in track(batches, "drawing", transient=True, disable=len(batches) < 2):
        for picture, image_BCHW in zip(batch, _drawn(model, batch, known, kept, asked), strict=True):
            _write(picture, image_BCHW, folder, settings)
    _finish(pictures, folder, layout)
    before = f", {len(pictures) - len(missing)} files of them before" if len(missing) < len(pictures) else ""
    return f"{sum(len(picture.positions) for picture in pictures)} images from {source.origin} in {out}{before}"


def _source(run: str, backend: Literal["torch"] | Backend, decoder: str | None) -> Source:
    if backend == "torch":
        if is_export(Path(run)):
            raise ValueError(f"{run} is what `export` made, which torch does not run; give --backend onnx or coreml")
        return with_decoder(open_trained(run), decoder)
    if (Path(run) / PIPELINE).is_file():
        raise ValueError(f"{run} is a pipeline of diffusers, which torch alone draws; leave --backend out, or `export` "
                         "the run that it was made of")  # fmt: skip
    if decoder is not None:
        raise ValueError(f"what was exported has its decoder inside; export the run again with --decoder {decoder}")
    return open_exported(run, backend)


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


def _settings(source: Source, config: dict[str, Value], encoders: str | None) -> dict[str, Value]:
    """What the images depend on besides their prompts and positions."""
    model = arguments(config["model"])
    return {
        **source.facts(),
        **{key: model.get(key) for key in ("seed", "sampler", "guidance")},
        "encoders": encoders,
    }


def _entry(picture: Picture) -> dict[str, Value]:
    return {"file": picture.file, "prompt": picture.prompt.text, "positions": list(picture.positions)}


def _check(folder: Path, manifest: dict[str, Value]) -> None:
    """Raises ValueError where the folder holds something else than these images."""
    path = folder / MANIFEST
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "images" not in before:
        check_empty(folder)
    if before and (changed := differences(before, manifest)):
        listed = ", ".join(change.key for change in changed[:3])
        raise ValueError(f"--out {folder} holds images of another command ({listed} differ); choose another folder")


def _size(text: str, backend: Literal["torch"] | Backend) -> Size:
    """What ``--size`` means.

    Raises:
        ValueError: where it is no size, or the backend draws one alone.
    """
    if backend != "torch":
        raise ValueError(f"--size {text}: what was exported draws images of one size; leave it out")
    sides = re.fullmatch(r"(\d+)x(\d+)", text)
    if sides is None:
        raise ValueError(f"--size {text!r} is no size; give HEIGHTxWIDTH in pixels, such as 768x1344")
    return Size(int(sides[1]), int(sides[2]))


def _drawn(
    model: Draws,
    pictures: Sequence[Picture],
    known: tuple[str, ...],
    encoders: Sequence[str] | None,
    size: Size | None,
) -> Iterator[Tensor]:
    """The images (positions, C, H, W) of each picture, drawn at once."""
    asked = [(picture.prompt.text, position) for picture in pictures for position in picture.positions]
    texts, positions = zip(*asked, strict=True)
    condition: Condition = torch.tensor([known.index(text) for text in texts]) if known else Texts(texts, {})
    if encoders is not None:
        condition = model.keep(condition, encoders)
    image_BCHW = model.sample(Request(condition, torch.tensor(positions)), size=size).cpu()
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

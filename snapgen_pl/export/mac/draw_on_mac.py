"""Draws a prompt by the Core ML models beside this file, times it, and tells where its operations run.

    pip install coremltools numpy pillow tokenizers
    ./compile_on_mac.sh
    python draw_on_mac.py "a red apple, 3d style" --out apple.png

It was written without a Mac: what Core ML is asked for was never run. All else (texts to numbers, steps, guidance,
pixels) is held against snapgen_pl's own drawing by its tests. It needs nothing of snapgen_pl.

Times fall from 1, noise, to 0, data; they have fractions, and are given to the denoiser as they are. The velocity is
noise - data.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Model = Callable[[Mapping[str, Array]], Mapping[str, Array]]
UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")


class Bundle:
    """The folder: its manifest, and the tokenizers of its encoders.

    Args:
        folder: holds bundle.json.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self._tokenizers: dict[str, Any] = {}

    def files(self, model: str) -> list[Path]:
        """The compiled models of a model: one, or two halves in their order."""
        return [self.folder / f"{name}.mlmodelc" for name in self.manifest["models"][model]["files"]]

    def zeros(self, model: str) -> dict[str, Array]:
        """Zeros of the shapes that a model takes."""
        return {name: np.zeros(shape, np.float32) for name, shape in self.manifest["models"][model]["inputs"].items()}

    def token_ids(self, encoder: str, text: str) -> tuple[Array, Array]:
        """A text as (1, S) ids, int32, and a mask of those that are no padding, float32.

        Raises:
            ValueError: for a text that is too long, where the encoder does not cut.
        """
        about = self.manifest["texts"][encoder]
        room = about["tokens"]
        if encoder not in self._tokenizers:
            from tokenizers import Tokenizer

            self._tokenizers[encoder] = Tokenizer.from_file(str(self.folder / about["tokenizer"]))
            if about["truncate"]:
                self._tokenizers[encoder].enable_truncation(room)
        ids = self._tokenizers[encoder].encode(text).ids
        if len(ids) > room:
            raise ValueError(f"{text!r} takes {len(ids)} tokens of {encoder}, there is room for {room}; shorten it")
        padded = [*ids, *[about["pad"]] * (room - len(ids))]
        return np.array([padded], np.int32), (np.arange(room) < len(ids)).astype(np.float32)[None]


def text_states(bundle: Bundle, models: Mapping[str, Model], prompt: str) -> dict[str, Array]:
    """What all text encoders make of a prompt, under the names that the model ``context`` has for it."""
    asked: dict[str, Array] = {}
    for encoder, about in bundle.manifest["texts"].items():
        ids, mask = bundle.token_ids(encoder, prompt)
        masks = {"attention_mask": mask} if about["masked"] else {}
        states = models[about["model"]]({"input_ids": ids, **masks})
        asked |= {f"{encoder}_{part}": states[part] for part in ("tokens", "pooled") if part in states}
        asked |= {f"{encoder}_mask": mask} if about["masked"] else {}
    return asked


def contexts(bundle: Bundle, models: Mapping[str, Model], prompt: str) -> tuple[Mapping[str, Array], ...]:
    """What the denoiser is told of a prompt, and of none, which keeps no encoder."""
    nothing = bundle.zeros("context")
    asked = {**text_states(bundle, models, prompt), "kept": np.ones_like(nothing["kept"])}
    return models["context"]({name: asked[name] for name in nothing}), models["context"](nothing)


def velocity(bundle: Bundle, denoiser: Model, told: Sequence[Mapping[str, Array]], sample: Array, t: float) -> Array:
    """v_none + scale (v_prompt - v_none) where guidance acts, v_prompt elsewhere, in float32."""
    guidance = bundle.manifest["guidance"]
    (low, high), scale, channels = guidance["interval"], guidance["scale"], guidance["channels"]

    def predict(context: Mapping[str, Array]) -> Array:
        made = denoiser({"sample": sample, "timestep": np.array([t], np.float32), **context})
        predicted: Array = made["velocity"].astype(np.float32)
        return predicted

    asked = predict(told[0])
    if scale == 1 or not low - 1e-6 <= t <= high + 1e-6:  # both ends are in it, whatever rounding made of t
        return asked
    none = predict(told[1])
    guided: Array = none + scale * (asked - none)
    return guided if channels is None else np.concatenate((guided[:, :channels], asked[:, channels:]), axis=1)


def draw(bundle: Bundle, models: Mapping[str, Model], prompt: str, noises: Iterator[Array]) -> Array:
    """A prompt as an image.

    Args:
        bundle: of the models.
        models: by the names that the manifest has for them.
        prompt: a text.
        noises: standard normal numbers like a latent, float32: the state at t = 1, then one a step that takes some.

    Returns:
        uint8 (H, W, 3).
    """
    told = contexts(bundle, models, prompt)
    x = next(noises)
    for t, t_next in pairwise(bundle.manifest["timesteps"]):
        v = velocity(bundle, models["denoiser"], told, x, t)
        if bundle.manifest["sampler"] == "Euler":
            x = x + np.float32(t_next - t) * v
        else:  # Renoising: guesses the data, and noises the guess anew to the next time
            data = x - np.float32(t) * v
            x = data if t_next == 0 else np.float32(1 - t_next) * data + np.float32(t_next) * next(noises)
    # Scale and shift of latents are undone inside the decoder. It gives about [-1, 1].
    image: Array = models["decoder"]({"latent": x})["image"].astype(np.float32)[0].transpose(1, 2, 0)
    pixels: Array = (image * 127.5 + 128).clip(0, 255).astype(np.uint8)
    return pixels


def seeded(bundle: Bundle, seed: int) -> Iterator[Array]:
    """Noise from a seed: numpy's, so that images are not those of the same seed in snapgen_pl."""
    generator = np.random.default_rng(seed)
    shape = (1, *bundle.manifest["latents"]["shape"])
    while True:
        yield generator.standard_normal(shape, np.float32)


class Chain:
    """A model, or its halves one after the other, and how long its calls took.

    Args:
        parts: in their order.
        takes: the names of each one's inputs: the chain's, or outputs of those before it.
    """

    def __init__(self, parts: Sequence[Model], takes: Sequence[Sequence[str]]) -> None:
        self.parts = list(zip(parts, takes, strict=True))
        self.seconds: list[float] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs of all parts."""
        began, known = time.perf_counter(), dict(inputs)
        for part, names in self.parts:
            known |= part({name: known[name] for name in names})
        self.seconds.append(time.perf_counter() - began)
        return {name: array for name, array in known.items() if name not in inputs}


def core_ml(file: Path, units: str) -> Model:
    """A compiled model in Core ML. NOT RUN without a Mac.

    Args:
        file: the model.
        units: a name of coremltools.ComputeUnit.
    """
    import coremltools as ct

    model: Model = ct.models.CompiledMLModel(str(file), ct.ComputeUnit[units]).predict
    return model


def residency(file: Path, units: str) -> Counter[str]:
    """How many operations of a compiled model each device would run. NOT RUN without a Mac."""
    import coremltools as ct

    plan = ct.models.compute_plan.MLComputePlan.load_from_path(str(file), ct.ComputeUnit[units])
    found: Counter[str] = Counter()
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:  # constants run nowhere
            kind = type(usage.preferred_compute_device).__name__
            found[kind.removeprefix("ML").removesuffix("ComputeDevice")] += 1
    return found


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description="Draws a prompt by the Core ML models beside this file.")
    parser.add_argument("prompt")
    parser.add_argument("--out", type=Path, default=Path("drawn.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--units", choices=UNITS, default="CPU_AND_NE", help="what Core ML may use")
    parser.add_argument("--repeats", type=int, default=5, help="images timed, after one that is not")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats is {given.repeats}; give at least 1")
    from PIL import Image

    bundle = Bundle(Path(__file__).parent)
    files = {name: bundle.files(name) for name in bundle.manifest["models"]}
    if missing := [file.name for each in files.values() for file in each if not file.is_dir()]:
        parser.error(f"{', '.join(missing)} not there; run ./compile_on_mac.sh first")
    for file in (file for each in files.values() for file in each):
        counts = residency(file, given.units)
        print(f"{file.name}: " + ", ".join(f"{count} on {device}" for device, count in counts.most_common()))
    models = {
        name: Chain([core_ml(file, given.units) for file in each], bundle.manifest["models"][name]["takes"])
        for name, each in files.items()
    }
    seconds = []
    for _ in range(1 + given.repeats):
        began = time.perf_counter()
        image = draw(bundle, models, given.prompt, seeded(bundle, given.seed))
        seconds.append(time.perf_counter() - began)
    Image.fromarray(image).save(given.out)
    for name, model in models.items():
        calls = len(model.seconds) // (1 + given.repeats)
        median = statistics.median(model.seconds[calls:])
        print(f"{name}: {1000 * median:.1f} ms a call, median of {len(model.seconds) - calls}, {calls} an image")
    print(f"an image: {1000 * statistics.median(seconds[1:]):.1f} ms, median of {given.repeats}, in {given.out}")


if __name__ == "__main__":
    main()

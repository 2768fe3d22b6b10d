"""What compressed packages draw: ``python -m benchmarks.export_compressed``, on a run and exports of it.

Images of prompts are drawn by evaluated packages, text encoder to decoder, beside torch. For the measures that take a
thousand samples the evaluator is too slow: the denoiser's weights, as the package decompresses them, are put into a
copy of the run, which ``test`` measures as it does every run. That both denoisers are the same is checked first, on the
export's own example. The text encoder stays whole there: its states of the captions are stored with the data.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.emoji_steps import drawn_from
from benchmarks.export_images import MIN_PSNR_DB, drawn, psnr_db
from benchmarks.timing import Environment, environment
from snapgen_pl.checkpoints import LAST
from snapgen_pl.export.compress import METADATA
from snapgen_pl.export.difference import EQUAL_DB, Difference, difference
from snapgen_pl.export.evaluate import evaluate
from snapgen_pl.export.example import read_example
from snapgen_pl.export.folder import COREML, EXAMPLES
from snapgen_pl.export.graphs import DENOISER, DenoiserGraph
from snapgen_pl.export.limits import to_half
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.metrics.sample_report import read_report
from snapgen_pl.png import to_pil, write_png
from snapgen_pl.trained_run import open_run
from snapgen_pl.whole_files import write_json

WHOLE = "float16"


@dataclass(frozen=True)
class Row:
    """One export.

    Attributes:
        scheme: of its denoiser; float16 where it is whole.
        megabytes: of each package, by graph.
        schemes: of each package that is compressed, by graph.
        denoiser_db: PSNR of the evaluated denoiser against torch, on the export's example.
        decompressed_db: likewise against torch with the decompressed weights.
        images_db: PSNR of 8-bit images of prompts against torch; None for equal ones.
        least_db: of them all.
        values: of 1,000 samples, with their spread where they have one.
    """

    scheme: str
    megabytes: dict[str, float]
    schemes: dict[str, str]
    denoiser_db: float
    decompressed_db: float
    images_db: dict[str, float | None]
    least_db: float
    values: dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Report:
    """All of them."""

    environment: Environment
    run: str
    rows: list[Row]


def main(run: Path, exported: Sequence[Path], prompts: Path, out: Path, picture: Path | None = None) -> None:
    """Measures exports of a run.

    Args:
        run: the run's folder; its metrics are those that ``test`` takes of it.
        exported: what ``export`` made of it; the first is not compressed.
        prompts: a file of prompts.
        out: a file for the figures.
        picture: a file for the images: torch's above, a row of each export's below.

    Raises:
        ValueError: where the first is compressed or draws under 40 dB, or a denoiser is not torch's.
    """
    whole = _denoiser(exported[0])
    if METADATA in whole.metadata:
        raise ValueError(f"{exported[0]} is compressed; give first what is not")
    rows: list[Row] = []
    images: list[Tensor] = []
    for folder in exported:
        pairs = drawn(run, folder, prompts)
        images += [torch.cat(shown, dim=2) for shown in list(zip(*pairs.values(), strict=True))[bool(images) :]]
        rows.append(_row(run, folder, whole, {name: psnr_db(*pair) for name, pair in pairs.items()}))
        print(asdict(rows[-1]), flush=True)
    if rows[0].least_db < MIN_PSNR_DB:
        raise ValueError(f"the least PSNR is {rows[0].least_db:.1f} dB, {MIN_PSNR_DB:.0f} dB are needed")
    report = Report(environment("benchmarks.export_compressed"), run.resolve().name, rows)
    if picture is not None:
        write_png(to_pil(torch.cat(images, dim=1)), picture)
    write_json(asdict(report), out)


def decompressed(package: Package, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weight of each convolution and linear layer as it acts, by the operation's name.

    Args:
        package: with weights of any kind.
        inputs: to evaluate it on.
    """
    bound = {each.inputs["weight"][0]: each.name for each in package.operations if "weight" in each.inputs}
    found: dict[str, Tensor] = {}

    def watch(name: str, value: Tensor) -> None:
        if name in bound:
            found[bound[name]] = value

    evaluate(package, inputs, watch=watch)
    return found


def run_weights(run: Path, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A run's weights as a package has them, by name; which is whose is told by the numbers in float16.

    Args:
        run: the run's folder.
        before: of the package that is not compressed, see :func:`decompressed`.
        after: of the package.

    Raises:
        ValueError: where a weight of the package is none of the run's, or several.
    """
    own = open_run(str(run)).weights()
    flat = {
        name: torch.from_numpy(to_half(weight.numpy())).flatten()
        for name, weight in own.items()
        if name.startswith("denoiser.")
    }
    found = {}
    for layer, weight in before.items():
        names = [name for name, each in flat.items() if torch.equal(each, weight.flatten())]
        if len(names) != 1:
            raise ValueError(f"the weight of {layer} is {', '.join(names) or 'none'} of the run's; export {run} again")
        found[names[0]] = after[layer].float().reshape(own[names[0]].shape)
    return found


def _row(run: Path, folder: Path, whole: Package, images: dict[str, float | None]) -> Row:
    package, example = _denoiser(folder), read_example(folder / EXAMPLES / f"{DENOISER}.safetensors")
    found = evaluate(package, example.inputs).outputs["velocity"]
    packages = [read_package(path) for path in sorted((folder / COREML).glob("*.mlpackage"))]
    weights = run_weights(run, decompressed(whole, example.inputs), decompressed(package, example.inputs))
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / run.name
        _copy(run, copy, weights)
        agreed = _agreement(copy, {name: example.inputs[name] for name in package.inputs}, found)
        values = _values(copy)
    return Row(
        scheme=package.metadata.get(METADATA, WHOLE),
        megabytes={each.path.stem: each.stored_bytes / 1e6 for each in packages},
        schemes={each.path.stem: each.metadata[METADATA] for each in packages if METADATA in each.metadata},
        denoiser_db=difference(found, example.expected["velocity"]).psnr_db,
        decompressed_db=agreed.psnr_db,
        images_db=images,
        least_db=min((value for value in images.values() if value is not None), default=EQUAL_DB),
        values=values,
    )


def _denoiser(folder: Path) -> Package:
    return read_package(folder / COREML / f"{DENOISER}.mlpackage")


def _copy(run: Path, copy: Path, weights: Mapping[str, Tensor]) -> None:
    """A run with some of its averaged weights replaced."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.ckpt", "events.*", "samples", "reports"))
    checkpoint = torch.load(run / LAST, map_location="cpu", weights_only=True)
    checkpoint["ema"]["weights"].update(weights)
    torch.save(checkpoint, copy / LAST)


@torch.no_grad()
def _agreement(run: Path, inputs: Mapping[str, Tensor], found: Tensor) -> Difference:
    """Torch with a run's weights beside what a package gave.

    Raises:
        ValueError: where they differ by more than float16's rounding.
    """
    graph = DenoiserGraph(drawn_from(run).denoiser.cpu(), "mask" in inputs)
    agreed = difference(found, graph(*inputs.values()))
    if agreed.psnr_db < 50:
        raise ValueError(f"the decompressed weights give {agreed.psnr_db:.1f} dB of the package's; they are not its")
    return agreed


def _values(run: Path) -> dict[str, tuple[float, float | None]]:
    """What ``test`` says of a run's samples."""
    subprocess.run([sys.executable, "-m", "snapgen_pl", "test", "--run", str(run)], check=True)
    (report,) = [read_report(file) for file in (run / "reports").glob("*.json")]
    return {name: (score.value, score.spread) for name, score in report.values.items()}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
